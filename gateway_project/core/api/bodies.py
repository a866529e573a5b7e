"""Bodies of requests, on both planes: bounded in bytes and seconds, and read before all else.

A body is whole and in memory before anybody looks at the request, so that no file, no thread, no
connection of a pool and no limit is taken by somebody who sends slowly or without end. Django's own
handler would write whatever comes to a temporary file first, and ask who sends it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.conf import settings

from gateway_project.core import errors
from gateway_project.core.api.middleware import WHOLE_BODY, send_problem
from gateway_project.core.context import ASGIApp, Message, Receive, Scope, Send
from gateway_project.core.ratelimit import network_of
from gateway_project.core.sharing import SharedBudget
from gateway_project.core.telemetry.metrics import bound_reached

# Of all bodies that are not whole yet: who sends them may have no key, and is in no limit so far.
on_their_way = SharedBudget(settings.BODIES_BYTES_MAX)


class ClientGone(Exception):
    """The client hung up before its request was whole; nobody waits for an answer."""


async def drain(receive: Receive, *, bytes_max: int, seconds_max: float) -> None:
    """Read and forget, so that a client which sends first and reads after hears the answer.

    Raises `ClientGone`.
    """
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds_max):
            while more and size < bytes_max:
                message = await _receive(receive)
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        return


async def read_body(scope: Scope, receive: Receive, *, bytes_max: int, seconds_max: float) -> bytes:
    """The whole body. Raises the 413, the 408, a 503 with many on their way, or `ClientGone`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > bytes_max):
            raise _too_large(bytes_max)
    is_here = scope.get(WHOLE_BODY)
    if is_here is not None and (body := is_here()) is not None:
        return _not_larger(body, bytes_max)
    body = b""
    try:
        async with asyncio.timeout(seconds_max):
            message = await _receive(receive)
            body = message.get("body", b"")
            if message.get("more_body", False):
                body = await _read_rest(receive, body, bytes_max, scope["gateway"].client_ip)
    except TimeoutError as exc:
        raise errors.RequestTimeout(
            f"The body did not arrive within {seconds_max:g} seconds. Send it again in one go.",
            headers={"Connection": "close"},
        ) from exc
    return _not_larger(body, bytes_max)


def _not_larger(body: bytes, bytes_max: int) -> bytes:
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


async def _read_rest(receive: Receive, first: bytes, bytes_max: int, client_ip: str) -> bytes:
    sender = network_of(client_ip)
    chunks: list[bytes] = []
    chunk, size, more = first, 0, True
    try:
        while True:
            if size + len(chunk) > bytes_max:
                raise _too_large(bytes_max)
            if not on_their_way.take(sender, len(chunk)):
                bound_reached.labels("bodies").inc()
                raise _too_many()
            chunks.append(chunk)
            size += len(chunk)
            if not more:
                return b"".join(chunks)
            message = await _receive(receive)
            chunk, more = message.get("body", b""), message.get("more_body", False)
    finally:
        on_their_way.give_back(sender, size)


async def _receive(receive: Receive) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(bytes_max: int) -> errors.BodyTooLarge:
    return errors.BodyTooLarge(
        f"The body is larger than the {bytes_max // 1024} KiB allowed here. "
        "Send less at a time, in several requests.",
        headers={"Connection": "close"},
    )


def _too_many() -> errors.StoreUnavailable:
    return errors.StoreUnavailable(
        "Too many large bodies are being received from your address, or from all together. "
        "Send this one again in a moment.",
        retry_after_seconds=1,
        headers={"Connection": "close"},
    )


class BoundedBodies:
    """Wraps an application that reads bodies itself, such as Django's: it gets them whole.

    `bytes_max` maps a path to its limit in bytes.
    """

    def __init__(
        self, app: ASGIApp, *, bytes_max: Callable[[str], int], seconds_max: float
    ) -> None:
        self.app = app
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(
                scope,
                receive,
                bytes_max=self._bytes_max(scope["path"]),
                seconds_max=self._seconds_max,
            )
        except errors.GatewayError as error:
            await send_problem(send, error, scope)
            return
        except ClientGone:
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, receive_again, send)
