"""Robin's health under `/api/v1/health`."""

from __future__ import annotations

import asyncio
from typing import Any

from django.http import HttpRequest, HttpResponse

from gateway_project.core import errors
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import DataPlaneViewSet
from gateway_project.core.stores.caching import SingleFlight, TTLCache
from robin.health import translate
from robin.health.schemas import RobinHealthView
from robin.queue import scan
from robin.queue.scan import View
from robin.queue.scan_store import SIZES
from robin.upstream.client import Reason, RobinAPI, is_open, robin
from robin.upstream.viewset import endpoint

HEALTH_SECONDS = 3.0
REMEMBERED_SECONDS = 600.0
FINE: tuple[Reason, ...] = ("", "busy")
HEALTH = ("robin health",)


_health: TTLCache[str, dict[str, Any]] = TTLCache(1)
_service: TTLCache[str, Any] = TTLCache(1)
"""What the service port said last, for while it is busy."""
_looks: SingleFlight[str, dict[str, Any]] = SingleFlight()


class RobinHealthViewSet(DataPlaneViewSet):
    """Public, since Robin UI asks it without a token: so it is remembered for a moment."""

    authentication_classes = []

    @endpoint(
        operation={
            "/api/v1/health": "getRobinHealth",
            "/api/v1/health/aggregate": "getRobinHealthAggregate",
        },
        summary="How Robin is",
        description=(
            "`status` says it; a problem (503) where nothing is known of the queue: none is never "
            "said to be empty. `reason` of a server: `refused` are our "
            "credentials, `busy` is one whose queue is being read, which is no trouble."
        ),
        tags=HEALTH,
        answer=RobinHealthView,
        problems=[errors.UpstreamUnavailable],
        public=True,
    )
    async def health(self, request: HttpRequest) -> HttpResponse:
        known = _health.get("")
        found = known if known is not None else await _looks.do("", _look)
        if "queue" in found:
            return reply(found)
        error = errors.UpstreamUnavailable(
            "The mail server does not answer, or not to this gateway, and nothing is known of its "
            "queue. Check that both of its ports are up, and our credentials."
        )
        error.more = {n: found[n] for n in ("uptime", "robinClientApi", "robinServiceApi")}
        raise error


async def _look() -> dict[str, Any]:
    if not is_open():
        down = {"status": "DOWN", "breaker": "closed", "reason": "away"}
        answer = translate.health(None, is_up=False)
        return {**answer, "robinClientApi": down, "robinServiceApi": down}
    ports = robin()
    client, service = await asyncio.gather(ports.client.look(), ports.service.look())
    if service[1] == "":
        _service.put("", service[0], seconds=REMEMBERED_SECONDS)
    reported = service[0] if service[1] != "busy" else _service.get("")
    view = await _known()
    is_up = client[1] in FINE and service[1] in FINE
    answer = translate.health(
        reported,
        is_up=is_up,
        totals=view.totals() if view is not None and "ALL:0" in view.facts else None,
        retries=view.retries() if view is not None else None,
    )
    answer["robinClientApi"] = _port(ports.client, client[1])
    answer["robinServiceApi"] = _port(ports.service, service[1])
    _health.put("", answer, seconds=HEALTH_SECONDS)
    return answer


async def _known() -> View | None:
    """What was read of the queue; a dashboard alone has it read once a minute."""
    if not scan.is_open():
        return None
    scanner = scan.scanner()
    scanner.want(*scan.FIRST, SIZES, age_seconds=scan.CALM_SECONDS)
    try:
        return await scanner.known()
    except errors.StoreUnavailable:
        return None


def _port(port: RobinAPI, reason: Reason) -> dict[str, str]:
    found = {"status": "UP" if reason in FINE else "DOWN", "breaker": port.state}
    return {**found, "reason": reason} if reason else found


def forget_health() -> None:
    _health.clear()
    _service.clear()
