"""SQL from the data plane, off the event loop, in threads and connections of its own.

`run` is for what changes something: it has a transaction, and when its time is up it is undone
before anybody is told so: what is answered with 503 has not happened. `read` is for what does not.
Pages and management calls have a pool of connections of their own, so neither plane can take the
other's; writers of one workspace take half of the writers at most, so a row that it holds keeps
nobody else waiting. Only a database that is away has everybody turned away for a moment, not
a statement that took too long. `hops` lets a test count that a hot request uses none.

Django's request signals do not fire here, so a connection taken from the pool would never go back:
each call closes it in `finally`. On the control plane they go back when the answer is ready, before
it is sent (`release_before_answering`), and `let_go` gives them back before a wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any, Generic, ParamSpec, TypeVar

from django import db
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_only_middleware
from django.utils.translation import gettext_noop

from gateway_project.core import errors
from gateway_project.core.context import current
from gateway_project.core.sharing import Semaphores
from gateway_project.core.stores import statements
from gateway_project.core.stores.caching import ignore

P = ParamSpec("P")
T = TypeVar("T")

WRITERS_MAX = 4
WORKSPACE_WRITERS_MAX = 2
READERS_MAX = 2
DEADLINE_SECONDS = 2.0
COMMIT_SECONDS_MAX = 10.0
"""How long a commit that has left is waited for: it may have happened."""
REST_SECONDS = 1.0
"""From when what failed had begun: how long it took is no reason to come back later."""
REST_SECONDS_MIN = 0.25
BOUNDS = statements.Bounds(statement=1.5, lock=0.5, idle=2.0)
# A thread for who it is that asks, for the usage log, and for the probe: none may wait for a
# request's, or keep one waiting.
LANE = statements.Lane("data", WRITERS_MAX + READERS_MAX + 3, BOUNDS)

LATE = "The database took too long. Nothing was changed: try again shortly."
UNKNOWN = gettext_noop(
    "The database did not say whether it was stored. Look before you send it again."
)


def pool_max() -> int:
    """How many connections this process may open, but for the lane's."""
    pool = settings.DATABASES["default"].get("OPTIONS", {}).get("pool") or {}
    return int(pool.get("max_size", 1))


def web_max() -> int:
    """How many a web process may open."""
    return pool_max() + LANE.size


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    def begin() -> None:
        statements.thread.lane = LANE

    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)


_writers = _threads(WRITERS_MAX, "sql-write")
_readers = _threads(READERS_MAX, "sql-read")
_finder = _threads(1, "sql-find")
_behind = _threads(1, "sql-behind")
_prober = _threads(1, "sql-probe")
_turns = Semaphores(WORKSPACE_WRITERS_MAX)
_backing_off_until = 0.0
hops = 0
trouble_since: float | None = None
"""`monotonic()` of the first failure since the last success; None when all is well."""


class _Undone(Exception):
    """Nobody waits any more: the transaction ends without a commit."""


class _Call(Generic[T]):
    """A function for a thread, that whoever waits for it can undo until its commit has left."""

    def __init__(self, function: Callable[[], T], *, is_write: bool) -> None:
        self._function = function
        self._is_write = is_write
        self._lock = Lock()
        self._is_undone = self._is_committing = False
        self.began_at = 0.0

    def __call__(self) -> T:
        self.began_at = monotonic()
        try:
            with statements.bounded(BOUNDS):
                if not self._is_write:
                    self._raise_if_undone()
                    return self._function()
                with transaction.atomic():
                    self._raise_if_undone()
                    result = self._function()
                    self._begin_commit()
                return result
        finally:
            db.connections.close_all()

    def undo(self) -> bool:
        """False: it is being committed, or was."""
        with self._lock:
            self._is_undone = not self._is_committing
            return self._is_undone

    def _raise_if_undone(self) -> None:
        if self._is_undone:
            raise _Undone

    def _begin_commit(self) -> None:
        with self._lock:
            self._raise_if_undone()
            self._is_committing = True


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a transaction, in a thread that may use the ORM.

    Raises `StoreUnavailable` when the database is away or `DEADLINE_SECONDS` are over; then it is
    undone.
    """
    turn = _turn_of_workspace()
    call = _Call(partial(function, *args, **kwargs), is_write=True)
    return await _wait_for(call, _writers, turn)


async def read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what changes nothing; without a transaction."""
    return await _wait_for(_Call(partial(function, *args, **kwargs), is_write=False), _readers)


async def find(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `read`, for who it is that asks: nobody's pages and figures may be in the way of that.

    One at a time, so many are looked up at once (`caching.Loader`).
    """
    return await _wait_for(_Call(partial(function, *args, **kwargs), is_write=False), _finder)


def forget_connections() -> None:
    """Begin anew: with this thread's connection and the pools of all threads, at once."""
    db.connections.close_all()
    if hasattr(db.connection, "close_pool"):  # PostgreSQL's
        db.connection.close_pool(seconds=0.0)


async def probe() -> None:
    """Raise `StoreUnavailable` when the database does not answer, however busy its threads are."""
    await _wait_for(_Call(_select_one, is_write=False), _prober)


def _select_one() -> None:
    with db.connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def run_behind(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """For work that no request waits for: one at a time, without a deadline."""

    def call() -> T:
        try:
            return function(*args, **kwargs)
        finally:
            db.connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(_behind, call)


async def _wait_for(
    call: _Call[T], executor: ThreadPoolExecutor, turn: asyncio.Semaphore | None = None
) -> T:
    global hops
    hops += 1
    if monotonic() < _backing_off_until:
        raise errors.StoreUnavailable
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    if turn is not None:
        try:
            async with asyncio.timeout_at(deadline):
                await turn.acquire()
        except TimeoutError:
            raise errors.StoreUnavailable(LATE) from None
    thread = executor.submit(call)
    thread.add_done_callback(partial(_finished, loop, turn, call))
    outcome = asyncio.wrap_future(thread)
    outcome.add_done_callback(ignore)  # of one that nobody waits for any more
    await asyncio.wait([outcome], timeout=deadline - loop.time())
    if not outcome.done():
        if call.undo():
            raise errors.StoreUnavailable(LATE)
        await asyncio.wait([outcome], timeout=COMMIT_SECONDS_MAX)
        if not outcome.done():
            raise errors.StoreUnavailable(UNKNOWN)
    try:
        return outcome.result()
    except (db.OperationalError, db.InterfaceError) as exc:
        raise errors.StoreUnavailable(None if is_away(exc) else LATE) from exc


def _turn_of_workspace() -> asyncio.Semaphore:
    context = current.get()
    return _turns.of(str(context.workspace) if context else "")


def _finished(
    loop: asyncio.AbstractEventLoop,
    turn: asyncio.Semaphore | None,
    call: _Call[Any],
    thread: Future[Any],
) -> None:
    """In the thread, also of a call that nobody waits for any more: only now is its place free."""
    global trouble_since, _backing_off_until
    if turn is not None and not loop.is_closed():
        loop.call_soon_threadsafe(turn.release)
    exc = thread.exception()
    if exc is None:
        trouble_since = None
    elif is_away(exc):
        note_trouble()
        _backing_off_until = max(call.began_at + REST_SECONDS, monotonic() + REST_SECONDS_MIN)


def is_away(exc: BaseException) -> bool:
    """Whether the connection was lost or none could be made; not that a statement took too long."""
    if isinstance(exc, db.InterfaceError):
        return True
    if not isinstance(exc, db.OperationalError):
        return False
    cause = exc.__cause__
    state = getattr(cause, "sqlstate", None)
    if state is None:  # not the server's word: nothing came back; or SQLite's
        return "locked" not in str(exc)
    # Of PostgreSQL's classes: connections, no room for one more, the operator's hand.
    return state[:2] in ("08", "53") or (state[:2] == "57" and state != "57014")


def learn_time() -> None:
    """Ask PostgreSQL for the time anew: clocks drift between two connections."""
    if db.connection.vendor == "postgresql":
        from gateway_project.core.stores.counted.postgresql import base

        db.connection.ensure_connection()
        base.learn_time(db.connection.connection)


def note_trouble() -> None:
    """Somebody else found the database away."""
    global trouble_since
    trouble_since = trouble_since or monotonic()


def forget_trouble() -> None:
    """Start anew, as if nothing had failed."""
    global hops, trouble_since, _backing_off_until
    hops, trouble_since, _backing_off_until = 0, None, 0.0


def let_go() -> None:
    """Give this thread's connections back: what follows waits for somebody outside.

    Raises `RuntimeError` inside a transaction: its locks would be held meanwhile.
    """
    for connection in db.connections.all(initialized_only=True):
        # Django's own question, of a transaction that has to be the outermost.
        if any(not block._from_testcase for block in connection.atomic_blocks):  # type: ignore[attr-defined]
            raise RuntimeError("This waits for somebody outside: not inside a transaction.")
        if connection.connection is not None:
            connection.close_if_unusable_or_obsolete()
    context = current.get()
    if context is not None and context.let_go is not None:
        context.let_go()


@sync_only_middleware
def release_before_answering(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Give connections back before the answer is sent: its client may read slowly, or never.

    Django does it when the answer has left.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        try:
            return get_response(request)
        finally:
            db.close_old_connections()

    return middleware
