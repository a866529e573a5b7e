"""What engines cost and how shadows compare: counted in the process, written behind the answers.

Sums go to `EngineDay` once in `FLUSH_SECONDS`; a process that is killed loses those of its last
seconds. While the database is away they wait, bounded in number: further ones are counted and
dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from datetime import date
from typing import NamedTuple
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import connection, transaction

from detection.models import Disagreement, EngineDay
from gateway_project.core import clock
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from gateway_project.core.telemetry.metrics import bound_reached

FLUSH_SECONDS = 5.0
SUMS_MAX, DISAGREEMENTS_MAX = 20_000, 1_000
Role = EngineDay.Role
log = get_logger("gateway.ledger")
_loop = Loop("engines.ledger")


class Account(NamedTuple):
    """Whose sum it is."""

    day: date
    api_key_id: UUID
    workspace_id: UUID
    engine: str
    compared_to: str
    role: str


@dataclass(slots=True)
class Sums:
    """The counting columns of `EngineDay`."""

    calls: int = 0
    failed: int = 0
    skipped: int = 0
    agreed: int = 0
    only_own: int = 0
    only_shadow: int = 0
    milliseconds: float = 0.0
    own_milliseconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def add(self, more: Sums) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(more, field.name))


COLUMNS = tuple(field.name for field in fields(Sums))


class Ledger:
    """Of one process, for its event loop."""

    def __init__(self) -> None:
        self._sums: dict[Account, Sums] = {}
        self._disagreements: deque[Disagreement] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def start(self) -> None:
        rounds = _loop.every(FLUSH_SECONDS, self.flush)
        self._writer = asyncio.create_task(rounds, name="engine-ledger")

    async def stop(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        try:
            await self.flush()
        except DatabaseError as exc:
            log.error("ledger_lost", sums=len(self._sums), error=type(exc).__name__)
        self.clear()

    def clear(self) -> None:
        self._sums.clear()
        self._disagreements.clear()

    def add(
        self,
        sums: Sums,
        *,
        api_key_id: UUID,
        workspace_id: UUID,
        engine: str,
        role: Role,
        compared_to: str = "",
    ) -> None:
        day = clock.now().date()
        account = Account(day, api_key_id, workspace_id, engine, compared_to, role)
        known = self._sums.get(account)
        if known is not None:
            known.add(sums)
        elif len(self._sums) < SUMS_MAX:
            self._sums[account] = sums
        else:
            bound_reached.labels("engine_sums").inc()

    def note(self, disagreement: Disagreement) -> None:
        if len(self._disagreements) < DISAGREEMENTS_MAX:
            self._disagreements.append(disagreement)
        else:
            bound_reached.labels("disagreements").inc()

    async def flush(self) -> None:
        """Raises Django's `DatabaseError`; then all of it waits for the next time."""
        async with self._writing:
            if not self._sums and not self._disagreements:
                return
            sums, self._sums = self._sums, {}
            disagreements, self._disagreements = self._disagreements, deque()
            try:
                await database.run_behind(_write, sums, list(disagreements))
            except DatabaseError:
                for account, more in sums.items():
                    self._sums.setdefault(account, Sums()).add(more)
                self._disagreements.extendleft(reversed(disagreements))
                raise


def _write(sums: dict[Account, Sums], disagreements: Iterable[Disagreement]) -> None:
    """In one order of accounts, so that two processes take the rows' locks alike."""
    names = (*Account._fields, *COLUMNS)
    table = EngineDay._meta.db_table
    add = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in COLUMNS)
    statement = (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) "  # noqa: S608
        f"ON CONFLICT (api_key_id, day, engine, compared_to, role) DO UPDATE SET {add}"
    )
    known = {field.name: field for field in EngineDay._meta.concrete_fields}
    prepare = [known[name].get_db_prep_value for name in names]
    rows = [
        [
            prepared(value, connection)
            for prepared, value in zip(prepare, (*account, *astuple(total)), strict=True)
        ]
        for account, total in sorted(sums.items(), key=lambda item: str(item[0]))
    ]
    with transaction.atomic():
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(statement, rows)
        Disagreement.objects.bulk_create(disagreements)


ledger = Ledger()
"""Of this process."""
