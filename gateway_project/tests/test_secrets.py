"""Rolling a secret: known everywhere first, then in front, and a command that says when."""

from __future__ import annotations

import base64
import os

import pytest
from django.core.management import CommandError, call_command

from accounts import services
from accounts.keys import Peppers
from accounts.services import Actor
from gateway_project.core.stores import redis
from gateway_project.system import presence

pytestmark = pytest.mark.hostile
ACTOR = Actor("test")


def fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


@pytest.fixture
def host(settings):
    """`host(KEY_PEPPERS=…)`: from here on this process is one with these secrets."""

    def become(**secrets):
        for name, value in secrets.items():
            setattr(settings, name, value)

    return become


class TestAPepper:
    OLD, NEW = "1:the old pepper of all", "2:the new pepper of all"

    def test_no_key_is_refused_between_the_two_steps(self, gateway, host, acme, engine):
        behind = Peppers.parse(f"{self.OLD},{self.NEW}")
        in_front = Peppers.parse(f"{self.NEW},{self.OLD}")
        for maker, asked in ((behind, in_front), (in_front, behind)):
            host(KEY_PEPPERS=maker)
            _, key = services.issue_key(acme, actor=ACTOR)
            host(KEY_PEPPERS=asked)

            assert gateway.detect("hello", key=key).json()["decision"] == "allow"

    def test_a_repeat_is_known_by_either(self, gateway, host, acme, make_key):
        host(KEY_PEPPERS=Peppers.parse(f"{self.OLD},{self.NEW}"))
        _, key = services.issue_key(acme, actor=ACTOR)
        headers = {"Idempotency-Key": "one", "Prefer": "respond-async"}
        body = {"requests": [{"id": "1", "text": "hello"}]}
        first = gateway.post("/v1/detect/batch", body, key=key, headers=headers)
        host(KEY_PEPPERS=Peppers.parse(f"{self.NEW},{self.OLD}"))
        second = gateway.post("/v1/detect/batch", body, key=key, headers=headers)

        assert first.status_code == second.status_code == 202
        assert second.headers["Idempotency-Replayed"] == "true"


class TestASigningKey:
    OLD, NEW = "o" * 40, "n" * 40

    @pytest.mark.parametrize("name", ["JWT_SECRET", "SECRET_KEY"])
    def test_no_session_ends_between_the_two_steps(self, gateway, host, member, name):
        ada = member("ROLE_ADMIN", signed_in=False)
        behind = {name: self.OLD, f"{name}_FALLBACKS": [self.NEW]}
        in_front = {name: self.NEW, f"{name}_FALLBACKS": [self.OLD]}
        for maker, asked in ((behind, in_front), (in_front, behind)):
            host(**maker)
            ada.sign_in()
            host(**asked)

            assert ada.get("/api/v1/auth/me").json()["email"] == ada.user.email
            assert ada.refresh().json()["accessToken"]

    def test_a_double_submit_gets_one_successor_from_both_hosts(self, gateway, host, member):
        ada = member("ROLE_ADMIN", signed_in=False)
        host(JWT_SECRET=self.OLD, JWT_SECRET_FALLBACKS=[self.NEW])
        ada.sign_in()
        here = ada.refresh()
        host(JWT_SECRET=self.NEW, JWT_SECRET_FALLBACKS=[self.OLD])
        there = ada.refresh()

        assert here.status_code == there.status_code == 200
        assert here.cookies["refreshToken"] == there.cookies["refreshToken"]

    def test_a_token_of_a_key_that_nobody_knows_is_none(self, gateway, host, member):
        ada = member("ROLE_ADMIN")
        host(JWT_SECRET="x" * 40, JWT_SECRET_FALLBACKS=["y" * 40])

        r = ada.get("/api/v1/auth/me")
        assert (r.status_code, r.json()["code"]) == (401, "invalid_token")


@pytest.mark.needs_redis
class TestTheCommand:
    @pytest.fixture
    def process(self, gateway, host):
        """`process("web", KEY_PEPPERS=…)` leaves the note of a process with these secrets."""
        redis.client().delete(presence.PROCESSES)

        def announce(name, **secrets):
            host(**secrets)
            redis.client().hset(presence.PROCESSES, name, presence._note("web"))

        return announce

    def test_it_ends_well_once_each_knows_the_new_one(self, process, capsys):
        process("a/1", FIELD_ENCRYPTION_KEYS=[(old := fernet_key()), (new := fernet_key())])
        process("b/2", FIELD_ENCRYPTION_KEYS=[old, new])

        call_command("secrets")

        output = capsys.readouterr().out
        assert "any may go in front" in output
        assert old not in output
        assert f"{presence.fingerprint('FIELD_ENCRYPTION_KEYS', new)}  in front in 0" in output

    def test_it_names_who_lacks_it(self, process):
        process("a/1", FIELD_ENCRYPTION_KEYS=[(old := fernet_key()), fernet_key()])
        process("b/2", FIELD_ENCRYPTION_KEYS=[old])

        with pytest.raises(CommandError, match=r"Not yet.*unknown to web b/2"):
            call_command("secrets")

    def test_one_that_was_added_here_alone_is_known_to_nobody_yet(self, process, host):
        process("a/1", FIELD_ENCRYPTION_KEYS=[(old := fernet_key())])
        host(FIELD_ENCRYPTION_KEYS=[old, fernet_key()])  # in `.env`, and nothing restarted

        with pytest.raises(CommandError, match=r"Not yet.*unknown to web a/1\. Restart"):
            call_command("secrets")

    def test_a_process_that_is_gone_is_not_asked(self, process, monkeypatch):
        process("a/1", FIELD_ENCRYPTION_KEYS=[(old := fernet_key()), (new := fernet_key())])
        monkeypatch.setattr(presence.clock, "time", lambda: 0.0)
        process("b/2", FIELD_ENCRYPTION_KEYS=[old])
        monkeypatch.undo()
        process("a/1", FIELD_ENCRYPTION_KEYS=[old, new])

        call_command("secrets")

        assert redis.client().hkeys(presence.PROCESSES) == [b"a/1"]

    def test_without_a_living_process_it_does_not_say_yes(self, process):
        with pytest.raises(CommandError, match="No process wrote"):
            call_command("secrets")


@pytest.mark.needs_redis
@pytest.mark.served
def test_each_process_leaves_its_note(serve, work, own_redis):
    from gateway_project.tests.served import wait_until

    serve(WORKERS="2", REDIS_URL=own_redis.url)
    worker = work("--concurrency=1")

    with own_redis.client as client:
        wait_until(lambda: client.hlen(presence.PROCESSES) == 3)
        worker.stop()
        wait_until(lambda: client.hlen(presence.PROCESSES) == 2)
