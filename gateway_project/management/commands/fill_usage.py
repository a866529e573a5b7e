"""`manage.py fill_usage --rows 10000000`: invented rows everywhere, and what everything costs then.

It fills a database of its own only: it refuses where any key has been used.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from rich.console import Console
from rich.table import Table

from accounts.models import UsageLog, UsageRollup
from gateway_project.growth import asking, measuring
from gateway_project.growth.filling import DAYS, FULL, Filled, fill
from gateway_project.growth.measuring import Result

DRAINED = 50_000


class Command(BaseCommand):
    help = (
        "Fill an unused PostgreSQL database with invented rows, in every table that grows, and "
        "time every page, list, claim and periodic task against its limit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--rows", type=int, default=FULL, help="of the usage log")
        parser.add_argument("--keys", type=int, help="of the big workspace")
        parser.add_argument("--days", type=int, default=DAYS)
        parser.add_argument("--only-fill", action="store_true", help="measure nothing")
        parser.add_argument(
            "--only-usage", action="store_true", help="fill nothing but the log, measure nothing"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("Only PostgreSQL takes so much: set DATABASE_URL.")
        if UsageLog.objects.exists():
            raise CommandError("This database has usage already. Name an empty one.")
        console = Console(width=None if sys.stdout.isatty() else 120)
        filled = fill(
            options["rows"],
            keys=options["keys"],
            days=options["days"],
            only_usage=options["only_usage"],
            say=console.print,
        )
        console.print(f"{UsageRollup.objects.count():,} sums of usage")
        if options["only_fill"] or options["only_usage"]:
            return
        settings.RATE_LIMIT_ENABLED = False
        settings.ALLOWED_HOSTS = ["*"]
        results = list(self._measured(filled, options["rows"]))
        console.print(_table(results))
        for kind, found in sorted(_by_kind(results).items()):
            worst = max(found, key=lambda result: result.ms)
            missed = sum(not result.is_ok for result in found)
            console.print(
                f"{kind}: {len(found)} measured, the worst {worst.ms:,.0f} ms (limit "
                f"{worst.limit_ms:,.0f}), {missed} missed",
                highlight=False,
            )

    @staticmethod
    def _measured(filled: Filled, rows: int) -> Iterator[Result]:
        yield from measuring.measure(
            chain(
                asking.claims(filled),
                asking.pages(filled),
                asking.lists(filled),
                asking.admin_lists(filled),
            )
        )
        if measuring.has_stream():
            for keys in (60, 10_000):
                yield from measuring.drained(filled, min(DRAINED, rows), keys=keys)
        yield from measuring.beside_a_reader()
        yield from measuring.measure(asking.deletions(filled), rounds=1)
        yield from measuring.measure(asking.tasks())


def _by_kind(results: list[Result]) -> dict[str, list[Result]]:
    found = defaultdict(list)
    for result in results:
        found[result.kind].append(result)
    return found


def _table(results: list[Result]) -> Table:
    table = Table("", "", *("ms", "limit", "longest transaction", "queries"))
    for result in sorted(results, key=lambda result: (result.is_ok, result.kind)):
        table.add_row(
            "ok" if result.is_ok else "missed",
            f"{result.kind} {result.name}",
            f"{result.ms:,.1f}",
            f"{result.limit_ms:,.0f}",
            f"{result.transaction_ms:,.0f}",
            str(result.queries),
        )
    return table
