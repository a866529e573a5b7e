"""Whatever a row, an event or a text holds, the others are written, and it is put aside."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from allauth.account.internal.flows.login import record_authentication
from django.core.management import call_command
from django.db import DataError, IntegrityError, OperationalError, ProgrammingError, connection
from django.utils import timezone

from accounts import parking, tasks
from accounts.models import (
    ApiKey,
    AuditEvent,
    OutboxEvent,
    Parked,
    QuotaNotice,
    StoredText,
    UsageLog,
    UsageRollup,
    Workspace,
    new_id,
)
from accounts.tests.test_usage import row
from accounts.usage import log, stream
from accounts.usage.rows import COLUMNS, Batch
from gateway_project.core import encryption, errors
from gateway_project.core.stores import redis
from gateway_project.core.stores.refused import is_refused

pytestmark = pytest.mark.hostile
NUL = {"order": "\x00"}


def plain(key, extra=None, **fields):
    """A batch of one row, as it comes out of the stream."""
    values = row(key)
    extras = {values[0]: extra} if extra else {}
    batch = Batch(uuid4(), [values], {key.row.pk: "127.0.0.1"}, extras).plain()
    for column, value in fields.items():
        batch.rows[0][COLUMNS.index(column)] = value
    return batch


def joined(*batches):
    """As one entry of the stream."""
    rows = [row for batch in batches for row in batch.rows]
    addresses = {k: v for batch in batches for k, v in batch.addresses.items()}
    extras = {k: v for batch in batches for k, v in batch.extras.items()}
    return Batch(uuid4(), rows, addresses, extras)


@pytest.fixture
def both_listen(acme, globex):
    """Both workspaces are told of detections and quotas."""
    wanted = ["detection.completed", "quota.80"]
    Workspace.objects.update(wanted_events=wanted)


@pytest.fixture
def theirs(globex_key):
    """A stranger's batch, of a key that has used up its day with it."""
    ApiKey.objects.filter(pk=globex_key.row.pk).update(rate_limit_per_day=1)
    text = encryption.encrypt("a text of Globex")
    return plain(globex_key, {"metadata": {"fine": True}, "text": text})


def written_of(key):
    """Rows, their sum, texts, quotas told, and events."""
    mine = {"workspace_id": key.row.workspace_id}
    return (
        UsageLog.objects.filter(**mine).count(),
        UsageRollup.objects.get(subject_id=key.row.pk, period="day").requests,
        StoredText.objects.filter(**mine).count(),
        QuotaNotice.objects.filter(subject_id=key.row.pk).count(),
        sorted(OutboxEvent.objects.filter(**mine).values_list("type", flat=True)),
    )


ALL_OF_THEIRS = (1, 1, 1, 1, ["detection.completed", "quota.80"])
ROWS = {
    "no text where one must be": {"endpoint": None},
    "a text that is too long": {"endpoint": "x" * 100},
    "NUL": {"endpoint": "/v1/\x00"},
    "a number beyond its column": {"http_status": 99_999},
    "a number beyond 64 bits": {"request_size": 2**63},
    "a text for a number": {"response_time_ms": "soon"},
    "nothing for a number": {"response_time_ms": None},
    "a list": {"status": ["complete", "partial"]},
    "an object": {"status": {"a": 1}},
    "no id": {"request_id": "who"},
    "a list for an id": {"request_id": [1]},
    "no key": {"api_key_id": "x"},
    "a list for a key": {"api_key_id": []},
    "no workspace": {"workspace_id": 7},
    "no time": {"created_at": None},
    "a number for a time": {"created_at": 5},
    "no such day": {"created_at": "2026-02-30T00:00:00+00:00"},
    "no such hour": {"created_at": "2026-02-01T77:00:00+00:00"},
    "the year 1": {"created_at": "0001-01-01T00:00:00+00:00"},
    "the year 9999": {"created_at": "9999-12-31T23:59:59+00:00"},
    "another zone": {"created_at": "2026-02-01T00:00:00+01:00"},
    "a score that is a text": {"confidence": "high"},
    "a score below its bins": {"confidence": -1e300},
    "a duration that its sum would not hold": {"response_time_ms": 1e308},
    "a duration that is a text": {"upstream_ms": "long"},
}


@pytest.mark.needs_postgresql
class TestTheDrain:
    @pytest.mark.parametrize("fields", ROWS.values(), ids=ROWS)
    def test_a_row_is_put_aside_and_no_other_is_missing(
        self, gateway, acme_key, globex_key, both_listen, theirs, fields
    ):
        bad, good = plain(acme_key, **fields), plain(acme_key)

        stored = log.write([joined(good, bad, theirs)])

        assert stored == 2
        assert written_of(globex_key) == ALL_OF_THEIRS
        [parked] = Parked.objects.all()
        assert (parked.kind, parked.attempts) == ("usage.row", 0)
        again = Batch.unpacked(new_id(), parking.payload_of(parked))
        assert again.rows == bad.rows

    def test_no_bad_row_makes_a_partition(self, gateway, acme_key):
        for year in ("0001", "1000", "9999", "1999"):
            log.write([plain(acme_key, created_at=f"{year}-01-01T00:00:00+00:00")])
        log.write([plain(acme_key)])

        assert tasks.tend_usage_log() >= 0
        assert UsageLog.objects.count() == 1

    @pytest.mark.parametrize("metadata", [NUL, {"\x00": 1}, {"a": [{"b": "x\x00"}]}, 5, [NUL]])
    def test_an_event_is_put_aside_its_row_is_not(
        self, gateway, acme_key, globex_key, both_listen, theirs, metadata
    ):
        bad = plain(acme_key, {"metadata": metadata})

        stored = log.write([joined(plain(acme_key), bad, theirs)])

        assert stored == 3
        assert written_of(globex_key) == ALL_OF_THEIRS
        assert OutboxEvent.objects.filter(workspace=acme_key.row.workspace_id).count() == 1
        [parked] = Parked.objects.all()
        assert (parked.kind, parked.origin) == ("usage.event", bad.rows[0][0])
        assert parked.workspace_id == acme_key.row.workspace_id

    @pytest.mark.parametrize("text", ["\x00", None])
    def test_a_text_is_put_aside_its_row_is_not(
        self, gateway, acme_key, globex_key, both_listen, theirs, text
    ):
        bad = plain(acme_key, {"text": text})

        assert log.write([joined(bad, theirs)]) == 2

        assert written_of(globex_key) == ALL_OF_THEIRS
        assert [parked.kind for parked in Parked.objects.all()] == ["usage.text"]

    def test_what_is_put_aside_is_encrypted(self, gateway, acme_key, both_listen):
        log.write([plain(acme_key, {"metadata": {"secret": "marzipan\x00"}})])

        [parked] = Parked.objects.all()
        assert "marzipan" not in parked.payload
        assert b"marzipan" in parking.payload_of(parked)

    @pytest.mark.parametrize("address", ["nowhere", "fe80::1%eth0", "\x00"])
    def test_an_address_keeps_no_other_key_from_being_noted(
        self, gateway, acme_key, globex_key, address
    ):
        bad, good = plain(acme_key), plain(globex_key)
        bad.addresses[str(acme_key.row.pk)] = address

        assert log.write([bad, good]) == 2

        globex_key.row.refresh_from_db()
        assert globex_key.row.last_used_ip == "127.0.0.1"

    @pytest.mark.needs_redis
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"id": "x", "rows": "[[], {}]"},
            {"id": str(UUID(int=7)), "rows": "{"},
            {"id": str(UUID(int=7)), "rows": "[[5], {}]"},
            {"id": str(UUID(int=7)), "rows": "[[[1, 2]], {}]"},
            {"id": str(UUID(int=7)), "rows": b"\xff\x00"},
            {"id": str(UUID(int=7)), "rows": b"[" * 5000},
            {"v": "99", "content": "of another version"},
        ],
        ids=[
            "no fields",
            "no id",
            "half a list",
            "no row",
            "no entry",
            "no text",
            "deep",
            "of later",
        ],
    )
    def test_an_entry_is_put_aside_once_and_gone(self, gateway, globex_key, theirs, fields):
        redis.client().xadd(stream.STREAM, fields or {"": ""})
        entry = {"id": str(theirs.id), "rows": theirs.packed()}
        redis.client().xadd(stream.STREAM, entry)

        assert stream.drain() == 1
        assert stream.drain() == 0

        assert redis.client().xlen(stream.STREAM) == 0
        [parked] = Parked.objects.all()
        assert parked.kind == "usage.entry"
        kept = {n: v.encode("latin-1") for n, v in orjson.loads(parking.payload_of(parked)).items()}
        wanted = fields or {"": ""}
        assert kept == {n: v if isinstance(v, bytes) else v.encode() for n, v in wanted.items()}

    @pytest.mark.needs_redis
    def test_a_store_that_is_away_parks_nothing_and_loses_nothing(
        self, gateway, globex_key, theirs, monkeypatch
    ):
        redis.client().xadd(stream.STREAM, {"id": str(theirs.id), "rows": theirs.packed()})

        def away(rows):
            raise OperationalError("gone") from psycopg.errors.AdminShutdown("terminating")

        with monkeypatch.context() as patch:
            patch.setattr(log, "_insert", away)
            with pytest.raises(OperationalError):
                stream.drain()

        assert not Parked.objects.exists()
        assert not stream.asks_for_drain()  # not four times a second, all of which would fail
        assert 0 < redis.client().pttl(stream.LOCK) <= stream.REST_SECONDS * 1000
        redis.client().delete(stream.LOCK)
        assert stream.drain() == 1

    def test_a_workspace_can_fill_no_more_than_its_part(
        self, gateway, acme_key, globex_key, monkeypatch
    ):
        monkeypatch.setattr(parking, "PER_WORKSPACE_MAX", 2)
        log.write([plain(acme_key, endpoint=None) for _ in range(4)])
        log.write([plain(globex_key, endpoint=None)])

        assert Parked.objects.filter(workspace_id=acme_key.row.workspace_id).count() == 2
        assert Parked.objects.filter(workspace_id=globex_key.row.workspace_id).count() == 1

    def test_what_is_too_large_is_kept_cut(self, gateway, monkeypatch):
        monkeypatch.setattr(parking, "PAYLOAD_BYTES_MAX", 10)
        parking.park("usage.row", "x", ValueError(), payload=b"0123456789ABC")

        [parked] = Parked.objects.all()
        assert parked.payload_bytes == 13
        with pytest.raises(ValueError, match="only the beginning"):
            parking.payload_of(parked)

    def test_it_is_forgotten_after_its_time(self, gateway):
        parking.park("usage.row", "old", ValueError())
        Parked.objects.update(created_at=timezone.now() - parking.KEPT)
        parking.park("usage.row", "new", ValueError())

        tasks.prune()

        assert Parked.objects.get().origin == "new"


@pytest.mark.needs_postgresql
class TestRunningAgain:
    @pytest.fixture
    def refused(self, gateway, acme_key, monkeypatch):
        """A row that was refused for a reason that is gone."""
        batch = plain(acme_key)
        with monkeypatch.context() as patch:
            patch.setattr(log, "add_up", lambda rows: 1 // 0)
            log.write([batch])
        return Parked.objects.get()

    def test_a_row_is_written_and_no_longer_parked(self, refused):
        call_command("parked", "--rerun")

        assert UsageLog.objects.count() == 1
        assert not Parked.objects.exists()
        assert AuditEvent.objects.filter(action="parked.rerun").exists()

    def test_what_is_refused_again_stays_and_says_so(self, gateway, acme_key, both_listen, capsys):
        log.write([plain(acme_key, endpoint=None), plain(acme_key, {"metadata": NUL})])

        call_command("parked", "--rerun")

        assert capsys.readouterr().err.count("It was refused again") == 2
        assert list(Parked.objects.values_list("attempts", flat=True)) == [1, 1]
        assert UsageLog.objects.count() == 1

    @pytest.mark.needs_redis
    def test_an_entry_that_can_be_read_now(self, gateway, acme_key):
        batch = plain(acme_key)
        fields = {b"id": str(batch.id).encode(), b"rows": batch.packed()}
        parking.park("usage.entry", "1-1", ValueError(), payload=stream.packed(fields))

        call_command("parked", "--rerun")

        assert UsageLog.objects.count() == 1

    def test_the_command_lists_runs_and_throws_away(self, refused, capsys):
        parking.park("usage.row", "hopeless", ValueError(), payload=b"{")

        call_command("parked")
        listed = capsys.readouterr().out
        call_command("parked", "--rerun")
        ran = capsys.readouterr()
        call_command("parked", "--discard", "--kind", "usage.row")

        assert str(refused.pk) in listed
        assert "usage.row: 2" in listed
        assert "Done: 1. Still parked: 1." in ran.out
        assert "hopeless" in ran.err
        assert not Parked.objects.exists()

    def test_staff_see_it_and_superusers_act(self, refused, django_user_model, client):
        boss = django_user_model.objects.create_superuser("boss@gateway.example", "x" * 12)
        client.force_login(boss)
        session = client.session
        record_authentication(SimpleNamespace(session=session), boss, method="password")
        session.save()
        page = client.get("/admin/accounts/parked/")
        one = client.get(f"/admin/accounts/parked/{refused.pk}/change/")

        assert refused.origin in page.content.decode()
        assert "Run again" in one.content.decode()
        assert refused.payload not in one.content.decode()
        act = {"action": "rerun", "is_sure": "1", "_selected_action": [str(refused.pk)]}
        client.post("/admin/accounts/parked/", act)
        assert not Parked.objects.exists()

    def test_every_metric_of_it(self, refused, gateway):
        text = gateway.get("/metrics").text

        assert 'gateway_parked{kind="usage.row"} 1.0' in text
        assert 'gateway_parked_total{kind="usage.row"}' in text


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (caused(DataError(), psycopg.errors.UntranslatableCharacter()), True),
        (caused(IntegrityError(), psycopg.errors.NotNullViolation()), True),
        (caused(OperationalError(), psycopg.errors.StatementTooComplex()), True),
        (caused(OperationalError(), psycopg.errors.ProgramLimitExceeded()), True),
        (caused(ProgrammingError(), psycopg.ProgrammingError("cannot adapt type")), True),
        (ValueError(), True),
        (TypeError(), True),
        (KeyError(), True),
        (RecursionError(), True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"), True),
        (encryption.Undecryptable(), True),
        (caused(OperationalError(), psycopg.errors.AdminShutdown()), False),
        (caused(OperationalError(), psycopg.errors.QueryCanceled()), False),
        (caused(OperationalError(), psycopg.errors.DeadlockDetected()), False),
        (caused(OperationalError(), psycopg.errors.DiskFull()), False),
        (caused(OperationalError(), psycopg.OperationalError("connection is lost")), False),
        (caused(ProgrammingError(), psycopg.errors.UndefinedColumn()), False),
        (caused(ProgrammingError(), psycopg.errors.UndefinedTable()), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
        (redis.RedisUnavailable(), False),
        (errors.StoreUnavailable(), False),
        (MemoryError(), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: type(getattr(value, "__cause__", None) or value).__name__,
)
def test_a_store_that_is_away_is_not_taken_for_refused_data(error, expected):
    assert is_refused(error) is expected


@pytest.mark.needs_postgresql
def test_json_that_is_too_deep_for_the_database_is_refused_data(db):
    """PostgreSQL files it under what it may run out of, and so Django under the connection."""
    deep = "[" * 100_000 + "]" * 100_000

    with pytest.raises(OperationalError) as found, connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb", [deep])

    assert is_refused(found.value)
