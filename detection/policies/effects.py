"""What another policy would have made of past verdicts, from what the log says of each.

No text is needed: a row has its score, its threat types, who answered, where its threshold was
from, and of a text that was flagged a keyed digest, by which it is found on a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

from accounts.models import ApiKey, UsageLog, Workspace
from accounts.usage import why
from accounts.usage.buffer import Record
from accounts.usage.reading import earliest
from detection.content_types import ContentType
from detection.policies.policy import (
    DetectionPolicy,
    Source,
    digest_of,
    mark_of,
    marks_of,
)
from gateway_project.core import clock

DAYS = 30
LOOKED_AT_MAX = 10_000
SHOWN = 10


class Verdict(NamedTuple):
    """What judging a row of the log again takes: model instances would take three times as long."""

    pk: int
    api_key_id: UUID
    source: str
    is_malicious: bool
    confidence: float | None
    why: Mapping[str, Any]


def say_of_text(row: Record, text: str, content_type: ContentType, *, is_one: bool = True) -> None:
    """Note of a verdict what tells its text from others, and quotes none of it."""
    if "reason" in row.why:
        row.why["reason"] = why.without_quotes(row.why["reason"], text)
    if content_type != "user_input":
        row.why["type"] = content_type
    if row.is_malicious and is_one:
        row.why["text"] = mark_of(row.workspace_id, digest_of(text))


@dataclass(slots=True)
class Effect:
    """Of `looked_at` verdicts since `since`: how many would be flagged that were not (`more`), and
    the other way (`fewer`); `examples` are the newest of both, as `(row, would be flagged)`.

    `is_cut`: there are older ones in the time, which were not looked at.
    """

    since: datetime
    looked_at: int = 0
    more: int = 0
    fewer: int = 0
    is_cut: bool = False
    examples: list[tuple[UsageLog, bool]] = field(default_factory=list)

    @property
    def changed(self) -> int:
        return self.more + self.fewer


def of_change(
    workspace: Workspace,
    keys: Iterable[UUID],
    before: DetectionPolicy,
    after: DetectionPolicy,
) -> Effect:
    """What the verdicts of these keys would be under `after` and are not under `before`.

    Of the last `DAYS` days, as far as the log goes back, the newest `LOOKED_AT_MAX`.
    """
    effect = Effect(max(earliest(workspace), clock.now() - timedelta(days=DAYS)))
    judges = [_Judge(one, workspace.pk) for one in (before, after)]
    found, effect.is_cut = verdicts(workspace, effect.since, list(keys))
    examples: dict[int, bool] = {}
    for row in found:
        was, would_be = (judge.flags(row) for judge in judges)
        effect.looked_at += 1
        effect.more += would_be and not was
        effect.fewer += was and not would_be
        if was != would_be and len(examples) < SHOWN:
            examples[row.pk] = would_be
    effect.examples = [(row, examples[row.pk]) for row in _rows(workspace, effect.since, examples)]
    return effect


def same_text(
    workspace: Workspace, keys: Sequence[UUID], digest: str
) -> tuple[int, list[UsageLog]]:
    """How many flagged verdicts of these keys were of this very text, and the newest of them."""
    since = max(earliest(workspace), clock.now() - timedelta(days=DAYS))
    marks = marks_of(workspace.pk, [digest])
    rows, _ = verdicts(workspace, since, keys)
    found = [row.pk for row in rows if row.is_malicious and row.why.get("text") in marks]
    return len(found), _rows(workspace, since, found[:SHOWN])


def _rows(workspace: Workspace, since: datetime, ids: Iterable[int]) -> list[UsageLog]:
    """Whole, the newest first."""
    if not ids:
        return []
    rows = UsageLog.objects.filter(workspace_id=workspace.pk, created_at__gte=since, pk__in=ids)
    return list(rows.order_by("-created_at"))


def is_text_of(row: UsageLog, digest: str) -> bool | None:
    """Whether it is the text of that verdict; None: the log does not say."""
    mark = row.why.get("text")
    return None if mark is None else mark in marks_of(row.workspace_id, [digest])


def verdicts(
    workspace: Workspace, since: datetime, keys: Sequence[UUID]
) -> tuple[list[Verdict], bool]:
    """Of these keys, the newest first, with what judging them again takes; and whether there are
    more: only the newest `LOOKED_AT_MAX` rows of the key, or of the workspace, are looked at."""
    if not keys:
        return [], False
    rows = UsageLog.objects.filter(workspace_id=workspace.pk, created_at__gte=since)
    if len(keys) == 1:
        rows = rows.filter(api_key_id=keys[0])
    rows = rows.order_by("-created_at")
    times = rows.values_list("created_at", flat=True)
    cut = next(iter(times[LOOKED_AT_MAX : LOOKED_AT_MAX + 1]), None)
    if cut is not None:
        rows = rows.filter(created_at__gt=cut)
    wanted = set(keys)
    found = rows.filter(is_malicious__isnull=False).values_list(*Verdict._fields)
    return [row for row in map(Verdict._make, found) if row.api_key_id in wanted], cut is not None


def keys_of(owner: ApiKey | Workspace) -> list[UUID]:
    """Whose verdicts its policy is about: a key, or all of a workspace that follow it."""
    if isinstance(owner, ApiKey):
        return [owner.pk]
    return list(owner.keys.filter(detection_policy={}).values_list("pk", flat=True))


def followers_of(workspace: Workspace) -> int:
    """How many working keys have no policy of their own."""
    return workspace.keys.usable().listed().filter(detection_policy={}).count()


class _Judge:
    """A policy over rows of the log."""

    def __init__(self, policy: DetectionPolicy, workspace_id: UUID) -> None:
        self.policy = policy
        self.allowed = frozenset(marks_of(workspace_id, policy.allow))
        self.denied = frozenset(marks_of(workspace_id, policy.deny))

    def flags(self, row: Verdict) -> bool:
        explanation: Mapping[str, Any] = row.why
        if row.confidence is None or row.source == "none":
            return False  # it failed open: nobody judged it
        if explanation.get("matched") == "allow":
            return False  # of a text that was not flagged there is no digest
        is_malicious = explanation.get("text") in self.denied or (
            explanation.get("text") not in self.allowed
            and row.confidence >= self._threshold(row)
            and self.policy.counts(tuple(explanation.get("threats", ())))
        )
        return is_malicious and self.policy.mode == "enforce"

    def _threshold(self, row: Verdict) -> float:
        explanation = row.why
        asked = (
            explanation.get("threshold") if explanation.get("threshold_from") == "request" else None
        )
        source: Source = "fallback" if row.source == "fallback" else "engine"
        kind = cast(ContentType, explanation.get("type", "user_input"))
        return self.policy.threshold(source, asked, kind)[0]
