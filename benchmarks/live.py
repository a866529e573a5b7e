"""The live queue with many watchers on one worker: how late the last hears, and what each costs.

    python -m benchmarks.live [--clients 1000] [--changes 6]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`. A stand-in
Robin gets a new item before each poll, five seconds apart as in production; every client notes when
it heard of it. Late is counted from the time that the message itself names, which is when Robin's
answer was there. Memory is what the worker grew by. Clients share a process of their own.
Exit codes: 0 fine, 1 the must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from websockets.asyncio.client import connect

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import LOOPBACK, BenchError, Child, base_environment, run_once
from benchmarks.rows import below
from benchmarks.stores import named_stores, private_stores
from robin.standin.queue import Envelope
from robin.standin.robin import Robin

LIMIT = below(100, 50)  # ms from the poll to the last client
POLL_SECONDS = 5
AT_ONCE = 50  # sockets that are opened side by side


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.live", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=6)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        late_ms, bytes_each = asyncio.run(run(arguments.clients, arguments.changes, console))
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    lasts = sorted(max(one) for one in late_ms)
    verdict = LIMIT.verdict([lasts[int(len(lasts) * 0.95)]])
    p95 = median(sorted(one)[int(len(one) * 0.95)] for one in late_ms)
    console.print(
        f"{arguments.clients} clients on one worker, {len(late_ms)} changes: the last client "
        f"heard {median(lasts):.0f} ms after the poll (median; {lasts[0]:.0f}-{lasts[-1]:.0f}), "
        f"95 of 100 within {p95:.0f} ms; must < {LIMIT.must} ms, aim < {LIMIT.aim} ms of 95 "
        f"changes in 100: {verdict}. {bytes_each / 1024:.0f} KiB each."
    )
    console.print(", ".join(f"{k} {v}" for k, v in machine.describe().items()), style="dim")
    return 1 if verdict == "must missed" else 0


async def run(clients: int, changes: int, console: Console) -> tuple[list[list[float]], float]:
    """Milliseconds of each client for each change, and bytes of the worker for each client."""
    database_url, redis_url = named_stores()
    robin = Robin()
    await robin.start()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        stores = stack.enter_context(private_stores(database_url, redis_url, "live"))
        contender = gateway(stores, 9, 1, scratch)
        env = base_environment() | {
            **contender.env,
            "ROBIN_CLIENT_API_URL": robin.client_url,
            "ROBIN_SERVICE_API_URL": robin.service_url,
            "QUEUE_POLL_SECONDS": str(POLL_SECONDS),
            "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
        }
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        token = run_once(contender.make_token, env, contender.cwd, seconds=60).split()[-1]
        log = scratch / "gateway.log"
        child = Child("the gateway", contender.serve, env, contender.cwd, log)
        stack.callback(child.stop)
        await asyncio.to_thread(child.wait_ready, contender.port, "/health/live")
        address = f"ws://{LOOPBACK}:{contender.port}/ws/queue"
        crowd = Crowd(address, token)
        # The first makes the worker poll, and grow by what any number of clients needs once.
        await crowd.grow(1)
        await asyncio.sleep(2 * POLL_SECONDS)
        before = _memory(child)
        await crowd.grow(clients - 1)
        console.print(f"{clients} clients watch")
        await asyncio.sleep(POLL_SECONDS)
        grown = _memory(child) - before
        crowd.late_ms.clear()
        for number in range(changes):
            envelope = Envelope("bench@north.example", [f"n{number}@east.example"], "n")
            robin.seed.queue.enqueue("ESMTP", [envelope])
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(1)
        ended = await crowd.leave()
    await robin.stop()
    whole = [times for _, times in sorted(crowd.late_ms.items()) if len(times) == clients]
    if ended or len(whole) < changes - 1:
        raise BenchError(
            f"{ended} sockets ended, and {len(whole)} of {changes} changes reached everybody."
        )
    return whole, grown / (clients - 1)


class Crowd:
    """Sockets that note how late they heard of each change."""

    def __init__(self, address: str, token: str) -> None:
        self.late_ms: dict[int, list[float]] = defaultdict(list)
        self._address, self._headers = address, {"Authorization": f"Bearer {token}"}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._watching: list[asyncio.Task[None]] = []

    async def grow(self, count: int) -> None:
        readies = [asyncio.get_running_loop().create_future() for _ in range(count)]
        self._watching.extend(asyncio.create_task(self._watch(ready)) for ready in readies)
        await asyncio.wait_for(asyncio.gather(*readies), 60)

    async def leave(self) -> int:
        """How many had ended before."""
        ended = sum(task.done() for task in self._watching)
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        return ended

    async def _watch(self, ready: asyncio.Future[None]) -> None:
        async with self._places:
            socket = await connect(
                self._address, additional_headers=self._headers, compression=None
            )
            await socket.recv()
            ready.set_result(None)
        async for text in socket:
            now = time.time()
            message = json.loads(text)
            if message["type"] == "diff":
                at = datetime.fromisoformat(message["at"]).timestamp()
                self.late_ms[message["seq"]].append((now - at) * 1000)


def _memory(child: Child) -> int:
    return max(process.rss_bytes for process in child.usage())


if __name__ == "__main__":
    sys.exit(main())
