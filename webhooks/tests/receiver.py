"""A receiver of webhooks: a real server that verifies what it gets and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook as Verifier

from gateway_project.tests.loop_thread import LoopThread


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    def verified_by(self, secret: str) -> dict[str, Any]:
        """The body, if the signature is right; raises `WebhookVerificationError`."""
        return Verifier(secret).verify(self.body.decode(), self.headers)


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"thanks"
    hangs: bool = False
    hangs_up: bool = False


class Receiver:
    """`receiver.answers(503)` for all paths, or `answers(410, path="/b")` for one.

    A list is worked off, its last answer stays. `received` keeps every request in order.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.peers: set[Any] = set()  # each is a connection
        self._answers: dict[str, list[Answer]] = {}
        self._thread = LoopThread("receiver")
        self._released = asyncio.Event()
        self._thread.run(self._start())

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.port = self._runner.addresses[0][1]

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answers(self, *answers: int | Answer, path: str = "") -> None:
        self._answers[path] = [Answer(a) if isinstance(a, int) else a for a in answers]

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    @property
    def ids(self) -> set[str]:
        return {each.event_id for each in self.received}

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path, headers, await request.read()))
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        left = self._answers.get(request.path) or self._answers.get("") or [Answer()]
        says = left.pop(0) if len(left) > 1 else left[0]
        if says.hangs:
            await self._released.wait()
        if says.hangs_up and request.transport is not None:
            request.transport.abort()
        return web.Response(status=says.status, headers=says.headers, body=says.body)

    def release(self) -> None:
        """Let those go that hang."""
        self._thread.loop.call_soon_threadsafe(self._released.set)

    def close(self) -> None:
        self.release()
        self._thread.run(self._runner.cleanup())
        self._thread.close()
