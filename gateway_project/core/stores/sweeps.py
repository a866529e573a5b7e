"""Work on many rows, in short transactions and short rounds.

Whatever a table holds, a periodic task takes a piece of it, commits, and takes the next until its
round is over; the next round goes on. So a backlog holds no lock, no connection and no worker for
long, and nobody waits behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from django.db import connections, models, router, transaction

T = TypeVar("T")
ROUND_SECONDS = 3.0
PIECE_SECONDS = 0.5
"""A piece that took longer makes the following ones smaller."""
PIECE_ROWS = 5_000
PIECE_ROWS_MIN = 50


class Round:
    """What one run of a periodic task may take: `ROUND_SECONDS`, in pieces of `rows`."""

    def __init__(self, seconds: float = ROUND_SECONDS, rows: int = PIECE_ROWS) -> None:
        self.rows = rows
        self._until = monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return monotonic() >= self._until

    def each(self, rows: Iterable[T]) -> Iterator[T]:
        """Of `rows`, one after the other, until the round is over."""
        for row in rows:
            if self.is_over:
                return
            yield row

    def repeat(self, piece: Callable[[int], int]) -> int:
        """Call `piece(rows)`, a transaction of its own, until it says 0 or the round is over.

        Returns the sum of what it said. It is called at least once, so that rounds that are always
        late get on, too.
        """
        done = 0
        while True:
            count = self.do(piece)
            done += count
            if not count or self.is_over:
                return done

    def do(self, piece: Callable[[int], int]) -> int:
        """Call `piece(rows)` once, and learn from how long it takes."""
        started = monotonic()
        count = piece(self.rows)
        if monotonic() - started > PIECE_SECONDS:
            self.rows = max(PIECE_ROWS_MIN, self.rows // 2)
        return count

    def delete(self, rows: models.QuerySet[Any]) -> int:
        """Delete `rows`, to which nothing else refers; returns how many."""
        return self.repeat(lambda size: delete_rows(rows.model, some_of(rows, size)))

    def erase(self, rows: models.QuerySet[Any]) -> int:
        """Delete `rows` and, before each, all that refers to it; returns how many of `rows`.

        What the ORM would do (`CASCADE`, `SET_NULL`; `DO_NOTHING` keeps the id), in pieces instead
        of at once. When the round is over some may be left.
        """
        erased = 0
        while not self.is_over:
            ids = some_of(rows, self.rows)
            if not ids or not self._erase(rows.model, ids):
                break
            erased += len(ids)
        return erased

    def _erase(self, model: type[models.Model], ids: Sequence[Any]) -> bool:
        for child, field, on_delete in _referring(model):
            referring = child._base_manager.filter(**{f"{field}__in": ids}).order_by()
            if child is model and on_delete is models.CASCADE:
                continue  # their referrers are newer, and gone
            if on_delete is models.CASCADE:
                erase = self._erase_newest if _refers_to_itself(child) else self.erase
                erase(referring)
            elif on_delete is models.SET_NULL:
                self.repeat(partial(_forget, referring, field))
            if self.is_over:
                return False
        self.do(lambda _: delete_rows(model, ids))
        return True

    def _erase_newest(self, rows: models.QuerySet[Any]) -> None:
        """Of a table that refers to itself: to older rows, so the newest go first (UUIDv7)."""
        ids = sorted(rows.values_list("pk", flat=True), reverse=True)
        while ids and not self.is_over and self._erase(rows.model, ids[: self.rows]):
            del ids[: self.rows]


def some_of(rows: models.QuerySet[Any], size: int) -> list[Any]:
    """The ids of `size` of these rows, by an index.

    With so small a `LIMIT` PostgreSQL would rather read the table from its beginning, where after
    some pieces nothing but deleted rows are left.
    """
    with transaction.atomic(using=rows.db):
        connection = connections[rows.db]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL enable_seqscan = off")
        return list(rows.values_list("pk", flat=True)[:size])


def _forget(rows: models.QuerySet[Any], field: str, size: int) -> int:
    some = some_of(rows, size)
    return rows.model._base_manager.filter(pk__in=some).update(**{field: None}) if some else 0


def _referring(model: type[models.Model]) -> Iterator[tuple[type[models.Model], str, Any]]:
    """Model, field and `on_delete` of all foreign keys that lead to `model`."""
    for relation in model._meta.get_fields(include_hidden=True):
        if (
            isinstance(relation, models.ForeignObjectRel)
            and not relation.many_to_many
            and relation.field.concrete
        ):
            yield relation.related_model, relation.field.name, relation.on_delete


def _refers_to_itself(model: type[models.Model]) -> bool:
    return any(child is model and on is models.CASCADE for child, _, on in _referring(model))


def delete_rows(model: type[models.Model], ids: Sequence[Any]) -> int:
    """Delete just these rows with one statement; whatever refers to them has to be gone."""
    if not ids:
        return 0
    connection = connections[router.db_for_write(model)]
    meta = model._meta
    table, column = (connection.ops.quote_name(str(x)) for x in (meta.db_table, meta.pk.column))
    places = ", ".join(["%s"] * len(ids))
    values = [meta.pk.get_db_prep_value(pk, connection) for pk in ids]
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE {column} IN ({places})", values)  # noqa: S608
        return int(cursor.rowcount)
