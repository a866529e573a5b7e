"""A circuit breaker for async upstreams: pybreaker as the state machine, never around I/O.

pybreaker's `call()` holds a lock for as long as the guarded call runs and takes the creation of a
coroutine for success. So `admit()` asks before the I/O, and `succeeded()` or `failed()` tell the
machine afterwards through a trivial call. When half-open, exactly one probe is in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pybreaker

from gateway_project.core.observability import breaker_state, get_logger

log = get_logger("gateway.breaker")
STATES = {"closed": 0, "half-open": 1, "open": 2}
_registry: dict[str, Breaker] = {}


class BreakerOpen(Exception):
    """The upstream failed too often; it is left alone for `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"open for another {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class _Failure(Exception):
    pass


class _Listener(pybreaker.CircuitBreakerListener):
    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        breaker_state.labels(cb.name).set(STATES[new_state.name])
        if old_state is not None:
            log.warning(
                "breaker_state_changed", service=cb.name, old=old_state.name, new=new_state.name
            )


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
        self._clock = clock
        self._opened_at = 0.0
        self._probing = False
        self._machine = pybreaker.CircuitBreaker(
            name=name, fail_max=failures_max, reset_timeout=open_seconds, listeners=[_Listener()]
        )
        breaker_state.labels(name).set(0)
        _registry[name] = self

    @property
    def state(self) -> str:
        return str(self._machine.current_state)

    def admit(self) -> None:
        """Let one call through, or raise `BreakerOpen`. An admitted call must report its end."""
        state = self._machine.current_state
        if state == "closed":
            return
        if state == "open":
            waited = self._clock() - self._opened_at
            if waited < self.open_seconds:
                raise BreakerOpen(self.open_seconds - waited)
            self._machine.half_open()
        if self._probing:
            raise BreakerOpen(1.0)
        self._probing = True

    def succeeded(self) -> None:
        self._probing = False
        if self._machine.current_state != "open":
            self._machine.call(lambda: None)

    def failed(self) -> None:
        """Count a fault of the upstream. Calls that end after it opened change nothing."""
        self._probing = False
        if self._machine.current_state == "open":
            return
        try:
            self._machine.call(_fail)
        except (_Failure, pybreaker.CircuitBreakerError):
            if self._machine.current_state == "open":
                self._opened_at = self._clock()

    def released(self) -> None:
        """The admitted call ended without a word about the upstream (the caller went away)."""
        self._probing = False

    def report(self) -> dict[str, Any]:
        """`{state, failures, open_for_seconds?}` as `/health` shows it."""
        report: dict[str, Any] = {"state": self.state, "failures": self._machine.fail_counter}
        if self.state == "open":
            report["open_for_seconds"] = round(self._clock() - self._opened_at, 1)
        return report


def _fail() -> None:
    raise _Failure


def reports() -> dict[str, dict[str, Any]]:
    """The report of every breaker in this process, by name."""
    return {name: breaker.report() for name, breaker in _registry.items()}
