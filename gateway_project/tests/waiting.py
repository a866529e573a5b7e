"""Finds who holds something of the database while somebody outside is waited for.

Installed for all tests (`conftest.py`): whatever a test makes the gateway do, no connection may be
borrowed, and no SQL thread be busy, at the moment when one of the doors to the outside is passed.
A request's connections are those of its threads (`RequestContext`), a task's those of its own.
"""

from __future__ import annotations

import functools
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import kombu
import pytest
from django.core.mail.backends.locmem import EmailBackend as LocalMemory
from django.db.backends.base.base import BaseDatabaseWrapper

from gateway_project.core.api import bodies
from gateway_project.core.context import ASGIApp, current
from gateway_project.core.upstream import client, names
from gateway_project.mail import Unheld

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = ("tests", ".venv", "benchmarks", "deploy")
found: list[str] = []
"""What was held at which door, since somebody looked."""
_wrappers: weakref.WeakSet[Any] = weakref.WeakSet()


class Mail(Unheld, LocalMemory):
    """Django's outbox of tests, behind what stands in front of the real mail server."""


def pass_boundary(boundary: str) -> None:
    """Note what this thread, or this request, holds at the moment."""
    held = [wrapper for wrapper in list(_wrappers) if _is_held(wrapper)]
    name = threading.current_thread().name
    if not held and not name.startswith("sql-"):
        return
    frames = [frame for frame in traceback.extract_stack() if _is_ours(frame.filename)]
    if not frames:  # the test itself, or a thread of a library's
        return
    where = " <- ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-7:-1])
    found.append(f"{boundary}, while {len(held)} connections are held in thread {name}: {where}")


def _is_held(wrapper: Any) -> bool:
    if wrapper.connection is None:
        return False
    if not wrapper.in_atomic_block and not getattr(wrapper, "_has_pool", False):
        return False  # its thread's own, for as long as that lives
    request = wrapper.gateway_request
    return wrapper.gateway_thread() is threading.current_thread() or (
        request is not None and request is current.get()
    )


@functools.cache
def _is_ours(path: str) -> bool:
    file = Path(path)
    if not file.is_relative_to(ROOT):
        return False
    parts = file.relative_to(ROOT).parts
    return not any(part in NOT_OURS for part in parts) and parts[-1] != "conftest.py"


def _of_our_stores() -> bool:
    """Whether it is redis-py that connects, for anything but the broker."""
    frame: Any = sys._getframe(2)
    modules = set()
    while frame is not None:
        modules.add(frame.f_globals.get("__name__", "").partition(".")[0])
        frame = frame.f_back
    return "redis" in modules and "kombu" not in modules


def watched(app: ASGIApp) -> ASGIApp:
    """The application, with its answers for a door."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        async def send_watched(message: Any) -> None:
            pass_boundary(f"a client may not read its {message['type']}")
            await send(message)

        await app(scope, receive, send_watched)

    return call


@contextmanager
def installed() -> Iterator[None]:
    patch = pytest.MonkeyPatch()

    def at(
        owner: Any, name: str, boundary: str, *, when: Callable[[], bool] = lambda: True
    ) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def passed(*args: Any, **kwargs: Any) -> Any:
            if when():
                pass_boundary(boundary)
            return real(*args, **kwargs)

        patch.setattr(owner, name, passed)

    real_connect = BaseDatabaseWrapper.connect

    def connect(wrapper: Any) -> None:
        real_connect(wrapper)
        # Not its number, which a later thread gets again.
        wrapper.gateway_thread = weakref.ref(threading.current_thread())
        wrapper.gateway_request = current.get()
        _wrappers.add(wrapper)

    patch.setattr(BaseDatabaseWrapper, "connect", connect)

    at(socket.socket, "connect", "a connection is made", when=lambda: not _of_our_stores())
    at(socket, "getaddrinfo", "a name is looked up", when=lambda: not _of_our_stores())
    at(names, "look_up", "a name is looked up")
    at(LocalMemory, "open", "a mail server is dialled")
    at(LocalMemory, "send_messages", "mail is sent")
    at(kombu.Producer, "publish", "a task is sent")
    at(bodies, "_receive", "a body is read")
    at(aiohttp.ClientSession, "_request", "aiohttp asks")
    at(httpx.AsyncClient, "send", "httpx asks")
    at(client.UpstreamClient, "request", "an upstream is asked")
    # Another thread's work is waited for: whatever that asks, we would hold on meanwhile.
    at(
        Future,
        "result",
        "another thread is waited for",
        when=lambda: _is_ours(sys._getframe(2).f_code.co_filename),
    )
    try:
        yield
    finally:
        patch.undo()
