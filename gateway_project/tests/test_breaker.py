"""The circuit breaker: failures in a row open it, one probe decides."""

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
        breaker.admit()
        breaker.failed()


def test_it_opens_after_failures_in_a_row(breaker):
    fail(breaker, 3)

    with pytest.raises(BreakerOpen) as caught:
        breaker.admit()

    assert caught.value.retry_after_seconds == 30
    assert breaker.report() == {"state": "open", "failures": 3, "open_for_seconds": 0.0}


def test_a_success_in_between_starts_the_count_anew(breaker):
    fail(breaker, 2)
    breaker.admit()
    breaker.succeeded()
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
    breaker.admit()

    breaker.succeeded()

    assert breaker.report() == {"state": "closed", "failures": 0}


def test_a_bad_probe_opens_it_for_another_time(breaker, clock):
    fail(breaker, 3)
    clock.now = 30
    breaker.admit()

    breaker.failed()

    clock.now = 59
    with pytest.raises(BreakerOpen):
        breaker.admit()
    clock.now = 60
    breaker.admit()


def test_a_probe_whose_caller_went_away_leaves_room_for_the_next(breaker, clock):
    fail(breaker, 3)
    clock.now = 30
    breaker.admit()

    breaker.released()

    breaker.admit()


def test_calls_that_end_after_it_opened_change_nothing(breaker, clock):
    for _ in range(5):
        breaker.admit()
    for _ in range(4):
        breaker.failed()
    breaker.succeeded()

    assert breaker.state == "open"
