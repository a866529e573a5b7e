"""What one detection costs, counted and not timed: the same on every machine.

Whoever makes the hot path longer sees it here first. The bounds are what it takes today and a
twentieth; when a change makes it shorter, they come down with it.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import sys
import tracemalloc
from dataclasses import dataclass, field

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway_project.core.stores import redis
from gateway_project.server.protocol import BoundedHTTPProtocol

TEXT = "What is the capital of France, and how do I get there by train?"
ROUNDS = 12
# The loop of the tests is written in Python, that of the server in C; and what watches tests.
NOT_OURS = "/asyncio/", "/selectors.py", "/tests/", "/_weakrefset.py"


class Wire:
    """A client's connection, as the protocol sees it."""

    def __init__(self):
        self.received = b""
        self.pieces = 0
        self.is_answered = asyncio.Event()

    def write(self, data):
        self.pieces += 1
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        sizes = [
            line[15:] for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"
        ]
        if sizes and len(body) == int(sizes[0]):
            self.is_answered.set()

    def get_extra_info(self, name):
        return {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)}.get(name)

    def is_closing(self):
        return False

    def ignore(self, *_):
        pass

    close = abort = pause_reading = resume_reading = set_protocol = ignore


@dataclass
class Cost:
    calls: int = 0
    coroutines: set[object] = field(default_factory=set)
    pieces: int = 0
    trips: int = 0

    def note(self, frame, event, _):
        if event == "call" and not any(part in frame.f_code.co_filename for part in NOT_OURS):
            self.calls += 1
            if frame.f_code.co_flags & inspect.CO_COROUTINE:
                self.coroutines.add(frame)  # one that goes on is the same


@dataclass
class Allocated:
    """Bytes that our functions asked for, freed again or not, as far as their beginnings and ends
    show; some of it is the watching's own."""

    size: int = 0
    last: int = 0

    def note(self, frame, event, _):
        _, peak = tracemalloc.get_traced_memory()
        asked_by = frame.f_back if event == "call" else frame
        if asked_by and not any(part in asked_by.f_code.co_filename for part in NOT_OURS):
            self.size += peak - self.last
        self.last = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()


def request_of(text, key):
    body = json.dumps({"text": text}).encode()
    return (
        f"POST /v1/detect HTTP/1.1\r\nHost: testserver\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@pytest.fixture
def ask(gateway, engine, acme_key):
    """Asks for a detection through the server's protocol, and says what that cost."""
    config = uvicorn.Config(
        gateway.application, http=BoundedHTTPProtocol, proxy_headers=False, access_log=False
    )
    config.load()

    async def ask(*texts, is_watched=True, watch=None):
        """All over one connection; `watch` instead of counting what it costs."""
        loop = asyncio.get_running_loop()
        protocol = BoundedHTTPProtocol(config, ServerState(), {}, loop)
        protocol.access_log = False  # pytest's handlers would turn uvicorn's on
        wire, cost = Wire(), Cost()
        protocol.connection_made(wire)
        pipe = redis.connection()
        before = pipe.round_trips
        if is_watched:
            sys.setprofile(watch or cost.note)
        try:
            for text in texts:
                wire.received = b""
                wire.is_answered.clear()
                protocol.data_received(request_of(text, acme_key))
                await wire.is_answered.wait()
        finally:
            sys.setprofile(None)
        cost.pieces, cost.trips = wire.pieces, pipe.round_trips - before
        protocol.connection_lost(None)
        assert wire.received.startswith(b"HTTP/1.1 200 "), wire.received
        return cost

    return lambda *args, **more: gateway.run(ask(*args, **more))


@pytest.mark.needs_redis
@pytest.mark.parametrize(
    ("is_cached", "calls", "coroutines", "trips"),
    # Behind the answer of the engine a second trip carries its score to the cache.
    [(True, 325, 26, 1), (False, 445, 43, 2)],
    ids=["cached", "engine asked"],
)
def test_a_detection_costs_no_more_than_this(ask, counted, is_cached, calls, coroutines, trips):
    texts = [TEXT if is_cached else f"{TEXT} {n}" for n in range(ROUNDS + 3)]
    for text in texts[:3]:
        ask(text)
    counted.sql = counted.hops = 0
    costs = [ask(text) for text in texts[3:]]

    assert (counted.sql, counted.hops) == (0, 0)
    assert max(cost.trips for cost in costs) <= trips
    assert {cost.pieces for cost in costs} == {1}
    # The least of some: what a round does beside it, such as sending usage, is not its own.
    assert min(cost.calls for cost in costs) <= calls
    assert min(len(cost.coroutines) for cost in costs) <= coroutines


@pytest.mark.needs_redis
@pytest.mark.parametrize(
    ("is_cached", "kilobytes"), [(True, 72), (False, 98)], ids=["cached", "engine asked"]
)
def test_a_detection_allocates_no_more_than_this(ask, is_cached, kilobytes):
    texts = [TEXT if is_cached else f"{TEXT} {n}" for n in range(ROUNDS + 3)]
    for text in texts[:3]:
        ask(text)
    found = []
    tracemalloc.start()
    try:
        for text in texts[3:]:
            allocated = Allocated(last=tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()
            ask(text, watch=allocated.note)
            found.append(allocated.size / 1000)
    finally:
        tracemalloc.stop()

    assert min(found) <= kilobytes


def test_what_is_freed_at_once_is_allocated_all_the_same():
    tracemalloc.start()
    try:
        allocated = Allocated(last=tracemalloc.get_traced_memory()[0])
        sys.setprofile(allocated.note)
        json.dumps("x" * 100_000)
        sys.setprofile(None)
    finally:
        tracemalloc.stop()

    assert allocated.size > 100_000


@pytest.fixture
def heap():
    """Only what comes is looked through by collections: not what all tests are made of."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.needs_redis
@pytest.mark.usefixtures("heap")
def test_a_detection_keeps_no_more_than_its_row(ask):
    def blocks():
        gc.collect()
        return sys.getallocatedblocks()

    def kept():
        before = blocks()
        for _ in range(15):  # the key may ask 60 times a minute
            ask(TEXT, is_watched=False)
        return (blocks() - before) / 15

    for _ in range(10):
        ask(TEXT, is_watched=False)

    # The least of some: what happens for the first time beside it is kept, too.
    assert min(kept() for _ in range(3)) <= 30


@pytest.mark.needs_redis
@pytest.mark.usefixtures("heap")
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "engine asked"])
def test_a_detection_leaves_nothing_to_the_collector(ask, is_cached):
    """What lies in cycles makes it come, and while it is there all requests wait."""
    texts = [TEXT if is_cached else f"{TEXT} {n}" for n in range(5 + 3 * (4 + 12))]

    def left(number):
        """Objects in cycles, of so many over one connection, and of that."""
        gc.collect()
        gc.disable()
        try:
            ask(*(texts.pop() for _ in range(number)), is_watched=False)
            return gc.collect()
        finally:
            gc.enable()

    left(5)
    # The least of some: what happens beside it leaves something, too.
    few, more = (min(left(number) for _ in range(3)) for number in (4, 12))
    assert (more - few) / 8 < 1
