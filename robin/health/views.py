"""Robin's health under `/api/v1/health`."""

from __future__ import annotations

import asyncio
from typing import Any

from django.http import HttpRequest, HttpResponse

from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import DataPlaneViewSet
from gateway_project.core.stores.caching import SingleFlight, TTLCache
from robin.health import translate
from robin.health.schemas import RobinHealthView
from robin.upstream.client import RobinAPI, is_open, robin
from robin.upstream.viewset import endpoint

HEALTH_SECONDS = 3.0
HEALTH = ("robin health",)


_health: TTLCache[str, dict[str, Any]] = TTLCache(1)
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
        description="Always 200; `status` says it. The two servers are asked beside each other.",
        tags=HEALTH,
        answer=RobinHealthView,
        public=True,
    )
    async def health(self, request: HttpRequest) -> HttpResponse:
        known = _health.get("")
        return reply(known if known is not None else await _looks.do("", _look))


async def _look() -> dict[str, Any]:
    if not is_open():
        down = {"status": "DOWN", "breaker": "closed"}
        answer = translate.health(None, client_is_up=False)
        return {**answer, "robinClientApi": down, "robinServiceApi": down}
    ports = robin()
    client, service = await asyncio.gather(ports.client.peek(), ports.service.peek())
    answer = translate.health(service, client_is_up=_is_up(client))
    answer["robinClientApi"] = _port(ports.client, client)
    answer["robinServiceApi"] = _port(ports.service, service)
    _health.put("", answer, seconds=HEALTH_SECONDS)
    return answer


def _is_up(response: Any) -> bool:
    return isinstance(response, dict) and response.get("status") == "UP"


def _port(port: RobinAPI, response: Any) -> dict[str, str]:
    return {"status": "UP" if _is_up(response) else "DOWN", "breaker": port.breaker.state}


def forget_health() -> None:
    _health.clear()
