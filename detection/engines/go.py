"""The Go engine's client: its contract, its traps, and every way it can fail.

`EngineClient.ask` gives a `Score` or raises `EngineUnavailable` with one of four stable
reasons. The engine's own verdict is not used: a threshold of 0 means 0.6 to it (Go's zero value),
so only its score is believed, and compared by the caller.

Its classifiers read the first 500 bytes of a text. A longer one is asked in windows, several at
once, and the highest score counts; one that is sure ends the asking.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from time import monotonic
from typing import Any, Literal

import orjson
from django.conf import settings

from detection.engines import windows
from detection.engines.scores import Score
from gateway_project.core.context import RequestContext
from gateway_project.core.stores.caching import SingleFlight
from gateway_project.core.telemetry import tracing
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.upstream import client as http
from gateway_project.core.upstream.breaker import Breaker, BreakerOpen

# What an engine says beside the score goes into logs, events and every answer.
THREAT_TYPES_MAX, WORD_CHARS_MAX, REASON_CHARS_MAX = 32, 64, 1_000
Reason = Literal["connect_error", "timeout", "engine_error", "circuit_open"]
log = get_logger("gateway.engine")

WINDOWS_AT_ONCE = 8
SURE = 0.95
FAULT_SECONDS_MIN = 2.0
"""A call that had less than this did not show that the engine is slow."""
VERSION_SECONDS = 30.0
# Longer than the answer to a look-up can be on its way (`PipelinedConnection`).
GRACE_SECONDS = 0.5


class EngineUnavailable(Exception):
    """No score from the engine, and why."""

    def __init__(
        self, reason: Reason, retry_after_seconds: int = 5, *, is_outage: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.is_outage = is_outage
        """False when it works but refuses us: a misconfiguration, which must not fail open."""


class _NotAnOutage(Exception):
    """The engine works but not for this request: the breaker must not open for it."""


class EngineClient:
    """One per process. See the module's paragraph."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.get_running_loop()
        """The only one that may use it."""
        self.http = http.UpstreamClient("engine", url)
        self.breaker = Breaker(
            "engine",
            failures_max=settings.CIRCUIT_BREAKER_FAILURE_THRESHOLD,
            open_seconds=settings.CIRCUIT_BREAKER_TIMEOUT_SECONDS,
        )
        self.asking: SingleFlight[str, Score] = SingleFlight(grace_seconds=GRACE_SECONDS)
        self.version = ""
        self._watch = asyncio.create_task(self._watch_version(), name="engine-version")

    async def close(self) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self.http.close()

    @property
    def id(self) -> str:
        """What a remembered score depends on besides its text."""
        window = settings.DETECTION_ENGINE_WINDOW_BYTES
        return f"{self.http.base_url} {self.version} {window}"

    async def _watch_version(self) -> None:
        # A score of an engine's last version is worth nothing once a new one is deployed.
        while True:
            with suppress(http.UpstreamError, orjson.JSONDecodeError, KeyError, TypeError):
                answer = await self.http.request("GET", "/health", timeout_seconds=2)
                self.version = str(orjson.loads(answer.content)["version"])[:64]
            await asyncio.sleep(VERSION_SECONDS)

    async def ask(
        self,
        text: str,
        *,
        timeout_seconds: float,
        context: RequestContext,
        holder: Hashable = None,
    ) -> Score:
        """Score one text; `holder` takes turns with others for the slots to the engine.

        Raises `EngineUnavailable`.
        """
        headers = {
            "Content-Type": "application/json",
            "X-Request-ID": context.correlation_id or context.request_id,
        }
        if context.traceparent is not None:
            headers["traceparent"] = context.traceparent
        data = text.encode()
        spans = windows.spans(data, settings.DETECTION_ENGINE_WINDOW_BYTES)
        if len(spans) == 1:
            return await self._ask_one(text, headers, timeout_seconds, holder)
        found = await self._ask_windows(data, spans, headers, timeout_seconds, holder)
        return _merged(found.values(), windows.covered_chars(data, found), len(text))

    async def _ask_windows(
        self,
        data: bytes,
        spans: list[windows.Span],
        headers: dict[str, str],
        timeout_seconds: float,
        holder: Hashable,
    ) -> dict[windows.Span, Score]:
        deadline = monotonic() + timeout_seconds
        places = asyncio.Semaphore(WINDOWS_AT_ONCE)

        async def ask(span: windows.Span) -> tuple[windows.Span, Score]:
            async with places:
                part = data[slice(*span)].decode()
                left = max(0.001, deadline - monotonic())
                return span, await self._ask_one(part, headers, left, holder)

        tasks = [asyncio.create_task(ask(span)) for span in spans]
        found: dict[windows.Span, Score] = {}
        try:
            for task in asyncio.as_completed(tasks):
                span, scored = await task
                found[span] = scored
                if scored.score >= SURE:
                    break
        except EngineUnavailable:
            # What it has found so far is worth more than what the embedded detector may find.
            if not any(scored.threat_types for scored in found.values()):
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def _ask_one(
        self, text: str, headers: dict[str, str], timeout_seconds: float, holder: Hashable
    ) -> Score:
        try:
            call = self.breaker.acquire()
        except BreakerOpen as exc:
            raise EngineUnavailable("circuit_open", math.ceil(exc.retry_after_seconds)) from exc
        try:
            answer = await self._post(text, headers, timeout_seconds, holder)
            scored = self._read(answer, len(text))
        except EngineUnavailable:
            call.failed()
            raise
        except _NotAnOutage as exc:
            call.release()
            raise EngineUnavailable("engine_error", is_outage=False) from exc
        except http.UpstreamError as exc:
            if isinstance(exc, http.UpstreamTimeout) and exc.had_seconds < _fault_seconds():
                call.release()  # it waited for a place, or its caller had no time
            else:
                call.failed()
            log.warning(
                "engine_failed",
                request_id=headers["X-Request-ID"],
                reason=exc.reason,
                error=str(exc),
            )
            raise EngineUnavailable(exc.reason) from exc  # type: ignore[arg-type]
        except BaseException:
            call.release()  # cancelled, or a bug of ours: no word about the engine
            raise
        call.succeeded()
        return scored

    async def _post(
        self, text: str, headers: dict[str, str], timeout_seconds: float, holder: Hashable
    ) -> http.Answer:
        async def post() -> http.Answer:
            return await self.http.request(
                "POST",
                "/v1/detect",
                body=orjson.dumps({"text": text}),
                headers=headers,
                timeout_seconds=timeout_seconds,
                holder=holder,
            )

        if tracing.tracer is None:
            return await post()
        headers = dict(headers)  # windows of one text are calls of their own
        with tracing.calling("engine POST /v1/detect", headers, **{"peer.service": "engine"}):
            return await post()

    @staticmethod
    def _read(answer: http.Answer, chars: int) -> Score:
        status, content = answer.status, answer.content
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
            body: Any = orjson.loads(content)
            raw = body["confidence"]
            if isinstance(raw, bool) or not isinstance(body["is_malicious"], bool):
                raise TypeError("wrong type")
            score = float(raw)
            if not math.isfinite(score):
                raise ValueError("not a number")
            named = islice(body.get("threat_types") or (), THREAT_TYPES_MAX)
            threat_types = dict.fromkeys(str(kind)[:WORD_CHARS_MAX] for kind in named)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as exc:
            log.warning("engine_answer_unreadable", error=type(exc).__name__)
            raise EngineUnavailable("engine_error") from exc
        return Score(
            score=min(1.0, max(0.0, score)),
            threat_types=tuple(threat_types),
            reason=str(body["reason"])[:REASON_CHARS_MAX] if body.get("reason") else None,
            endpoint=str(body["endpoint"])[:WORD_CHARS_MAX] if body.get("endpoint") else None,
            scanned_chars=chars,
            total_chars=chars,
            queued_seconds=answer.queued_seconds,
        )


def _fault_seconds() -> float:
    return min(FAULT_SECONDS_MIN, settings.DETECTION_ENGINE_TIMEOUT_SECONDS)


def _merged(scored: Iterable[Score], scanned_chars: int, total_chars: int) -> Score:
    """One score of all windows: the highest, with whatever any of them found."""
    ranked = sorted(scored, key=lambda one: -one.score)
    kinds = dict.fromkeys(kind for one in ranked for kind in one.threat_types)
    return replace(
        ranked[0],
        threat_types=tuple(kinds),
        scanned_chars=scanned_chars,
        total_chars=total_chars,
        queued_seconds=max(one.queued_seconds for one in ranked),
    )


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


def is_open() -> bool:
    return _client is not None


def client() -> EngineClient:
    """The client that the lifespan opened."""
    if _client is None:
        raise RuntimeError("the application was not started: its lifespan opens the engine client")
    return _client
