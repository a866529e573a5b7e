"""A circuit breaker for async upstreams: pybreaker as the state machine, never around I/O.

pybreaker's `call()` holds a lock for as long as the guarded call runs and takes the creation of a
coroutine for success. So `acquire()` asks before the I/O, and the permit it gives is told the end
through a trivial call. An permit counts only in the state it was given in: what began before
an outage says nothing about its end. When half-open, exactly one probe is in flight.

Counts are per process. With Redis every process leaves its trouble in a hash, so that `/health`
shows the worst of all, and a state forced by an operator reaches every process within a second.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, Literal, NamedTuple

import orjson
import pybreaker
from django.conf import settings
from redis.exceptions import RedisError

from gateway_project.core import clock
from gateway_project.core.stores import redis
from gateway_project.core.stores.bus import PREFIX, bus
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import breaker_state

log = get_logger("gateway.breaker")
STATES = {"closed": 0, "half-open": 1, "open": 2}
Forced = Literal["open", "closed"]
CHANNEL = "breakers"
FORCED_KEY = "gw:breakers:forced"
TROUBLE_KEY = "gw:breakers:trouble"
TROUBLE_SECONDS = 60
ASK = "?"
ANSWERS_KEY = "gw:breakers:answers:"
ANSWER_SECONDS_MAX = 0.5
_registry: dict[str, Breaker] = {}
_sent: set[asyncio.Future[Any]] = set()


class BreakerOpen(Exception):
    """The upstream failed too often; it is left alone for `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"open for another {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class _Failure(Exception):
    pass


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        if old_state is not None and old_state.name != new_state.name:
            self._breaker._changed(old_state.name, new_state.name)


class Permit:
    """The right to one call. Tell exactly one of its three ends; a second one changes nothing."""

    __slots__ = ("_breaker", "_generation")

    def __init__(self, breaker: Breaker, generation: int) -> None:
        self._breaker = breaker
        self._generation = generation

    def succeeded(self) -> None:
        self._breaker._report(self._generation, _succeed)

    def failed(self) -> None:
        """Count a fault of the upstream."""
        self._breaker._report(self._generation, _fail)

    def release(self) -> None:
        """The call ended without a word about the upstream (the caller went away)."""
        self._breaker._report(self._generation, None)


class Breaker:
    """Opens after `failures_max` failures in a row, for `open_seconds`; then one probe decides."""

    def __init__(
        self,
        name: str,
        *,
        failures_max: int = 5,
        open_seconds: float = 30.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name = name
        self.open_seconds = open_seconds
        self.forced: Forced | None = None
        self._clock = clock
        self._opened_at = 0.0
        self._probing = False
        self._generation = 0
        self._lock = Lock()
        self._machine = pybreaker.CircuitBreaker(
            name=name,
            fail_max=failures_max,
            reset_timeout=open_seconds,
            listeners=[_Listener(self)],
        )
        breaker_state.labels(name).set(0)
        _registry[name] = self

    @property
    def state(self) -> str:
        return self.forced or str(self._machine.current_state)

    def acquire(self) -> Permit:
        """Let one call through, or raise `BreakerOpen`."""
        if self.forced == "open":
            raise BreakerOpen(self.open_seconds)
        with self._lock:
            if self.forced is None and self._machine.current_state != "closed":
                self._permit_probe()
            return Permit(self, self._generation)

    def _permit_probe(self) -> None:
        if self._machine.current_state == "open":
            waited = self._clock() - self._opened_at
            if waited < self.open_seconds:
                raise BreakerOpen(self.open_seconds - waited)
            self._machine.half_open()
        if self._probing:
            raise BreakerOpen(1.0)
        self._probing = True

    def _report(self, generation: int, end: Callable[[], None] | None) -> None:
        with self._lock:
            if generation != self._generation or self.forced is not None:
                return
            self._probing = False
            machine = self._machine
            if end is _succeed and machine.current_state == "closed" and not machine.fail_counter:
                return  # as nearly always: it changes nothing
            if end is None:
                return
            with suppress(_Failure, pybreaker.CircuitBreakerError):
                self._machine.call(end)

    def _changed(self, old: str, new: str) -> None:
        self._generation += 1
        self._probing = False
        if new == "open":
            self._opened_at = self._clock()
        self._show(new)
        log.warning("breaker_state_changed", service=self.name, old=old, new=new)

    def _show(self, state: str) -> None:
        breaker_state.labels(self.name).set(STATES[state])
        if self.forced is None:
            _leave_trouble(self, state)

    def force(self, state: Forced | None) -> None:
        """Hold it open or closed in this process, or (None) let it decide again."""
        if state == self.forced:
            return
        log.warning("breaker_state_changed", service=self.name, old=self.state, new=state or "auto")
        with self._lock:
            self.forced = state
            if state is None:
                self._generation += 1
                self._machine.close()
        self._show(self.state)

    def close(self) -> None:
        """Let calls through again at once: the upstream was seen to be well."""
        with self._lock:
            if self.forced is None and self._machine.current_state != "closed":
                self._machine.close()

    def report(self) -> dict[str, Any]:
        """`{state, failures, open_for_seconds?, forced?}` of this process."""
        report: dict[str, Any] = {"state": self.state, "failures": self._machine.fail_counter}
        if self.forced is not None:
            report["forced"] = True
        elif self.state == "open":
            report["open_for_seconds"] = round(self._clock() - self._opened_at, 1)
        return report


def _succeed() -> None:
    pass


def _fail() -> None:
    raise _Failure


def force_everywhere(name: str, state: Forced | None) -> None:
    """Hold a breaker in every process, also in those that start later, until told otherwise.

    Called by the control plane and by commands. Raises redis-py's errors: an operator has to know
    that nothing was forced.
    """
    if settings.REDIS_URL:
        client = redis.client()
        if state is None:
            client.hdel(FORCED_KEY, name)
        else:
            client.hset(FORCED_KEY, name, state)
    bus.say(CHANNEL, f"{name} {state or ''}")


def forced_everywhere() -> dict[str, str]:
    """Which breakers are held, and how; for commands. Raises redis-py's errors."""
    held = redis.client().hgetall(FORCED_KEY)
    return {name.decode(): state.decode() for name, state in held.items()}


async def reports() -> dict[str, dict[str, Any]]:
    """The report of every breaker by name: of this process, with the worst state of all."""
    found = _own_reports()
    for name, state, since in await _troubles():
        mine = found.get(name)
        if mine is None or "forced" in mine or STATES[state] < STATES[mine["state"]]:
            continue
        mine["state"] = state
        if state == "open":
            longest = max(mine.get("open_for_seconds", 0.0), round(clock.time() - since, 1))
            mine["open_for_seconds"] = longest
    return found


class Everywhere(NamedTuple):
    """What each web process says of its breakers, by the process' name.

    `silent`: how many did not answer in time; None: nobody could be asked, since Redis is away.
    """

    processes: dict[str, dict[str, dict[str, Any]]]
    silent: int | None

    def worst(self) -> dict[str, dict[str, Any]]:
        """For each breaker the report of the process where it is in the worst state."""
        found: dict[str, dict[str, Any]] = {}
        for breakers in self.processes.values():
            for name, report in breakers.items():
                if name not in found or STATES[report["state"]] > STATES[found[name]["state"]]:
                    found[name] = report
        return found


def ask_everywhere() -> Everywhere:
    """Ask every web process at this moment; for threads of the control plane.

    Takes a few milliseconds, `ANSWER_SECONDS_MAX` when a process is silent. Costs nothing while
    nobody asks.
    """
    processes = {_me(): _own_reports()}
    if not settings.REDIS_URL:
        return Everywhere(processes, 0)
    answers = ANSWERS_KEY + secrets.token_hex(8)
    try:
        client = redis.client()
        missing = client.publish(f"{PREFIX}{CHANNEL}", f"{ASK} {answers}")
        until = monotonic() + ANSWER_SECONDS_MAX
        while missing and (left := until - monotonic()) > 0.01:
            answer = client.blpop(answers, timeout=left)
            if answer is not None:
                process, breakers = orjson.loads(answer[1])
                processes[process] = breakers
                missing -= 1
        client.delete(answers)
    except (RedisError, OSError):
        return Everywhere(processes, None)
    return Everywhere(dict(sorted(processes.items())), missing)


def _own_reports() -> dict[str, dict[str, Any]]:
    return {name: breaker.report() for name, breaker in _registry.items()}


def _answer(answers: str) -> None:
    if redis.is_open() and answers.startswith(ANSWERS_KEY):
        redis.send_behind(redis.pack("RPUSH", answers, orjson.dumps([_me(), _own_reports()])))
        redis.send_behind(redis.pack("EXPIRE", answers, 10))


def _me() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _leave_trouble(breaker: Breaker, state: str) -> None:
    """Note in Redis that this process' breaker is not closed; nobody waits for it."""
    if not settings.REDIS_URL or not redis.is_open():
        return
    field = f"{breaker.name} {_me()}"
    if state == "closed":
        command = redis.pack("HDEL", TROUBLE_KEY, field)
    else:
        word = f"{state} {clock.time():.0f} {breaker.open_seconds + TROUBLE_SECONDS:.0f}"
        command = redis.pack("HSET", TROUBLE_KEY, field, word)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # A thread of the control plane, where an operator forced it. The loop will hear of it as
        # well, over the bus, but finds nothing changed by then.
        redis.send_from_thread(command)
    else:
        redis.send_behind(command)


async def _troubles() -> list[tuple[str, str, float]]:
    """(breaker, state, Unix time) of every process that left one and has not outlived it."""
    if not settings.REDIS_URL or not redis.is_open():
        return []
    try:
        reply = await redis.connection().submit(redis.pack("HGETALL", TROUBLE_KEY))
    except redis.RedisUnavailable:
        return []
    rows = []
    for field, word in redis.pairs(reply).items():
        name, _, process = field.decode().partition(" ")
        state, since, seconds = word.decode().split()
        if clock.time() - float(since) > float(seconds):
            # Its process ended, or nobody has called the upstream since.
            redis.send_behind(redis.pack("HDEL", TROUBLE_KEY, field))
        elif process != _me() and state in STATES:
            rows.append((name, state, float(since)))
    return rows


def _on_message(word: str) -> None:
    name, _, state = word.partition(" ")
    if name == ASK:
        _answer(state)
    if name in _registry:
        _registry[name].force(state or None)  # type: ignore[arg-type]


def _read_forced_again() -> None:
    task = asyncio.get_running_loop().create_task(_read_forced())
    _sent.add(task)
    task.add_done_callback(_sent.discard)


async def _read_forced() -> None:
    try:
        reply = await redis.connection().submit(redis.pack("HGETALL", FORCED_KEY))
    except redis.RedisUnavailable:
        return  # the bus will be cut off as well, and its next gap asks again
    forced = redis.pairs(reply)
    for name, breaker in _registry.items():
        state = forced.get(name.encode(), b"").decode()
        breaker.force(state or None)  # type: ignore[arg-type]


bus.on(CHANNEL, _on_message, _read_forced_again)
