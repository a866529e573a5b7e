"""Both servers over one seed data, with a dispatcher that works on the queue."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aiohttp import web

from robin.standin import client_api, service_api
from robin.standin.queue import Envelope
from robin.standin.seed_data import DOMAINS, NAMES, PROTOCOLS, SeedData
from robin.standin.server import Auth, RobinAPI

Profile = Literal["stock", "legacy", "ui-fork"]


@dataclass
class Robin:
    """`async with Robin().running():` — or `start()` and `stop()`.

    `tick_seconds` 0: the queue stands still. With `traffic` a mail comes at every second tick.
    """

    seed: SeedData = field(default_factory=SeedData)
    profile: Profile = "stock"
    auth: Auth = field(default_factory=Auth)
    tick_seconds: float = 0.0
    traffic: bool = False
    client: RobinAPI = field(init=False)
    service: RobinAPI = field(init=False)
    _held: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        client = client_api.contexts(self.seed, profile=self.profile)
        service = service_api.contexts(self.seed, profile=self.profile)
        self.client = RobinAPI("client", "API", client_api.LANDING, client, self.auth)
        self.service = RobinAPI(
            "service", "Service Endpoint", service_api.LANDING, service, Auth(**asdict(self.auth))
        )

    def turn_into(self, profile: Profile) -> None:
        """Change the profile of a running stand-in."""
        self.profile = profile
        self.client.contexts = client_api.contexts(self.seed, profile=profile)
        self.service.contexts = service_api.contexts(self.seed, profile=profile)

    def begin_anew(self) -> None:
        """A fresh seed data, no faults, nothing asked; the ports stay."""
        self.seed = SeedData(clock=self.seed.clock)
        self.turn_into("stock")
        for port in (self.client, self.service):
            port.faults.__init__()  # type: ignore[misc]
            port.auth.__init__()  # type: ignore[misc]
            port.asked.clear()
            port.headers_seen.clear()

    async def start(
        self, *, host: str = "127.0.0.1", client_port: int = 0, service_port: int = 0,
        control_port: int | None = None,
    ) -> None:  # fmt: skip
        await self.client.start(host, client_port)
        await self.service.start(host, service_port)
        if control_port is not None:
            await self._start_control(control_port)
        if self.tick_seconds:
            self._held.append(asyncio.create_task(self._tick()))

    async def stop(self) -> None:
        for held in self._held:
            if isinstance(held, asyncio.Task):
                held.cancel()
                with suppress(asyncio.CancelledError):
                    await held
            else:
                await held.cleanup()
        self._held.clear()
        await self.client.stop()
        await self.service.stop()

    @property
    def client_url(self) -> str:
        return f"http://127.0.0.1:{self.client.port}"

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    async def _tick(self) -> None:
        queue, round_ = self.seed.queue, 0
        while True:
            await asyncio.sleep(self.tick_seconds)
            round_ += 1
            if self.traffic and round_ % 2 and queue.size() < 400:
                rcpt = f"{queue.random.choice(NAMES)}@{queue.random.choice(DOMAINS)}"
                envelope = Envelope("news@north.example", [rcpt], "/var/lib/robin-store/queue/n")
                queue.enqueue(queue.random.choice(PROTOCOLS), [envelope])
            async with queue.lock:
                queue.tick()

    # -- Faults, from outside ---------------------------------------------------------------------

    async def _start_control(self, port: int) -> None:
        """`POST /faults/{client,service}` with the fields of `Faults`, or `{"down": true}`."""
        app = web.Application()
        app.router.add_post("/faults/{port}", self._set_faults)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self._held.append(runner)

    async def _set_faults(self, request: web.Request) -> web.Response:
        port = {"client": self.client, "service": self.service}.get(request.match_info["port"])
        given = await request.json()
        if port is None or not isinstance(given, dict):
            return web.json_response({"error": "client or service, with an object"}, status=400)
        is_down = given.pop("down", None)
        try:
            port.faults.__init__(**given)  # type: ignore[misc]
        except TypeError as exc:
            return web.json_response({"error": str(exc)}, status=400)
        if is_down is True:
            await port.stop()
        elif is_down is False and port._runner is None:
            await port.start()
        return web.json_response(asdict(port.faults))
