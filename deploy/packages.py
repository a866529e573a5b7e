"""Fill an environment with what a lock file names, by uv: half of pip's time for the same files.

    .venv/bin/python deploy/packages.py requirements/dev.txt --only

pip brings uv, by the hashes of requirements/dev.txt. uv reads nothing of pip's configuration, by
which some machines reach the packages, so it is told here what pip is told. What it cannot be told,
and what it does not manage, pip does. `--only` also removes what the lock does not name: something
that an older lock left behind hides that something else is missing.

Needs nothing but Python and pip.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib.metadata import distributions, version
from pathlib import Path

UV_LOCK = Path(__file__).resolve().parent.parent / "requirements/dev.txt"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
SEEDS = {"pip", "setuptools", "wheel", "uv"}
"""What an environment begins with, and what fills it."""
SYSTEMS_CERTIFICATES = (24, 2)
"""From this version on pip believes the certificates of the system; before, its own, as uv does."""

FLAGS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
    "cert": "--cert",
}
SWITCHES = {"no-index": "--no-index", "no-cache-dir": "--no-cache"}
VARIABLES = {
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "retries": ("UV_HTTP_RETRIES",),
    "proxy": ("HTTPS_PROXY", "HTTP_PROXY"),
    "client-cert": ("SSL_CLIENT_CERT",),
}
NOT_NEEDED = {
    # How pip talks, and what means nothing where every version is locked by its hashes.
    *(
        "config-file",
        "disable-pip-version-check",
        "no-python-version-warning",
        "no-input",
        "root-user-action",
    ),
    *("quiet", "verbose", "no-color", "progress-bar", "log", "no-warn-script-location"),
    *("break-system-packages", "require-virtualenv", "exists-action", "cache-dir", "compile"),
    *("prefer-binary", "upgrade", "upgrade-strategy", "require-hashes", "use-feature"),
}
YES = ("1", "true", "yes", "y", "on", "t")


class NotByUv(Exception):
    """Why uv did not do it, as the end of a sentence."""


# -- What pip is told -----------------------------------------------------------------------------


def pip_settings(listed: str) -> dict[str, str]:
    """What `pip config list` says of `pip install`, by its options' long names."""
    found: dict[str, str] = {}
    pattern = re.compile(r"^(global|install|:env:)\.([\w-]+)=(.*)$", re.MULTILINE)
    lines = pattern.findall(listed)
    for section in ("global", "install", ":env:"):  # the later wins
        for where, name, value in lines:
            if where == section:
                found[name.replace("_", "-")] = str(ast.literal_eval(value))
    return found


def uv_options(settings: Mapping[str, str], pip: str) -> tuple[list[str], dict[str, str]]:
    """Flags and variables that tell uv what a pip of this version is told. Raises `NotByUv`."""
    flags: list[str] = []
    variables: dict[str, str] = {}
    for name, value in settings.items():
        if name in FLAGS:
            flags += [word for one in value.split() for word in (FLAGS[name], one)]
        elif name in SWITCHES:
            flags += [SWITCHES[name]] if value.lower() in YES else []
        elif name in VARIABLES:
            variables |= dict.fromkeys(VARIABLES[name], value)
        elif name not in NOT_NEEDED:
            raise NotByUv(f"has nothing for pip's setting `{name}`")
    if "extra-index-url" in settings:  # pip looks into all of them; hashes say what is right
        flags += ["--index-strategy", "unsafe-best-match"]
    if "cert" not in settings and tuple(map(int, pip.split(".")[:2])) >= SYSTEMS_CERTIFICATES:
        flags.append("--system-certs")
    return flags, variables


# -- Installing -----------------------------------------------------------------------------------


def install(lock: Path, python: Path | None = None, *, is_compiled: bool = True) -> None:
    """Into this environment, or that of `python`. Raises `CalledProcessError`: pip said why."""
    target = str(python or sys.executable)
    try:
        uv = bring_uv()
        talking = {**os.environ, "PIP_QUIET": "0"}  # a quiet pip lists nothing
        listed = subprocess.check_output([*PIP, "config", "list"], text=True, env=talking)
        flags, variables = uv_options(pip_settings(listed), version("pip"))
        flags += ["--compile-bytecode"] if is_compiled else []
        command = [uv, "pip", "install", "--quiet", "--python", target, "--require-hashes"]
        done = subprocess.run(
            [*command, *flags, "--requirement", lock],
            env={**os.environ, **variables},
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise NotByUv(f"failed ({done.stderr.strip() or done.returncode})")
    except (NotByUv, OSError, subprocess.CalledProcessError) as exc:
        why = exc if isinstance(exc, NotByUv) else f"does not come: {exc}"
        print(f"uv {why}; so pip does it, which takes longer.", flush=True)
        command = [*PIP, "--quiet", "--python", target, "install", "--require-hashes"]
        command += [] if is_compiled else ["--no-compile"]
        subprocess.run([*command, "--requirement", lock], check=True)


def bring_uv() -> str:
    """The program, brought by pip where this environment has none, or another than is locked."""
    found = re.search(r"^uv==(\S+) (?:.*\\\n)*.*$", UV_LOCK.read_text(), re.MULTILINE)
    assert found, f"{UV_LOCK} does not name uv"
    program = Path(sysconfig.get_path("scripts")) / "uv"
    if not program.exists() or installed().get("uv") != found[1]:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
            lock.write(found[0])
            lock.flush()
            subprocess.run(
                [*PIP, "--quiet", "install", "--no-deps", "--only-binary=:all:", "-r", lock.name],
                check=True,
            )
    return str(program)


# -- Removing -------------------------------------------------------------------------------------


def canonical(name: str) -> str:
    """Of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Versions by name of what lies in this environment itself."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return {canonical(one.name): one.version for one in distributions(path=sorted(folders))}


def leftovers(*locks: Path) -> list[str]:
    """What lies in this environment and stands in none of the lock files."""
    named = {
        canonical(name)
        for lock in locks
        for name in re.findall(r"^([\w.-]+)(?:\[.*?\])?==", lock.read_text(), re.MULTILINE)
    }
    return sorted(set(installed()) - named - SEEDS)


def remove_leftovers(lock: Path) -> None:
    if found := leftovers(lock):
        print(f"Removing what {lock} does not name: {', '.join(found)}", flush=True)
        subprocess.run([*PIP, "--quiet", "uninstall", "--yes", *found], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("lock", type=Path, nargs="?", help="without: bring uv, and no more")
    parser.add_argument("--only", action="store_true", help="remove what it does not name")
    options = parser.parse_args()
    try:
        if options.lock is None:
            bring_uv()
            return
        install(options.lock)
        if options.only:
            remove_leftovers(options.lock)
    except subprocess.CalledProcessError as exc:
        sys.exit(exc.returncode)


if __name__ == "__main__":
    main()
