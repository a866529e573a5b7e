"""The circuit breaker: failures in a row open it, one probe decides, an operator may hold it."""

import socket

import pytest
from django.conf import settings

from detection.engines import registry
from gateway_project.core.stores import redis
from gateway_project.core.upstream import breaker as module
from gateway_project.core.upstream.breaker import (
    Breaker,
    BreakerOpen,
    Everywhere,
    _me,
    ask_everywhere,
    force_everywhere,
)
from gateway_project.tests.served import wait_until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock, monkeypatch):
    monkeypatch.setattr(module, "_registry", {})  # else lists of all would have it from now on
    return Breaker("test", failures_max=3, open_seconds=30, clock=clock)


def fail(breaker, times=1):
    for _ in range(times):
        breaker.acquire().failed()


def test_it_opens_after_failures_in_a_row(breaker):
    fail(breaker, 3)

    with pytest.raises(BreakerOpen) as caught:
        breaker.acquire()

    assert caught.value.retry_after_seconds == 30
    assert breaker.report() == {"state": "open", "failures": 3, "open_for_seconds": 0.0}


def test_a_success_in_between_starts_the_count_anew(breaker):
    fail(breaker, 2)
    breaker.acquire().succeeded()
    fail(breaker, 2)

    breaker.acquire()

    assert breaker.state == "closed"


def test_it_lets_one_probe_through_when_its_time_is_over(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.acquire()

    assert breaker.state == "half-open"
    with pytest.raises(BreakerOpen):
        breaker.acquire()


def test_a_good_probe_closes_it(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.acquire().succeeded()

    assert breaker.report() == {"state": "closed", "failures": 0}


def test_a_bad_probe_opens_it_for_another_time(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.acquire().failed()

    clock.now = 59
    with pytest.raises(BreakerOpen):
        breaker.acquire()
    clock.now = 60
    breaker.acquire()


def test_a_probe_whose_caller_went_away_leaves_room_for_the_next(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.acquire().release()

    breaker.acquire()


def test_calls_that_end_after_it_opened_change_nothing(breaker):
    calls = [breaker.acquire() for _ in range(5)]
    for call in calls[:4]:
        call.failed()
    calls[4].succeeded()

    assert breaker.state == "open"


@pytest.mark.parametrize("end", ["succeeded", "failed", "release"])
def test_a_call_from_before_the_outage_does_not_speak_for_the_probe(breaker, clock, end):
    old = breaker.acquire()
    fail(breaker, 3)
    clock.now = 30
    probe = breaker.acquire()

    getattr(old, end)()

    assert breaker.state == "half-open"
    with pytest.raises(BreakerOpen):
        breaker.acquire()
    probe.succeeded()
    assert breaker.state == "closed"


class TestForced:
    def test_open_lets_nobody_through_however_well_it_goes(self, breaker):
        breaker.force("open")

        with pytest.raises(BreakerOpen):
            breaker.acquire()
        assert breaker.report() == {"state": "open", "failures": 0, "forced": True}

    def test_closed_lets_everybody_through_however_ill_it_goes(self, breaker):
        breaker.force("closed")

        fail(breaker, 10)

        breaker.acquire()
        assert breaker.state == "closed"

    def test_it_ends_an_outage(self, breaker):
        fail(breaker, 3)

        breaker.force("closed")

        breaker.acquire()

    def test_let_go_it_starts_closed_and_counts_anew(self, breaker):
        fail(breaker, 3)
        breaker.force("closed")
        breaker.force(None)

        fail(breaker, 2)
        breaker.acquire()

        assert breaker.report() == {"state": "closed", "failures": 2}


class TestAskingEverywhere:
    @pytest.mark.slow
    def test_every_process_answers_for_itself_and_hears_what_is_forced(self, serve):
        served = serve(WORKERS="2")
        client = redis.client()

        def processes():
            everywhere = ask_everywhere()
            assert everywhere.silent == 0
            return {
                name: reports["engine"]
                for name, reports in everywhere.processes.items()
                if name != _me() and "engine" in reports
            }

        pids = {f"{socket.gethostname()}/{pid}" for pid in served.web_workers()}
        wait_until(lambda: set(processes()) >= pids)  # each subscribes as it starts
        assert len(pids) == 2
        try:
            force_everywhere("engine", "open")
            found = processes()
            assert [found[pid] for pid in pids] == [
                {"state": "open", "failures": 0, "forced": True}
            ] * 2
        finally:
            force_everywhere("engine", None)
        found = processes()
        assert [found[pid]["state"] for pid in pids] == ["closed", "closed"]
        assert not client.keys("gw:breakers:answers:*")

    def test_who_does_not_answer_is_counted(self, gateway):
        if not settings.REDIS_URL:
            pytest.skip("needs Redis")
        deaf = redis.client().pubsub()
        deaf.subscribe("gw:breakers")
        assert deaf.get_message(timeout=1)

        everywhere = ask_everywhere()

        deaf.close()
        assert everywhere.silent == 1
        assert "engine" in everywhere.processes[_me()]

    def test_the_worst_state_is_reported(self):
        closed, opened = {"state": "closed", "failures": 1}, {"state": "open", "failures": 5}
        everywhere = Everywhere({"a": {"x": closed}, "b": {"x": opened, "y": closed}}, 0)

        assert everywhere.worst() == {"x": opened, "y": closed}

    def test_forced_and_let_go_in_a_thread_it_leaves_no_trouble_behind(self, gateway, engine):
        """An operator acts in a thread of the control plane, of a process that had trouble."""
        if not settings.REDIS_URL:
            pytest.skip("needs Redis")
        mine = registry.default().breaker
        client, field = redis.client(), f"{mine.name} {_me()}"

        async def fail():
            for _ in range(mine._machine.fail_max):
                mine.acquire().failed()

        gateway.run(fail())
        gateway.run(redis.connection().ping())
        assert client.hget("gw:breakers:trouble", field).startswith(b"open ")

        force_everywhere("engine", "closed")
        force_everywhere("engine", None)

        gateway.run(redis.connection().ping())
        assert client.hget("gw:breakers:trouble", field) is None
