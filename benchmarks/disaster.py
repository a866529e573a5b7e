"""How long a backup, its trial and a restore take, of about ten million rows.

    python -m benchmarks.disaster [--rows 4000000] [--folder FOLDER] [--only fill|measure]

A PostgreSQL of its own (`deploy/stores.py`, which really writes) is filled as `make bench-rows`
does: `--rows` of the usage log, and what belongs to them in every other table, two and a half times
as many in all. Then `manage.py backup`, `restore --verify` and `restore` are timed, as an operator
runs them. With `--folder` the server's files stay there, so that it may be filled first and
measured later. Exit codes: 0 fine, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pyrage
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import ROOT, gateway
from benchmarks.processes import BenchError, base_environment, run_once
from benchmarks.stores import Stores
from deploy.services import StopError
from deploy.stores import Postgres

HOUR = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.disaster", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the usage log")
    parser.add_argument("--folder", type=Path, help="where the server's files stay")
    parser.add_argument("--only", choices=["fill", "measure"])
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    try:
        with ExitStack() as stack:
            run(arguments, console, stack)
    except (BenchError, StopError) as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    console.print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    console.print(str(machine.describe()))
    return 0


def run(arguments: argparse.Namespace, console: Console, stack: ExitStack) -> None:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="disaster-")))
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    server = Postgres(stack, arguments.folder)
    env = base_environment() | dict(gateway(Stores(server.url, ""), 0, 1, scratch).env)
    if arguments.only != "measure":
        timed("fill", ("migrate", "--verbosity=0"), env, console)
        fill = ("fill_usage", f"--rows={arguments.rows}", "--only-fill")
        timed("fill", fill, env, console)
    if arguments.only == "fill":
        return
    identity = pyrage.x25519.Identity.generate()
    (scratch / "identity").write_text(f"{identity}\n")
    env["BACKUP_RECIPIENTS"] = str(identity.to_public())
    place, key = str(scratch / "backups"), f"--identity={scratch / 'identity'}"
    took, output = timed("backup", ("backup", place), env, console)
    rows = re.findall(r"([\d,]+) rows", output)[-1]
    table = Table(title=f"{rows} rows, {size(server.url) / 1e9:.1f} GB with indexes")
    for heading in ("step", "seconds"):
        table.add_column(heading)
    [dump] = Path(place).glob("*.age")
    table.add_row(f"backup: {dump.stat().st_size / 1e6:,.0f} MB, encrypted", f"{took:.0f}")
    took, _ = timed("verify", ("restore", place, "--verify", key), env, console)
    table.add_row("its trial (restore --verify)", f"{took:.0f}")
    server.create("restored")
    into = env | {"DATABASE_URL": server.url.removesuffix("gateway") + "restored"}
    took, _ = timed("restore", ("restore", place, key), into, console)
    table.add_row("restore into an empty database, compared", f"{took:.0f}")
    took, _ = timed("migrate", ("migrate", "--verbosity=0"), into, console)
    table.add_row("migrate, with nothing to do", f"{took:.0f}")
    console.print(table)


def timed(
    name: str, command: tuple[str, ...], env: Mapping[str, str], console: Console
) -> tuple[float, str]:
    """Seconds, and what it said."""
    began = time.monotonic()
    output = run_once((sys.executable, "manage.py", *command), env, ROOT, HOUR)
    took = time.monotonic() - began
    console.print(f"  {name}: {took:.0f} s {' '.join(output.split()[-30:])}", markup=False)
    return took, output


def size(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    sys.exit(main())
