"""The rows of the benchmark: what is asked, and which figures it must reach.

A row is data only. To add one, append a `Row` to `ROWS`; when it needs another request, add a
script beside ``wrk/detect.lua`` and, if the reference lacks the endpoint, its counterpart there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Engine(StrEnum):
    """How often the stub engine must have been asked for a run to count."""

    EACH = "each"  # at least once for every answered request
    NEVER = "never"  # hardly at all: answers come from a cache (health probes are allowed)
    ANY = "any"  # not checked


@dataclass(frozen=True)
class Keys:
    """How many API keys the database holds, and how many of them the requests take turns with."""

    stored: int
    active: int


@dataclass(frozen=True)
class Limit:
    """What a figure must reach, and what is aimed at: as much at least, or less than that."""

    must: float
    aim: float | None = None
    is_most: bool = False

    def verdict(self, by_run: Sequence[float]) -> str:
        """``aim met``, ``must met`` or ``must missed``, by the worst of the runs."""
        if self.aim is not None and self._holds(by_run, self.aim):
            return "aim met"
        return "must met" if self._holds(by_run, self.must) else "must missed"

    def _holds(self, values: Sequence[float], bound: float) -> bool:
        return max(values) < bound if self.is_most else min(values) >= bound


def below(must: float, aim: float | None = None) -> Limit:
    return Limit(must, aim, is_most=True)


@dataclass(frozen=True)
class Row:
    """One kind of request, offered in the same way to every contender."""

    name: str
    title: str
    path: str = "/v1/detect"
    script: str = "detect.lua"  # below benchmarks/wrk/
    limits: Mapping[str, Limit] = field(default_factory=dict)  # of figures of report.FIGURES
    engine: Engine = Engine.ANY
    script_env: Mapping[str, str] = field(default_factory=dict)
    warm_up_seconds: int = 3  # imports, pools, caches and the interpreter's own specialisation
    connections: int | None = None  # None: what the command line says
    takes_token: bool = False  # of the Robin API, instead of an API key
    counts_usage: bool = True  # every answered request must leave a usage row
    keys: Keys | None = None  # None: the contender's one key
    gateway_only: bool = False  # there is nothing alike to compare with
    is_growth: bool = False  # one of several rows that differ in one size: fewer rounds
    offered_per_second: int | None = None  # None: as many as are answered
    offered_share: float | None = None  # of what the base was answered, instead of a fixed rate
    base: str = ""  # the row that this one is held against, in the same run
    has_peers: bool = False  # asked also of those that only pass on


TURNS = 6  # of all keys before it counts: a worker of two then misses one in 64
EMPTY = {"empty_seconds": below(1.0)}  # nothing of the usage waits in the stream any more
LATENCY = {
    "added_p95_ms": below(5.0, 2.0),
    "added_p99_ms": below(15.0, 6.0),
    "answered_share": Limit(0.98),
}

ROWS: tuple[Row, ...] = (
    Row(
        name="detect",
        title="POST /v1/detect, engine asked each time",
        limits={"ratio": Limit(8.0), "cpu_to_before": below(0.67), **EMPTY},
        engine=Engine.EACH,
        script_env={"BENCH_TEXT": "unique"},
        has_peers=True,
    ),
    Row(
        name="cached",
        title="POST /v1/detect, verdict cached",
        limits={"ratio": Limit(5.5), "cpu_to_before": below(0.75), **EMPTY},
        engine=Engine.NEVER,
        script_env={"BENCH_TEXT": "same"},
    ),
    Row(
        name="accept",
        title="POST /v1/detect, verdict cached, connections that stay: who answers them",
        limits={"busiest_share": below(0.6)},
        engine=Engine.NEVER,
        script_env={"BENCH_TEXT": "same", "BENCH_RENEW": "0"},
        gateway_only=True,
    ),
    Row(
        name="offered",
        title="POST /v1/detect, 1,000 req/s offered: latency above the engine's own",
        limits={**LATENCY, **EMPTY},
        engine=Engine.EACH,
        connections=100,
        gateway_only=True,  # the reference does not reach that rate on two cores
        offered_per_second=1_000,
    ),
    *(
        Row(
            name=f"offered-{percent}",
            title=f"POST /v1/detect, {percent} % of the highest rate offered",
            limits=LATENCY,
            engine=Engine.EACH,
            connections=100,
            gateway_only=True,
            offered_share=percent / 100,
            base="detect",
        )
        for percent in (50, 80)
    ),
    Row(
        name="robin-config",
        title="GET /api/v1/config, remembered, with an access token",
        path="/api/v1/config",
        script_env={"BENCH_GET": "/api/v1/config"},
        limits={"ratio": Limit(4.0)},
        takes_token=True,
        counts_usage=False,
    ),
    Row(
        name="robin-queue",
        title="GET /api/v1/queue/json, a page of 50 from Robin, with an access token",
        path="/api/v1/queue/json",
        script_env={"BENCH_GET": "/api/v1/queue/json?page=0&size=50"},
        limits={"ratio": Limit(8.0)},
        takes_token=True,
        counts_usage=False,
    ),
    *(
        Row(
            name=f"connections-{number}",
            title=f"POST /v1/detect, engine asked each time, {number} connections",
            engine=Engine.EACH,
            connections=number,
            gateway_only=number == 512,  # the reference refuses a third with 503 then
            is_growth=True,
            base="connections-64" if number == 512 else "",
            limits={"rate_to_base": Limit(0.85)} if number == 512 else {},
        )
        for number in (8, 64, 512)
    ),
    Row(
        name="text-10000",
        title="POST /v1/detect, texts of 10,000 characters",
        engine=Engine.EACH,
        script_env={"BENCH_TEXT_CHARS": "10000"},
        gateway_only=True,  # it shows the engine all of the text, the reference what it reads
        is_growth=True,
        base="detect",
        limits={"window_cpu_to_base": below(2.0)},
    ),
    *(
        Row(
            name=f"keys-{stored}",
            title=f"POST /v1/detect, {stored:,} keys stored, {active:,} of them in turn",
            engine=Engine.EACH,
            keys=Keys(stored, active),
            warm_up_seconds=10,  # at least: until each worker knows nearly each key
            gateway_only=True,
            is_growth=True,
            base=base,
            limits={"rate_to_base": Limit(must)} if base else {},
        )
        for stored, active, base, must in (
            (10, 10, "", 0.0),
            (10_000, 10_000, "keys-10", 0.85),
            (1_000_000, 10_000, "keys-10000", 0.95),
        )
    ),
)
