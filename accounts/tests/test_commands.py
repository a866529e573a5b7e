"""manage.py create_key, confirm_email and engine"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from io import StringIO
from unittest.mock import patch

import pytest
from django.core.management import CommandError, call_command

from accounts.keys import is_well_formed
from accounts.models import ApiKey, AuditEvent, Workspace


def run(*arguments):
    """What a command prints on standard output."""
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    assert err.getvalue() == ""
    return out.getvalue()


class TestCreateKey:
    @pytest.fixture(autouse=True)
    def _has_secrets(self, settings):
        settings.LOCAL_SECRETS = []

    def test_it_makes_none_that_the_installation_would_not_know(self, gateway, settings):
        settings.LOCAL_SECRETS = ["KEY_PEPPERS"]
        settings.DATABASE_URL = "postgres://of-an-installation/gateway"

        with pytest.raises(CommandError, match=r"KEY_PEPPERS not set: .* Give this command"):
            run("create_key", "--workspace", "initech")

        assert not ApiKey.objects.exists()

    def test_it_prints_only_the_key(self, gateway, capfd):
        printed = run("create_key", "--workspace", "initech")

        assert printed.endswith("\n")
        assert is_well_formed(printed.strip())
        assert printed.count("\n") == 1
        assert capfd.readouterr() == ("", "")

    def test_the_key_works(self, gateway, engine):
        text = run("create_key", "--workspace", "initech").strip()

        assert gateway.detect("Good morning.", key=text).json()["decision"] == "allow"
        [key] = gateway.get("/v1/keys", key=text).json()["results"]
        assert key["prefix"] == text[:12]

    def test_it_makes_the_workspace_confirmed(self, gateway):
        run("create_key", "--workspace", "initech")

        workspace = Workspace.objects.get()
        assert (workspace.slug, workspace.name) == ("initech", "initech")
        assert workspace.is_confirmed
        assert workspace.plan_id == "free"

    def test_it_takes_a_workspace_that_exists(self, acme):
        run("create_key", "--workspace", "acme", "--name", "ops")

        assert Workspace.objects.count() == 1
        key = ApiKey.objects.get()
        assert (key.workspace, key.name) == (acme, "ops")
        assert acme.rate_limit_per_day is None

    def test_it_ends_the_trial_of_a_workspace_that_registered_itself(self, gateway, acme):
        Workspace.objects.update(is_confirmed=False)

        text = run("create_key", "--workspace", "acme").strip()

        limits = gateway.get("/v1/limits", key=text).json()["policies"]
        assert [policy["limit"] for policy in limits] == [60, 10_000, 10_000, 300]

    def test_it_may_exceed_the_plan_and_lifts_the_days_quota(self, gateway):
        text = run(
            "create_key", "--workspace=bench", "--per-minute=1000000", "--per-day=90000000"
        ).strip()

        policies = gateway.get("/v1/limits", key=text).json()["policies"]
        assert {p["name"]: p["limit"] for p in policies} == {
            "minute": 1_000_000,
            "day": 90_000_000,
            "workspace_day": 90_000_000,
            "workspace_minute": 1_000_000,
        }

    def test_it_never_lowers_the_days_quota(self, gateway, acme):
        acme.rate_limit_per_day = 50_000
        acme.save()

        text = run("create_key", "--workspace=acme", "--per-day=20000").strip()

        policies = gateway.get("/v1/limits", key=text).json()["policies"]
        assert [p["limit"] for p in policies[1:]] == [20_000, 50_000, 300]

    def test_it_has_every_scope_by_default(self, gateway):
        run("create_key", "--workspace=acme", "--name=all")
        run("create_key", "--workspace=acme", "--name=two", "--scope=detect", "--scope=batch")

        assert ApiKey.objects.get(name="all").scopes == [
            "detect",
            "batch",
            "webhooks",
            "usage:read",
            "keys:write",
            "audit:read",
        ]
        assert ApiKey.objects.get(name="two").scopes == ["detect", "batch"]

    def test_it_is_audited(self, gateway):
        run("create_key", "--workspace=acme")

        event = AuditEvent.objects.get(action="key.created")
        assert event.actor == "manage.py create_key"
        assert event.client_ip is None

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--workspace=no spaces"],
            ["--workspace="],
            ["--workspace=" + "x" * 51],
            ["--workspace=acme", "--per-minute=0"],
            ["--workspace=acme", "--per-minute=-5"],
            ["--workspace=acme", "--per-minute=2147483648"],
            ["--workspace=acme", "--per-day=9223372036854775808"],
            ["--workspace=acme", "--per-day=many"],
            ["--workspace=acme", "--scope=everything"],
            ["--workspace=acme", "--name="],
            ["--workspace=acme", "--name=" + "x" * 101],
        ],
        ids=str,
    )
    def test_it_refuses_bad_arguments_and_makes_nothing(self, gateway, arguments):
        with pytest.raises(CommandError):
            run("create_key", *arguments)

        assert not Workspace.objects.exists()
        assert not ApiKey.objects.exists()


class TestConfirmEmail:
    def test_it_confirms_the_developer_and_their_workspaces(self, gateway):
        body = {"email": "dana@initech.example", "password": "correct horse battery"}
        registered = gateway.post("/auth/register", body).json()

        printed = run("confirm_email", "Dana@INITECH.example")

        assert printed == "dana@initech.example is confirmed.\n"
        workspace = Workspace.objects.get(pk=registered["workspace"]["id"])
        assert workspace.is_confirmed
        owner = workspace.members.get()
        assert owner.email_confirmed_at is not None
        event = AuditEvent.objects.get(action="user.email_confirmed")
        assert (event.actor, event.target) == ("manage.py confirm_email", str(owner.pk))

    def test_it_leaves_workspaces_of_others_alone(self, acme, bob):
        Workspace.objects.update(is_confirmed=False)

        run("confirm_email", bob.email)  # a member, not the owner

        acme.refresh_from_db()
        assert not acme.is_confirmed

    def test_it_keeps_the_first_time(self, alice):
        run("confirm_email", alice.email)
        alice.refresh_from_db()
        first = alice.email_confirmed_at

        run("confirm_email", alice.email)

        alice.refresh_from_db()
        assert alice.email_confirmed_at == first

    def test_it_says_when_nobody_is_registered(self, gateway):
        with pytest.raises(CommandError, match=r"Nobody is registered as nobody@acme\.example"):
            run("confirm_email", "nobody@acme.example")


class TestEngineStandin:
    @pytest.fixture
    def start(self):
        """The switches and the address that a command line leads to."""

        def call(*arguments):
            # By name: accounts does not import detection.
            standin = import_module("detection.engines.standin")
            with (
                patch.object(standin.web, "run_app", autospec=True) as run_app,
                patch.object(standin, "Engine", autospec=True, side_effect=standin.Engine) as made,
            ):
                call_command("engine_standin", *arguments)
            [switches] = made.call_args.args
            address = run_app.call_args.kwargs["host"], run_app.call_args.kwargs["port"]
            return asdict(switches), address

        return call

    def test_it_behaves_on_the_loopback_by_default(self, start):
        switches, address = start()

        assert switches == {
            "score_floor": 0.0,
            "cut_bytes": 0,
            "threshold_zero_is_default": False,
            "null_threat_types": False,
            "latency_seconds": 0.0,
            "fail_status": 0,
            "answer": "",
            "health_status": 200,
        }
        assert address == ("127.0.0.1", 8081)

    def test_traps_are_those_of_the_go_engine(self, start):
        switches, _ = start("--traps")

        assert switches["score_floor"] == 0.5
        assert switches["cut_bytes"] == 500
        assert switches["threshold_zero_is_default"]

    def test_every_flag_has_its_switch(self, start):
        switches, address = start(
            "--host=0.0.0.0",
            "--port=9999",
            "--score-floor=0.4",
            "--cut-bytes=100",
            "--threshold-zero-is-default",
            "--null-threat-types",
            "--latency-ms=250",
            "--fail-status=503",
            "--answer=half",
            "--health-status=206",
        )

        assert switches == {
            "score_floor": 0.4,
            "cut_bytes": 100,
            "threshold_zero_is_default": True,
            "null_threat_types": True,
            "latency_seconds": 0.25,
            "fail_status": 503,
            "answer": "half",
            "health_status": 206,
        }
        assert address == ("0.0.0.0", 9999)

    @pytest.mark.parametrize("argument", ["--port=x", "--answer=nonsense", "--latency-ms=slow"])
    def test_it_refuses_bad_arguments(self, start, argument):
        with pytest.raises(CommandError):
            start(argument)
