"""All that the database holds at one moment, to compare with and to come back to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from django.db import connection

BEHIND = {"robin_seenitem": "who reads Robin's queue behind the requests notes what is in it"}


class Kept:
    """Of the moment when it is made."""

    def __init__(self) -> None:
        self._tables = connection.introspection.django_table_names(only_existing=True)
        self._held = self._look(self._tables)
        self._rows = dict(self._each("json_agg(t)::text", self._tables))

    def changes(self, among: Collection[str] | None = None) -> dict[str, int]:
        """How many rows more each table has that holds others now; `among`: where to look."""
        tables = [name for name in self._tables if among is None or name in among]
        now = self._look(tables) if tables else {}
        return {
            name: count - self._held[name][0]
            for name, (count, held) in now.items()
            if held != self._held[name][1] and name not in BEHIND
        }

    def come_back(self, tables: Iterable[str]) -> None:
        """Have in these what was in them."""
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")  # in whatever order
            for name in tables:
                cursor.execute(f'DELETE FROM "{name}"')
                cursor.execute(
                    f'INSERT INTO "{name}" SELECT * FROM json_populate_recordset('
                    f'NULL::"{name}", %s::json)',
                    [self._rows[name] or "[]"],
                )
            cursor.execute("SET session_replication_role = DEFAULT")

    def _look(self, tables: Iterable[str]) -> dict[str, tuple[int, str]]:
        found = self._each("count(*), md5(string_agg(t::text, ' ' ORDER BY t::text))", tables)
        return {name: (count, held) for name, count, held in found}

    @staticmethod
    def _each(what: str, tables: Iterable[str]) -> list[tuple[Any, ...]]:
        """`what` of the rows `t` of each table, behind its name."""
        asked = (f"SELECT '{name}', {what} FROM \"{name}\" t" for name in tables)
        with connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(asked))
            return cursor.fetchall()
