"""Where the time of a slow request went: a line of the log for those alone that were slow.

What a process does beside its requests is measured as it happens, in sums that only grow. A request
notes them as it begins, and of one that is slow the difference is what it waited for meanwhile. One
with the header `X-Debug-Timing` leaves its line whatever it took. The line tells of the process and
so of other callers' load: it goes to the log, which staff read, and not into the answer.
"""

from __future__ import annotations

import gc
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

from gateway_project.core.telemetry.logging import get_logger

if TYPE_CHECKING:
    from gateway_project.core.context import RequestContext

SCHEDULED = "/proc/thread-self/schedstat"
TCP_LAST_DATA_RECEIVED = 52  # where `tcp_info` has it, in milliseconds
log = get_logger("gateway.request")


class _Beside:
    """Seconds in which this process did something else, since it began."""

    def __init__(self) -> None:
        self.collector = 0.0
        self.usage = 0.0
        self._collecting_since = 0.0
        gc.callbacks.append(self._note_collection)

    def _note_collection(self, phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            self._collecting_since = perf_counter()
        else:
            self.collector += perf_counter() - self._collecting_since

    @contextmanager
    def sending_usage(self) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.usage += perf_counter() - began


beside = _Beside()


class Trace:
    """Of one request, from its first turn on; made in the event loop's thread."""

    __slots__ = ("_before", "_queued", "_slow_seconds", "_unread")

    def __init__(
        self, *, queued_seconds: float, unread_seconds: float, slow_seconds: float
    ) -> None:
        """`unread_seconds`: since its last byte came to this machine."""
        self._queued = queued_seconds
        self._unread = max(0.0, unread_seconds - queued_seconds)
        self._slow_seconds = slow_seconds
        self._before = _sums()

    def end(self, context: RequestContext, status: int, seconds: float) -> None:
        """Log it if it was slow: if `duration_ms` is over the limit, from its last byte's arrival.

        That is `socket_ms` till it was read (known to 4 ms), `queued_ms` till its first turn,
        `limiter_ms`, `upstream_ms`, and `other_ms`: its own turns, and what else they waited for.
        Meanwhile, from its first turn on, the loop ran for `cpu_ms`, for this request and for
        others, `collector_ms` and `usage_ms` among it, and was ready for `no_core_ms` while others
        had the core. The rest of the time it had nothing to do.
        """
        whole = self._unread + self._queued + seconds
        if whole <= self._slow_seconds:
            return
        known = context.limiter_seconds + context.upstream_seconds
        parts = {
            "duration": whole,
            "socket": self._unread,
            "queued": self._queued,
            "limiter": context.limiter_seconds,
            "upstream": context.upstream_seconds,
            "other": max(0.0, seconds - known),
        }
        for name, after, before in zip(SUMS, _sums(), self._before, strict=True):
            parts[name] = after - before
        log.warning(
            "slow_request",
            request_id=context.request_id,
            route=context.route,
            status=status,
            **{f"{name}_ms": round(value * 1000, 2) for name, value in parts.items()},
        )


SUMS = ("cpu", "no_core", "collector", "usage")


def _sums() -> tuple[float, float, float, float]:
    """Seconds of this thread and its process so far, as `SUMS` names them."""
    waited = 0
    with suppress(OSError), open(SCHEDULED, "rb", buffering=0) as file:
        waited = int(file.read(64).split()[1])
    return thread_time(), waited / 1e9, beside.collector, beside.usage


def seconds_since_last_byte(connection: socket.socket) -> float:
    """Since the peer's last byte came to this machine, read or not; to 4 ms. 0: it is not known."""
    if sys.platform == "linux":
        with suppress(OSError):
            size = TCP_LAST_DATA_RECEIVED + 4
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
            return float(struct.unpack_from("I", info, TCP_LAST_DATA_RECEIVED)[0]) / 1000
    return 0.0
