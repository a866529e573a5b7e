"""A false-alarm budget: the threshold that holds one on one's own harmless texts, and whether the
traffic is still what it was fitted on.

Scores come in hundredths, as `calibration` has them. The share of false alarms on so many texts is
an estimate: its Wilson interval says how good, and `needed` how many texts it takes to be sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from math import ceil, log
from typing import Any, NamedTuple, cast
from uuid import UUID

from django.db.models import Q
from django.utils.translation import gettext

from accounts import mailing
from accounts.events import audit
from accounts.models import ApiKey
from accounts.services import Actor
from accounts.usage.rollups import SCORE_BINS as BINS
from accounts.usage.rollups import bin_of
from detection.content_types import ContentType
from detection.evaluation.calibration import DAYS, from_threshold, scores_of
from detection.evaluation.report import Rate
from detection.models import FalseAlarmBudget, Feedback
from detection.policies import policy as policies
from gateway_project.core import clock, mails
from gateway_project.core.language import number
from gateway_project.core.stores.refused import each_alone
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

CHOICES = (0.001, 0.005, 0.01, 0.02, 0.05)
"""Budgets: shares of harmless traffic that may be flagged."""
LOOKED_AT_EVERY = timedelta(days=1)
RECENT = timedelta(days=7)
LEAST_TRAFFIC = 200
"""Verdicts of `RECENT`, below which nothing is said of a drift."""
STABILITY_MAX = 0.25
"""The population stability index from which on a distribution counts as another one: the usual rule
of credit scoring (Siddiqi, "Credit Risk Scorecards", 2006)."""
GROUPS = 10
NOTIFIED_AGAIN_AFTER = timedelta(days=30)
MAIL_GIVEN_UP_AFTER = timedelta(days=1)
LOOKED_AT_MAX = 500
REPORTED_MAX = 10_000
ACTOR = Actor("gateway")
logger = get_logger("gateway.budget")


class Texts(NamedTuple):
    """Counts by hundredths of the score: of texts that are known to be harmless, and of attacks."""

    harmless: Sequence[int]
    attacks: Sequence[int]


class Fitted(NamedTuple):
    """The least threshold that keeps the false alarms within the budget."""

    budget: float
    threshold: float
    alarms: int
    harmless: int
    found: int
    attacks: int

    @property
    def rate(self) -> Rate:
        return cast(Rate, Rate.of(self.alarms, self.harmless))  # of some

    @property
    def recall(self) -> Rate | None:
        """Of the attacks that are known; None: none is."""
        return Rate.of(self.found, self.attacks)

    @property
    def is_sure(self) -> bool:
        return self.rate.high <= self.budget

    @property
    def needed(self) -> int:
        return needed(self.budget)


def fit(texts: Texts, budget: float) -> Fitted | None:
    """None: no threshold holds it, or there is no harmless text to fit it on."""
    total = sum(texts.harmless)
    if not total:
        return None
    for hundredth in range(BINS):
        threshold = hundredth / BINS
        alarms = from_threshold(texts.harmless, threshold)
        if alarms <= budget * total:
            found = from_threshold(texts.attacks, threshold)
            return Fitted(budget, threshold, alarms, total, found, sum(texts.attacks))
    return None


def needed(budget: float) -> int:
    """So many harmless texts without one alarm make 95 % sure that the share is below `budget`
    (Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", 1983)."""
    return ceil(log(0.05) / log(1 - budget))


def reported(key: ApiKey, kind: ContentType) -> Texts:
    """What members and programs said of the key's verdicts on texts of that type. False alarms are
    told of more often than what was right, so that these lean to high scores."""
    texts = Texts([0] * BINS, [0] * BINS)
    reports = Feedback.objects.filter(api_key_id=key.pk, content_type=kind).order_by("-created_at")
    for feedback in reports.only("verdict", "confidence", "is_malicious")[:REPORTED_MAX]:
        counts = texts.attacks if feedback.label else texts.harmless
        counts[bin_of(feedback.confidence)] += 1  # type: ignore[index]  # a list, of ours
    return texts


def traffic(key: ApiKey, kind: ContentType) -> Texts:
    """All verdicts of the last days on texts of that type, taken for harmless but where somebody
    said otherwise: more false alarms than there are, never fewer."""
    known = reported(key, kind)
    scores = scores_of(key.pk, kind, clock.now() - timedelta(days=DAYS))
    harmless = [max(0, n - known.attacks[at]) for at, n in enumerate(scores)]
    return Texts(harmless, known.attacks)


def keep(key: ApiKey, kind: ContentType, fitted: Fitted, basis: str) -> FalseAlarmBudget:
    """Remember what was fitted, and how such traffic of the key looked: drifts are told of from now
    on. The threshold is the policy's to hold (`policies.save`)."""
    facts = {
        "api_key_id": key.pk,
        "workspace": key.workspace,
        "budget": fitted.budget,
        "threshold": fitted.threshold,
        "basis": basis,
        "harmless": fitted.harmless,
        "alarms": fitted.alarms,
        "baseline": scores_of(key.pk, kind, clock.now() - timedelta(days=DAYS)),
        "created_at": clock.now(),
        "checked_at": None,
        "drift": {},
        "drifted_at": None,
        "told_at": None,
        "untold": None,
    }
    kept, _ = FalseAlarmBudget.objects.update_or_create(
        subject_id=policies.subject_of(key), content_type=kind, defaults=facts
    )
    return kept


def of_key(key: ApiKey) -> list[FalseAlarmBudget]:
    return list(FalseAlarmBudget.objects.filter(subject_id=policies.subject_of(key)))


def check() -> int:
    """Look at budgets that were not looked at for a day; returns how many have drifted now."""
    now, during = clock.now(), Round()
    due = FalseAlarmBudget.objects.filter(
        Q(checked_at=None) | Q(checked_at__lt=now - LOOKED_AT_EVERY)
    )
    oldest = due.select_related("workspace").order_by("checked_at", "pk")[:LOOKED_AT_MAX]
    try:
        return sum(each_alone(during.each(oldest), _look_at))
    finally:
        _tell_waiting(during)


def _tell_waiting(during: Round) -> None:
    untold = FalseAlarmBudget.objects.filter(drifted_at__isnull=False, told_at=None)
    waiting = untold.select_related("workspace").order_by("drifted_at")[:LOOKED_AT_MAX]
    for budget in during.each(waiting):
        if _tell(budget).is_away:
            break  # the others would fare no better


def _look_at(budget: FalseAlarmBudget) -> bool:
    now = clock.now()
    key_id = _calling(budget)
    kind = cast(ContentType, budget.content_type)
    drift = drift_of(budget, scores_of(key_id, kind, now - RECENT))
    changes: dict[str, Any] = {"checked_at": now, "drift": drift, "api_key_id": key_id}
    is_new = bool(drift) and (
        budget.drifted_at is None or budget.drifted_at < now - NOTIFIED_AGAIN_AFTER
    )
    if is_new:
        changes |= {"drifted_at": now, "told_at": None, "untold": None}
        audit(
            "policy.drifted",
            workspace=budget.workspace,
            target=key_id,
            content_type=budget.content_type,
            drift=drift,
            **ACTOR.fields(),
        )
    elif not drift:
        changes["drifted_at"] = None
    FalseAlarmBudget.objects.filter(pk=budget.pk).update(**changes)
    return is_new


def _calling(budget: FalseAlarmBudget) -> UUID:
    """The newest of the keys that replaced each other."""
    subject = Q(pk=budget.subject_id) | Q(limit_subject=budget.subject_id)
    found = ApiKey.objects.filter(subject, workspace=budget.workspace).order_by("-created_at")
    return found.values_list("pk", flat=True).first() or budget.api_key_id


def drift_of(budget: FalseAlarmBudget, scores: Sequence[int]) -> dict[str, float]:
    """`{stability, flagged, flagged_before}`, where the traffic is another one; else empty.

    That is when the scores lie otherwise (`STABILITY_MAX`), or when surely more of them reach the
    threshold: the interval of now lies above the one of then.
    """
    total, before = sum(scores), sum(budget.baseline)
    if total < LEAST_TRAFFIC or before < LEAST_TRAFFIC:
        return {}
    then = cast(Rate, Rate.of(from_threshold(budget.baseline, budget.threshold), before))
    now = cast(Rate, Rate.of(from_threshold(scores, budget.threshold), total))
    stability = stability_of(budget.baseline, scores)
    if stability <= STABILITY_MAX and now.low <= max(then.high, budget.budget):
        return {}
    return {
        "stability": round(stability, 3),
        "flagged": round(now.value, 4),
        "flagged_before": round(then.value, 4),
    }


def stability_of(before: Sequence[int], now: Sequence[int]) -> float:
    """The population stability index of two counts by hundredths, over tenths."""
    size = BINS // GROUPS
    index = 0.0
    for start in range(0, BINS, size):
        # Half a text more in each, so that an empty one is no infinity.
        was, is_ = (
            (sum(counts[start : start + size]) + 0.5) / (sum(counts) + GROUPS / 2)
            for counts in (before, now)
        )
        index += (is_ - was) * log(is_ / was)
    return index


def _tell(budget: FalseAlarmBudget) -> mails.Sent:
    now = clock.now()
    name = ApiKey.objects.filter(pk=budget.api_key_id).values_list("name", flat=True).first()
    written = partial(_written, budget, name)
    found = mailing.to_workspace(budget.workspace, "quality", written, left=budget.untold)
    if found.later:
        logger.error("drift_untold", budget=str(budget.pk), waiting=len(found.later))
    is_late = budget.drifted_at is None or now - budget.drifted_at >= MAIL_GIVEN_UP_AFTER
    waits = bool(found.later) and not is_late
    FalseAlarmBudget.objects.filter(pk=budget.pk).update(
        told_at=None if waits else now, untold=found.later if waits else None
    )
    return found


def _written(budget: FalseAlarmBudget, name: str | None) -> tuple[str, str]:
    """Subject and text of the mail."""
    facts = {
        "name": mails.name(name or gettext("that was deleted")),
        "kind": budget.content_type,
        "workspace": mails.name(budget.workspace.name),
        "threshold": number(budget.threshold, ".2f"),
        "now": number(budget.drift.get("flagged", 0), ".1%"),
        "then": number(budget.drift.get("flagged_before", 0), ".1%"),
        "budget": number(budget.budget, ".1%"),
    }
    text = gettext(
        "The traffic (%(kind)s) of the key “%(name)s” of your workspace %(workspace)s is not what "
        "its threshold %(threshold)s was fitted on: %(now)s of the last seven days reach it, "
        "%(then)s did then.\n\n"
        "Your budget of %(budget)s false alarms may not hold any more. Look at what is flagged "
        "(Quality in the portal), and fit the threshold anew (Calibrate on the key's page)."
    )
    return gettext("A key's traffic has changed"), text % facts
