"""From a text to a verdict: ask the engine, else the embedded detector, and always say which."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from django.conf import settings

from detection import embedded, engine
from detection.schemas import (
    CategoryScore,
    Coverage,
    Details,
    DetectConfig,
    DetectorRef,
    DetectRequest,
    DetectResponse,
    EvidenceSpan,
    PolicyRef,
    Timing,
)
from gateway_project.core import errors
from gateway_project.core.middleware import RequestContext
from gateway_project.core.observability import detections_total

REVIEW_MARGIN = 0.1

# The embedded detector is pure CPU: off the event loop, and no more of it than there are cores.
_analysts = ThreadPoolExecutor(max_workers=2, thread_name_prefix="embedded")


@dataclass(frozen=True, slots=True)
class DetectionPolicy:
    """What a key's requests mean when they do not say."""

    id: str = "default"
    version: int = 1
    threshold: float = 0.6
    mode: Literal["enforce", "monitor"] = "enforce"
    on_unavailable: Literal["fallback", "fail_closed", "fail_open"] = "fallback"

    @property
    def ref(self) -> PolicyRef:
        return PolicyRef(id=self.id, version=self.version)


DEFAULT_POLICY = DetectionPolicy()


@dataclass(slots=True)
class _Finding:
    """A score and where it came from, before any threshold."""

    score: float
    threat_types: tuple[str, ...]
    reason: str | None
    endpoint: str | None
    degraded_reason: engine.Reason | None = None
    analysis: embedded.Analysis | None = None
    is_floor: bool = False
    engine_seconds: float = 0.0
    fallback_seconds: float = 0.0


async def detect(
    request: DetectRequest, context: RequestContext, policy: DetectionPolicy = DEFAULT_POLICY
) -> DetectResponse:
    """The verdict on one text, as `POST /v1/detect` answers it.

    Raises 403 when the request wants to fail open and may not, 503 or 504 when the engine is away
    and the request fails closed.
    """
    config = request.config
    on_unavailable = config.on_unavailable or policy.on_unavailable
    if config.on_unavailable == "fail_open" and policy.on_unavailable != "fail_open":
        raise errors.FailOpenForbidden
    asked = config.confidence_threshold
    threshold = policy.threshold if asked is None else asked
    finding = await _find(request.text, config, threshold, on_unavailable, context)
    return await _answer(request, context, policy, threshold, finding)


async def _find(
    text: str,
    config: DetectConfig,
    threshold: float,
    on_unavailable: str,
    context: RequestContext,
) -> _Finding:
    timeout_seconds = config.timeout_seconds or settings.DETECTION_ENGINE_TIMEOUT_SECONDS
    started = perf_counter()
    try:
        said = await engine.client().ask(
            text, threshold=threshold, timeout_seconds=timeout_seconds, context=context
        )
    except engine.EngineUnavailable as exc:
        engine_seconds = perf_counter() - started
        if on_unavailable == "fail_closed":
            raise _refusal(exc) from exc
        started = perf_counter()
        analysis = await _analyse(text, config)
        return _Finding(
            score=analysis.score,
            threat_types=analysis.threat_types,
            reason=analysis.reason,
            endpoint="fallback",
            degraded_reason=exc.reason,
            analysis=analysis,
            engine_seconds=engine_seconds,
            fallback_seconds=perf_counter() - started,
        )
    floor = settings.DETECTION_ENGINE_SCORE_FLOOR
    return _Finding(
        score=said.score,
        threat_types=said.threat_types,
        reason=said.reason,
        endpoint=said.endpoint,
        # The Go engine never scores below its floor: there, it has found nothing.
        is_floor=floor > 0 and not said.threat_types and abs(said.score - floor) < 1e-9,
        engine_seconds=perf_counter() - started,
    )


def _refusal(exc: engine.EngineUnavailable) -> errors.GatewayError:
    headers = {"Retry-After": str(exc.retry_after_seconds)}
    if exc.reason == "timeout":
        return errors.DetectionTimeout(headers=headers)
    return errors.DetectionUnavailable(headers=headers)


async def _analyse(text: str, config: DetectConfig) -> embedded.Analysis:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_analysts, embedded.analyse, text, config.content_type)


async def _answer(
    request: DetectRequest,
    context: RequestContext,
    policy: DetectionPolicy,
    threshold: float,
    finding: _Finding,
) -> DetectResponse:
    config = request.config
    is_degraded = finding.degraded_reason is not None
    analysis = finding.analysis
    is_whole = analysis is None or analysis.scanned_chars >= analysis.total_chars
    is_malicious = finding.score >= threshold and not finding.is_floor
    is_close = is_degraded and abs(finding.score - threshold) <= REVIEW_MARGIN
    is_monitoring = (config.mode or policy.mode) == "monitor"
    decision: Literal["allow", "flag", "review"]
    if is_monitoring:
        decision = "allow"
    elif is_close or (not is_whole and not is_malicious):
        decision = "review"
    else:
        decision = "flag" if is_malicious else "allow"
    status: Literal["complete", "partial", "degraded"] = (
        "degraded" if is_degraded else "complete" if is_whole else "partial"
    )
    source: Literal["engine", "fallback"] = "fallback" if is_degraded else "engine"
    detections_total.labels(source, decision).inc()
    details = None
    if config.detailed_response:
        details = await _details(request, context, threshold, finding)
    return DetectResponse(
        request_id=context.request_id,
        is_malicious=is_malicious,
        confidence=finding.score,
        threat_types=list(finding.threat_types),
        processing_time_ms=round((perf_counter() - context.started) * 1000),
        reason=finding.reason if config.include_reasoning else None,
        endpoint=finding.endpoint,
        threshold=threshold,
        threshold_source="default" if config.confidence_threshold is None else "request",
        decision=decision,
        would_flag=is_malicious if is_monitoring else None,
        status=status,
        source=source,
        degraded_reason=finding.degraded_reason,
        policy=policy.ref,
        metadata=request.metadata,
        details=details,
    )


async def _details(
    request: DetectRequest, context: RequestContext, threshold: float, finding: _Finding
) -> Details:
    """The engine has no evidence of its own: the embedded detector explains, and never decides."""
    text = request.text
    explained = finding.analysis or await _analyse(text, request.config)
    if finding.analysis is None:
        scores: dict[str, float] = dict.fromkeys(finding.threat_types, finding.score)
        coverage = Coverage(scanned_chars=len(text), total_chars=len(text))
        detector = DetectorRef(name=finding.endpoint or "engine")
    else:
        scores = explained.categories
        coverage = Coverage(
            scanned_chars=explained.scanned_chars, total_chars=explained.total_chars
        )
        known = embedded.DETECTOR
        detector = DetectorRef(
            name=known.name, version=known.version, weights_sha256=known.weights_sha256
        )
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return Details(
        categories=[
            CategoryScore(
                type=kind, score=round(score, 4), detected=score >= threshold, threshold=threshold
            )
            for kind, score in ranked
        ],
        evidence=[
            EvidenceSpan(
                start=span.start,
                end=span.end,
                rule_id=span.rule_id,
                category=span.category,
                view=span.view,
                score=round(span.score, 4),
            )
            for span in explained.evidence
        ],
        views=list(explained.views),
        language=explained.language,
        coverage=coverage,
        timing=_timing(context, finding),
        detector=detector,
        floor=finding.is_floor,
    )


def _timing(context: RequestContext, finding: _Finding) -> Timing:
    def ms(seconds: float) -> float:
        return round(seconds * 1000, 2)

    spent: dict[str, Any] = {
        "engine_ms": ms(context.upstream_seconds),
        "fallback_ms": ms(finding.fallback_seconds),
        "queue_ms": ms(max(0.0, finding.engine_seconds - context.upstream_seconds)),
        "total_ms": ms(perf_counter() - context.started),
    }
    return Timing(**spent)
