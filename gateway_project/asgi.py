"""The application a server runs: `gateway_project.asgi:application`.

RequestMiddleware          request id, client address, clock, headers, metrics, log
└── lifespan               opens and closes what a process holds
└── /ws/queue           →  robin/queue/consumers.py, on Channels
└── data-plane paths    →  DataPlaneHandler (one coroutine, no Django middleware)
└── everything else     →  BoundedBodies, SharedSlots, then Django's own ASGIHandler
"""

from __future__ import annotations

import math
import os
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")

import django

django.setup(set_prefix=False)

from django.conf import settings

from detection.guardrails import PATHS as GUARDRAILS
from gateway_project.core import errors
from gateway_project.core.api.bodies import BoundedBodies
from gateway_project.core.api.handler import DataPlaneHandler
from gateway_project.core.api.middleware import RequestMiddleware, send_problem
from gateway_project.core.api.slots import SharedSlots
from gateway_project.core.context import ASGIApp, Receive, Scope, Send
from gateway_project.server import heads, hosts
from gateway_project.server.cors import CrossOrigin
from gateway_project.server.lifespan import Process
from gateway_project.server.pages import PagesHandler
from robin.queue import live
from robin.queue.consumers import QueueConsumer

LITELLM = "/beta/litellm_basic_guardrail_api"
# Exact paths, so that a look-alike of one is not taken from the control plane by its prefix.
DATA_PLANE = frozenset(
    {
        *("/v1/detect", "/v1/detect/score", "/v1/detect/batch", "/v1/detect/async", "/v1/limits"),
        *("/health", "/health/live", "/health/ready", LITELLM, *GUARDRAILS),
    },
)
# Robin's: these and all that is below them. There a look-alike finds nothing on either plane.
DATA_PLANE_BELOW = tuple(
    f"/api/v1/{name}"
    for name in ("queue", "storage", "logs", "config", "health", "metrics", "scanners")
)
LIVE_QUEUE = "/ws/queue"
HEALTH = "/health"  # probes know an address, and no name
# Pages of the control plane that take a file; all others take what a form or a call can hold.
UPLOADS = ("/calibrate", "/api/v1/blocklist/import")
# Both forms of these answer; a redirect would lose the body of a POST.
SLASH_OPTIONAL = (
    *("/v1/", "/beta/", "/auth/", "/webhooks/", "/api/", "/health", "/metrics", "/docs", "/redoc"),
    *("/admin/stats", "/admin/users", "/admin/usage/"),
)


class Router:
    """Sends each request to its plane."""

    def __init__(self, data_plane: ASGIApp, control_plane: ASGIApp) -> None:
        self.data_plane = data_plane
        self.control_plane = control_plane
        self.cross_origin = {app: CrossOrigin(app) for app in (data_plane, control_plane)}
        self.live_queue: ASGIApp = QueueConsumer.as_asgi()
        self.process = Process()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.process.lifespan(receive, send)
            return
        path: str = scope["path"]
        if scope["type"] == "websocket":
            if not hosts.is_ours(scope):
                await send_problem(send, errors.BadRequest(errors.FOREIGN_HOST), scope)
            elif path.rstrip("/") == LIVE_QUEUE and live.is_open():
                await self.live_queue(scope, receive, send)
            else:
                await send_problem(send, errors.NotFound(), scope)
            return
        if path.rstrip("/") == LIVE_QUEUE and live.is_open():
            await send_problem(send, errors.UpgradeRequired(), scope)
            return
        if path == heads.ASTERISK and scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        if path.endswith("/") and len(path) > 1 and path.startswith(SLASH_OPTIONAL):
            path = path.rstrip("/")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        is_data = path in DATA_PLANE or path.startswith(DATA_PLANE_BELOW)
        plane = self.data_plane if is_data else self.control_plane
        # Django looks at it as well, and would answer a browser with a page.
        if is_data and not path.startswith(HEALTH) and not hosts.is_ours(scope):
            await send_problem(send, errors.BadRequest(errors.FOREIGN_HOST), scope)
            return
        if path.startswith(errors.ROBIN_PREFIX):
            plane = self.cross_origin[plane]
        await plane(scope, receive, send)


control_plane = PagesHandler()
application = RequestMiddleware(
    Router(
        DataPlaneHandler(
            body_bytes_max={
                None: settings.BODY_BYTES_MAX,
                "/v1/detect/batch": settings.BATCH_BYTES_MAX,
                LITELLM: settings.LITELLM_BYTES_MAX,
                **dict.fromkeys(GUARDRAILS, settings.GUARDRAIL_BYTES_MAX),
            },
            body_seconds_max=settings.BODY_SECONDS_MAX,
            refusal_paths=frozenset({LITELLM, *GUARDRAILS}),
        ),
        BoundedBodies(
            SharedSlots(cast(ASGIApp, control_plane), slots=settings.NETWORK_PLACES_MAX),
            bytes_max=lambda path: (
                settings.UPLOAD_BYTES_MAX if path.endswith(UPLOADS) else settings.BODY_BYTES_MAX
            ),
            seconds_max=settings.BODY_SECONDS_MAX,
        ),
    ),
    trusted_hops=settings.TRUSTED_PROXY_HOPS,
    is_leaving=lambda: Process.leaving,
    hsts_seconds=settings.SECURE_HSTS_SECONDS,
    slow_seconds=settings.SLOW_REQUEST_MS / 1000 or math.inf,
)
