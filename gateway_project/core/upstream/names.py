"""Names to addresses, without threads: c-ares asks the system's name servers, or `NAME_SERVERS`.

Names that hang are whoever's who brought them: a look-up has `SECONDS_MAX`, a workspace has
`ASKER_MAX` at once, and no other waits for them. A name that is not found is told apart from a
resolver of ours that does not answer, because the one is held against a receiver and the other
must not be.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from secrets import token_hex
from time import monotonic
from typing import Any

import pycares
from django.conf import settings
from pycares import errno

from gateway_project.core.sharing import Semaphores

SECONDS_MAX = 2.5
SECONDS_A_TRY = 1.0
TRIES = 4  # more than fit: c-ares waits less for a try the quicker a server has been
ASKER_MAX = 16
CACHED_SECONDS = 10
PROBE_SECONDS_MAX = 1.0
PROBED_SECONDS = 5.0
"""How long it is believed that our name servers answer, or do not."""
ABSENT = frozenset(
    (
        *(errno.ARES_ENOTFOUND, errno.ARES_ENODATA, errno.ARES_ENONAME),
        *(errno.ARES_EBADNAME, errno.ARES_EFORMERR),
    )
)
SILENT = frozenset((errno.ARES_ETIMEOUT, errno.ARES_ECONNREFUSED, errno.ARES_ESERVFAIL))
Submit = Callable[[pycares.Channel, Callable[..., None]], None]
_asker: ContextVar[str] = ContextVar("asker", default="")
_shares = Semaphores(ASKER_MAX)
_answering: tuple[bool, float] = (True, 0.0)  # and until when that is believed


class UnknownName(OSError):
    """There is no such name, or those who answer for it do not."""


class ResolverAway(OSError):
    """Our own name servers do not answer, or too much was asked at once: not the name's fault."""


class _Failed(Exception):
    """What c-ares said, as one of its numbers."""


@contextmanager
def asked_by(asker: str) -> Iterator[None]:
    """Whose names are looked up inside: each has a share of its own."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


async def look_up(host: str, family: int = socket.AF_UNSPEC) -> list[str]:
    """The addresses of `host`. Raises `UnknownName` or `ResolverAway`."""
    share = _shares.of(_asker.get())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await share.acquire()
    except TimeoutError:
        raise ResolverAway("too many look-ups at once") from None
    try:
        return await _addresses(host, family)
    finally:
        share.release()


def text_records(host: str) -> list[str]:
    """The TXT records of `host`; none where there is no such name. Blocks for `SECONDS_MAX`.

    Raises `ResolverAway` when nobody answers. Not with a connection of the database in hand.
    """
    answered: Future[Any] = Future()

    def answer(result: Any, error: int | None) -> None:  # in a thread of c-ares
        if error is None:
            answered.set_result(result)
        else:
            answered.set_exception(_Failed(error))

    channel = _channel(os.getpid(), _era(), tuple(settings.NAME_SERVERS))
    try:
        channel.query(host, pycares.QUERY_TYPE_TXT, callback=answer)
        found = answered.result(SECONDS_MAX)
    except _Failed as exc:
        if exc.args[0] in ABSENT:
            return []
        raise ResolverAway("the name servers do not answer") from exc
    except (TimeoutError, pycares.AresError) as exc:
        raise ResolverAway("the name servers do not answer") from exc
    records = [record.data for record in found.answer if record.type == pycares.QUERY_TYPE_TXT]
    return [record.data.decode("utf-8", "replace") for record in records]


async def _addresses(host: str, family: int) -> list[str]:
    def submit(channel: pycares.Channel, answer: Callable[..., None]) -> None:
        channel.getaddrinfo(
            host,
            None,
            family=socket.AddressFamily(family),
            type=socket.SOCK_STREAM,
            callback=answer,
        )

    try:
        found = await _ask(submit, SECONDS_MAX)
    except (_Failed, TimeoutError) as exc:
        # Its own servers are silent, or ours are.
        if (exc.args and exc.args[0] in ABSENT) or await are_answering():
            raise UnknownName(host) from exc
        raise ResolverAway("the name servers do not answer") from exc
    return list(dict.fromkeys(node.addr[0].decode() for node in found.nodes))


async def are_answering() -> bool:
    """Whether any of the name servers says something, if only that there is no such name."""
    global _answering
    is_answering, until = _answering
    if monotonic() >= until:
        is_answering = await _probe()
        _answering = is_answering, monotonic() + PROBED_SECONDS
    return is_answering


async def _probe() -> bool:
    name = f"{token_hex(8)}.example"  # of its own, which c-ares has not kept from the last time

    def submit(channel: pycares.Channel, answer: Callable[..., None]) -> None:
        channel.query(name, pycares.QUERY_TYPE_A, callback=answer)

    try:
        await _ask(submit, PROBE_SECONDS_MAX)
    except TimeoutError:
        return False
    except _Failed as exc:
        return exc.args[0] not in SILENT
    return True


async def _ask(submit: Submit, seconds: float) -> Any:
    """c-ares' answer; raises `_Failed` or `TimeoutError`."""
    answered: Future[Any] = Future()

    def answer(result: Any, error: int | None) -> None:  # in a thread of c-ares
        if not answered.set_running_or_notify_cancel():
            return  # nobody waits any more
        if error is None:
            answered.set_result(result)
        else:
            answered.set_exception(_Failed(error))

    try:
        submit(_channel(os.getpid(), _era(), tuple(settings.NAME_SERVERS)), answer)
    except pycares.AresError as exc:
        raise _Failed(*exc.args) from exc
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(answered)


def _era() -> int:
    return int(monotonic() / CACHED_SECONDS)


@lru_cache(maxsize=1)
def _channel(pid: int, era: int, servers: tuple[str, ...]) -> pycares.Channel:
    """One for the process, whose threads and loops share it; not for one that was forked off.

    Not for long: c-ares keeps that a name has no address for an hour, whatever its server says.
    The one before lives until it has answered.
    """
    return pycares.Channel(timeout=SECONDS_A_TRY, tries=TRIES, servers=servers or None)
