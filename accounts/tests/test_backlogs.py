"""What waits or is much costs nobody else: partitions, the drain, filters, deletion."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection, models, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import authentication, services
from accounts.events import publish
from accounts.models import (
    ApiKey,
    AuditEvent,
    OutboxEvent,
    StoredText,
    UsageLog,
    User,
    Workspace,
    new_id,
)
from accounts.services import Actor
from accounts.tests.shapes import refusal
from accounts.tests.test_usage import row
from accounts.usage import log, partitions, reading, stream
from accounts.usage.rows import Batch
from gateway_project.core.stores import deletion, redis, sweeps

pytestmark = pytest.mark.hostile
ACTOR = Actor("test")


@contextmanager
def somebody_else(act):
    """`act()` has been done in a transaction of another connection, which is open meanwhile."""
    is_done, may_end = threading.Event(), threading.Event()

    def hold():
        try:
            with transaction.atomic():
                act()
                is_done.set()
                may_end.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_done.wait(10)
    try:
        yield
    finally:
        may_end.set()
        thread.join()


def never_waiting(act):
    """Whatever waits for a lock fails."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '100ms'")
        return act()


def read_the_log():
    list(UsageLog.objects.all()[:1])


@pytest.mark.needs_postgresql
class TestPartitions:
    DAY = datetime(2020, 1, 1, tzinfo=UTC).date()

    def test_one_is_made_beside_a_reader_who_stays(self, gateway):
        with somebody_else(read_the_log):
            partitions.ensure_partitions([self.DAY])

            never_waiting(read_the_log)

        assert self.DAY in partitions.partition_days()
        partitions.prune()
        assert self.DAY not in partitions.partition_days()

    def test_one_that_is_read_is_dropped_later_and_nobody_waits(self, gateway, monkeypatch):
        monkeypatch.setattr(partitions, "LOCK_SECONDS", 1)
        partitions.ensure_partitions([self.DAY])
        with somebody_else(read_the_log):
            partitions.prune()

            never_waiting(read_the_log)
            with connection.cursor() as cursor:
                cursor.execute("SELECT to_regclass('accounts_usagelog_p20200101') IS NOT NULL")
                is_there = cursor.fetchone()[0]
            assert is_there
        partitions.prune()

        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('accounts_usagelog_p20200101') IS NULL")
            assert cursor.fetchone()[0]

    def test_two_who_make_the_same_one_at_once_both_find_it(self, gateway):
        partitions.ensure_partitions([self.DAY])
        partitions._days_known.clear()

        partitions._make(self.DAY)

        assert partitions.partition_days().count(self.DAY) == 1
        partitions.prune()


class TestDrain:
    @pytest.mark.needs_redis
    def test_no_transaction_has_more_rows_than_its_share(self, gateway, acme_key, monkeypatch):
        monkeypatch.setattr(stream, "ROWS_AT_ONCE", 5)
        written = []
        monkeypatch.setattr(
            stream,
            "write",
            lambda batches, **_: written.append(sum(len(b.rows) for b in batches)) or 0,
        )
        for size in (3, 2, 1, 9, 1):
            add([row(acme_key) for _ in range(size)])

        stream.drain()

        assert written == [5, 1, 9, 1]
        assert redis.client().xlen(stream.STREAM) == 0

    @pytest.mark.needs_redis
    def test_a_round_ends_and_the_next_goes_on(self, gateway, acme_key, monkeypatch):
        monkeypatch.setattr(stream, "ROWS_AT_ONCE", 1)
        monkeypatch.setattr(stream, "ROUND_SECONDS", 0.0)
        for _ in range(2):
            add([row(acme_key)])

        assert [stream.drain() for _ in range(3)] == [1, 1, 0]

    def test_statements_do_not_grow_with_the_rows(self, gateway, acme, acme_key):
        Workspace.objects.update(wanted_events=["detection.completed"])
        counts = []
        for size in (1, 2_000):
            batch = Batch(uuid4(), [row(acme_key) for _ in range(size)], {}).plain()
            log.write([Batch(uuid4(), [row(acme_key)], {}).plain()])  # days, keys known
            with CaptureQueriesContext(connection) as queries:
                log.write([batch])
            counts.append(len(queries))

        if connection.vendor == "postgresql":
            assert counts[0] == counts[1]
        assert OutboxEvent.objects.count() == 2_003


def add(rows):
    batch = Batch(new_id(), rows, {})
    redis.client().xadd(stream.STREAM, {"id": str(batch.id), "rows": batch.packed()})


class TestFilters:
    @pytest.fixture
    def written(self, gateway, acme, acme_key, monkeypatch):
        """30 rows a minute apart, the last an error of long ago."""
        monkeypatch.setattr(reading, "LOOKED_AT_MAX", 10)
        now = timezone.now()
        rows = [row(acme_key, at=now - timedelta(minutes=n)) for n in range(30)]
        rows.append(row(acme_key, at=now - timedelta(days=5), decision="review"))
        rows.append(row(acme_key, at=now - timedelta(days=5), http_status=503, decision=""))
        log.write([Batch(uuid4(), rows, {}).plain()])
        return acme

    def test_one_that_matches_little_looks_back_a_bit_at_a_time(self, written):
        pages, cursor = [], ""
        while cursor is not None:
            found = reading.page(written, decision="review", cursor=cursor)
            pages.append(len(found.rows))
            cursor = found.older

        assert pages == [0, 0, 1] or pages == [0, 0, 0, 1]

    def test_each_row_is_on_one_page(self, written):
        seen, cursor = [], ""
        while cursor is not None:
            found = reading.page(written, decision="allow", cursor=cursor, size=4)
            seen += [row.pk for row in found.rows]
            cursor = found.older

        assert len(seen) == len(set(seen)) == 30

    def test_an_error_is_found_at_once_however_far_back(self, written):
        found = reading.page(written, statuses=range(500, 600))

        assert [row.http_status for row in found.rows] == [503]

    def test_what_never_was_is_known_without_a_look(self, written):
        with CaptureQueriesContext(connection) as queries:
            found = reading.page(written, statuses=range(300, 400))

        assert found == ([], None)
        assert "accounts_usagelog" not in " ".join(q["sql"] for q in queries)


THEIRS = {
    *("accounts.User_groups", "accounts.User_user_permissions", "accounts.Membership"),
    *("account.EmailAddress", "mfa.Authenticator", "socialaccount.SocialAccount"),
    *("usersessions.UserSession", "robin.RobinAccess", "robin.RefreshFamily"),
    "admin.LogEntry",  # Django's; what staff changed is in the audit trail
}
"""What goes with a person. All else that names one is a record of others, and stays."""


def test_nobody_takes_the_records_of_others_with_them():
    going = {m._meta.label for m, _, on in sweeps._referring(User) if on is models.CASCADE}
    assert going == THEIRS


class TestDeletion:
    def test_an_account_is_gone_at_once_and_erased_behind(
        self, gateway, acme, alice, bob, acme_key
    ):
        StoredText.objects.create(
            request_id=new_id(), workspace_id=acme.pk, encrypted="x", created_at=timezone.now()
        )
        for _ in range(20):
            publish(acme, "x", result={})
        services.delete_account(alice, actor=ACTOR)

        assert refusal(gateway.get("/v1/limits", key=acme_key)) == (401, "invalid_api_key")
        assert not User.objects.filter(pk=alice.pk).exists()
        assert not Workspace.objects.filter(pk=acme.pk).exists()
        assert not bob.memberships.exists()
        assert not StoredText.objects.exists()
        assert OutboxEvent.objects.count() == 20  # not in the request

        deletion.erase()

        assert OutboxEvent.objects.count() == StoredText.objects.count() == 0
        assert not Workspace._base_manager.exists()
        assert User._base_manager.get() == bob
        assert not ApiKey.objects.exists()
        assert AuditEvent.objects.filter(action="key.created", workspace_id=acme.pk).exists()

    def test_texts_beyond_a_piece_are_erased_behind(self, gateway, acme, alice, monkeypatch):
        monkeypatch.setattr(services, "TEXTS_AT_ONCE", 3)
        for _ in range(5):
            StoredText.objects.create(
                request_id=new_id(), workspace_id=acme.pk, encrypted="x", created_at=timezone.now()
            )
        services.delete_account(alice, actor=ACTOR)
        assert StoredText.objects.count() == 2
        deletion.erase()
        assert not StoredText.objects.exists()

    def test_a_text_that_comes_after_is_not_kept(self, gateway, engine, acme, alice, acme_key):
        policy = {"store_text": True}
        ApiKey.objects.filter(pk=acme_key.row.pk).update(detection_policy=policy)
        authentication.forget(acme_key.row.pk)
        assert gateway.detect("hello", key=acme_key).status_code == 200
        services.delete_account(alice, actor=ACTOR)
        deletion.erase()
        gateway.flush_usage()
        stream.drain()

        assert UsageLog.objects.exists()
        assert not StoredText.objects.exists()

    def test_the_address_and_the_name_are_free_again(self, gateway, acme, alice):
        services.delete_account(alice, actor=ACTOR)

        again = services.register("alice@acme.example", "a good long password", "Acme")

        assert again.workspace.slug == "acme"

    def test_a_round_that_is_over_is_gone_on_with(self, gateway, acme, alice, monkeypatch):
        for _ in range(9):
            publish(acme, "x", result={})
        services.delete_account(alice, actor=ACTOR)
        monkeypatch.setattr(deletion, "Round", lambda: OfPieces(2))
        left = []
        while Workspace._base_manager.filter(pk=acme.pk).exists():
            deletion.erase()
            left.append(OutboxEvent.objects.count())

        assert left == sorted(left, reverse=True)
        assert len(set(left)) > 2


class OfPieces(sweeps.Round):
    """Of so many pieces, of two rows each."""

    def __init__(self, pieces):
        super().__init__(rows=2)
        self._left = pieces

    @property
    def is_over(self):
        return self._left <= 0

    def do(self, piece):
        self._left -= 1
        return super().do(piece)
