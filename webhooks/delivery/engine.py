"""The delivery engine: what is due is claimed, sent and written down, many at once.

One in each worker process, in the background (`core/background.py`). The database is asked in two
threads, one to claim and one to write results, which therefore come in batches when there is much
to do.

No receiver holds back another: of each webhook one delivery is in flight, one more with each answer
(TCP's slow start), one again when it does not answer in time, and only so many begin in a second.
So a hundred that hang take a hundred places of their workspace, and leave it the others. Nor does a
workspace hold back another: of `WEBHOOK_DELIVERIES_IN_FLIGHT_MAX` it takes as many as it leaves
free. All of these bounds are for each process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from django import db
from django.conf import settings

from gateway_project.core.background import Background, in_thread
from gateway_project.core.sharing import SharedBudget
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from webhooks.delivery import outbox, subscriptions
from webhooks.delivery.attempt import TIMEOUT_SECONDS, Job, Outcome, WindowKey
from webhooks.delivery.outbox import CALLBACKS_MAX
from webhooks.delivery.results import record

if TYPE_CHECKING:
    from webhooks.delivery.sending import Sender

CLAIMED_AT_ONCE = 200
WINDOW_START, WINDOW_MAX = 1, 32
WINDOWS_MAX = 10_000
RETRY_SECONDS = 0.5  # while results cannot be written
RATE_SECONDS = 0.05  # how long a webhook that has used up its rate is left alone
PAUSE_SECONDS = 0.01  # between two looks at the database that may find nothing
STOP_SECONDS = TIMEOUT_SECONDS + 5
log = get_logger("gateway.webhooks")
_loop = Loop("webhooks.delivery")


class ConcurrencyWindow:
    """How much one webhook may have in flight, and how much may begin in a second.

    Each address that a request names has one; all those of a workspace have a wide one together
    (`Whole`).
    """

    __slots__ = ("_begun", "_filled_at", "_tokens", "in_flight", "limit")
    start = WINDOW_START

    def __init__(self) -> None:
        self.in_flight = 0
        self.limit = self.start
        self._tokens = float(settings.WEBHOOK_RATE_PER_SECOND)
        self._filled_at = monotonic()

    def room(self) -> int:
        now, rate = monotonic(), settings.WEBHOOK_RATE_PER_SECOND
        self._tokens = min(rate, self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        return min(self.limit - self.in_flight, int(self._tokens))

    def begin(self) -> None:
        self.in_flight += 1
        self._tokens -= 1

    def end(self, outcome: Outcome) -> None:
        self.in_flight -= 1
        if outcome.is_success:
            self.limit = min(self.limit + 1, WINDOW_MAX)
        elif outcome.kind == "timeout":
            self.limit = self.start

    @property
    def waits_for_rate(self) -> bool:
        return self._tokens < 1


class SharedWindow(ConcurrencyWindow):
    """Of addresses that have nothing in common but who named them: none narrows it."""

    __slots__ = ()
    start = CALLBACKS_MAX

    def end(self, outcome: Outcome) -> None:
        self.in_flight -= 1


class Engine:
    """`drain` sends all that is due; made and used inside one event loop."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._claims = outbox.Claims()
        self._windows: dict[WindowKey, ConcurrencyWindow] = {}
        self._shares = SharedBudget(settings.WEBHOOK_DELIVERIES_IN_FLIGHT_MAX)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._results: list[tuple[Job, Outcome]] = []
        self._changed = asyncio.Event()  # something ended, or somebody woke us
        self._has_results = asyncio.Event()
        self._is_over = False
        self._is_woken = False
        self._claimer = ThreadPoolExecutor(1, thread_name_prefix="webhooks-claim")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="webhooks-write")
        self._is_running = False
        self._is_stopping = False

    async def wake(self) -> None:
        """Send what is due; whoever calls meanwhile has it look once more, and returns at once."""
        self._is_woken = True
        self._changed.set()
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._is_woken and not self._is_stopping:
                self._is_woken = False
                await self.drain()
            await in_thread(self._claimer, _loop.succeeded)
        except Exception as exc:
            log.error("webhooks_round_failed", error=type(exc).__name__, exc_info=exc)
            await in_thread(self._claimer, _loop.failed, exc)
        finally:
            self._is_running = False

    def stop(self) -> None:
        """Claim nothing more; `drain` ends when what is in flight has."""
        self._is_stopping = True
        self._changed.set()

    async def drain(self) -> None:
        """Send what is due until nothing is left, and write down what became of it.

        Raises what the database raised when nothing more can be claimed, or results were lost.
        """
        self._is_over = False
        writing = asyncio.create_task(self._write_results(), name="webhooks-results")
        try:
            await self._send_all()
        finally:
            if self._in_flight:
                await asyncio.wait(self._in_flight)
            self._is_over = True
            self._has_results.set()
            await writing

    async def _send_all(self) -> None:
        while not self._is_stopping:
            self._changed.clear()
            events = await in_thread(self._claimer, outbox.fan_out)
            shares = self._shares.copy()
            places = min(shares.most - shares.used, CLAIMED_AT_ONCE)
            room = {key: window.room() for key, window in self._windows.items()}
            jobs = await in_thread(
                self._claimer, self._claims.take, places, room, WINDOW_START, shares=shares
            )
            for job in jobs:
                self._begin(job)
            if self._claims.taken or events:
                continue
            is_held_back = any(window.waits_for_rate for window in self._windows.values())
            if not self._in_flight and not is_held_back and not self._changed.is_set():
                return
            # Nothing is due but what its own webhook, or the number in flight, holds back.
            try:
                async with asyncio.timeout(RATE_SECONDS if is_held_back else None):
                    await self._changed.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(PAUSE_SECONDS)

    def _begin(self, job: Job) -> None:
        kind = SharedWindow if job.lane else ConcurrencyWindow
        windows = [self._window((job.webhook_id, ""), kind)]
        if job.lane:
            windows.append(self._window((job.webhook_id, job.lane), ConcurrencyWindow))
        for window in windows:
            window.begin()
        self._shares.note(job.workspace_id, 1)
        task = asyncio.create_task(self._deliver(job, windows))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    def _window(self, key: WindowKey, kind: type[ConcurrencyWindow]) -> ConcurrencyWindow:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= WINDOWS_MAX:
                self._windows = {key: one for key, one in self._windows.items() if one.in_flight}
            window = self._windows[key] = kind()
        return window

    async def _deliver(self, job: Job, windows: list[ConcurrencyWindow]) -> None:
        try:
            outcome = await self._sender.send(job)
        finally:
            self._shares.give_back(job.workspace_id, 1)
        for window in windows:
            window.end(outcome)
        if job.lane and not windows[-1].in_flight:  # there are as many addresses as requests name
            self._windows.pop((job.webhook_id, job.lane), None)
        self._results.append((job, outcome))
        self._has_results.set()
        self._changed.set()

    async def _write_results(self) -> None:
        lost: Exception | None = None
        while self._results or not self._is_over:
            await self._has_results.wait()
            self._has_results.clear()
            batch, self._results = self._results, []
            if not batch:
                continue
            try:
                await self._write(batch)
            except Exception as exc:
                # Whatever it is, those of others are written; and it is told when all is over.
                log.error("webhook_results_lost", count=len(batch), exc_info=exc, alert=True)
                lost = exc
        if lost is not None:
            raise lost

    async def _write(self, batch: list[tuple[Job, Outcome]]) -> None:
        """Insist while the leases last; afterwards others send these deliveries again.

        Each try counts as a round of its own: while there is more to send, `drain` does not end.
        """
        until = monotonic() + outbox.LEASE.total_seconds()
        while True:
            try:
                await in_thread(self._writer, record, batch)
            except Exception as exc:
                await _loop.afailed(exc)
                is_away = isinstance(exc, db.OperationalError | db.InterfaceError)
                if not is_away or monotonic() > until:
                    raise
                log.error("webhook_results_unwritten", count=len(batch), error=type(exc).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await _loop.asucceeded()
                return


@asynccontextmanager
async def _opened() -> AsyncIterator[Engine]:
    from webhooks.delivery.sending import Sender

    async with Sender() as sender:
        yield Engine(sender)


background = Background("webhooks", _opened, stop_seconds=STOP_SECONDS)
"""The engine of this process."""


def deliver_all() -> None:
    """Send all that is due and return when it is written; for commands and tests.

    What is on its way to webhooks that are sent nothing more is given up.
    """
    database.let_go()

    async def run() -> None:
        async with _opened() as opened:
            await opened.drain()

    asyncio.run(run())
    subscriptions.close_pending()
