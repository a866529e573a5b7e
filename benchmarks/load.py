"""One run of wrk, and what it measured."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import LOOPBACK, BenchError, base_environment
from benchmarks.rows import Row

SCRIPTS = Path(__file__).parent / "wrk"


@dataclass(frozen=True)
class Load:
    """Answers of one run. Times in milliseconds."""

    requests: int
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def run_wrk(
    row: Row,
    port: int,
    headers: Mapping[str, str],
    *,
    connections: int,
    seconds: int,
    keys: Path | None = None,
) -> Load:
    """Offer the row's requests for `seconds`, as fast as they are answered if it says no rate.

    With a rate each connection has a thread of wrk and a timetable of its own, which answers do not
    put off: who is still waited for when the next request is due is measured from then (an open
    loop). A run with any failed request does not count: it raises, with a sample of the answers.
    """
    output = _wrk(row, port, headers, connections, seconds, keys, sample=False)
    result = json.loads(_line(output, "RESULT"))
    errors = {kind: count for kind, count in result["errors"].items() if count}
    if errors or not result["requests"]:
        again = _wrk(row, port, headers, connections, 2, keys, sample=True)
        found = ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "no answer"
        raise BenchError(
            f"{row.title}: of {result['requests']} requests to port {port} failed: {found}. "
            f"A sample answer: {_line(again, 'SAMPLE') or 'none in a second try'}"
        )
    return Load(
        requests=result["requests"],
        requests_per_second=result["requests"] / (result["duration_us"] / 1e6),
        p50_ms=result["p50_us"] / 1000,
        p95_ms=result["p95_us"] / 1000,
        p99_ms=result["p99_us"] / 1000,
        max_ms=result["max_us"] / 1000,
    )


def _wrk(
    row: Row,
    port: int,
    headers: Mapping[str, str],
    connections: int,
    seconds: int,
    keys: Path | None,
    *,
    sample: bool,
) -> str:
    # The key travels in the environment: arguments are readable for every user of the machine.
    env = base_environment() | {
        "BENCH_RUN": f"{os.getpid()}-{secrets.token_hex(6)}",
        "BENCH_SEED": str(secrets.randbelow(1 << 31)),
        "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items()),
        "BENCH_CONNECTIONS": str(connections),
        "BENCH_SAMPLE": "1" if sample else "0",
        "BENCH_KEYS": str(keys or ""),
        "BENCH_RATE": str(row.offered_per_second or ""),
        **row.script_env,
    }
    threads = connections if row.offered_per_second else 1
    command = [
        "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
        "-s", str(SCRIPTS / row.script), f"http://{LOOPBACK}:{port}{row.path}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=seconds + 30
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"wrk did not end within {seconds + 30} s.") from error
    if done.returncode != 0:
        raise BenchError(f"wrk ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _line(output: str, mark: str) -> str:
    """The rest of the first line that starts with `mark`."""
    for line in output.splitlines():
        if line.startswith(mark + " "):
            return line.removeprefix(mark + " ")
    return ""
