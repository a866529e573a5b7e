"""No statement of a page, list, claim or task reads a big table, however much is in it.

A hundredth of the full database is filled, and PostgreSQL is told that its tables have a hundred
times as many rows and pages. Then everything is asked once, and the plan of each of its statements
looked at before it runs: what reads a big table from end to end is told, with the statement. What a
plan hides (an index that is walked for rows that are thrown away) is seen when it runs.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from django.conf import settings
from django.contrib import admin
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.urls import get_resolver, path

from accounts.models import UsageLog
from accounts.usage import reading
from gateway_project.growth import asking, filling, measuring
from gateway_project.staff import desk

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.needs_postgresql,
]
SHARE = 100
BIG = 50_000
"""Rows of a full table that nobody may read from end to end."""
THROWN_AWAY_MAX = 25_000
"""Rows that a statement may look at for nothing: a page looks back over 15,000."""
SOON_OVER = 0.1
"""Of a table, where a `LIMIT` finds enough among its first rows."""
EXCUSED = {
    "accounts_apikey": "last_used_at",  # counted for staff, once a minute (staff/numbers.py)
}
TIMES = 3
"""So often one statement of a page or task is looked at, with other values each time."""
READING = ("SELECT", "WITH")
WRITING = ("INSERT", "UPDATE", "DELETE")


class Plans:
    """Looks at each statement of this connection before it runs."""

    def __init__(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT relname, reltuples FROM pg_class WHERE relkind IN ('r', 'p')")
            self.big = {name for name, rows in cursor.fetchall() if rows >= BIG}
        self.asking = ""
        self.seen = Counter()
        self.wrong = {}
        self._is_looking = False
        self._looked = set()
        self._times = Counter()

    def __call__(self, execute, sql, params, many, context):
        verb = sql.lstrip(" \n(").partition(" ")[0].upper()
        if not many and verb in (*READING, *WRITING) and self._is_new(sql, params):
            self._is_looking = True
            try:
                self._look(sql, params, is_run=verb in READING and "FOR UPDATE" not in sql)
            finally:
                self._is_looking = False
        return execute(sql, params, many, context)

    def _is_new(self, sql, params):
        """Each page asks for the session and the person again, each piece of a sweep as the last
        one did: the same with the same values is looked at once, and with others some times."""
        if self._is_looking or (what := (sql, repr(params))) in self._looked:
            return False
        self._looked.add(what)
        self._times[self.asking, sql] += 1
        return self._times[self.asking, sql] <= TIMES

    def _look(self, sql, params, *, is_run):
        how = "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON)" if is_run else "EXPLAIN (FORMAT JSON)"
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL seq_page_cost = {SHARE}")  # as many pages as there would be
            cursor.execute(f"{how} {sql}", params)
            [(found,)] = cursor.fetchall()
        plan = (found if isinstance(found, list) else json.loads(found))[0]["Plan"]
        self.seen[self.asking] += 1
        for problem in self._problems(plan, sql):
            self.wrong.setdefault(f"{problem}: {' '.join(sql.split())[:600]}", self.asking)

    def _problems(self, node, sql, limit=None):
        """`limit`: what the planner thinks that the `LIMIT` above this node will cost."""
        name = node.get("Relation Name", "")
        if node["Node Type"] == "Limit":
            limit = node["Total Cost"]
        elif node["Node Type"] in ("Sort", "Aggregate", "Hash"):
            limit = None  # which want all of what is below
        is_soon_over = limit is not None and limit < node["Total Cost"] * SOON_OVER
        if name not in EXCUSED or EXCUSED[name] not in sql:
            if node["Node Type"] == "Seq Scan" and name in self.big and not is_soon_over:
                yield f"reads all of {name}"
            thrown = node.get("Rows Removed by Filter", 0) * node.get("Actual Loops", 1)
            if thrown > THROWN_AWAY_MAX:
                yield f"throws {thrown} rows of {name} away"
        for child in node.get("Plans", ()):
            yield from self._problems(child, sql, limit)


@pytest.fixture
def filled(gateway, settings):
    settings.RATE_LIMIT_ENABLED = False
    found = filling.fill(filling.FULL // SHARE, say=lambda _: None)
    with connection.cursor() as cursor:
        # The planner takes its number of rows from how many there were on each page.
        cursor.execute(
            "UPDATE pg_class SET reltuples = reltuples * %s WHERE reltuples > 0 "
            "AND relnamespace = current_schema()::regnamespace",
            [SHARE],
        )
        cursor.execute("UPDATE pg_class SET reltuples = 1e7 WHERE relname = 'accounts_usagelog'")
    yield found
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE accounts_workspace, accounts_user, accounts_usagelog CASCADE")
        cursor.execute("TRUNCATE accounts_usagerollup, accounts_scorerollup, accounts_auditevent")
        cursor.execute("VACUUM ANALYZE")


@pytest.mark.timeout(900)
def test_nothing_reads_a_big_table(filled):
    plans = Plans()
    with connection.execute_wrapper(plans):
        for kind, name, ask in [*asking.everything(filled), *asking.deletions(filled)]:
            plans.asking = f"{kind} {name}"
            try:
                ask()
            except asking.NotAnswered as exc:
                plans.wrong[str(exc)] = plans.asking
        plans.asking = "the rest of what was deleted"
        for task in asking.tasks():
            task.ask()

    unknown = Plans()  # that the look finds what has no index
    with connection.execute_wrapper(unknown):
        list(UsageLog.objects.filter(error_code="nobody_asks_for_that")[:5])

    report = "\n".join(f"{who}\n    {what}" for what, who in plans.wrong.items())
    assert not plans.wrong, report
    assert unknown.wrong
    assert {"accounts_usagelog", "webhooks_webhookdelivery", "accounts_apikey"} <= plans.big
    assert len(plans.seen) > 200


class TestTheListIsWhole:
    """Whoever adds an address or a task asks it in `asking`, or says here why not."""

    NOT_ASKED = {
        "portal-first-steps", "portal-landing", "portal-unsent",  # nothing that grows
        "portal-mail-queue-ticket", "portal-delete-account",
        # They ask Robin, or look by one id.
        "portal-mail-failures", "portal-mail-act", "portal-mail-action", "portal-mail-message",
        "portal-mail-html", "portal-mail-raw", "portal-mail-logs-export",
        "portal-welcome", "portal-join", "portal-workspace-new", "portal-workspace-switch",
        # Files, in pieces of so many rows each; a look by one id; sums of days.
        "portal-keys-export", "portal-requests-export", "portal-requests-files",
        "portal-requests-file", "portal-usage-export", "portal-audit-export",
        "portal-request-find", "portal-key-engines",
        "portal-request-allow",  # as the request's page and a policy's preview, which are asked
    }  # fmt: skip

    STAFFS_POSTS = ("desk-note", "desk-see", "desk-stop-seeing")

    @pytest.fixture
    def little(self, gateway):
        return filling.fill(1_000, days=3, say=lambda _: None)

    def test_of_pages(self, little):
        asked = {name.partition("?")[0].split(" ")[0] for _, name, _ in asking.pages(little)}
        missing = [
            pattern.name
            for included in get_resolver().url_patterns
            for pattern in getattr(included, "url_patterns", ())
            if str(pattern.pattern).startswith("app/")
            and pattern.name not in self.NOT_ASKED
            and not is_post_only(pattern)
            and not any(pattern.pattern.match(path.lstrip("/")) for path in asked)
        ]

        assert missing == []

    def test_of_admin_lists(self, little):
        asked = {name.partition("?")[0] for _, name, _ in asking.admin_lists(little)}

        assert {
            f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
            for model in admin.site._registry
        } <= asked

    def test_of_the_staffs_own_pages(self, little):
        row = reading.page(little.big).rows[0]
        asked = {path.partition("?")[0] for path in asking.staff_pages(little, row)}
        own = [*desk.urls(admin.site), path("breakers/", admin.site.breakers, name="breakers")]
        missing = [
            pattern.name
            for pattern in own
            if pattern.name not in self.STAFFS_POSTS
            and not any(pattern.pattern.match(one.removeprefix("/admin/")) for one in asked)
        ]

        assert missing == []

    def test_of_tasks(self):
        asked = {name for _, name, _ in asking.tasks()} | set(asking.NOT_RUN)

        assert asked >= {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}


def is_post_only(pattern):
    """A view of `posts_for`: whoever opens it is led to its form, and nothing is read."""
    return hasattr(pattern.callback, "form_is_on")


def test_the_command_fills_an_empty_database_and_no_other(gateway):
    call_command("fill_usage", rows=1_000, days=4, only_fill=True)

    assert UsageLog.objects.count() >= 1_000
    with pytest.raises(CommandError, match="has usage already"):
        call_command("fill_usage", rows=10, days=1)


def test_it_measures_against_the_limits(gateway, monkeypatch):
    filled = filling.fill(1_000, days=3, say=lambda _: None)
    monkeypatch.setitem(asking.LIMITS_MS, asking.CLAIM, 0.0)

    missed = list(measuring.measure(asking.claims(filled), rounds=1))
    drained = list(measuring.drained(filled, 1_000, keys=10)) if settings.REDIS_URL else []

    assert not any(result.is_ok for result in missed if result.kind == asking.CLAIM)
    assert all(result.queries for result in missed)
    assert all("1,000 rows" in result.name for result in drained)
