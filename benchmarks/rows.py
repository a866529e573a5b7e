"""The rows of the benchmark: what is asked, and which ratio it must reach.

A row is data only. To add one, append a `Row` to `ROWS`; when it needs another request, add a
script beside ``wrk/detect.lua`` and, if the reference lacks the endpoint, its counterpart there.
"""

from __future__ import annotations

from collections.abc import Mapping
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
class Row:
    """One kind of request, offered in the same way to every contender."""

    name: str
    title: str
    path: str = "/v1/detect"
    script: str = "detect.lua"  # below benchmarks/wrk/
    # Of gateway / reference in requests per second; with a rate, of the ms added to the p95.
    must: float | None = None
    aim: float | None = None
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


ROWS: tuple[Row, ...] = (
    Row(
        name="detect",
        title="POST /v1/detect, engine asked each time",
        must=5.0,
        aim=8.0,
        engine=Engine.EACH,
        script_env={"BENCH_TEXT": "unique"},
    ),
    Row(
        name="cached",
        title="POST /v1/detect, verdict cached",
        must=2.5,
        aim=4.0,
        engine=Engine.NEVER,
        script_env={"BENCH_TEXT": "same"},
    ),
    Row(
        name="offered",
        title="POST /v1/detect, 1,000 req/s offered: latency above the engine's own",
        must=5.0,
        aim=2.0,
        engine=Engine.EACH,
        connections=100,
        gateway_only=True,  # the reference does not reach that rate on two cores
        offered_per_second=1_000,
    ),
    Row(
        name="robin-config",
        title="GET /api/v1/config, remembered, with an access token",
        path="/api/v1/config",
        script_env={"BENCH_GET": "/api/v1/config"},
        must=2.5,
        aim=4.0,
        takes_token=True,
        counts_usage=False,
    ),
    Row(
        name="robin-queue",
        title="GET /api/v1/queue/json, a page of 50 from Robin, with an access token",
        path="/api/v1/queue/json",
        script_env={"BENCH_GET": "/api/v1/queue/json?page=0&size=50"},
        must=5.0,
        aim=8.0,
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
    ),
    *(
        Row(
            name=f"keys-{stored}",
            title=f"POST /v1/detect, {stored:,} keys stored, {active:,} of them in turn",
            engine=Engine.EACH,
            keys=Keys(stored, active),
            warm_up_seconds=12,  # each worker gets to know each key
            gateway_only=True,
            is_growth=True,
        )
        for stored, active in ((10, 10), (10_000, 10_000), (1_000_000, 10_000))
    ),
)
