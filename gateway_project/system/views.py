"""What belongs to no app: health, metrics, the API's documents, the pages of errors."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from functools import partial
from time import monotonic
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from accounts.authentication import OUTAGE_SECONDS
from accounts.tasks import HEARTBEAT_KEY, HEARTBEAT_SECONDS
from detection.engines import registry
from detection.engines.addresses import BadAddress
from gateway_project.core import clock, errors
from gateway_project.core.api import openapi
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.middleware import accepts_gzip
from gateway_project.core.api.responses import HTML, JSON, reply, wants
from gateway_project.core.api.viewsets import DataPlaneViewSet
from gateway_project.core.context import context_of
from gateway_project.core.ratelimit import RedisLimiter, get_limiter
from gateway_project.core.stores import database, migrations, redis
from gateway_project.core.telemetry import health, loops, multiprocess
from gateway_project.core.upstream import breaker
from gateway_project.server import lifespan
from gateway_project.system.backlog import BacklogCollector
from portal import problems
from portal.views import base_url
from robin.upstream import client as robin_client

SYSTEM = ("system",)


class ComponentView(BaseModel):
    status: Literal["up", "degraded", "down"]
    latency_ms: float | None = None


class BreakerView(BaseModel):
    state: Literal["closed", "half-open", "open"]
    failures: int
    open_for_seconds: float | None = None
    forced: bool | None = Field(None, description="Held in this state by an operator.")


class HealthView(BaseModel):
    status: Literal["up", "degraded", "down"]
    version: str
    uptime_seconds: int
    components: dict[str, ComponentView]
    breakers: dict[str, BreakerView]
    detail: str | None = Field(None, description="What to do, when migrations are missing.")
    failing_loops: list[str] = Field(
        default=[],
        description="What the gateway does behind requests, and failed at several times in a row.",
    )
    stand_ins: list[str] = Field(
        default=[], description="Components answered by the gateway's own stand-ins (`make run`)."
    )


class LiveView(BaseModel):
    status: Literal["up"] = "up"


class ReadyView(BaseModel):
    status: Literal["up", "degraded", "down"]
    checks: dict[str, Literal["up", "down"]]
    limits: Literal["exact", "degraded"]
    detail: str | None = Field(
        None, description="What to do, when migrations are missing or the database was never seen."
    )


def _engine(name: str) -> health.Probe:
    async def ask() -> health.Status:
        engine = registry.engines().get(name)
        return "down" if engine is None else await engine.probe()

    return health.Probe(ask)


async def _redis() -> health.Status:
    await redis.connection().ping()
    return "up"


async def _cache() -> health.Status:
    await redis.cache_connection().ping()
    return "up"


async def _database() -> health.Status:
    await database.probe()
    return "up"


async def _migrations() -> health.Status:
    await migrations.look()
    return "down" if migrations.trouble() else "up"


async def _worker() -> health.Status:
    seen = await asyncio.to_thread(cache.get, HEARTBEAT_KEY)
    if seen is None:
        return "down"
    return "up" if clock.now().timestamp() - seen < 3 * HEARTBEAT_SECONDS else "down"


async def _failing_loops() -> list[str]:
    try:
        async with asyncio.timeout(health.PROBE_SECONDS_MAX):
            return await asyncio.to_thread(loops.failing)
    except Exception:  # noqa: BLE001 - the cache is Redis, and its own component says that it is away
        return []


# Readiness is asked every few seconds, and what it is told must be of the last few; that a store is
# back, of the last.
_probe = partial(health.Probe, remember_up_seconds=5, remember_trouble_seconds=1)
NEEDED = {"database": _probe(_database)}
if settings.REDIS_URL:
    NEEDED["redis"] = _probe(_redis)
CACHE = {"cache": health.Probe(_cache)} if settings.CACHE_REDIS_URL else {}


def _engines() -> dict[str, health.Probe]:
    try:
        return {one.service: _engine(one.name) for one in registry.configured().values()}
    except BadAddress:  # the check of the settings says so, and nothing is served
        return {}


ENGINES = _engines()
PROBES = {**ENGINES, **NEEDED, **CACHE, "worker": health.Probe(_worker)}
# Once they are all there this asks nobody; looked at beside the others, named only in trouble.
MIGRATIONS = health.Probe(_migrations)


async def _robin_client() -> health.Status:
    _, reason = await robin_client.robin().client.look()
    return "up" if reason in ("", "busy") else "down"


async def _robin_service() -> health.Status:
    _, reason = await robin_client.robin().service.look()
    return "up" if reason in ("", "busy") else "down"


if settings.ROBIN_CLIENT_API_URL:
    PROBES["robin_client"] = health.Probe(_robin_client)
    PROBES["robin_service"] = health.Probe(_robin_service)
# What the headers that proxies add begin with; whoever asks by way of one is not known to be in our
# own network.
FORWARDED = tuple(
    f"HTTP_{name}"
    for name in (
        *("FORWARDED", "VIA", "X_FORWARDED", "X_ORIGINAL_", "X_REAL_", "X_CLIENT_IP", "CLIENT_IP"),
        *("X_CLUSTER_CLIENT_IP", "TRUE_CLIENT_IP", "X_SCHEME", "X_URL_SCHEME", "FRONT_END_HTTPS"),
        *("CF_", "CDN_", "X_CDN_", "FASTLY_", "FLY_", "X_ENVOY_", "X_AZURE_", "X_AMZN_", "X_AMZ_"),
        *("X_APPENGINE_", "X_CLOUD_", "X_AKAMAI_", "AKAMAI_", "X_VERCEL_", "X_PROXYUSER_"),
    )
)
STAND_INS = {"engine": "DETECTION_ENGINE_IS_EMBEDDED", "robin": "ROBIN_IS_STANDIN"}


class HealthViewSet(DataPlaneViewSet):
    authentication_classes = []

    @endpoint(
        operation="getHealth",
        summary="The whole installation at a glance",
        description=(
            "`degraded`: something is away but verdicts are given. 503 only when neither the "
            "engine nor its fallback could answer. Probes are remembered for up to 30 s, breaker "
            "states are of this moment."
        ),
        tags=SYSTEM,
        answer=HealthView,
        public=True,
    )
    async def health(self, request: HttpRequest) -> HttpResponse:
        components = await health.check_all(PROBES)
        trouble = await MIGRATIONS.check()
        if trouble.status != "up":
            components["migrations"] = trouble
        breakers = await breaker.reports()
        failing = await _failing_loops()
        is_fine = (
            all(c.status == "up" for c in components.values())
            and all(b["state"] == "closed" for b in breakers.values())
            and not failing
        )
        answer = HealthView(
            # The embedded detector lives in this process: while we answer, verdicts are given.
            status="up" if is_fine else "degraded",
            version=settings.VERSION,
            uptime_seconds=lifespan.uptime_seconds(),
            components={name: ComponentView(**c.report()) for name, c in components.items()},
            breakers={name: BreakerView(**report) for name, report in breakers.items()},
            detail=migrations.trouble() or None,
            failing_loops=failing,
            stand_ins=[name for name, flag in STAND_INS.items() if getattr(settings, flag)],
        )
        return reply(answer, exclude_none=True)

    @endpoint(
        operation="getLiveness",
        summary="Is the process alive?",
        description="Touches nothing.",
        tags=SYSTEM,
        answer=LiveView,
        public=True,
    )
    async def live(self, request: HttpRequest) -> HttpResponse:
        return reply(LiveView())

    @endpoint(
        operation="getReadiness",
        summary="May this process get requests?",
        description=(
            "503 while it starts or stops, when the database is away for too long or was never "
            "seen, and while migrations of this version are missing (`detail` says what to run)."
        ),
        tags=SYSTEM,
        answer=ReadyView,
        more_answers={503: ReadyView},
        public=True,
    )
    async def ready(self, request: HttpRequest) -> HttpResponse:
        found = await health.check_all(NEEDED)
        checks: dict[str, Literal["up", "down"]] = {
            "process": "up" if lifespan.Process.ready else "down",
            **{name: "down" if c.status == "down" else "up" for name, c in found.items()},
        }
        if (await MIGRATIONS.check()).status != "up":
            checks["migrations"] = "down"
        limiter = get_limiter()
        is_degraded = isinstance(limiter, RedisLimiter) and (
            limiter.degraded_since is not None or checks.get("redis") == "down"
        )
        # Without Redis limits go on by their failure policy, and without the database the keys
        # that are known: to send nobody here any more would make an outage out of a trouble.
        if checks["database"] == "down":
            database.note_trouble()
        away = database.trouble_since
        is_ready = (
            checks["process"] == "up"
            and "migrations" not in checks
            and (
                checks["database"] == "up"
                or (away is not None and monotonic() - away < OUTAGE_SECONDS)
            )
        )
        is_whole = is_ready and set(checks.values()) == {"up"} and not is_degraded
        answer = ReadyView(
            status="up" if is_whole else "degraded" if is_ready else "down",
            checks=checks,
            limits="degraded" if is_degraded else "exact",
            detail=migrations.trouble() or None,
        )
        return reply(answer, status=200 if is_ready else 503, exclude_none=True)


@require_safe
def openapi_document(request: HttpRequest) -> HttpResponse:
    """The document as plain JSON whatever is accepted: readable in a browser."""
    document = openapi.document()
    headers = {
        "ETag": document.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        "Content-Disposition": 'inline; filename="Gateway.json"',
    }
    known = request.headers.get("if-none-match", "")
    if document.etag in known or known.strip() == "*":
        return HttpResponse(status=304, headers=headers)
    content = document.plain
    if accepts_gzip(request.headers.get("accept-encoding", "")):
        content, headers["Content-Encoding"] = document.gzipped, "gzip"
    return HttpResponse(content, content_type=JSON, headers=headers)


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text: from loopback and private networks, or with `METRICS_TOKEN`."""
    if not _may_scrape(request):
        # 404, not 403: outsiders need not know that metrics are here.
        return refuse(request, errors.NotFound())
    return HttpResponse(
        multiprocess.exposition(BacklogCollector()), content_type=CONTENT_TYPE_LATEST
    )


def _may_scrape(request: HttpRequest) -> bool:
    token = settings.METRICS_TOKEN
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if token:
        return bool(given) and secrets.compare_digest(given.encode(), token.encode())
    if any(name.startswith(FORWARDED) for name in request.META):
        return False  # by a proxy: whose address it names, and whether it is to be believed
    try:
        address = ipaddress.ip_address(context_of(request).client_ip)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


@require_safe
def problem_page(request: HttpRequest, code: str) -> HttpResponse:
    """What a problem's `type` leads to: the error in words, with cause, example and mend."""
    kind = errors.registered().get(code)
    if kind is None:
        return refuse(request, errors.NotFound())
    if wants(request, HTML):
        page = problems.get(code)
        command = page.command(base_url(request)) if page else ""
        return render(request, "portal/problem.html", {"kind": page, "command": command})
    facts: dict[str, Any] = {
        "code": kind.code,
        "title": kind.title,
        "status": kind.status_code,
        "detail": kind.default_detail,
    }
    return JsonResponse(facts)
