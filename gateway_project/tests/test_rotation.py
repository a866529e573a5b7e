"""Encrypting anew: all that is encrypted, beside the traffic, and then the old key may go."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from allauth.mfa.models import Authenticator
from cryptography.fernet import Fernet
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection

from accounts import parking, services
from accounts.keys import Peppers
from accounts.models import ApiKey, IdempotencyRecord, Parked, SecretInUse, StoredText, new_id
from accounts.services import Actor
from detection.models import JobChunk
from gateway_project import rotation
from gateway_project.core import clock, encryption
from gateway_project.core.stores import redis
from gateway_project.rotation import ENCRYPTED, KEYS, TOKEN
from gateway_project.system import presence
from gateway_project.system.presence import fingerprint
from gateway_project.tests.served import ROOT, database_url
from webhooks.models import WebhookSecret

pytestmark = pytest.mark.hostile
ACTOR = Actor("test")


def fernet_key():
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


OLD, NEW = fernet_key(), fernet_key()


def rotate(*options):
    """What the command prints; raises what it ends with."""
    output = StringIO()
    call_command("rotate_secrets", *options, stdout=output)
    return output.getvalue()


@pytest.fixture
def stored(gateway, engine, settings, acme, acme_key, alice, make_webhook):
    """One encrypted value in every column that has some, all by the old key."""
    settings.FIELD_ENCRYPTION_KEYS = [OLD]
    if settings.REDIS_URL:
        redis.client().delete(presence.PROCESSES)
    make_webhook(acme)
    item = {"id": "a", "text": "a text that waits"}
    later = {"Prefer": "respond-async"}
    r = gateway.post("/v1/detect/batch", {"requests": [item]}, key=acme_key, headers=later)
    assert r.status_code == 202
    StoredText.objects.create(
        request_id=new_id(),
        workspace_id=acme.pk,
        encrypted=encryption.encrypt("a text that is kept"),
        created_at=clock.now(),
    )
    IdempotencyRecord.objects.create(
        workspace=acme,
        key="once",
        fingerprint="x",
        status=201,
        holds_secret=True,
        body=encryption.encrypt("an answer with a key"),
    )
    # A row with its text, as the usage writer parks it: a token inside of what is encrypted.
    inner = json.dumps({"text": encryption.encrypt("a text inside")}).encode()
    parking.park("usage.row", "x", error=ValueError(), payload=inner)
    Authenticator.objects.create(
        user=alice,
        type=Authenticator.Type.TOTP,
        data={"secret": encryption.encrypt("SEED"), "other": 1},
    )
    return settings


def values():
    """Every encrypted value, by column."""
    return {
        column.name: [
            value if isinstance(value, str) else json.dumps(value)
            for value in column.model._base_manager.values_list(column.field, flat=True)
        ]
        for column in ENCRYPTED
    }


def columns_with_tokens():
    """Columns of any table of the database, ours or not, that hold a token."""
    found = set()
    with connection.cursor() as cursor:
        for model in apps.get_models():
            for field in model._meta.local_concrete_fields:
                quote = connection.ops.quote_name
                cursor.execute(
                    f"SELECT CAST({quote(field.column)} AS text) FROM {quote(model._meta.db_table)}"
                )
                if any(value and TOKEN.search(value) for (value,) in cursor.fetchall()):
                    found.add(f"{model.__name__}.{field.name}")
    return found


def test_every_column_that_holds_something_encrypted_is_known(stored):
    assert columns_with_tokens() == {column.name for column in ENCRYPTED}


class TestRotating:
    def test_all_is_by_the_new_key_and_the_old_one_may_go(self, stored):
        made = {name: TOKEN.search(found[0])[0] for name, found in values().items()}
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]

        output = rotate()

        assert f"{fingerprint(KEYS, OLD)} may go" in output
        stored.FIELD_ENCRYPTION_KEYS = [NEW]
        for name, found in values().items():
            token = TOKEN.search(found[0])[0]
            assert token != made[name]
            assert Fernet(NEW).extract_timestamp(token.encode()) == rotation.key_time(made[name])
        assert encryption.decrypt(WebhookSecret.objects.get().encrypted).startswith("whsec_")
        assert encryption.decrypt(StoredText.objects.get().encrypted) == "a text that is kept"
        assert b"a text that waits" in encryption.decrypt(JobChunk.objects.get().items).encode()
        data = Authenticator.objects.get().data
        assert (encryption.decrypt(data["secret"]), data["other"]) == ("SEED", 1)
        inner = json.loads(parking.payload_of(Parked.objects.get()))
        assert encryption.decrypt(inner["text"]) == "a text inside"

    def test_a_second_time_changes_nothing(self, stored):
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
        rotate()
        before = values()

        output = rotate()

        assert values() == before
        assert output.count(" 0 encrypted anew") == len(ENCRYPTED)

    def test_counting_changes_nothing_and_says_who_needs_the_old_one(self, stored):
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
        before = values()

        output = StringIO()
        with pytest.raises(CommandError, match="still needs an old one"):
            call_command("rotate_secrets", "--count", stdout=output)

        assert values() == before
        assert f"{fingerprint(KEYS, OLD)} is still needed by 7 values" in output.getvalue()

    def test_slices_of_one_row_do_the_same(self, stored, acme):
        for n in range(7):
            StoredText.objects.create(
                request_id=new_id(), workspace_id=acme.pk, encrypted=encryption.encrypt(f"t{n}"),
                created_at=clock.now(),
            )  # fmt: skip
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]

        rotate("--slice=1")

        stored.FIELD_ENCRYPTION_KEYS = [NEW]
        found = {
            encryption.decrypt(t) for t in StoredText.objects.values_list("encrypted", flat=True)
        }
        assert {f"t{n}" for n in range(7)} <= found

    def test_what_somebody_wrote_meanwhile_is_not_overwritten(self, stored, monkeypatch):
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
        write = rotation._write

        def late(column, changed):
            if column.model is StoredText and StoredText.objects.filter(encrypted="").count() == 0:
                StoredText.objects.update(encrypted="")  # erased just now
            return write(column, changed)

        monkeypatch.setattr(rotation, "_write", late)
        rotate()

        assert StoredText.objects.get().encrypted == ""

    def test_what_no_key_opens_is_left_and_reported(self, stored):
        stored.FIELD_ENCRYPTION_KEYS = [NEW]  # the old one was dropped too early
        before = values()

        output = StringIO()
        with pytest.raises(CommandError):
            call_command("rotate_secrets", stdout=output)

        assert values() == before
        assert "were encrypted by a key that is not here" in output.getvalue()

    def test_a_text_that_looks_like_a_token_stays_what_it_is(self, stored, acme):
        text = f"see {Fernet(fernet_key()).encrypt(b'of somebody else').decode()}"
        row = StoredText.objects.create(
            request_id=new_id(), workspace_id=acme.pk, encrypted=encryption.encrypt(text),
            created_at=clock.now(),
        )  # fmt: skip
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]

        rotate()

        row.refresh_from_db()
        assert encryption.decrypt(row.encrypted) == text

    @pytest.mark.needs_redis
    def test_it_waits_until_each_process_has_the_new_one_in_front(self, stored):
        redis.client().hset(presence.PROCESSES, "b/2", presence._note("worker"))
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
        before = values()

        with pytest.raises(CommandError, match=r"worker b/2 has the key \w+ not at all"):
            rotate()
        assert values() == before

        rotate("--force")
        assert values() != before


class TestPeppers:
    def test_it_counts_the_keys_that_need_each(self, gateway, settings, acme):
        settings.KEY_PEPPERS = Peppers.parse("1:the old pepper of all")
        ApiKey.objects.all().delete()
        key, _ = services.issue_key(acme, actor=ACTOR)
        settings.KEY_PEPPERS = Peppers.parse("2:the new pepper of all,1:the old pepper of all")

        output = StringIO()
        with pytest.raises(CommandError):
            call_command("rotate_secrets", "--force", stdout=output)
        assert "version 1 is still needed by 1 API keys" in output.getvalue()

        services.revoke_key(key, actor=ACTOR)
        assert "version 1 may go" in rotate("--force")

    def test_a_pepper_that_is_gone(self, gateway, settings, acme):
        settings.KEY_PEPPERS = Peppers.parse("1:the old pepper of all")
        services.issue_key(acme, actor=ACTOR)
        settings.KEY_PEPPERS = Peppers.parse("2:the new pepper of all")

        output = StringIO()
        with pytest.raises(CommandError):
            call_command("rotate_secrets", "--force", stdout=output)

        assert "version 1 is missing" in output.getvalue()


class TestWhoStarts:
    def test_without_a_key_that_is_in_use_it_says_so(self, gateway, settings):
        settings.FIELD_ENCRYPTION_KEYS = [OLD]
        assert rotation.note_in_use() == []
        settings.FIELD_ENCRYPTION_KEYS = [NEW]

        [sentence] = rotation.note_in_use()

        assert f"lacks the key {fingerprint(KEYS, OLD)}" in sentence

    def test_what_was_in_front_while_another_was_missing_is_missed_too(self, gateway, settings):
        settings.FIELD_ENCRYPTION_KEYS = [OLD]
        settings.KEY_PEPPERS = Peppers.parse("1:the old pepper of all")
        rotation.note_in_use()
        settings.FIELD_ENCRYPTION_KEYS = [NEW]
        settings.KEY_PEPPERS = Peppers.parse("2:the new pepper of all")
        rotation.note_in_use()
        settings.FIELD_ENCRYPTION_KEYS = [OLD]
        settings.KEY_PEPPERS = Peppers.parse("1:the old pepper of all")

        [key, pepper] = rotation.note_in_use()

        assert f"lacks the key {fingerprint(KEYS, NEW)}" in key
        assert "lacks version 2" in pepper

    def test_a_pepper_that_api_keys_need_and_nobody_noted(self, gateway, settings, acme):
        settings.KEY_PEPPERS = Peppers.parse("1:the old pepper of all")
        services.issue_key(acme, actor=ACTOR)
        settings.KEY_PEPPERS = Peppers.parse("2:the new pepper of all")

        assert "KEY_PEPPERS lacks version 1" in rotation.missing_here()[0]

    @pytest.mark.parametrize("options", [[], ["--count"]], ids=["rotating", "counting"])
    def test_a_missing_key_is_said_again_after_looking_who_needs_it(self, stored, options):
        rotation.note_in_use()
        stored.FIELD_ENCRYPTION_KEYS = [NEW]
        missing = rotation.note_in_use()

        with pytest.raises(CommandError):
            call_command("rotate_secrets", *options, stdout=StringIO())

        assert f"lacks the key {fingerprint(KEYS, OLD)}" in missing[0]
        assert rotation.note_in_use() == missing

    def test_counting_forgets_nothing(self, gateway, settings):
        settings.FIELD_ENCRYPTION_KEYS = [OLD]
        rotation.note_in_use()
        settings.FIELD_ENCRYPTION_KEYS = [NEW]
        noted = list(SecretInUse.objects.values_list())

        rotate("--count")
        assert list(SecretInUse.objects.values_list()) == noted

        rotate("--force")
        assert rotation.missing_here() == []

    def test_after_rotating_nothing_is_said_of_the_old_one(self, stored):
        rotation.note_in_use()
        stored.FIELD_ENCRYPTION_KEYS = [NEW, OLD]
        rotation.note_in_use()
        rotate()
        stored.FIELD_ENCRYPTION_KEYS = [NEW]

        assert rotation.note_in_use() == []

    def test_a_new_key_behind_is_not_in_use_until_it_is_in_front(self, gateway, settings):
        settings.FIELD_ENCRYPTION_KEYS = [OLD]
        rotation.note_in_use()
        settings.FIELD_ENCRYPTION_KEYS = [OLD, NEW]
        rotation.note_in_use()
        settings.FIELD_ENCRYPTION_KEYS = [OLD]

        assert rotation.note_in_use() == []

    @pytest.mark.needs_postgresql
    def test_serve_says_it_before_it_serves(self, gateway, engine, tmp_path):
        SecretInUse.objects.create(setting="KEY_PEPPERS", name="7", fingerprint="00000000")
        environment = {
            **os.environ,
            "SECRET_KEY": "s" * 40,
            "KEY_PEPPERS": "1:a pepper of some length",
            "FIELD_ENCRYPTION_KEYS": OLD,
            "DATABASE_URL": database_url(),
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "DETECTION_ENGINE_URL": "http://127.0.0.1:1",
            "HOST": "192.0.2.1",  # no address of this machine: it ends before it serves
        }
        done = subprocess.run(
            [sys.executable, "manage.py", "serve"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

        assert "KEY_PEPPERS lacks version 7: API keys made with it are refused." in done.stderr
