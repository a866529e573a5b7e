"""What watching costs a real Robin: mails that it works off in a second, without and with watchers.

Robin and a gateway in front of it run already (docs/robin-real.md says how); its log tells how many
sessions it worked off. Each watcher holds a socket and turns a page every eight seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import websockets

PAGE_SECONDS = 8.0
WORKED_OFF = b"Session processed"


def worked_off(log: Path) -> int:
    return log.read_bytes().count(WORKED_OFF)


async def rate(log: Path, seconds: float) -> float:
    before, began = await asyncio.to_thread(worked_off, log), monotonic()
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(worked_off, log)
    return (after - before) / (monotonic() - began)


class Watchers:
    def __init__(self, base_url: str, token: str) -> None:
        self.base_url, self.token = base_url, token
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.messages: Counter[str] = Counter()
        self.bytes = 0

    async def pages(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=60) as http:
            while True:
                began = monotonic()
                answer = await http.get(f"/api/v1/queue/json?size=50&page={number % 5}")
                self.seconds.append(monotonic() - began)
                self.statuses[answer.status_code] += 1
                await asyncio.sleep(PAGE_SECONDS)

    async def socket(self) -> None:
        url = self.base_url.replace("http", "ws", 1) + "/ws/queue"
        protocols: Any = ["bearer", self.token]
        async with websockets.connect(url, subprotocols=protocols, max_size=None) as socket:
            async for text in socket:
                self.bytes += len(text)
                self.messages[json.loads(text)["type"]] += 1


async def main(options: argparse.Namespace) -> None:
    async with httpx.AsyncClient(base_url=options.url, timeout=60) as http:
        body = {"username": options.user, "password": options.password}
        answer = (await http.post("/api/v1/auth/login", json=body)).raise_for_status()
    watchers = Watchers(options.url, answer.json()["tokens"]["accessToken"])
    undisturbed = await rate(options.log, options.seconds)
    tasks = [asyncio.create_task(watchers.pages(n)) for n in range(options.watchers)]
    tasks += [asyncio.create_task(watchers.socket()) for _ in range(options.watchers)]
    watched = await rate(options.log, options.seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    seconds = sorted(watchers.seconds) or [0.0]
    print(f"undisturbed       {undisturbed:8.1f} a second")
    print(f"{options.watchers:3} watchers      {watched:8.1f} a second")
    median_ms = 1000 * seconds[len(seconds) // 2]
    print(f"pages, median     {median_ms:8.0f} ms, {dict(watchers.statuses)}")
    print(f"sockets           {dict(watchers.messages)}, {watchers.bytes} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the gateway")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--log", type=Path, required=True, help="Robin's log of today")
    parser.add_argument("--watchers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=300.0)
    asyncio.run(main(parser.parse_args()))
