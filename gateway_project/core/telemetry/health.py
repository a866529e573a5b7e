"""Probes of what the gateway stands on, remembered so that health checks are no load themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Literal

Status = Literal["up", "degraded", "down"]
PROBE_SECONDS_MAX = 1.0
REMEMBER_UP_SECONDS = 30.0
REMEMBER_TROUBLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Component:
    """`latency_ms` is None when nothing answered."""

    status: Status
    latency_ms: float | None = None

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"status": self.status}
        if self.latency_ms is not None:
            report["latency_ms"] = round(self.latency_ms, 2)
        return report


class Probe:
    """Asks once, remembers the answer: 30 s when all is well, 5 s in trouble.

    `ask` returns a status, or raises whatever it likes when the thing is down.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Status]],
        *,
        remember_up_seconds: float = REMEMBER_UP_SECONDS,
        remember_trouble_seconds: float = REMEMBER_TROUBLE_SECONDS,
    ) -> None:
        self._ask = ask
        self._remember_up_seconds = remember_up_seconds
        self._remember_trouble_seconds = remember_trouble_seconds
        self._known: Component | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def check(self, *, fresh: bool = False) -> Component:
        """The component's state; `fresh` asks again even when the last answer is remembered."""
        async with self._lock:
            if self._known is None or fresh or monotonic() >= self._until:
                self._known = await self._probe()
                up = self._known.status == "up"
                seconds = self._remember_up_seconds if up else self._remember_trouble_seconds
                self._until = monotonic() + seconds
            return self._known

    async def _probe(self) -> Component:
        started = perf_counter()
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                status = await self._ask()
        except Exception:  # noqa: BLE001 - whatever a probe raises, the thing is down
            return Component("down")
        return Component(status, (perf_counter() - started) * 1000)


async def check_all(probes: dict[str, Probe], *, fresh: bool = False) -> dict[str, Component]:
    found = await asyncio.gather(*(probe.check(fresh=fresh) for probe in probes.values()))
    return dict(zip(probes, found, strict=True))
