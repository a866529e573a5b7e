"""Our own engine on one core: how long a text takes, how many a second, and how much memory.

`python -m benchmarks.engine --model FOLDER` (without a model: rules alone). The engine is held to
one core and the load comes from another; texts are English prose of the length asked for, all
different. CPU is the engine's own, of one text.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter, sleep

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    *("the", "report", "covers", "sales", "hiring", "and", "a", "new", "office", "as", "planned"),
    *("please", "bring", "figures", "to", "our", "meeting", "on", "tuesday", "while", "customers"),
    *("in", "north", "asked", "for", "another", "colour", "of", "chairs", "each", "within", "day"),
)
LENGTHS = (100, 1_000, 10_000)
TYPES = ("user_input", "tool_output")


def text_of(chars: int, seed: int) -> str:
    chance = random.Random(seed)
    sentences = []
    while sum(map(len, sentences)) < chars + 100:
        sentences.append(" ".join(chance.choices(WORDS, k=12)).capitalize() + ". ")
    return "".join(sentences)[:chars]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def load(url: str, chars: int, kind: str, connections: int, count: int) -> list[float]:
    """Seconds of each of `count` requests."""
    numbers = iter(range(count))
    seconds: list[float] = []

    async with aiohttp.ClientSession() as http:

        async def one() -> None:
            for number in numbers:
                body = {"text": text_of(chars, number), "content_type": kind}
                began = perf_counter()
                async with http.post(f"{url}/v1/detect", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                seconds.append(perf_counter() - began)

        await asyncio.gather(*(one() for _ in range(connections)))
    return seconds


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--count", type=int, default=100, help="requests of each measurement")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "detection.engines.server", f"--port={port}"]
    engine = subprocess.Popen([*command, f"--model={options.model}"], cwd=ROOT)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(engine.pid, {cores[-1]})
    for task in Path(f"/proc/{engine.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cores[-1]})
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[:-1]))
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                sleep(0.1)
        asyncio.run(load(url, 1_000, "user_input", 1, 10))
        print(
            f"| characters | type | p50 ms | p95 ms | {options.connections} at once: /s | CPU ms |"
        )
        print("| ---: | --- | ---: | ---: | ---: | ---: |")
        for chars in LENGTHS:
            for kind in TYPES:
                count = options.count if chars < 10_000 else max(4, options.count // 5)
                alone = asyncio.run(load(url, chars, kind, 1, count))
                used, began = cpu_seconds(engine.pid), perf_counter()
                asyncio.run(load(url, chars, kind, options.connections, count))
                rate = count / (perf_counter() - began)
                cpu = (cpu_seconds(engine.pid) - used) / count * 1000
                print(
                    f"| {chars:,} | `{kind}` | {at(alone, 0.5) * 1000:.1f} | "
                    f"{at(alone, 0.95) * 1000:.1f} | {rate:.0f} | {cpu:.1f} |",
                    flush=True,
                )
        print(
            f"\nMemory: {resident_mb(engine.pid):.0f} MB. Load of the machine: "
            f"{os.getloadavg()[0]:.1f}."
        )
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(20)


if __name__ == "__main__":
    main()
