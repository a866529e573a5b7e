"""From a text to a verdict: a remembered score, else the engine, else the embedded detector.

Whoever answered is said. Equal texts of a workspace at once ask the engine once in each process;
the call goes on for its own budget whoever stops waiting, so that one caller's haste is not the
engine's fault. Between workspaces nothing is shared: it would tell one what another asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Literal, NamedTuple
from uuid import UUID

from django.conf import settings
from prometheus_client import Counter

from detection import embedded, shadows
from detection.content_types import CUT, ContentType
from detection.engines import analysts, builtin, registry, scores
from detection.engines.addresses import DEFAULT
from detection.engines.analysts import Finding
from detection.engines.engine import EngineUnavailable
from detection.engines.registry import Route
from detection.engines.scores import NOTHING, LookUp, Reason, Remembered, Score, Spent
from detection.messages import Passage, Unseen, passages_of
from detection.policies.policy import DetectionPolicy, Match, Source
from detection.schemas import (
    CategoryScore,
    Coverage,
    Details,
    DetectConfig,
    Detection,
    DetectorRef,
    DetectRequest,
    EvidenceSpan,
    Location,
    OnUnavailable,
    RankedScore,
    Scanned,
    ScoreRequest,
    Scores,
    TextRequest,
    Timing,
    UnseenPart,
)
from gateway_project.core import errors
from gateway_project.core.context import RequestContext
from gateway_project.core.stores.caching import SingleFlight, ended
from gateway_project.core.telemetry.metrics import cache_requests, detections_total

REVIEW_MARGIN = 0.1
NO_ENGINE = "no_engine"
POLICY = DetectionPolicy()
"""For who asks without a key."""

_analysing: SingleFlight[str, Finding] = SingleFlight()
_looked_up = {
    result: cache_requests.labels("score", result)
    for result in ("hit", "joined", "miss", "stale", "bypass")
}


class Question(NamedTuple):
    """A text's score as it is asked for: by whom, what it is remembered by, whose it is, and the
    look-up of it, if one is wanted, under way."""

    passage: Passage
    route: Route
    key: str
    workspace_id: UUID
    look_up: LookUp | None

    @property
    def text(self) -> str:
        return self.passage.text

    @property
    def content_type(self) -> ContentType:
        return self.passage.content_type


@dataclass(slots=True)
class _Finding:
    """A score and where it came from, before any threshold."""

    question: Question
    scored: Score
    source: Source = "engine"
    cached: bool = False
    age_seconds: int = 0
    degraded_reason: Reason | None = None
    analysis: embedded.Analysis | None = None
    lost: Spent = NOTHING
    """What an engine cost that gave no score."""
    engine_seconds: float = 0.0
    fallback_seconds: float = 0.0

    @property
    def is_floor(self) -> bool:
        """The Go engine never scores below its floor: there, it has found nothing."""
        if self.source != "engine" or self.scored.threat_types:
            return False
        engine = registry.engines().get(self.scored.engine)
        floor = 0.0 if engine is None else engine.floor
        return floor > 0 and abs(self.scored.score - floor) < 1e-9

    @property
    def is_whole(self) -> bool:
        return self.scored.scanned_chars >= self.scored.total_chars

    @property
    def unseen(self) -> list[str]:
        """Why not all of it was looked at."""
        if self.source == "none":
            return [NO_ENGINE]
        if self.scored.unseen:
            return list(dict.fromkeys(self.scored.unseen))
        return [] if self.is_whole else [CUT]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A finding under a policy."""

    finding: _Finding
    threshold: float
    threshold_source: Literal["request", "policy", "default"]
    matched: Match | None
    is_malicious: bool

    @property
    def is_close(self) -> bool:
        """So close to the threshold that another engine might have said something else."""
        finding = self.finding
        is_degraded = finding.degraded_reason is not None
        return is_degraded and abs(finding.scored.score - self.threshold) <= REVIEW_MARGIN

    @property
    def rank(self) -> tuple[bool, float]:
        """The worst of several is the one that an answer is about."""
        return self.is_malicious, self.finding.scored.score - self.threshold


def start_look_up(
    text: str,
    content_type: ContentType,
    workspace_id: UUID,
    *,
    policy: DetectionPolicy = POLICY,
    use_cache: bool = True,
) -> Question:
    """Begin to ask: also when no look-up is wanted."""
    return _start(Passage(text, content_type, ()), workspace_id, policy, use_cache=use_cache)


def start_look_ups(
    request: DetectRequest, workspace_id: UUID, policy: DetectionPolicy
) -> tuple[list[Question], Sequence[Unseen]]:
    """For all texts of a request, which leave together; and what of it is not judged."""
    config = request.config
    if request.messages is None:
        passages: Sequence[Passage] = [Passage(request.text or "", config.content_type, ())]
        unseen: Sequence[Unseen] = ()
    else:
        passages, unseen = passages_of(request.messages)
    questions = [_start(one, workspace_id, policy, use_cache=config.use_cache) for one in passages]
    return questions, unseen


def _start(
    passage: Passage, workspace_id: UUID, policy: DetectionPolicy, *, use_cache: bool
) -> Question:
    route = policy.route
    key = scores.key_of(passage.text, passage.content_type, route.id, workspace_id)
    if not use_cache or settings.SCORE_CACHE_SECONDS <= 0:
        return Question(passage, route, key, workspace_id, None)
    return Question(passage, route, key, workspace_id, LookUp(key))


async def detect(
    request: TextRequest,
    context: RequestContext,
    *,
    policy: DetectionPolicy,
    looked_up: Question,
    batch: str = "",
    api_key_id: UUID | None = None,
) -> Detection:
    """The verdict on one text, as `POST /v1/detect` answers it.

    `looked_up` is what `start_look_up` gave; texts of one `batch` share the engine's calls, also
    those that want no cache. Raises 403 for what the policy does not let a request change, 503 or
    504 when the engine is away and the request fails closed.
    """
    return await detect_all(
        request, context, policy=policy, asked=([looked_up], ()), batch=batch, api_key_id=api_key_id
    )


async def detect_all(
    request: TextRequest | DetectRequest,
    context: RequestContext,
    *,
    policy: DetectionPolicy,
    asked: tuple[Sequence[Question], Sequence[Unseen]],
    batch: str = "",
    api_key_id: UUID | None = None,
) -> Detection:
    """The verdict on the worst of a request's texts; `asked` is what `start_look_ups` gave."""
    config = request.config
    policy.check(config)
    on_unavailable = config.on_unavailable or policy.on_unavailable
    questions, unseen = asked
    shadows.began()
    try:
        if len(questions) == 1:
            findings = [await _find(questions[0], config, on_unavailable, context, batch)]
        else:
            findings = await _find_all(questions, config, on_unavailable, context, batch)
    finally:
        shadows.ended()
    verdicts = [_judged(one, config, policy) for one in findings]
    answer = await _answer(request, context, policy, verdicts, unseen)
    if api_key_id is not None:
        _account(verdicts, context, policy, api_key_id)
    return answer


@lru_cache(maxsize=64)
def _counter(source: Source, decision: str) -> Counter:
    return detections_total.labels(source, decision)


async def _find_all(
    questions: Sequence[Question],
    config: DetectConfig,
    on_unavailable: OnUnavailable,
    context: RequestContext,
    batch: str,
) -> list[_Finding]:
    tasks = [
        asyncio.create_task(_find(one, config, on_unavailable, context, batch)) for one in questions
    ]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def score(request: ScoreRequest, context: RequestContext, *, looked_up: Question) -> Scores:
    """What the detector thinks of a text, whatever anybody's threshold."""
    config = DetectConfig(content_type=request.content_type)
    finding = await _find(looked_up, config, "fallback", context)
    ranked, detector = _ranked(finding)
    return Scores(
        confidence=finding.scored.score,
        categories=[RankedScore(type=kind, score=round(value, 4)) for kind, value in ranked],
        threat_types=list(finding.scored.threat_types),
        source="engine" if finding.source == "engine" else "fallback",
        detector=detector,
    )


async def _find(
    question: Question,
    config: DetectConfig,
    on_unavailable: OnUnavailable,
    context: RequestContext,
    batch: str = "",
) -> _Finding:
    look_up = question.look_up
    remembered = None if look_up is None else await look_up.found()
    if remembered is not None and remembered.is_fresh:
        _looked_up["hit"].inc()
        return _recalled(question, remembered)
    looked_at = None if look_up is None else look_up.at
    started = perf_counter()
    try:
        try:
            scored, joined = await _ask(question, config, context, looked_at, batch)
        finally:
            seconds = perf_counter() - started
            # A request's texts are asked side by side: it waits for the longest, not for their sum.
            context.upstream_seconds = max(context.upstream_seconds, seconds)
    except EngineUnavailable as exc:
        if on_unavailable == "fail_closed":
            raise _refusal(exc) from exc
        finding = await _without_engine(question, remembered, on_unavailable, exc)
        finding.lost = exc.spent
    else:
        _looked_up["joined" if joined else "miss" if look_up is not None else "bypass"].inc()
        # Who joined another's running call had it answered for nothing.
        finding = _Finding(question, scored, cached=joined, degraded_reason=scored.second_missing)
    finding.engine_seconds = seconds
    return finding


def _recalled(question: Question, remembered: Remembered, reason: Reason | None = None) -> _Finding:
    return _Finding(
        question,
        remembered.score,
        cached=True,
        age_seconds=remembered.age_seconds,
        degraded_reason=reason,
    )


async def _ask(
    question: Question,
    config: DetectConfig,
    context: RequestContext,
    looked_at: float | None,
    batch: str,
) -> tuple[Score, bool]:
    """The engine's score, and whether somebody else's call for the same text gave it."""
    budget = config.timeout_seconds or settings.DETECTION_ENGINE_TIMEOUT_SECONDS

    async def fly() -> Score:
        scored = await question.route.ask(
            question.text,
            question.content_type,
            timeout_seconds=max(budget, settings.DETECTION_ENGINE_TIMEOUT_SECONDS),
            context=context,
            holder=question.workspace_id,
        )
        is_whole = scored.scanned_chars == scored.total_chars and scored.second_missing is None
        if settings.SCORE_CACHE_SECONDS > 0 and is_whole:
            scores.keep(question.key, scored)
        return scored

    # Who wants no cache wants a call of its own.
    key = question.key
    flight_key = key if config.use_cache else f"{batch or context.request_id} {key}"
    call, is_new = registry.engines().asking.start(flight_key, fly, since=looked_at)
    # `ended` leaves the call to the others when this caller's time is up, or the caller gone.
    left = budget - (perf_counter() - context.started)
    if not await ended(call, within_seconds=left):
        raise EngineUnavailable("timeout")
    try:
        return call.result(), not is_new
    except EngineUnavailable as exc:
        if not is_new:
            exc = copy(exc)
            exc.spent = NOTHING  # it is another's, whose call it was
        raise exc from None


async def _without_engine(
    question: Question,
    remembered: Remembered | None,
    on_unavailable: OnUnavailable,
    exc: EngineUnavailable,
) -> _Finding:
    """An older score of the same text, else what the request or the key chose."""
    if remembered is not None:
        _looked_up["stale"].inc()
        return _recalled(question, remembered, exc.reason)
    if on_unavailable == "fail_open" and exc.is_outage:
        chars = len(question.text)
        nothing = Score(0.0, (), None, None, scanned_chars=0, total_chars=chars)
        return _Finding(question, nothing, source="none", degraded_reason=exc.reason)
    started = perf_counter()
    found = await _analyse(question)
    return _Finding(
        question,
        builtin.score_of(found, "fallback"),
        source="fallback",
        degraded_reason=exc.reason,
        analysis=found.analysis,
        fallback_seconds=perf_counter() - started,
    )


def _refusal(exc: EngineUnavailable) -> errors.GatewayError:
    headers = {"Retry-After": str(exc.retry_after_seconds)}
    if exc.reason == "timeout":
        return errors.DetectionTimeout(headers=headers)
    return errors.DetectionUnavailable(headers=headers)


async def _analyse(question: Question) -> Finding:
    async def fly() -> Finding:
        return await analysts.analyse(question.text, question.content_type, question.workspace_id)

    return await _analysing.do(question.key, fly)


def _judged(finding: _Finding, config: DetectConfig, policy: DetectionPolicy) -> _Verdict:
    scored, question = finding.scored, finding.question
    threshold, threshold_source = policy.threshold(
        finding.source, config.confidence_threshold, question.content_type, scored.engine
    )
    matched = policy.match(question.text)
    is_malicious = matched == "deny" or (
        matched is None
        and finding.source != "none"
        and scored.score >= threshold
        and not finding.is_floor
        and policy.counts(scored.threat_types)
    )
    return _Verdict(finding, threshold, threshold_source, matched, is_malicious)


async def _answer(
    request: TextRequest | DetectRequest,
    context: RequestContext,
    policy: DetectionPolicy,
    verdicts: Sequence[_Verdict],
    unseen: Sequence[Unseen],
) -> Detection:
    if not verdicts:
        verdicts = [_nothing_to_judge(policy, request.config)]
    config = request.config
    worst = verdicts[0] if len(verdicts) == 1 else max(verdicts, key=lambda one: one.rank)
    finding, scored, matched = worst.finding, worst.finding.scored, worst.matched
    coverage = _coverage(verdicts, unseen)
    is_whole = coverage.scanned_chars >= coverage.total_chars and all(
        one.reason == "trusted_role" for one in unseen
    )
    degraded = next((d for v in verdicts if (d := v.finding.degraded_reason) is not None), None)
    is_malicious = worst.is_malicious
    is_close = degraded is not None and any(one.is_close for one in verdicts if not one.matched)
    is_monitoring = (config.mode or policy.mode) == "monitor"
    decision: Literal["allow", "flag", "review"]
    if is_monitoring:
        decision = "allow"
    elif matched is None and (
        (is_close and (finding.degraded_reason is not None or not is_malicious))
        or (not is_whole and not is_malicious)
    ):
        decision = "review"
    else:
        decision = "flag" if is_malicious else "allow"
    status: Literal["complete", "partial", "degraded"] = (
        "degraded" if degraded is not None else "complete" if is_whole else "partial"
    )
    _counter(finding.source, decision).inc()
    details = None
    if config.detailed_response:
        details = await _details(context, policy, worst, coverage)
    return Detection(
        request_id=context.request_id,
        is_malicious=is_malicious and not is_monitoring,
        confidence=scored.score,
        threat_types=list(scored.threat_types),
        processing_time_ms=round((perf_counter() - context.started) * 1000),
        reason=scored.reason if config.include_reasoning else None,
        endpoint=scored.endpoint,
        engine=scored.engine if finding.source == "engine" and scored.engine != DEFAULT else None,
        location=await _location(worst),
        coverage=coverage,
        threshold=worst.threshold,
        threshold_source=worst.threshold_source,
        decision=decision,
        would_flag=is_malicious if is_monitoring else None,
        status=status,
        source=finding.source,
        degraded_reason=degraded,
        cached=all(one.finding.cached for one in verdicts),
        cache_age_seconds=max(one.finding.age_seconds for one in verdicts),
        policy=policy.ref(matched),
        metadata=request.metadata,
        details=details,
    )


def _nothing_to_judge(policy: DetectionPolicy, config: DetectConfig) -> _Verdict:
    """Of messages without a text, as of a picture alone."""
    question = Question(Passage("", "user_input", ()), policy.route, "", UUID(int=0), None)
    finding = _Finding(question, Score(0.0, (), None, None, 0, 0), source="none")
    threshold, threshold_source = policy.threshold("none", config.confidence_threshold)
    return _Verdict(finding, threshold, threshold_source, None, is_malicious=False)


def _coverage(verdicts: Sequence[_Verdict], unseen: Sequence[Unseen]) -> Coverage:
    reasons = [UnseenPart(reason=one.reason, message=one.message) for one in unseen]
    scanned = total = 0
    for verdict in verdicts:
        finding = verdict.finding
        scanned += finding.scored.scanned_chars
        total += finding.scored.total_chars
        if finding.question.text and (parts := finding.unseen):
            messages = finding.question.passage.messages
            message = messages[0] if len(messages) == 1 else None
            reasons += [UnseenPart(reason=one, message=message) for one in parts]
    return Coverage(scanned_chars=scanned, total_chars=total, unseen=reasons)


async def _location(worst: _Verdict) -> Location | None:
    """Where the score stood, if it says anything: in which message, at which path."""
    finding = worst.finding
    passage, path = finding.question.passage, finding.scored.path
    if not passage.messages and path is None:
        return None
    if not worst.is_malicious and finding.scored.score < analysts.LOCATE_FROM:
        return None
    message = passage.messages[0] if passage.messages else None
    if len(passage.parts) > 1:
        at = await analysts.worst_of(
            passage.parts, passage.content_type, finding.question.workspace_id
        )
        message = None if at is None else passage.messages[at]
    return Location(message=message, path=path)


def _ranked(finding: _Finding) -> tuple[list[tuple[str, float]], DetectorRef]:
    """The scores by category, the highest first, and whose they are."""
    scored = finding.scored
    if finding.source == "engine":
        by_kind: dict[str, float] = dict.fromkeys(scored.threat_types, scored.score)
        engine = registry.engines().get(scored.engine)
        version = None if engine is None else engine.version or None
        detector = DetectorRef(name=scored.endpoint or "engine", version=version)
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
    context: RequestContext, policy: DetectionPolicy, worst: _Verdict, coverage: Coverage
) -> Details:
    """The engine has no evidence of its own: the embedded detector explains, and never decides."""
    finding, threshold = worst.finding, worst.threshold
    messages = finding.question.passage.messages
    explained = finding.analysis or (await _analyse(finding.question)).analysis
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
                message=messages[0] if len(messages) == 1 else None,
            )
            for span in explained.evidence
        ],
        views=list(explained.views),
        language=explained.language,
        coverage=Scanned(scanned_chars=coverage.scanned_chars, total_chars=coverage.total_chars),
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
        engine_ms=ms(finding.engine_seconds - queued),
        fallback_ms=ms(finding.fallback_seconds),
        total_ms=ms(perf_counter() - context.started),
    )


def _account(
    verdicts: Sequence[_Verdict],
    context: RequestContext,
    policy: DetectionPolicy,
    api_key_id: UUID,
) -> None:
    """What the texts cost, and their way to the shadow engine; behind the answer."""
    for verdict in verdicts:
        finding = verdict.finding
        workspace_id = finding.question.workspace_id
        if not finding.cached:
            scored = finding.scored
            shadows.note_cost(scored.spent, scored.engine, api_key_id, workspace_id)
        shadows.note_cost(finding.lost, finding.question.route.first, api_key_id, workspace_id)
    if policy.shadow is not None:
        for verdict in verdicts:
            finding = verdict.finding
            if finding.source == "engine" and not finding.cached:
                shadows.send(
                    shadows.Seen(
                        context.request_uuid,
                        api_key_id,
                        finding.question.workspace_id,
                        finding.question.text,
                        finding.question.content_type,
                        finding.scored,
                        verdict.is_malicious,
                        finding.engine_seconds,
                    ),
                    context,
                    policy,
                )
