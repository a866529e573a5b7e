"""`manage.py fill_usage --rows 10000000`: invented usage, to see how pages and queries grow.

It fills a database of its own only: it refuses where any key has been used.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from accounts import services
from accounts.models import ApiKey, UsageLog, UsageRollup, Workspace
from accounts.services import Actor
from accounts.usage import partitions, reading, reports, rollups
from gateway_project.core import clock

ROUNDS = 20
INSERT = """
INSERT INTO accounts_usagelog (
    request_id, api_key_id, workspace_id, endpoint, http_status, error_code, request_size,
    response_time_ms, upstream_ms, status, source, decision, is_malicious, confidence, cached,
    created_at)
SELECT gen_random_uuid(), keys[1 + floor(of_key * of_key * %(keys)s)::int], %(workspace)s,
    '/v1/detect', CASE WHEN of_status < 0.98 THEN 200 ELSE 422 END,
    CASE WHEN of_status < 0.98 THEN '' ELSE 'validation_error' END, 100 + (of_score * 900)::int,
    exp(2.3 + of_latency), 0, CASE WHEN of_status < 0.98 THEN 'complete' ELSE '' END,
    'engine', CASE WHEN of_score > 0.8 THEN 'flag' ELSE 'allow' END, of_score > 0.8, of_score,
    of_latency < 0.1, %(day)s::timestamptz + random() * %(span)s
FROM (
    SELECT random() AS of_key, random() AS of_status, random() AS of_score,
        random() + random() - 1 AS of_latency
    FROM generate_series(1, %(rows)s)
) AS invented, (SELECT array_agg(id) AS keys FROM accounts_apikey) AS known
"""


class Command(BaseCommand):
    help = (
        "Fill an unused PostgreSQL database with invented usage and time what profiles and "
        "statistics read."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--rows", type=int, default=10_000_000)
        parser.add_argument("--keys", type=int, default=1_000)
        parser.add_argument("--days", type=int, default=30)
        parser.add_argument("--explain", action="store_true", help="show the queries' plans")

    def handle(self, *args: Any, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("Only PostgreSQL takes so much: set DATABASE_URL.")
        if UsageLog.objects.exists():
            raise CommandError("This database has usage already. Name an empty one.")
        rows, keys, days = options["rows"], options["keys"], options["days"]
        console = Console()
        workspace, _ = Workspace.objects.get_or_create(
            slug="invented", defaults={"name": "Invented", "is_confirmed": True}
        )
        for _ in range(keys - ApiKey.objects.count()):
            services.issue_key(workspace, actor=Actor("fill_usage"))
        self._fill(console, workspace, rows, keys, days)
        started = perf_counter()
        rollups.rebuild_rollups()
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
        console.print(
            f"{UsageRollup.objects.count():,} rows of roll-ups in {perf_counter() - started:.0f} s"
        )
        self._measure(console, workspace, explain=options["explain"])

    @staticmethod
    def _fill(console: Console, workspace: Workspace, rows: int, keys: int, days: int) -> None:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress, connection.cursor() as cursor:
            task = progress.add_task("rows", total=rows)
            now = clock.now()
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            left = rows
            for ago in range(days):
                share = left // (days - ago)
                day = midnight - timedelta(days=ago)
                span = min(timedelta(days=1), now - day)
                partitions.ensure_partitions([day.date()])
                values: dict[str, Any] = {
                    "rows": share,
                    "keys": keys,
                    "workspace": workspace.pk,
                    "day": day,
                    "span": span - timedelta(milliseconds=1),
                }
                cursor.execute(INSERT, values)
                left -= share
                progress.advance(task, share)

    def _measure(self, console: Console, workspace: Workspace, *, explain: bool) -> None:
        now = clock.now()
        hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        known = list(workspace.keys.values_list("pk", flat=True))
        (busiest,) = UsageLog.objects.values_list("api_key_id", flat=True)[:1]
        reads: dict[str, Callable[[], Any]] = {
            "profile of a key, 30 days": lambda: reports.per_day(busiest),
            "statistics of everything, a day": lambda: reports.totals(
                hour - timedelta(days=1), hour
            ),
            "statistics of everything, 14 days by hour": lambda: reports.totals(
                hour - timedelta(days=14), hour
            ),
            "statistics of everything, 30 days": lambda: reports.totals(
                hour - timedelta(days=30), hour
            ),
            "statistics of a workspace, 30 days": lambda: reports.totals(
                hour - timedelta(days=30), hour, workspace.pk
            ),
            "scores of a key, 30 days": lambda: reports.scores(busiest, now - timedelta(days=30)),
            "plots of a workspace, 24 hours": lambda: reports.timeline(
                workspace.pk, hour - timedelta(days=1), "hour"
            ),
            "plots of a workspace, 7 days by hour": lambda: reports.timeline(
                workspace.pk, hour - timedelta(days=7), "hour"
            ),
            "sums of its keys, 30 days": lambda: reports.by_subject(
                known, now - timedelta(days=30), "day"
            ),
            "a page of its log": lambda: reading.page(workspace),
            "a page of one key's log": lambda: reading.page(workspace, api_key_id=busiest),
            "a page of its log, flagged": lambda: reading.page(workspace, decision="flag"),
            "a page of its log, none matches": lambda: reading.page(
                workspace, statuses=range(500, 600)
            ),
        }
        for title, read in reads.items():
            spent = []
            for _ in range(ROUNDS):
                started = perf_counter()
                read()
                spent.append((perf_counter() - started) * 1000)
            console.print(f"{title}: {median(spent):.1f} ms (at most {max(spent):.1f})")
        if explain:
            day = UsageRollup.objects.filter(
                period="day", subject_id=busiest, bucket__gt=now - timedelta(days=31)
            )
            console.print(day.explain(analyze=True, buffers=True), markup=False)
