"""A backup is whole, encrypted and restorable, or there is none; real pg_dump, real S3 protocol."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO

import pyrage
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from moto.server import ThreadedMotoServer

from accounts import services as accounts
from accounts.models import AuditEvent, StoredText, UsageLog, UsageRollup, new_id
from accounts.services import Actor
from accounts.usage import partitions
from gateway_project import backups, rotation
from gateway_project.backups import BackupError, postgres, services, storage
from gateway_project.core import clock, encryption
from gateway_project.tests.served import free_port, wait_until

pytestmark = [
    pytest.mark.needs_postgresql,
]
PAIR = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()


def run(name, *arguments):
    output = StringIO()
    call_command(name, *map(str, arguments), stdout=output, stderr=output)
    return output.getvalue()


@pytest.fixture
def filled(gateway, acme, acme_key, make_webhook, settings, tmp_path):
    """Rows of several days' partitions, sums, and something encrypted."""
    settings.BACKUP_RECIPIENTS = [str(PAIR.to_public())]
    settings.BACKUP_IDENTITY = str(PAIR)
    rotation.note_in_use()
    make_webhook(acme)
    today = clock.now()
    partitions.make_partitions_ahead()
    for days in (0, 1, 1, 2):
        UsageLog.objects.create(
            api_key_id=acme_key.row.pk, workspace_id=acme.pk, endpoint="/v1/detect",
            http_status=200, request_id=new_id(), request_size=1, response_time_ms=1,
            created_at=today + timedelta(days=days),
        )  # fmt: skip
    gateway.detect("hello", key=acme_key)
    gateway.flush_usage()
    StoredText.objects.create(
        request_id=new_id(), workspace_id=acme.pk, created_at=today,
        encrypted=encryption.encrypt("a private text"),
    )  # fmt: skip
    assert UsageRollup.objects.exists()
    return settings


@pytest.fixture
def fresh(filled):
    """`fresh()`: the settings of an empty database on the same server."""
    made = []

    def make():
        context = postgres.scratch_database(f"gateway_test_{new_id().hex[-8:]}")
        made.append(context)
        return context.__enter__()

    yield make
    for context in made:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def _bucket_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(_bucket_server, monkeypatch):
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": _bucket_server,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"backups-{new_id().hex[-8:]}"
    client.create_bucket(Bucket=name)
    return client, name


def databases_of_trials():
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE 'gateway_verify%'")
        return cursor.fetchall()


class TestAFolder:
    def test_there_and_back(self, filled, fresh, tmp_path):
        output = run("backup", tmp_path)
        [dump] = tmp_path.glob("*.dump.age")
        [listed] = tmp_path.glob("*.json")
        manifest = json.loads(listed.read_text())

        assert dump.read_bytes().startswith(b"age-encryption.org/v1")
        assert b"a private text" not in dump.read_bytes()
        assert dump.stat().st_mode & 0o777 == 0o600
        assert dump.stat().st_size == manifest["bytes"]
        assert f"{manifest['tables']['accounts_storedtext']['rows']}" == "1"
        assert "KEY_PEPPERS 1" in output
        assert "FIELD_ENCRYPTION_KEYS" in output
        assert AuditEvent.objects.get(action=backups.MADE).details["rows"] > 5

        into = fresh()
        tried = services.restore(
            storage.open_store(str(tmp_path)), "", keys=services.identities(str(PAIR)), into=into,
            progress=lambda *_: None,
        )  # fmt: skip

        assert tried.differences == tried.unreadable == []
        with postgres.connected(into) as restored:
            today = f"{partitions.TABLE}_p{clock.now():%Y%m%d}"
            [count] = restored.execute(f"SELECT count(*) FROM {today}").fetchone()
            assert count >= 2
            [bound] = restored.execute(
                "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = %s", [today]
            ).fetchone()
            assert bound.startswith("FOR VALUES FROM")
            [token] = restored.execute("SELECT encrypted FROM accounts_storedtext").fetchone()
            assert encryption.decrypt(token) == "a private text"
            [rollups] = restored.execute("SELECT count(*) FROM accounts_usagerollup").fetchone()
            assert rollups == UsageRollup.objects.count()

    def test_trying_it_leaves_a_note_and_no_database(self, filled, tmp_path):
        run("backup", tmp_path)

        output = run("restore", tmp_path, "--verify")

        assert "Everything compared is the same." in output
        assert AuditEvent.objects.filter(action=backups.VERIFIED).exists()
        wait_until(lambda: not databases_of_trials())  # others try theirs on the same server

    def test_rows_that_come_while_it_is_made_are_not_half_in_it(
        self, filled, tmp_path, monkeypatch, acme
    ):
        def beside_traffic(function):
            def late(*args, **more):
                accounts.issue_key(acme, actor=Actor("test"))  # committed after the snapshot
                with connection.cursor() as cursor:
                    cursor.execute("SELECT nextval('accounts_usagelog_id_seq')")
                return function(*args, **more)

            return late

        for module, name in ((postgres, "dump"), (services.manifest, "describe")):
            monkeypatch.setattr(module, name, beside_traffic(getattr(module, name)))
        run("backup", tmp_path)
        monkeypatch.undo()
        filled.BACKUP_IDENTITY = str(PAIR)

        assert "is the same" in run("restore", tmp_path, "--verify")

    def test_age_alone_reads_it(self, filled, tmp_path):
        run("backup", tmp_path)
        [dump] = tmp_path.glob("*.dump.age")

        assert pyrage.decrypt(dump.read_bytes(), [PAIR]).startswith(b"PGDMP")

    def test_the_newest_is_taken(self, filled, tmp_path):
        for name in ("gateway-20200101T000000Z", "gateway-20210101T000000Z"):
            (tmp_path / f"{name}.json").write_text("{}")
        (tmp_path / "gateway-20220101T000000Z.dump.age").write_text("one without its list")

        assert storage.open_store(str(tmp_path)).newest() == "gateway-20210101T000000Z"

    def test_a_mistyped_folder_is_not_made(self, tmp_path):
        with pytest.raises(storage.BackupError, match="mistyped cannot be read"):
            storage.open_store(str(tmp_path / "mistyped")).newest()

        assert list(tmp_path.iterdir()) == []


class TestABucket:
    @pytest.mark.slow
    def test_there_and_back_in_parts(self, filled, bucket, monkeypatch):
        client, name = bucket
        monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)  # the least that S3 takes
        noise = encryption.encrypt_bytes(__import__("os").urandom(9 << 20))
        StoredText.objects.update(encrypted=noise)

        run("backup", f"s3://{name}/nightly")
        keys = [one["Key"] for one in client.list_objects_v2(Bucket=name)["Contents"]]
        [dump] = [key for key in keys if key.endswith(".dump.age")]
        parts = client.head_object(Bucket=name, Key=dump)["ETag"].strip('"').rpartition("-")[2]

        assert int(parts) >= 2
        assert "is the same" in run("restore", f"s3://{name}/nightly", "--verify")

    def test_one_that_is_not_there(self, filled, bucket):
        with pytest.raises(CommandError, match="NoSuchBucket"):
            run("backup", "s3://of-nobody/x")

    def test_a_dump_that_fails_leaves_nothing(self, filled, bucket, monkeypatch):
        client, name = bucket
        monkeypatch.setattr(
            postgres, "environment", lambda _: {"PGHOST": "127.0.0.1", "PGPORT": "1"}
        )

        with pytest.raises(CommandError, match="pg_dump failed"):
            run("backup", f"s3://{name}")

        assert "Contents" not in client.list_objects_v2(Bucket=name)
        assert "Uploads" not in client.list_multipart_uploads(Bucket=name)


class TestTrouble:
    def test_without_recipients_none_is_made(self, filled, tmp_path):
        filled.BACKUP_RECIPIENTS = []

        with pytest.raises(CommandError, match="age-keygen"):
            run("backup", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["age1nonsense", "ssh-ed25519 AAAA", "AGE-SECRET-KEY-1X"])
    def test_a_recipient_that_is_none(self, filled, tmp_path, text):
        filled.BACKUP_RECIPIENTS = [text]

        with pytest.raises(CommandError, match="BACKUP_RECIPIENTS"):
            run("backup", tmp_path)

    def test_a_disk_that_is_full(self, filled, tmp_path, monkeypatch):
        def full(self, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(storage._FileWriter, "put", full)

        with pytest.raises(CommandError, match="No space left"):
            run("backup", tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert not AuditEvent.objects.filter(action=backups.MADE).exists()

    def test_another_identity(self, filled, tmp_path):
        run("backup", tmp_path)
        filled.BACKUP_IDENTITY = str(OTHER)

        with pytest.raises(CommandError, match="cannot be read"):
            run("restore", tmp_path, "--verify")

    @pytest.mark.parametrize("cut", [100, 100_000])
    def test_one_that_was_cut_restores_nothing(self, filled, fresh, tmp_path, cut):
        run("backup", tmp_path)
        [dump] = tmp_path.glob("*.dump.age")
        dump.write_bytes(dump.read_bytes()[:-cut])
        into = fresh()

        with pytest.raises(BackupError):
            services.restore(
                storage.open_store(str(tmp_path)), "", keys=[PAIR], into=into,
                progress=lambda *_: None,
            )  # fmt: skip
        with postgres.connected(into) as restored:
            assert postgres.is_empty(restored)

    def test_a_database_that_holds_something_is_left_alone(self, filled, tmp_path):
        run("backup", tmp_path)
        before = AuditEvent.objects.count()

        with pytest.raises(CommandError, match="is not empty: nothing was changed"):
            run("restore", tmp_path)
        assert AuditEvent.objects.count() == before

    @pytest.mark.slow
    def test_a_row_that_did_not_come_back_is_reported(self, filled, tmp_path, monkeypatch):
        run("backup", tmp_path)
        restore = postgres.restore

        def lossy(database, **more):
            restore(database, **more)
            with postgres.connected(database) as restored:
                restored.execute("DELETE FROM accounts_storedtext")
                restored.execute("UPDATE accounts_workspace SET name = 'x'")
                restored.execute("DROP INDEX audit_action_time")
                restored.execute("ALTER SEQUENCE accounts_usagerollup_id_seq RESTART")

        monkeypatch.setattr(postgres, "restore", lossy)
        output = StringIO()
        with pytest.raises(SystemExit):
            call_command("restore", str(tmp_path), "--verify", stdout=output, stderr=output)

        assert "table accounts_storedtext has 0 rows, 1 were backed up" in output.getvalue()
        assert "table accounts_workspace has other rows" in output.getvalue()
        assert "index audit_action_time is none, it was CREATEINDEX" in output.getvalue()
        assert "sequence accounts_usagerollup_id_seq is 0, it was" in output.getvalue()
        assert not AuditEvent.objects.filter(action=backups.VERIFIED).exists()

    def test_missing_secrets_are_named(self, filled, tmp_path):
        run("backup", tmp_path)
        filled.FIELD_ENCRYPTION_KEYS = ["A" * 43 + "="]
        output = StringIO()

        with pytest.raises(SystemExit):
            call_command("restore", str(tmp_path), "--verify", stdout=output, stderr=output)

        assert "FIELD_ENCRYPTION_KEYS" in output.getvalue()
        assert "find them before you serve" in output.getvalue()

    def test_a_pg_dump_that_is_too_old(self, monkeypatch):
        with pytest.raises(BackupError, match="apt-get install postgresql-client-999"):
            postgres.program("pg_dump", 999)

    def test_a_database_that_is_away(self, filled, tmp_path, monkeypatch):
        monkeypatch.setattr(postgres, "target", lambda *_: {"host": "127.0.0.1", "port": "1"})

        with pytest.raises(CommandError, match="does not answer"):
            run("backup", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_no_password_on_a_command_line(self, filled, tmp_path, monkeypatch):
        seen = []
        popen = postgres.subprocess.Popen

        def watched(command, **more):
            seen.append(command)
            return popen(command, **more)

        monkeypatch.setattr(postgres.subprocess, "Popen", watched)
        target = {**postgres.target(), "password": "hunter2"}  # trusted here whatever it is
        monkeypatch.setattr(postgres, "target", lambda *_: target)
        run("backup", tmp_path)

        assert seen
        assert not any("hunter2" in word for word in seen[0])


def test_a_backup_that_something_else_makes_is_noted(gateway):
    run("backup", "--noted", "nightly snapshot of the cloud")

    assert AuditEvent.objects.get(action=backups.NOTED).details["note"].startswith("nightly")
