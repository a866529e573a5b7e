"""The Go engine's client: its contract, its traps, and every way it can fail.

`EngineClient.ask` gives an `EngineScore` or raises `EngineUnavailable` with one of four stable
reasons. The engine's own verdict is not used: a threshold of 0 means 0.6 to it (Go's zero value),
so only its score is believed and compared here.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import orjson
from django.conf import settings

from gateway_project.core import http
from gateway_project.core.breaker import Breaker, BreakerOpen
from gateway_project.core.middleware import RequestContext
from gateway_project.core.observability import get_logger

Reason = Literal["connect_error", "timeout", "engine_error", "circuit_open"]
log = get_logger("gateway.engine")
FALLBACK_THRESHOLD = 0.6


class EngineUnavailable(Exception):
    """No score from the engine, and why."""

    def __init__(self, reason: Reason, retry_after_seconds: int = 5) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class EngineScore:
    """`score` is 0..1 for "malicious"; `endpoint` is what the engine said answered."""

    score: float
    threat_types: tuple[str, ...]
    reason: str | None
    endpoint: str | None


class EngineClient:
    """One per process. See the module's paragraph."""

    def __init__(self, url: str) -> None:
        self.http = http.UpstreamClient("engine", url)
        self.breaker = Breaker(
            "engine",
            failures_max=settings.CIRCUIT_BREAKER_FAILURE_THRESHOLD,
            open_seconds=settings.CIRCUIT_BREAKER_TIMEOUT_SECONDS,
        )

    async def close(self) -> None:
        await self.http.close()

    async def ask(
        self, text: str, *, threshold: float, timeout_seconds: float, context: RequestContext
    ) -> EngineScore:
        """Score one text. Raises `EngineUnavailable`."""
        try:
            self.breaker.admit()
        except BreakerOpen as exc:
            raise EngineUnavailable("circuit_open", math.ceil(exc.retry_after_seconds)) from exc
        headers = {
            "Content-Type": "application/json",
            "X-Request-ID": context.correlation_id or context.request_id,
        }
        if context.traceparent is not None:
            headers["traceparent"] = context.traceparent
        body = orjson.dumps(
            {
                "text": text,
                "config": {
                    "confidence_threshold": threshold or FALLBACK_THRESHOLD,
                    "detailed_response": True,
                },
            }
        )
        started = perf_counter()
        try:
            status, content = await self.http.request(
                "POST", "/v1/detect", body=body, headers=headers, timeout_seconds=timeout_seconds
            )
            score = self._read(status, content)
        except EngineUnavailable:
            self.breaker.failed()
            raise
        except _NotAnOutage as exc:
            self.breaker.released()
            raise EngineUnavailable("engine_error") from exc
        except http.UpstreamError as exc:
            self.breaker.failed()
            log.warning(
                "engine_failed", request_id=context.request_id, reason=exc.reason, error=str(exc)
            )
            raise EngineUnavailable(exc.reason) from exc  # type: ignore[arg-type]
        except asyncio.CancelledError:
            self.breaker.released()
            raise
        finally:
            context.upstream_seconds += perf_counter() - started
        self.breaker.succeeded()
        return score

    @staticmethod
    def _read(status: int, content: bytes) -> EngineScore:
        if status != 200:
            if status in (401, 403):
                # Somebody put authentication before the engine: an operator must act.
                log.error("engine_refuses_us", status=status, alert=True)
                raise _NotAnOutage
            if status == 400:
                log.error("engine_rejected_request", status=status, body_bytes=len(content))
                raise _NotAnOutage
            log.warning("engine_failed", status=status)
            raise EngineUnavailable("timeout" if status in (408, 504) else "engine_error")
        try:
            answer: Any = orjson.loads(content)
            raw = answer["confidence"]
            if isinstance(raw, bool) or not isinstance(answer["is_malicious"], bool):
                raise TypeError("wrong type")
            score = float(raw)
            if not math.isfinite(score):
                raise ValueError("not a number")
            threat_types = tuple(str(kind) for kind in answer.get("threat_types") or ())
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exc:
            log.warning("engine_answer_unreadable", error=type(exc).__name__)
            raise EngineUnavailable("engine_error") from exc
        return EngineScore(
            score=min(1.0, max(0.0, score)),
            threat_types=threat_types,
            reason=str(answer["reason"]) if answer.get("reason") else None,
            endpoint=str(answer["endpoint"]) if answer.get("endpoint") else None,
        )


class _NotAnOutage(Exception):
    """The engine works but not for this request: the breaker must not open for it."""


_client: EngineClient | None = None


def open_client() -> EngineClient:
    """Make this process' client; called once, in the lifespan, inside the event loop."""
    global _client
    _client = EngineClient(settings.DETECTION_ENGINE_URL)
    return _client


async def close_client() -> None:
    global _client
    if _client is not None:
        await _client.close()
        _client = None


def client() -> EngineClient:
    """The client that the lifespan opened."""
    if _client is None:
        raise RuntimeError("the application was not started: its lifespan opens the engine client")
    return _client
