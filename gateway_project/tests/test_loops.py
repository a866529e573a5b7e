"""A loop that fails in every round is said: in `/health`, by a metric and by an alert."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import current_app
from django.conf import settings
from django.core.cache import cache
from django.db import OperationalError

from accounts import tasks
from accounts.usage import buffer, stream
from detection import ledger
from detection.jobs import worker
from gateway_project.core.stores import redis
from gateway_project.core.telemetry import loops
from gateway_project.core.telemetry.loops import ROUNDS_MAX, Loop
from gateway_project.worker import signals
from robin.queue import live, scan
from robin.queue.leader import LocalLeaderLock
from webhooks.delivery import engine, outbox

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def _fresh(gateway):
    for loop in Loop.known.values():
        loop.succeeded()


def health(gateway):
    body = gateway.get("/health").json()
    return body["status"], body["failing_loops"]


def test_after_so_many_rounds_health_names_it_and_an_alert_is_logged(gateway, engine, capfd):
    loop = Loop.of("usage.flush")
    for _ in range(ROUNDS_MAX - 1):
        loop.failed(ValueError())
    before = health(gateway)[1]

    loop.failed(ValueError())

    assert before == []
    assert health(gateway) == ("degraded", ["usage.flush"])
    assert f'gateway_loop_failed_rounds{{loop="usage.flush"}} {ROUNDS_MAX}.0' in (
        gateway.get("/metrics").text
    )
    logged = "".join(capfd.readouterr())
    assert logged.count("loop_failing") == 1
    assert "alert" in logged


def test_one_round_that_succeeds_ends_it(gateway, engine):
    loop = Loop.of("usage.flush")
    for _ in range(ROUNDS_MAX):
        loop.failed(ValueError())

    loop.succeeded()

    assert health(gateway)[1] == []


def rounds_of(loop):
    """`ends(error)`: a round of another process that ends so, and remembers those of before."""
    process = Loop(loop.name)
    Loop.known[loop.name] = loop

    def ends(error=None):
        asyncio.run(process.asucceeded() if error is None else process.afailed(error))

    return ends


@pytest.mark.parametrize("name", ["usage.flush", "jobs.leases", "robin.live.guard"])
def test_what_failed_and_is_gone_ends_with_the_first_round_of_the_next(gateway, engine, name):
    process = rounds_of(Loop.of(name))
    for _ in range(ROUNDS_MAX):
        process(ValueError())
    before = loops.failing()

    rounds_of(Loop.of(name))()

    assert (before, loops.failing()) == ([name], [])


def test_failures_with_a_round_between_them_that_went_well_are_not_in_a_row(gateway):
    process = rounds_of(Loop.of("jobs.leases"))
    for _ in range(3):
        for _ in range(ROUNDS_MAX - 1):
            process(ValueError())
        process()

    assert loops.failing() == []


def test_a_process_that_is_well_asks_the_cache_once(gateway, monkeypatch):
    process, asked = rounds_of(Loop.of("usage.flush")), []
    monkeypatch.setattr(
        type(cache._connections[cache._alias]), "delete", lambda *_, **__: asked.append(1)
    )

    for _ in range(3):
        process()

    assert len(asked) == 1


def test_a_store_that_is_away_breaks_no_loop(gateway, monkeypatch):
    def away(*args, **kwargs):
        raise ConnectionError

    for name in ("add", "incr", "delete"):
        monkeypatch.setattr(type(cache._connections[cache._alias]), name, away)

    Loop.of("usage.flush").failed(ValueError())
    Loop.of("usage.flush").succeeded()


def test_everything_that_beat_sends_is_watched():
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(Loop.known)


def test_a_task_of_beats_that_fails_is_counted_and_one_that_ends_well_forgotten(
    gateway, engine, monkeypatch
):
    if not settings.REDIS_URL:
        pytest.skip("there is no stream to drain without Redis")
    name = tasks.drain_usage.name

    def broken():
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "drain", broken)
        for _ in range(ROUNDS_MAX):
            current_app.tasks[name].apply()
    failing = health(gateway)
    current_app.tasks[name].apply()

    assert failing == ("degraded", [name])
    assert health(gateway)[1] == []


class Broken:
    """What a loop does in each round: in so many it fails. `failing`: what was said by then."""

    def __init__(self, error, failures=ROUNDS_MAX):
        self.error, self.failures, self.failing = error, failures, None

    def __call__(self, *args):
        if self.failures:
            self.failures -= 1
            raise self.error
        self.failing = self.failing or loops.failing()

    async def awaited(self, *args):
        self()
        return True


def flushes(patch, broken):
    rows = buffer.Buffer()
    rows.append((uuid4(), uuid4(), uuid4()), "")
    patch.setattr(rows, "_send", broken.awaited)
    return buffer._loop.every(0, rows.flush, logged=buffer.Unavailable)


def keeps_accounts(patch, broken):
    one = ledger.Ledger()
    account = {"api_key_id": uuid4(), "workspace_id": uuid4(), "engine": "", "role": "paid"}
    one.add(ledger.Sums(), **account)
    patch.setattr(ledger, "_write", broken)
    return ledger._loop.every(0, one.flush)


async def delivers(patch, broken):
    patch.setattr(outbox, "fan_out", broken)
    async with engine._opened() as one:
        while True:
            await one.wake()


async def writes_results(patch, broken):
    """None of the rounds ends meanwhile: all of it is one."""
    patch.setattr(engine, "RETRY_SECONDS", 0)
    patch.setattr(engine, "record", broken)
    async with engine._opened() as one:
        await one._write([])


async def loses_results(patch, broken):
    patch.setattr(engine, "record", broken)
    async with engine._opened() as one:
        while True:
            one._results = [None]
            await one.wake()


def leads(patch, broken):
    patch.setattr(live, "RENEW_SECONDS", 0)
    patch.setattr(live.Leader, "turn", broken.awaited)
    return live.Hub(None, lock=LocalLeaderLock())._lead()


async def guards(patch, broken):
    hub = live.Hub(None, lock=LocalLeaderLock())
    patch.setattr(live, "TICK_SECONDS", 0)
    patch.setattr(hub, "_check", broken.awaited)
    hub._to_recheck = {"somebody"}
    await hub._guard()


async def scans(patch, broken):
    scanner = scan.Scanner()

    async def step():
        scanner._woken.set()
        await broken.awaited()
        return 0

    patch.setattr(scanner, "step", step)
    scanner._wishes = {"ALL:0": None}
    await scanner._run()


AWAY = OperationalError()
LOOPS = {
    flushes: ("usage.flush", redis.RedisUnavailable("it is full")),
    keeps_accounts: ("engines.ledger", AWAY),
    delivers: ("webhooks.delivery", AWAY),
    writes_results: ("webhooks.delivery", AWAY),
    loses_results: ("webhooks.delivery", RuntimeError("a bug")),
    leads: ("robin.live", RuntimeError("a bug")),
    guards: ("robin.live.guard", RuntimeError("a bug")),
    scans: ("robin.scan", RuntimeError("a bug")),
}


@pytest.mark.parametrize("works", LOOPS)
def test_each_loop_of_a_process_tells_when_it_fails_and_when_it_is_well(
    gateway, monkeypatch, works
):
    name, error = LOOPS[works]
    broken = Broken(error)

    async def until_it_is_well():
        loop = asyncio.create_task(works(monkeypatch, broken))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if broken.failing is not None and not loops.failing():
                break
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)

    _in_a_thread(until_it_is_well())

    assert broken.failing == [name]
    assert loops.failing() == []


def test_none_is_left_out():
    tested = {name for name, _ in LOOPS.values()} | {"jobs.leases"} | signals.PERIODIC
    assert set(Loop.known) == tested


def test_leases_that_were_not_renewed_are_forgotten_with_the_next_chunk(gateway, monkeypatch):
    """Whoever renews ends with the last chunk, and another begins with the next."""
    ends = iter([RuntimeError("a bug")] * ROUNDS_MAX + [None])

    def renew(works):
        error = next(ends)
        works[0].to_come -= 1
        if not works[0].to_come:
            works[0].judging.get_loop().call_soon_threadsafe(works[0].judging.set_result, [])
        if error is not None:
            raise error
        return {work.run for work in works}

    async def judge_one(judge, run, renewals):
        judging = asyncio.get_running_loop().create_future()
        await judge.judge(SimpleNamespace(run=run, judging=judging, to_come=renewals))
        await judge._renewing

    async def chunks():
        judge = worker.Judge()
        await judge_one(judge, 1, ROUNDS_MAX)
        failing = loops.failing()
        await judge_one(judge, 2, 1)
        return failing

    async def judged(work):
        return await work.judging

    monkeypatch.setattr(worker, "RENEW_SECONDS", 0)
    monkeypatch.setattr(worker, "_judged", judged)
    monkeypatch.setattr(worker.store, "renew", renew)

    assert _in_a_thread(chunks()) == ["jobs.leases"]
    assert loops.failing() == []


def _in_a_thread(work):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result(30)
