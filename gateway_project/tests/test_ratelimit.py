"""The limiter: one contract, kept by Redis and by its twin in memory."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from uuid import uuid4

import pytest
import redis as redis_py
import uvloop
from django.conf import settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway_project.core import errors
from gateway_project.core.ratelimit import (
    Decision,
    MemoryLimiter,
    Policy,
    RedisLimiter,
    per_day,
    per_minute,
)
from gateway_project.core.stores import redis
from gateway_project.core.stores.redis import PipelinedConnection, RedisUnavailable, pack

MIDNIGHT = 1_800_000_000 - 1_800_000_000 % 86_400


class Clock:
    def __init__(self) -> None:
        self.now = float(MIDNIGHT + 1000)

    def __call__(self) -> float:
        return self.now

    def ms(self) -> int:
        return int(self.now * 1000)


class Subject:
    """A limiter with a clock in our hand. `take()` asks for one unit of a fresh subject."""

    def __init__(self, limiter: MemoryLimiter | RedisLimiter, clock: Clock) -> None:
        self.limiter = limiter
        self.clock = clock
        self.name = f"{{{uuid4()}}}"

    def policy(self, limit: int, name: str = "minute") -> Policy:
        make = per_day if name.endswith("day") else per_minute
        return make(name, self.name, limit)

    def take(self, *policies: Policy, costs: tuple[int, ...] | None = None) -> Decision:
        return self.limiter.check_sync(policies, costs or (1,) * len(policies))


@pytest.fixture(params=["memory", "redis"])
def make_subject(request: pytest.FixtureRequest) -> Iterator[Callable[[], Subject]]:
    clock = Clock()
    if request.param == "memory":
        yield lambda: Subject(MemoryLimiter(clock), clock)
        return
    if not settings.REDIS_URL:
        pytest.skip("needs Redis: `make test` starts one")
    client = redis_py.Redis.from_url(settings.REDIS_URL)
    limiter = RedisLimiter(lambda: None, lambda: client, clock.ms)  # type: ignore[arg-type,return-value]
    yield lambda: Subject(limiter, clock)
    client.close()


@pytest.fixture
def subject(make_subject: Callable[[], Subject]) -> Subject:
    return make_subject()


def test_it_lets_the_limit_pass_at_once_and_refuses_the_next(subject):
    policy = subject.policy(60)

    decisions = [subject.take(policy) for _ in range(61)]

    assert [d.denied for d in decisions] == [None] * 60 + ["minute"]
    assert [d.states[0].remaining for d in decisions] == [*range(59, -1, -1), 0]


def test_it_frees_the_places_a_window_later_and_says_so_beforehand(subject):
    policy = subject.policy(3)
    for _ in range(3):
        subject.take(policy)

    refused = subject.take(policy)
    subject.clock.now += refused.retry_after_seconds - 1
    still = subject.take(policy)
    subject.clock.now += 1
    again = subject.take(policy)

    assert 60 <= refused.retry_after_seconds <= 61
    assert still.denied == "minute"
    assert again.denied is None


def test_it_frees_one_place_at_a_time_as_old_requests_leave(subject):
    policy = subject.policy(2)
    subject.take(policy)
    subject.clock.now += 30
    subject.take(policy)

    refused = subject.take(policy)
    subject.clock.now += refused.retry_after_seconds
    first, second = subject.take(policy), subject.take(policy)

    assert 30 <= refused.retry_after_seconds <= 31
    assert (first.denied, second.denied) == (None, "minute")


def test_it_takes_nothing_from_any_policy_when_one_refuses(subject):
    minute, day = subject.policy(1), subject.policy(100, "day")
    subject.take(minute, day)

    refused = subject.take(minute, day)

    assert refused.denied == "minute"
    assert refused.states[1].remaining == 99


def test_it_names_the_policy_that_makes_the_caller_wait_longest(subject):
    minute, day = subject.policy(1), subject.policy(1, "day")
    subject.take(minute, day)

    refused = subject.take(minute, day)

    assert refused.denied == "day"
    assert refused.retry_after_seconds == 86_400 - 1000


def test_it_starts_the_day_anew_at_midnight_utc(subject):
    day = subject.policy(1, "day")
    subject.clock.now = MIDNIGHT + 86_399
    subject.take(day)

    before = subject.take(day)
    subject.clock.now = MIDNIGHT + 86_400
    after = subject.take(day)

    assert (before.denied, before.retry_after_seconds) == ("day", 1)
    assert after.denied is None


def test_it_counts_costs_and_refuses_what_could_never_fit(subject):
    day = subject.policy(100, "day")

    fits = subject.take(day, costs=(60,))
    too_much = subject.take(day, costs=(41,))
    never = subject.take(day, costs=(101,))
    rest = subject.take(day, costs=(40,))

    assert (fits.denied, too_much.denied, never.denied, rest.denied) == (None, "day", "day", None)


def test_it_reads_for_nothing(subject):
    policy = subject.policy(5)
    subject.take(policy)

    read = [subject.take(policy, costs=(0,)) for _ in range(20)][-1]
    subject.clock.now += 30
    later = subject.take(policy, costs=(0,))

    assert (read.denied, read.states[0].remaining) == (None, 4)
    assert later.states[0].reset_seconds == 30


def test_it_reads_for_nothing_when_nothing_is_left(subject):
    policy = subject.policy(1)
    subject.take(policy)

    read = subject.take(policy, costs=(0,))

    assert (read.denied, read.states[0].remaining) == (None, 0)


def test_it_keeps_subjects_apart(make_subject):
    one, other = make_subject(), make_subject()
    one.take(one.policy(1))

    assert one.take(one.policy(1)).denied == "minute"
    assert other.take(other.policy(1)).denied is None


def test_it_forgets_what_it_counted_when_the_clock_is_set_back_far(subject):
    policy = subject.policy(1)
    subject.take(policy)

    subject.clock.now -= 7200

    assert subject.take(policy).denied is None


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=120), st.integers(1, 12))
def test_it_never_lets_more_than_the_limit_pass_in_any_window(pauses, limit):
    clock = Clock()
    subject = Subject(MemoryLimiter(clock), clock)
    policy, passed = subject.policy(limit), []

    for pause in pauses:
        clock.now += pause
        if subject.take(policy).denied is None:
            passed.append(clock.now)

    for i, start in enumerate(passed):
        assert sum(1 for t in passed[i:] if t < start + 60) <= limit


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 40), st.integers(0, 4)), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_its_twins_decide_alike(steps, limit):
    if not settings.REDIS_URL:
        pytest.skip("needs Redis: `make test` starts one")
    clock = Clock()
    client = redis_py.Redis.from_url(settings.REDIS_URL)
    redis = Subject(RedisLimiter(lambda: None, lambda: client, clock.ms), clock)  # type: ignore[arg-type,return-value]
    memory = Subject(MemoryLimiter(clock), clock)

    for pause, cost in steps:
        clock.now += pause
        a = redis.take(redis.policy(limit), redis.policy(50, "day"), costs=(min(cost, 1), cost))
        b = memory.take(memory.policy(limit), memory.policy(50, "day"), costs=(min(cost, 1), cost))
        assert a == b
    client.close()


class TestHeaders:
    def test_they_are_the_lists_of_the_draft_and_the_older_triple(self, subject):
        decision = subject.take(subject.policy(60), subject.policy(100, "day"))

        headers = dict(decision.headers())

        assert headers["RateLimit"] == f'"minute";r=59;t=60, "day";r=99;t={86_400 - 1000}'
        assert headers["RateLimit-Policy"] == '"minute";q=60;w=60, "day";q=100;w=86400'
        assert headers["X-RateLimit-Limit"] == "60"
        assert headers["X-RateLimit-Remaining"] == "59"
        assert headers["X-RateLimit-Reset"] == "60"

    def test_they_describe_the_limit_that_refused(self, subject):
        day = subject.policy(1, "day")
        subject.take(subject.policy(60), day)

        refused = subject.take(subject.policy(60), day)

        assert dict(refused.headers())["X-RateLimit-Limit"] == "1"
        with pytest.raises(errors.QuotaExceeded) as caught:
            refused.raise_if_denied()
        assert caught.value.headers["Retry-After"] == str(refused.retry_after_seconds)


class DeadClient:
    def evalsha(self, *args: object) -> None:
        raise redis_py.ConnectionError("refused")


class TestWithoutRedis:
    def limiter(self) -> RedisLimiter:
        return RedisLimiter(lambda: None, DeadClient)  # type: ignore[arg-type,return-value]

    def test_local_counts_in_this_process(self):
        limiter, policy = self.limiter(), per_minute("minute", "{x}", 1)

        first, second = (limiter.check_sync([policy], [1]) for _ in range(2))

        assert first.denied is None
        assert first.degraded == ("minute",)
        assert second.denied == "minute"
        assert limiter.degraded_since is not None

    def test_open_lets_pass(self):
        limiter, policy = self.limiter(), per_minute("minute", "{x}", 1, "open")

        assert [limiter.check_sync([policy], [1]).denied for _ in range(3)] == [None] * 3

    def test_closed_refuses_with_503_not_429(self):
        limiter, policy = self.limiter(), per_minute("minute", "{x}", 1, "closed")

        decision = limiter.check_sync([policy], [1])

        with pytest.raises(errors.StoreUnavailable):
            decision.raise_if_denied()

    def test_memory_of_hostile_subjects_is_bounded(self, monkeypatch):
        monkeypatch.setattr("gateway_project.core.ratelimit.MEMORY_SUBJECTS_MAX", 100)
        limiter = MemoryLimiter()

        busy = per_minute("ip", "{ip:busy}", 15)
        for i in range(1000):
            limiter.check_sync([per_minute("ip", f"{{ip:{i}}}", 5)], [1])
            if i % 50 == 0:
                limiter.check_sync([busy], [1])

        assert len(limiter._windows) == 100
        assert limiter.check_sync([busy], [1]).denied == "ip"  # who goes on asking is not forgotten

    @pytest.mark.hostile
    def test_so_are_the_buckets_of_each(self, monkeypatch):
        monkeypatch.setattr("gateway_project.core.ratelimit.MEMORY_SUBJECTS_MAX", 100)
        clock = SimpleNamespace(now=1_000_000.0)
        limiter = MemoryLimiter(lambda: clock.now)
        for _ in range(121):
            clock.now += 0.5
            for number in range(50):
                limiter.check_sync([per_minute("minute", f"{{{number}}}", 1000)], [1])

        assert sum(len(counts) for _, counts in limiter._windows.values()) <= 16 * 100


class TestGivingBack:
    @pytest.mark.parametrize("kind", ["memory", "redis"])
    def test_no_more_than_was_taken_in_this_bucket(self, kind):
        day = per_day("day", f"{{{uuid4()}}}", 10)
        if kind == "redis" and not settings.REDIS_URL:
            pytest.skip("needs Redis: `make test` starts one")
        limiter = (
            MemoryLimiter() if kind == "memory" else RedisLimiter(lambda: None, redis.client)  # type: ignore[arg-type]
        )
        for cost in (3, -1):
            limiter.check_sync([day], [cost])
        assert limiter.check_sync([day], [0]).states[0].remaining == 8

        assert limiter.check_sync([day], [-50]).states[0].remaining == 10
        assert limiter.check_sync([day], [-1]).states[0].remaining == 10
        assert limiter.check_sync([day], [10]).denied is None
        assert limiter.check_sync([day], [1]).denied == "day"


@pytest.mark.needs_redis
class TestPipe:
    """The shared connection, on real Redis."""

    @staticmethod
    def run(work: Callable[[PipelinedConnection], object], url: str | None = None) -> object:
        async def main() -> object:
            connection = PipelinedConnection(url or settings.REDIS_URL)
            connection.start()
            try:
                return await work(connection)  # type: ignore[misc]
            finally:
                await connection.close()

        return asyncio.run(main())

    def test_concurrent_commands_share_round_trips(self):
        policy = per_minute("minute", f"{{{uuid4()}}}", 60)

        async def work(connection: PipelinedConnection) -> tuple[list[Decision], int]:
            limiter = RedisLimiter(lambda: connection, lambda: None)
            await limiter.check([policy], [0])  # loads the script
            before = connection.round_trips
            decisions = await asyncio.gather(*(limiter.check([policy], [1]) for _ in range(200)))
            return decisions, connection.round_trips - before

        decisions, round_trips = self.run(work)  # type: ignore[misc]

        assert sum(d.denied is None for d in decisions) == 60
        assert round_trips <= 2

    def test_the_script_is_loaded_again_after_a_flush(self):
        policy = per_minute("minute", f"{{{uuid4()}}}", 60)

        async def work(connection: PipelinedConnection) -> Decision:
            from gateway_project.core.stores.redis import pack

            await connection.submit(pack("SCRIPT", "FLUSH"))
            return await RedisLimiter(lambda: connection, lambda: None).check([policy], [1])

        decision = self.run(work)

        assert decision.degraded == ()  # type: ignore[attr-defined]
        assert decision.states[0].remaining == 59  # type: ignore[attr-defined]

    def test_a_dead_redis_fails_all_at_once_and_then_without_waiting(self):
        policy = per_minute("minute", "{x}", 1000)

        async def work(connection: PipelinedConnection) -> tuple[list[Decision], int]:
            limiter = RedisLimiter(lambda: connection, lambda: None)
            decisions = await asyncio.gather(*(limiter.check([policy], [1]) for _ in range(50)))
            decisions.append(await limiter.check([policy], [1]))
            return decisions, connection.round_trips

        decisions, round_trips = self.run(work, "redis://127.0.0.1:1/0")  # type: ignore[misc]

        assert all(d.degraded == ("minute",) and d.denied is None for d in decisions)
        assert round_trips == 0

    def test_an_error_of_one_command_is_its_own(self):
        from redis.exceptions import ResponseError

        from gateway_project.core.stores.redis import pack

        async def work(connection: PipelinedConnection) -> list[object]:
            return await asyncio.gather(
                connection.submit(pack("NOSUCH")),
                connection.submit(pack("PING")),
                return_exceptions=True,
            )

        wrong, right = self.run(work)  # type: ignore[misc]

        assert isinstance(wrong, ResponseError)
        assert right == b"PONG"


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_pipe_outlives_a_connection_that_is_reset_while_idle(new_loop):
    async def main() -> list[object]:
        async def answer_once_then_reset(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            while (sent := await reader.read(65536)) and b"PING" not in sent:
                writer.write(b"+OK\r\n" * sent.count(b"\r\n*", 1) + b"+OK\r\n")
            writer.write(b"+PONG\r\n")
            await writer.drain()
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

        server = await asyncio.start_server(answer_once_then_reset, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = PipelinedConnection(
            f"redis://127.0.0.1:{port}/0?protocol=2", backoff_seconds=0
        )
        connection.start()
        seen: list[object] = []
        for _ in range(6):
            try:
                seen.append(await asyncio.wait_for(connection.submit(pack("PING")), 5))
            except RedisUnavailable:
                seen.append("unavailable")
            await asyncio.sleep(0.05)  # lets the reset arrive
        await connection.close()
        server.close()
        return seen

    with asyncio.Runner(loop_factory=new_loop) as runner:
        seen = runner.run(main())

    assert seen[0] == b"PONG"
    assert seen.count(b"PONG") >= 2  # it came back after a reset


def test_a_closed_pipe_refuses_instead_of_waiting():
    async def main() -> None:
        connection = PipelinedConnection("redis://127.0.0.1:1/0")
        with pytest.raises(RedisUnavailable):
            await connection.submit(pack("PING"))

    asyncio.run(main())


def test_what_costs_nothing_is_never_refused_by_a_closed_policy():
    limiter = RedisLimiter(lambda: None, DeadClient)  # type: ignore[arg-type,return-value]

    decision = limiter.check_sync([per_minute("minute", "{x}", 1, "closed")], [0])

    assert decision.denied is None
