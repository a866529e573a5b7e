"""Requests that are sent while a store fails, here or there, and what came of them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from http.cookies import SimpleCookie
from typing import Any

from django.test import Client

from accounts import authentication
from accounts.admin.actions import PARTLY
from accounts.idempotency import SERVED_SECONDS_MAX
from conftest import forget_limits
from gateway_project.core.stores import redis
from gateway_project.core.stores.database import UNKNOWN
from gateway_project.core.upstream import breaker
from gateway_project.tests.failing_store import FailingRedis, FailingStore, Manner
from gateway_project.tests.kept import Kept
from gateway_project.tests.shown_forms import HTML, Found
from robin.access import authentication as members
from robin.config import settings_page
from robin.queue import turns
from robin.upstream import viewset

WRITES_MAX = 40
MANNERS: tuple[Manner, ...] = ("silent", "refusing")
SAYS_SO = (UNKNOWN, PARTLY.partition("%")[0])
"""Of answers: it may have happened, or has in part."""


class Stores:
    """Both, and what is asked of others; all as it was at `keep`, when it is to `come_back`."""

    def __init__(self, gateway: Any, sql: FailingStore, redis: FailingRedis) -> None:
        self.gateway, self.sql, self.redis = gateway, sql, redis

    def wait(self) -> None:
        """For what is written behind an answer."""
        if viewset._behind:
            self.gateway.run(asyncio.wait(set(viewset._behind)))

    def keep(self, *browsers: Client, queue: Any = None) -> None:
        """`queue`: of the stand-in for Robin."""
        self._kept, self._queue = Kept(), queue
        self._beside = self._look_beside()
        client = redis.client()  # whose cache has what Robin's confirmations stand for
        self._cached = {key: client.dump(key) for key in client.scan_iter("gw:1:*", count=10_000)}
        self._cookies = [(one, SimpleCookie(one.cookies.output(header=""))) for one in browsers]

    def changes(self) -> dict[str, int]:
        """By table, or what else there is: how many rows more, where they are others."""
        now = self._look_beside().items()
        beside = {name: 0 for name, held in now if held != self._beside[name]}
        return {**self._kept.changes(set(self.sql.tables)), **beside}

    def left(self) -> dict[str, int]:
        """What has changed, in any table."""
        return self._kept.changes()

    def come_back(self) -> None:
        self._kept.come_back(set(self.sql.tables))
        if self._queue is not None:
            self._queue.items = pickle.loads(self._beside["Robin's queue"])
        for browser, cookies in self._cookies:
            browser.cookies = SimpleCookie(cookies.output(header=""))
        authentication._memory.forget(authentication.ALL)
        members._memory.forget(members.ALL)
        settings_page.forget()
        forget_limits()
        for key, held in self._cached.items():
            redis.client().restore(key, 0, held, replace=True)

    def _look_beside(self) -> dict[str, Any]:
        found: dict[str, Any] = {"breakers": breaker.forced_everywhere()}
        if self._queue is not None:
            found["Robin's queue"] = pickle.dumps(self._queue.items)
        return found


def _let_time_pass() -> None:
    """What is held in Redis by whoever does not know it ends: turns, allauth's locks, marks of
    forms, keys of calls that are being served."""
    client = redis.client()
    most = SERVED_SECONDS_MAX * 1000
    over = [key for key in client.scan_iter(count=10_000) if 0 < client.pttl(key) <= most]
    client.delete(*over, *(turns.PREFIX + name for name in ("holder", "since", "rest")))


class Tried:
    """One request, sent to stores that fail here or there; each time from the same beginning.

    `wrong`: what should not have been. `is_done`: whether it is while all is well. `is_hidden`: it
    was answered as done, and was not, or not all of it.
    """

    def __init__(
        self, stores: Stores, send: Callable[[], Any], may_change: frozenset[str] = frozenset()
    ) -> None:
        self._stores, self._ask, self._may_change = stores, send, may_change
        self.wrong: list[Any] = []
        self.is_hidden = False
        stores.sql.begin()
        with stores.redis.well():
            self.answer = self._send()
        self._usual = stores.changes()
        self.is_done = bool(stores.sql.passed) and self.answer.status_code < 400
        commands = stores.redis.sent
        stores.come_back()
        self._without_the_database()
        for count in range(commands):
            # Both ways at the first, and in turn at the others.
            for manner in MANNERS if not count else (MANNERS[count % 2],):
                self._without_redis(count, manner)

    def _send(self) -> Any:
        answer = self._ask()
        self._stores.wait()
        return answer

    def _without_the_database(self) -> None:
        sql = self._stores.sql
        with sql.away_at_commit():
            answer = self._send()
        if sql.has_failed:
            self._look(answer, sql.failed_at)
        else:
            self._stores.come_back()
        # What came before that commit is undone or not, whichever write of it fails.
        first = max(0, sql.passed - 1) if sql.has_failed and not sql.by_itself else 0
        for writes in range(first, WRITES_MAX):
            with sql.slow_after(writes):
                answer = self._send()
            if not sql.has_failed:
                self._is_done_once("the database is back")
                return
            self._look(answer, sql.failed_at)
        raise AssertionError("it never ends")

    def _without_redis(self, commands: int, manner: Manner) -> None:
        self._stores.sql.begin()
        with self._stores.redis.away_after(commands, manner):
            answer = self._send()
        if self._look(answer, f"{manner} after {commands}"):
            _let_time_pass()
            self._send()
            self._is_done_once(f"was {manner} after {commands}")

    def _is_done_once(self, when: str) -> None:
        """What was refused was sent again."""
        found = self._stores.changes()
        if any(found.get(name) != self._usual.get(name) for name in self._held(found, self._usual)):
            self.wrong.append((when, found, self._usual))
        self._stores.come_back()

    def _held(self, *changes: dict[str, int]) -> set[str]:
        """Names of those that nobody may have changed."""
        return set().union(*changes) - self._may_change

    def _look(self, answer: Any, failed_at: str) -> bool:
        """Whether it may be sent again; else all is as it was at the beginning."""
        status = answer.status_code
        changes = self._stores.changes()
        if status > 500 and not self._held(changes):
            return True
        if status > 500:
            says_so = any(one.encode() in answer.content for one in SAYS_SO)
            self.wrong += [] if says_so else [(failed_at, changes)]
        elif status >= 400 and status != self.answer.status_code:
            self.wrong.append((failed_at, status))
        self.is_hidden |= status < 400 and changes != self._usual
        self._stores.come_back()
        return False


class Asked:
    """What came of the forms of one browser, each tried by itself; by their names.

    `not_done`: those that write nothing while all is well, with how they are answered.
    """

    def __init__(
        self,
        stores: Stores,
        browser: Client,
        forms: Iterable[Found],
        may_change: frozenset[str] = frozenset(),
    ) -> None:
        self.wrong: dict[str, Any] = {}
        self.not_done: dict[str, int] = {}
        self.hidden: set[str] = set()
        self.names: set[str] = set()
        browser.raise_request_exception = False
        for name, address, fields in forms:
            if name in self.names:
                continue
            tried = Tried(stores, partial(browser.post, address, fields, **HTML), may_change)

            self.names.add(name)
            if tried.wrong:
                self.wrong[name] = tried.wrong
            if tried.is_hidden:
                self.hidden.add(name)
            if not tried.is_done:
                self.not_done[name] = tried.answer.status_code
