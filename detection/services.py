"""From a text to a verdict: a remembered score, else the engine, else the embedded detector.

Whoever answered is said. Equal texts of a workspace at once ask the engine once in each process;
the call goes on for its own budget whoever stops waiting, so that one caller's haste is not the
engine's fault. Between workspaces nothing is shared: it would tell one what another asks.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple
from uuid import UUID

from django.conf import settings

from detection import embedded
from detection.engines import go, scores
from detection.engines.scores import LookUp, Remembered, Score
from detection.policies.policy import DetectionPolicy, Source
from detection.schemas import (
    CategoryScore,
    ContentType,
    Coverage,
    Details,
    DetectConfig,
    Detection,
    DetectorRef,
    DetectRequest,
    EvidenceSpan,
    OnUnavailable,
    RankedScore,
    ScoreRequest,
    Scores,
    Timing,
)
from gateway_project.core import errors
from gateway_project.core.context import RequestContext
from gateway_project.core.sharing import FairSemaphore
from gateway_project.core.stores.caching import SingleFlight
from gateway_project.core.telemetry.metrics import cache_requests, detections_total

REVIEW_MARGIN = 0.1

# The embedded detector is pure CPU: off the event loop, and no more of it than there are cores.
ANALYSTS = 2
_analysts = ThreadPoolExecutor(max_workers=ANALYSTS, thread_name_prefix="embedded")
_analysts_slots = FairSemaphore(ANALYSTS)
_analysing: SingleFlight[str, embedded.Analysis] = SingleFlight()
_looked_up = {
    result: cache_requests.labels("score", result)
    for result in ("hit", "joined", "miss", "stale", "bypass")
}


class Question(NamedTuple):
    """A text's score as it is asked for: what it is remembered by, whose it is, and the look-up of
    it, if one is wanted, under way."""

    key: str
    workspace_id: UUID
    look_up: LookUp | None


@dataclass(slots=True)
class _Finding:
    """A score and where it came from, before any threshold."""

    question: Question
    scored: Score
    source: Source = "engine"
    cached: bool = False
    age_seconds: int = 0
    degraded_reason: go.Reason | None = None
    analysis: embedded.Analysis | None = None
    fallback_seconds: float = 0.0

    @property
    def is_floor(self) -> bool:
        """The Go engine never scores below its floor: there, it has found nothing."""
        floor = settings.DETECTION_ENGINE_SCORE_FLOOR
        is_at_it = floor > 0 and abs(self.scored.score - floor) < 1e-9
        return self.source == "engine" and is_at_it and not self.scored.threat_types


def start_look_up(
    text: str, content_type: ContentType, workspace_id: UUID, *, use_cache: bool = True
) -> Question:
    """Begin to ask: also when no look-up is wanted."""
    key = scores.key_of(text, content_type, go.client().id, workspace_id)
    if not use_cache or settings.SCORE_CACHE_SECONDS <= 0:
        return Question(key, workspace_id, None)
    return Question(key, workspace_id, LookUp(key))


async def detect(
    request: DetectRequest,
    context: RequestContext,
    *,
    policy: DetectionPolicy,
    looked_up: Question,
    batch: str = "",
) -> Detection:
    """The verdict on one text, as `POST /v1/detect` answers it.

    `looked_up` is what `start_look_up` gave; texts of one `batch` share the engine's calls, also
    those that want no cache. Raises 403 for what the policy does not let a request change, 503 or
    504 when the engine is away and the request fails closed.
    """
    policy.check(request.config)
    on_unavailable = request.config.on_unavailable or policy.on_unavailable
    finding = await _find(request, looked_up, on_unavailable, context, batch)
    return await _answer(request, context, policy, finding)


async def score(request: ScoreRequest, context: RequestContext, *, looked_up: Question) -> Scores:
    """What the detector thinks of a text, whatever anybody's threshold."""
    config = DetectConfig(content_type=request.content_type)
    whole = DetectRequest(text=request.text, config=config)
    finding = await _find(whole, looked_up, "fallback", context)
    ranked, detector = _ranked(finding)
    return Scores(
        confidence=finding.scored.score,
        categories=[RankedScore(type=kind, score=round(value, 4)) for kind, value in ranked],
        threat_types=list(finding.scored.threat_types),
        source="engine" if finding.source == "engine" else "fallback",
        detector=detector,
    )


async def _find(
    request: DetectRequest,
    question: Question,
    on_unavailable: OnUnavailable,
    context: RequestContext,
    batch: str = "",
) -> _Finding:
    look_up = question.look_up
    remembered = None if look_up is None else await look_up.found()
    if remembered is not None and remembered.is_fresh:
        _looked_up["hit"].inc()
        return _recalled(question, remembered)
    started = perf_counter()
    try:
        looked_at = None if look_up is None else look_up.at
        scored, joined = await _ask(question, request, context, looked_at, batch)
    except go.EngineUnavailable as exc:
        if on_unavailable == "fail_closed":
            raise _refusal(exc) from exc
        return await _without_engine(question, request, remembered, on_unavailable, exc)
    finally:
        context.upstream_seconds += perf_counter() - started
    _looked_up["joined" if joined else "miss" if look_up is not None else "bypass"].inc()
    # Who joined another's running call had it answered for nothing.
    return _Finding(question, scored, cached=joined)


def _recalled(
    question: Question, remembered: Remembered, reason: go.Reason | None = None
) -> _Finding:
    return _Finding(
        question,
        remembered.score,
        cached=True,
        age_seconds=remembered.age_seconds,
        degraded_reason=reason,
    )


async def _ask(
    question: Question,
    request: DetectRequest,
    context: RequestContext,
    looked_at: float | None,
    batch: str,
) -> tuple[Score, bool]:
    """The engine's score, and whether somebody else's call for the same text gave it."""
    config = request.config
    budget = config.timeout_seconds or settings.DETECTION_ENGINE_TIMEOUT_SECONDS

    async def fly() -> Score:
        scored = await go.client().ask(
            request.text,
            timeout_seconds=max(budget, settings.DETECTION_ENGINE_TIMEOUT_SECONDS),
            context=context,
            holder=question.workspace_id,
        )
        if settings.SCORE_CACHE_SECONDS > 0 and scored.scanned_chars == scored.total_chars:
            scores.keep(question.key, scored)
        return scored

    # Who wants no cache wants a call of its own.
    key = question.key
    flight_key = key if config.use_cache else f"{batch or context.request_id} {key}"
    call, is_new = go.client().asking.start(flight_key, fly, since=looked_at)
    # `wait` leaves the call to the others when this caller's time is up, or the caller gone.
    left = budget - (perf_counter() - context.started)
    await asyncio.wait((call,), timeout=max(0.0, left))
    if not call.done():
        raise go.EngineUnavailable("timeout")
    return call.result(), not is_new


async def _without_engine(
    question: Question,
    request: DetectRequest,
    remembered: Remembered | None,
    on_unavailable: OnUnavailable,
    exc: go.EngineUnavailable,
) -> _Finding:
    """An older score of the same text, else what the request or the key chose."""
    if remembered is not None:
        _looked_up["stale"].inc()
        return _recalled(question, remembered, exc.reason)
    text = request.text
    if on_unavailable == "fail_open" and exc.is_outage:
        nothing = Score(0.0, (), None, None, scanned_chars=0, total_chars=len(text))
        return _Finding(question, nothing, source="none", degraded_reason=exc.reason)
    started = perf_counter()
    analysis = await _analyse(question, text, request.config)
    scored = Score(
        analysis.score,
        analysis.threat_types,
        analysis.reason,
        "fallback",
        analysis.scanned_chars,
        analysis.total_chars,
    )
    return _Finding(
        question,
        scored,
        source="fallback",
        degraded_reason=exc.reason,
        analysis=analysis,
        fallback_seconds=perf_counter() - started,
    )


def _refusal(exc: go.EngineUnavailable) -> errors.GatewayError:
    headers = {"Retry-After": str(exc.retry_after_seconds)}
    if exc.reason == "timeout":
        return errors.DetectionTimeout(headers=headers)
    return errors.DetectionUnavailable(headers=headers)


async def _analyse(question: Question, text: str, config: DetectConfig) -> embedded.Analysis:
    loop = asyncio.get_running_loop()

    async def fly() -> embedded.Analysis:
        await _analysts_slots.acquire(question.workspace_id)
        try:
            return await loop.run_in_executor(
                _analysts, embedded.analyse, text, config.content_type
            )
        finally:
            _analysts_slots.release()

    return await _analysing.do(question.key, fly)


async def _answer(
    request: DetectRequest,
    context: RequestContext,
    policy: DetectionPolicy,
    finding: _Finding,
) -> Detection:
    config = request.config
    threshold, threshold_source = policy.threshold(finding.source, config.confidence_threshold)
    is_degraded = finding.degraded_reason is not None
    scored = finding.scored
    is_whole = scored.scanned_chars >= scored.total_chars
    matched = policy.match(request.text)
    is_malicious = matched == "deny" or (
        matched is None
        and finding.source != "none"
        and scored.score >= threshold
        and not finding.is_floor
        and policy.counts(scored.threat_types)
    )
    is_close = is_degraded and abs(scored.score - threshold) <= REVIEW_MARGIN
    is_monitoring = (config.mode or policy.mode) == "monitor"
    decision: Literal["allow", "flag", "review"]
    if is_monitoring:
        decision = "allow"
    elif matched is None and (is_close or (not is_whole and not is_malicious)):
        decision = "review"
    else:
        decision = "flag" if is_malicious else "allow"
    status: Literal["complete", "partial", "degraded"] = (
        "degraded" if is_degraded else "complete" if is_whole else "partial"
    )
    detections_total.labels(finding.source, decision).inc()
    details = None
    if config.detailed_response:
        details = await _details(request, context, policy, threshold, finding)
    return Detection(
        request_id=context.request_id,
        is_malicious=is_malicious and not is_monitoring,
        confidence=scored.score,
        threat_types=list(scored.threat_types),
        processing_time_ms=round((perf_counter() - context.started) * 1000),
        reason=scored.reason if config.include_reasoning else None,
        endpoint=scored.endpoint,
        threshold=threshold,
        threshold_source=threshold_source,
        decision=decision,
        would_flag=is_malicious if is_monitoring else None,
        status=status,
        source=finding.source,
        degraded_reason=finding.degraded_reason,
        cached=finding.cached,
        cache_age_seconds=finding.age_seconds,
        policy=policy.ref(matched),
        metadata=request.metadata,
        details=details,
    )


def _ranked(finding: _Finding) -> tuple[list[tuple[str, float]], DetectorRef]:
    """The scores by category, the highest first, and whose they are."""
    scored = finding.scored
    if finding.source == "engine":
        by_kind: dict[str, float] = dict.fromkeys(scored.threat_types, scored.score)
        detector = DetectorRef(
            name=scored.endpoint or "engine", version=go.client().version or None
        )
    elif finding.source == "none":
        by_kind, detector = {}, DetectorRef(name="none")
    else:
        by_kind = finding.analysis.categories if finding.analysis is not None else {}
        known = embedded.DETECTOR
        detector = DetectorRef(
            name=known.name, version=known.version, weights_sha256=known.weights_sha256
        )
    return sorted(by_kind.items(), key=lambda item: -item[1]), detector


async def _details(
    request: DetectRequest,
    context: RequestContext,
    policy: DetectionPolicy,
    threshold: float,
    finding: _Finding,
) -> Details:
    """The engine has no evidence of its own: the embedded detector explains, and never decides."""
    scored = finding.scored
    explained = finding.analysis or await _analyse(finding.question, request.text, request.config)
    ranked, detector = _ranked(finding)
    return Details(
        categories=[
            CategoryScore(
                type=kind,
                score=round(score, 4),
                detected=score >= threshold and policy.counts((kind,)),
                threshold=threshold,
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
        coverage=Coverage(scanned_chars=scored.scanned_chars, total_chars=scored.total_chars),
        timing=_timing(context, finding),
        detector=detector,
        floor=finding.is_floor,
    )


def _timing(context: RequestContext, finding: _Finding) -> Timing:
    def ms(seconds: float) -> float:
        return round(seconds * 1000, 2)

    queued = 0.0 if finding.cached else finding.scored.queued_seconds
    return Timing(
        queue_ms=ms(queued),
        engine_ms=ms(context.upstream_seconds - queued),
        fallback_ms=ms(finding.fallback_seconds),
        total_ms=ms(perf_counter() - context.started),
    )
