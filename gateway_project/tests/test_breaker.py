"""The circuit breaker: failures in a row open it, one probe decides, an operator may hold it."""

import pytest

from gateway_project.core.breaker import Breaker, BreakerOpen


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker("test", failures_max=3, open_seconds=30, clock=clock)


def fail(breaker, times=1):
    for _ in range(times):
        breaker.admit().failed()


def test_it_opens_after_failures_in_a_row(breaker):
    fail(breaker, 3)

    with pytest.raises(BreakerOpen) as caught:
        breaker.admit()

    assert caught.value.retry_after_seconds == 30
    assert breaker.report() == {"state": "open", "failures": 3, "open_for_seconds": 0.0}


def test_a_success_in_between_starts_the_count_anew(breaker):
    fail(breaker, 2)
    breaker.admit().succeeded()
    fail(breaker, 2)

    breaker.admit()

    assert breaker.state == "closed"


def test_it_lets_one_probe_through_when_its_time_is_over(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.admit()

    assert breaker.state == "half-open"
    with pytest.raises(BreakerOpen):
        breaker.admit()


def test_a_good_probe_closes_it(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.admit().succeeded()

    assert breaker.report() == {"state": "closed", "failures": 0}


def test_a_bad_probe_opens_it_for_another_time(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.admit().failed()

    clock.now = 59
    with pytest.raises(BreakerOpen):
        breaker.admit()
    clock.now = 60
    breaker.admit()


def test_a_probe_whose_caller_went_away_leaves_room_for_the_next(breaker, clock):
    fail(breaker, 3)
    clock.now = 30

    breaker.admit().released()

    breaker.admit()


def test_calls_that_end_after_it_opened_change_nothing(breaker):
    calls = [breaker.admit() for _ in range(5)]
    for call in calls[:4]:
        call.failed()
    calls[4].succeeded()

    assert breaker.state == "open"


@pytest.mark.parametrize("end", ["succeeded", "failed", "released"])
def test_a_call_from_before_the_outage_does_not_speak_for_the_probe(breaker, clock, end):
    old = breaker.admit()
    fail(breaker, 3)
    clock.now = 30
    probe = breaker.admit()

    getattr(old, end)()

    assert breaker.state == "half-open"
    with pytest.raises(BreakerOpen):
        breaker.admit()
    probe.succeeded()
    assert breaker.state == "closed"


class TestForced:
    def test_open_lets_nobody_through_however_well_it_goes(self, breaker):
        breaker.force("open")

        with pytest.raises(BreakerOpen):
            breaker.admit()
        assert breaker.report() == {"state": "open", "failures": 0, "forced": True}

    def test_closed_lets_everybody_through_however_ill_it_goes(self, breaker):
        breaker.force("closed")

        fail(breaker, 10)

        breaker.admit()
        assert breaker.state == "closed"

    def test_it_ends_an_outage(self, breaker):
        fail(breaker, 3)

        breaker.force("closed")

        breaker.admit()

    def test_let_go_it_starts_closed_and_counts_anew(self, breaker):
        fail(breaker, 3)
        breaker.force("closed")
        breaker.force(None)

        fail(breaker, 2)
        breaker.admit()

        assert breaker.report() == {"state": "closed", "failures": 2}
