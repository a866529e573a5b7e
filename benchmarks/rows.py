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
class Row:
    """One kind of request, offered in the same way to every contender."""

    name: str
    title: str
    path: str
    script: str  # below benchmarks/wrk/
    must: float | None = None  # gateway / reference, requests per second
    aim: float | None = None
    engine: Engine = Engine.ANY
    script_env: Mapping[str, str] = field(default_factory=dict)
    connections: int | None = None  # None: what the command line says
    counts_usage: bool = True  # every answered request must leave a usage row


ROWS: tuple[Row, ...] = (
    Row(
        name="detect",
        title="POST /v1/detect, engine asked each time",
        path="/v1/detect",
        script="detect.lua",
        must=5.0,
        aim=8.0,
        engine=Engine.EACH,
        script_env={"BENCH_TEXT": "unique"},
    ),
    Row(
        name="cached",
        title="POST /v1/detect, verdict cached",
        path="/v1/detect",
        script="detect.lua",
        must=2.5,
        aim=4.0,
        engine=Engine.NEVER,
        script_env={"BENCH_TEXT": "same"},
    ),
)
