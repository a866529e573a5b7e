"""Mails that Robin delivers in a second, while nobody watches and while many do.

Rounds of both kinds take turns, so that what else the machine does falls on both. Nobody watches
while all processes of the gateway are stopped.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
import websockets

from deploy.robin_real import sink
from deploy.robin_real.mta import Mta
from deploy.robin_real.stack import Gateway

PAGE_SECONDS = 5.0
SHARE_MIN = 0.9
STILL_SECONDS = 1.0
"""No mail for longer is a pause: eight are under way at a time, of half a second each."""
TURN_SECONDS = 2.0
FREE_SECONDS = 0.5


@dataclass
class Watchers:
    """As many people: each holds a socket, turns a page every five seconds, searches every ten."""

    url: str
    token: str
    number: int
    page_seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    ages: list[int] = field(default_factory=list)
    socket_bytes: int = 0

    async def watch(self, seconds: float) -> None:
        tasks = [asyncio.create_task(self._pages(n)) for n in range(self.number)]
        tasks += [asyncio.create_task(self._socket()) for _ in range(self.number)]
        try:
            await asyncio.sleep(seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pages(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as http:
            turn = number
            await asyncio.sleep(PAGE_SECONDS * number / self.number)
            while True:
                turn += 1
                search = f"&search=n{turn}7" if turn % 2 else ""
                began = time.monotonic()
                answer = await http.get(f"/api/v1/queue/json?size=50&page=0{search}")
                self.page_seconds.append(time.monotonic() - began)
                self.statuses[answer.status_code] += 1
                if "age" in answer.headers:
                    self.ages.append(int(answer.headers["age"]))
                await asyncio.sleep(PAGE_SECONDS)

    async def _socket(self) -> None:
        url = self.url.replace("http", "ws", 1) + "/ws/queue"
        protocols: Any = ["bearer", self.token]
        async for socket in websockets.connect(url, subprotocols=protocols, max_size=None):
            async for text in socket:
                self.socket_bytes += len(text)
                self.messages[json.loads(text)["type"]] += 1

    def page_ms(self) -> float:
        return 1000 * median(self.page_seconds or [0.0])


@dataclass(frozen=True)
class Span:
    """What was delivered in some time. `still_seconds` are those of its pauses: of lists.

    `robin` and `ours` are how much of a core the two took.
    """

    seconds: float
    mails: int
    still_seconds: float = 0.0
    lists: int = 0
    robin: float = 0.0
    ours: float = 0.0

    @property
    def rate(self) -> float:
        return self.mails / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Rounds:
    alone: list[Span] = field(default_factory=list)
    watched: list[Span] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    """Of the largest web process, before the first watched round and after each."""

    @property
    def share(self) -> float:
        """Of the deliveries that nobody disturbs."""
        return rate(self.watched) / rate(self.alone) if rate(self.alone) else 0.0

    @property
    def grown_bytes(self) -> int:
        return max(self.rss_bytes) - self.rss_bytes[0]

    @property
    def between(self) -> float:
        """The same while no list is read: what the gateway's own work beside Robin leaves."""
        moving = [replace(s, seconds=s.seconds - s.still_seconds) for s in self.watched]
        return rate(moving) / rate(self.alone) if rate(self.alone) else 0.0

    def text(self) -> str:
        alone, watched = (
            " ".join(f"{one.rate:.1f}" for one in kind) for kind in (self.alone, self.watched)
        )
        seconds = sum(one.seconds for one in self.watched)
        still = sum(one.still_seconds for one in self.watched)
        lists = sum(one.lists for one in self.watched)
        return (
            f"alone {alone}; watched {watched}: {100 * self.share:.0f} %, {lists} lists in "
            f"{seconds:.0f} s, {still:.0f} s of them still; between them {100 * self.between:.0f} %"
            f"; of a core: Robin {_mean('robin', self.alone)} alone, "
            f"{_mean('robin', self.watched)} watched, the gateway {_mean('ours', self.watched)}"
        )


def _mean(name: str, spans: list[Span]) -> str:
    return f"{100 * mean(getattr(one, name) for one in spans):.0f} %" if spans else "-"


def rate(spans: list[Span]) -> float:
    """Mails a second, of all of them together."""
    seconds = sum(one.seconds for one in spans)
    return sum(one.mails for one in spans) / seconds if seconds > 0 else 0.0


def run(
    mta: Mta,
    gateway: Gateway,
    file: Path,
    watchers: Watchers,
    *,
    rounds: int,
    alone_seconds: float,
    watched_seconds: float,
) -> Rounds:
    """`rounds` watched ones, each at least so long, with one alone before and after each.

    What watching costs comes in lists, with rests between them that are twelve times as long. A
    watched round begins with a list: from there it is counted to the beginning of a later one,
    which is whole rounds of list and rest.
    """
    found = Rounds([_alone(mta, gateway, file, alone_seconds)], rss_bytes=[gateway.rss_bytes()])
    for _ in range(rounds):
        gateway.forget_rest()
        began, cpu = time.time(), _cpu(mta, gateway)
        asyncio.run(_watch(mta, watchers, began, watched_seconds))
        found.watched.append(_with_cpu(_watched(mta, file, began), mta, gateway, began, cpu))
        found.rss_bytes.append(gateway.rss_bytes())
        found.alone.append(_alone(mta, gateway, file, alone_seconds))
        print(f"  … {found.text()}", flush=True)
    return found


def _alone(mta: Mta, gateway: Gateway, file: Path, seconds: float) -> Span:
    while True:
        mta.wait_until_free()
        time.sleep(1.0)
        with gateway.paused():
            asked = time.monotonic()
            mta.wait_until_free()
            if time.monotonic() - asked > FREE_SECONDS:
                continue  # whoever stood still in the middle of a list has it end when he goes on
            began, cpu = time.time(), _cpu(mta, gateway)
            time.sleep(seconds)
            return _with_cpu(span(sink.taken(file), began, time.time()), mta, gateway, began, cpu)


def _cpu(mta: Mta, gateway: Gateway) -> tuple[float, float]:
    """Seconds until now: Robin's and ours."""
    return mta.cpu_seconds(), gateway.cpu_seconds()


def _with_cpu(
    found: Span, mta: Mta, gateway: Gateway, began: float, before: tuple[float, float]
) -> Span:
    seconds = time.time() - began
    robin, ours = (now - then for now, then in zip(_cpu(mta, gateway), before, strict=True))
    return replace(found, robin=robin / seconds, ours=ours / seconds)


async def _watch(mta: Mta, watchers: Watchers, began: float, seconds: float) -> None:
    """For so long, and until lists were asked for twice; four times as long at most."""
    watching = asyncio.create_task(watchers.watch(4 * seconds))
    try:
        while not watching.done():
            await asyncio.sleep(3.0)
            if time.time() - began >= seconds and len(_turns(mta, began)) > 1:
                break
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _turns(mta: Mta, began: float) -> list[float]:
    """When it was the gateway's turn: several quick lists in one are counted once."""
    found: list[float] = []
    for at in mta.lists_asked(began):
        if not found or at - found[-1] > TURN_SECONDS:
            found.append(at)
    return found


def _watched(mta: Mta, file: Path, began: float) -> Span:
    """Since then, and until now."""
    turns = _turns(mta, began)
    if len(turns) > 1:
        return replace(span(sink.taken(file), turns[0], turns[-1]), lists=len(turns) - 1)
    return replace(span(sink.taken(file), began, time.time()), lists=len(turns))


def span(taken: list[tuple[float, str]], began: float, ended: float) -> Span:
    times = [at for at, _ in taken if began <= at < ended]
    gaps = [after - before for before, after in pairwise([began, *times, ended])]
    still = sum(gap for gap in gaps if gap > STILL_SECONDS)
    return Span(ended - began, len(times), still)
