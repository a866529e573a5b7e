"""Choosing a threshold: what a key's scores of the past, and labelled texts, would give at each.

Scores are kept in hundredths (`accounts.models.ScoreRollup`), and so is everything here. No text is
stored: those that are uploaded are scored, counted and forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from accounts.authentication import policies_of
from accounts.models import ApiKey
from accounts.usage import reports
from accounts.usage.rollups import SCORE_BINS as BINS
from accounts.usage.rollups import bin_of, subject_of
from detection import services
from detection.content_types import CONTENT_TYPES, ContentType
from detection.engines import registry
from detection.evaluation.report import Sample, parse
from detection.models import Feedback
from detection.policies.policy import DetectionPolicy
from detection.schemas import ScoreRequest
from gateway_project.core import clock
from gateway_project.core.context import RequestContext
from gateway_project.core.ratelimit import get_limiter
from gateway_project.core.stores import database

DAYS = 30
ROWS_MAX = 500
BYTES_MAX = 1 << 20
SECONDS_MAX = 25.0
AT_ONCE = 50


@dataclass(slots=True)
class Known:
    """Counts by hundredths of the score: of verdicts, and of what people said of them."""

    scores: list[int]
    false_alarms: list[int] = field(default_factory=lambda: [0] * BINS)
    missed: list[int] = field(default_factory=lambda: [0] * BINS)


@dataclass(slots=True)
class Compared:
    """Labelled texts by hundredths of their scores, and how many rows could not be used."""

    attacks: list[int] = field(default_factory=lambda: [0] * BINS)
    harmless: list[int] = field(default_factory=lambda: [0] * BINS)
    left_out: int = 0


def scores_of(key_id: UUID, content_type: ContentType, since: datetime) -> list[int]:
    """How many verdicts of a key on texts of that type had a score in each hundredth."""
    since = reports.floor(since, "day")
    if content_type != "user_input":
        return reports.scores([subject_of(key_id, content_type)], since)
    typed = [subject_of(key_id, name) for name in CONTENT_TYPES if name != "user_input"]
    of_all, of_others = reports.scores([key_id], since), reports.scores(typed, since)
    return [max(0, n - others) for n, others in zip(of_all, of_others, strict=True)]


def known_of(key_id: UUID, content_type: ContentType = "user_input") -> Known:
    """Of the last `DAYS` days of a key, of texts of that type."""
    since = clock.now() - timedelta(days=DAYS)
    known = Known(scores_of(key_id, content_type, since))
    feedback = Feedback.objects.filter(
        api_key_id=key_id, content_type=content_type, created_at__gte=since
    )
    for verdict, confidence in feedback.values_list("verdict", "confidence"):
        if verdict == Feedback.Verdict.FALSE_POSITIVE:
            known.false_alarms[bin_of(confidence)] += 1
        elif verdict == Feedback.Verdict.FALSE_NEGATIVE:
            known.missed[bin_of(confidence)] += 1
    return known


def from_threshold(counts: Sequence[int], threshold: float) -> int:
    """How many of them are flagged at a threshold in whole hundredths."""
    return sum(counts[round(threshold * BINS) :])


def compare(
    lines: Iterable[bytes],
    key: ApiKey,
    *,
    policy: DetectionPolicy,
    content_type: ContentType = "user_input",
) -> Compared:
    """Score the labelled texts of a JSONL (`{"text", "label"}`, as `manage.py evaluate` reads it),
    by the engines of `policy`, as texts of that type.

    At most `ROWS_MAX` are scored; each costs `key` one of the day. Blocks until the detector has,
    at most `SECONDS_MAX`; raises `TimeoutError`, or `QuotaExceeded` before it begins. Not for the
    event loop.
    """
    found = Compared()
    samples: list[Sample] = []
    for number, line in enumerate((line for line in lines if line.strip()), 1):
        sample = parse(line, "", number)
        if isinstance(sample, Sample) and len(samples) < ROWS_MAX:
            samples.append(sample)
        else:
            found.left_out += 1
    limits = policies_of(key)
    costs = [len(samples) if limit.is_daily else 0 for limit in limits]
    get_limiter().check_sync(limits, costs).raise_if_denied()
    database.let_go()
    texts = [sample.text for sample in samples]
    scoring = _score(texts, key.workspace_id, policy, content_type)
    loop = registry.engines().loop  # of the web process, which this is a thread of
    running = asyncio.run_coroutine_threadsafe(scoring, loop)
    try:
        scores = running.result(SECONDS_MAX)
    except BaseException:
        running.cancel()  # nobody waits for the rest: the engine is not asked for it
        raise
    for sample, score in zip(samples, scores, strict=True):
        (found.attacks if sample.label else found.harmless)[bin_of(score)] += 1
    return found


async def _score(
    texts: Sequence[str], workspace_id: UUID, policy: DetectionPolicy, content_type: ContentType
) -> list[float]:
    places = asyncio.Semaphore(AT_ONCE)

    async def score(text: str) -> float:
        async with places:
            request = ScoreRequest.model_construct(text=text, content_type=content_type)
            looked_up = services.start_look_up(text, content_type, workspace_id, policy=policy)
            context = RequestContext("", None, None)
            found = await services.score(request, context, looked_up=looked_up)
            return found.confidence

    return list(await asyncio.gather(*map(score, texts)))
