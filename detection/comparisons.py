"""How engines compare on a key's own traffic: what the ledger wrote, read and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from uuid import UUID

from django.db.models import QuerySet, Sum

from accounts.models import ApiKey
from detection.ledger import COLUMNS
from detection.models import Disagreement, EngineDay
from gateway_project.core import clock
from gateway_project.core.stores.sweeps import Round

SPENT = ("engine", "calls", "tokens_in", "tokens_out", "cost")
DAYS = 30
DAYS_KEPT = 95
DISAGREEMENTS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Day:
    """Texts of one day (UTC) that both engines judged."""

    at: date
    agreed: int
    only_own: int
    only_shadow: int

    @property
    def seen(self) -> int:
        return self.agreed + self.only_own + self.only_shadow


@dataclass(frozen=True, slots=True)
class Comparison:
    """A shadow engine beside the one that answered; milliseconds and cost are means of a call."""

    engine: str
    compared_to: str
    agreed: int
    only_own: int
    only_shadow: int
    failed: int
    skipped: int
    milliseconds: float
    own_milliseconds: float
    tokens: int
    cost: float
    days: Sequence[Day] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.agreed + self.only_own + self.only_shadow

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.seen if self.seen else None


@dataclass(frozen=True, slots=True)
class Spent:
    """What an engine with a price cost a key, as answers and as a shadow."""

    engine: str
    calls: int
    tokens_in: int
    tokens_out: int
    cost: float


def of_key(key_id: UUID) -> list[Comparison]:
    """Of the last `DAYS` days, the one with most texts first."""
    rows = _rows(key_id).filter(role=EngineDay.Role.SHADOW).order_by("day")
    by_pair: dict[tuple[str, str], list[EngineDay]] = {}
    for row in rows:
        by_pair.setdefault((row.engine, row.compared_to), []).append(row)
    found = [_compared(pair, some) for pair, some in by_pair.items()]
    return sorted(found, key=lambda one: -(one.seen + one.failed))


def _compared(pair: tuple[str, str], rows: Sequence[EngineDay]) -> Comparison:
    total = {name: sum(getattr(row, name) for row in rows) for name in COLUMNS}
    answered = max(1, total["calls"] - total["failed"])
    return Comparison(
        *pair,
        agreed=total["agreed"],
        only_own=total["only_own"],
        only_shadow=total["only_shadow"],
        failed=total["failed"],
        skipped=total["skipped"],
        milliseconds=total["milliseconds"] / answered,
        own_milliseconds=total["own_milliseconds"] / answered,
        tokens=total["tokens_in"] + total["tokens_out"],
        cost=total["cost"] / answered,
        days=[Day(row.day, row.agreed, row.only_own, row.only_shadow) for row in rows],
    )


def spent_by(key_id: UUID) -> list[Spent]:
    """Of the last `DAYS` days: engines that have a price or count tokens."""
    return _spent(_rows(key_id))


def spent_in(
    workspace_id: UUID, first: date, last: date, key_id: UUID | None = None
) -> list[Spent]:
    """The same of all keys of a workspace, or of one, from one day to another, both among it."""
    keys = ApiKey.objects.filter(workspace_id=workspace_id).order_by()
    if key_id is not None:
        keys = keys.filter(pk=key_id)
    days = EngineDay.objects.filter(day__range=(first, last))
    return _spent(days.filter(api_key_id__in=keys.values("pk")))


def _spent(days: QuerySet[EngineDay]) -> list[Spent]:
    rows = (
        days.order_by()
        .values("engine")
        .annotate(
            all_calls=Sum("calls"),
            all_in=Sum("tokens_in"),
            all_out=Sum("tokens_out"),
            all_cost=Sum("cost"),
        )
        .order_by("engine")
    )
    found = [
        Spent(row["engine"], row["all_calls"], row["all_in"], row["all_out"], row["all_cost"])
        for row in rows
    ]
    return [one for one in found if one.cost or one.tokens_in or one.tokens_out]


def disagreements_of(key_id: UUID) -> list[Disagreement]:
    """The newest first; at most `DISAGREEMENTS_SHOWN`."""
    return list(Disagreement.objects.filter(api_key_id=key_id)[:DISAGREEMENTS_SHOWN])


def _rows(key_id: UUID) -> QuerySet[EngineDay]:
    since = clock.now().date() - timedelta(days=DAYS)
    return EngineDay.objects.filter(api_key_id=key_id, day__gte=since)


def prune() -> int:
    """Forget sums past `DAYS_KEPT` and disagreements past `DAYS`; returns how many."""
    now = clock.now()
    days = EngineDay.objects.filter(day__lt=now.date() - timedelta(days=DAYS_KEPT)).order_by("day")
    old = Disagreement.objects.filter(created_at__lt=now - timedelta(days=DAYS))
    return Round().delete(days) + Round().delete(old.order_by("created_at"))
