"""A workspace's day that is nearly, or all, used up: told once a day each, by mail to who runs it
and by event to its webhooks. Of a key's day `events.py` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import BigIntegerField, F, OuterRef, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils.translation import gettext

from accounts import mailing
from accounts.events import publish
from accounts.models import QuotaNotice, UsageRollup, Workspace
from accounts.usage import reports
from accounts.usage.events import PERCENTS
from accounts.usage.rollups import CHARGED
from gateway_project.core import clock, mails
from gateway_project.core.language import number
from gateway_project.core.stores.refused import each_alone
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

LOOKED_AT_MAX = 1_000
log = get_logger("gateway.quotas")


def tell() -> int:
    """Look at the day so far; returns how many mails left."""
    today, during = reports.floor(clock.now(), "day"), Round()
    try:
        each_alone(during.each(_reached(today)), partial(_note, today))
    finally:
        sent = _mail_waiting(today, during)
    return sent


def _mail_waiting(today: datetime, during: Round) -> int:
    sent = 0
    untold = QuotaNotice.objects.filter(day=today.date(), untold__isnull=False)
    for notice in untold.order_by("pk")[:LOOKED_AT_MAX]:
        if during.is_over:
            break
        # Compare-and-set: of two workers at once, one writes.
        left = notice.untold
        if not untold.filter(pk=notice.pk, untold=left).update(untold=None):
            continue
        found = _mail(notice)
        sent += found.count
        if found.later:
            log.error("quota_untold", waiting=len(found.later))
            QuotaNotice.objects.filter(pk=notice.pk).update(untold=found.later)
        if found.is_away:
            break  # the others would fare no better
    return sent


class Reached(NamedTuple):
    workspace: Workspace
    percent: int
    used: int

    @property
    def pk(self) -> UUID:
        return self.workspace.pk


def _reached(today: datetime) -> Iterator[Reached]:
    """Workspaces, the highest of `PERCENTS` that they have reached and were not told of, and what
    they have used. The sums of all its keys say which may have; test keys take nothing of it."""
    quota = Workspace.objects.filter(
        pk=OuterRef("subject_id"), is_confirmed=True, suspended_at=None
    )
    own_or_plans = Coalesce(
        "rate_limit_per_day", "plan__rate_limit_per_day", output_field=BigIntegerField()
    )
    sums = UsageRollup.objects.filter(CHARGED, period="day", bucket=today).order_by()
    many = (
        sums.annotate(quota=Subquery(quota.values_list(own_or_plans)))
        .values("subject_id", "quota")
        .annotate(used=Sum("requests"))
        .filter(used__gte=F("quota") * PERCENTS[0] / 100)
    )
    used = dict(many.values_list("subject_id", "used"))
    announced = dict(
        QuotaNotice.objects.filter(day=today.date(), subject_id__in=used)
        .order_by("percent")
        .values_list("subject_id", "percent")
    )
    for workspace in Workspace.objects.filter(pk__in=used).select_related("plan"):
        before = announced.get(workspace.pk, 0)
        if _percent(used[workspace.pk], workspace.day_quota) <= before:
            continue
        rows = reports.charged(workspace.pk, today, clock.now())
        units = sum(row["units"] for row in rows)
        if (percent := _percent(units, workspace.day_quota)) > before:
            yield Reached(workspace, percent, units)


def _percent(used: int, quota: int) -> int:
    return max((one for one in PERCENTS if used * 100 >= quota * one), default=0)


@transaction.atomic
def _note(today: datetime, reached: Reached) -> None:
    day, (workspace, percent, used) = today.date(), reached
    _, is_first = QuotaNotice.objects.get_or_create(
        subject_id=workspace.pk, day=day, percent=percent, defaults={"untold": []}
    )
    name = f"quota.{percent}"
    if is_first and name in workspace.wanted_events:
        result = {"percent": percent, "limit": workspace.day_quota, "used": used, "day": str(day)}
        publish(workspace, name, result=result)


def _mail(notice: QuotaNotice) -> mails.Sent:
    workspace = Workspace.objects.select_related("plan").filter(pk=notice.subject_id).first()
    if workspace is None:
        return mails.Sent(0, [], {})
    written = partial(_written, workspace, notice.percent)
    return mailing.to_workspace(workspace, "usage", written, left=notice.untold or None)


def _written(workspace: Workspace, percent: int) -> tuple[str, str]:
    """Subject and text."""
    facts = {
        "workspace": mails.name(workspace.name),
        "percent": number(percent),
        "quota": number(workspace.day_quota),
    }
    if percent < PERCENTS[-1]:
        subject = gettext("%(workspace)s has used %(percent)s %% of its day")
        text = gettext(
            "Your workspace %(workspace)s has used %(percent)s %% of the %(quota)s detections of "
            "its day. When they are used up, its keys are refused until midnight UTC."
        )
    else:
        subject = gettext("%(workspace)s has used up its day")
        text = gettext(
            "Your workspace %(workspace)s has used up the %(quota)s detections of its day: its "
            "keys are refused until midnight UTC."
        )
    todo = gettext(
        "Usage in the portal says which keys sent how much, and what the day is on other plans."
    )
    return subject % facts, f"{text % facts}\n\n{todo}"
