"""What staff do: each act, what it means for the next call, and what the audit trail says of it."""

from __future__ import annotations

import pytest

from accounts import moderation
from accounts.models import AuditEvent, Membership, Plan, User, Workspace
from accounts.services import Actor
from accounts.tests.shapes import problem
from gateway_project.core import errors

ROOT = Actor("root@gateway.example", "198.51.100.1", "request-1")


def recorded(action):
    """The one audit row of `action`, which names its actor in full."""
    event = AuditEvent.objects.get(action=action)
    assert (event.actor, event.client_ip, event.request_id) == (
        "root@gateway.example",
        "198.51.100.1",
        "request-1",
    )
    return event


class TestSuspendingAWorkspace:
    def test_all_its_keys_are_refused_from_the_next_call_on(self, gateway, acme, make_key, engine):
        keys = [make_key(), make_key()]
        for key in keys:
            assert gateway.detect("Good morning.", key=key).status_code == 200

        assert moderation.suspend_workspace(acme, actor=ROOT)

        for key in keys:
            problem(gateway.detect("Good morning.", key=key), 403, "workspace_suspended")
            problem(gateway.get("/auth/profile", key=key), 403, "workspace_suspended")
        event = recorded("workspace.suspended")
        assert (event.workspace, event.target) == (acme, str(acme.pk))

    def test_others_work_on(self, gateway, acme, globex_key):
        moderation.suspend_workspace(acme, actor=ROOT)

        assert gateway.get("/v1/limits", key=globex_key).json()["policies"]

    def test_reinstated_they_work_again(self, gateway, acme, acme_key):
        moderation.suspend_workspace(acme, actor=ROOT)
        problem(gateway.get("/v1/limits", key=acme_key), 403, "workspace_suspended")

        assert moderation.reinstate_workspace(acme, actor=ROOT)

        assert gateway.get("/v1/limits", key=acme_key).status_code == 200
        assert recorded("workspace.reinstated").workspace == acme

    def test_twice_is_once(self, gateway, acme):
        assert not moderation.reinstate_workspace(acme, actor=ROOT)
        assert moderation.suspend_workspace(acme, actor=ROOT)
        since = Workspace.objects.get(pk=acme.pk).suspended_at

        assert not moderation.suspend_workspace(acme, actor=ROOT)

        assert Workspace.objects.get(pk=acme.pk).suspended_at == since
        assert AuditEvent.objects.filter(action__startswith="workspace.").count() == 1


class TestSuspendingAPerson:
    def test_it_is_noted_once(self, gateway, alice):
        assert moderation.suspend_user(alice, actor=ROOT)
        assert not moderation.suspend_user(alice, actor=ROOT)

        alice.refresh_from_db()
        assert not alice.is_active
        assert recorded("user.suspended").target == str(alice.pk)

    def test_their_workspaces_keys_work_on(self, gateway, alice, acme_key):
        moderation.suspend_user(alice, actor=ROOT)

        assert gateway.get("/v1/limits", key=acme_key).json()["policies"]

    def test_the_last_superuser_stays(self, gateway):
        one = User.objects.create_superuser("one@gateway.example", "x")
        two = User.objects.create_superuser("two@gateway.example", "x")

        assert moderation.suspend_user(one, actor=ROOT)
        with pytest.raises(errors.Conflict):
            moderation.suspend_user(two, actor=ROOT)

        two.refresh_from_db()
        assert two.is_active
        assert AuditEvent.objects.filter(action="user.suspended").count() == 1

    def test_reinstating_is_noted(self, gateway, alice):
        assert not moderation.reinstate_user(alice, actor=ROOT)
        moderation.suspend_user(alice, actor=ROOT)

        assert moderation.reinstate_user(alice, actor=ROOT)

        alice.refresh_from_db()
        assert alice.is_active
        assert recorded("user.reinstated")


class TestAddingAColleague:
    def test_they_are_confirmed_and_hashed(self, gateway):
        user = User(email="New@Gateway.Example", is_staff=True)

        moderation.add_user(user, "a good long password", actor=ROOT)

        user = User.objects.get(email="new@gateway.example")
        assert user.check_password("a good long password")
        assert user.email_confirmed_at is not None
        assert user.username == user.email
        assert not user.workspaces.exists()
        assert recorded("user.created").details == {"is_staff": True}


class TestPlans:
    def test_a_smaller_plan_lowers_the_keys_that_are_above_it(self, gateway, acme, make_key):
        acme.plan = Plan.objects.get(name="scale")
        acme.save()
        rich = make_key(rate_limit_per_minute=6000, rate_limit_per_day=5000)
        poor = make_key(rate_limit_per_minute=10, rate_limit_per_day=100)
        assert gateway.get("/v1/limits", key=rich).json()["policies"][0]["limit"] == 6000

        lowered = moderation.change_plan(
            acme, Plan.objects.get(name="free"), actor=ROOT, fit_keys=True
        )

        assert lowered == 1
        limits = [p["limit"] for p in gateway.get("/v1/limits", key=rich).json()["policies"]]
        assert limits == [60, 5000, 10_000, 300]
        poor.row.refresh_from_db()
        assert (poor.row.rate_limit_per_minute, poor.row.rate_limit_per_day) == (10, 100)
        assert recorded("workspace.changed").details == {"changes": {"plan": ["scale", "free"]}}
        assert recorded("workspace.keys_lowered").details == {"plan": "free", "keys": 1}

    def test_or_leaves_them(self, gateway, acme, make_key):
        rich = make_key(rate_limit_per_minute=6000)

        moderation.change_plan(acme, Plan.objects.get(name="free"), actor=ROOT, fit_keys=False)

        assert gateway.get("/v1/limits", key=rich).json()["policies"][0]["limit"] == 6000

    def test_what_changes_is_noted_with_what_was_before(self, gateway):
        plan = Plan.objects.get(name="free")

        moderation.save_plan(plan, {"log_days": 14, "rate_limit_per_minute": 60}, actor=ROOT)

        assert recorded("plan.changed").details == {"changes": {"log_days": [7, 14]}}
        assert Plan.objects.get(name="free").log_days == 14

    def test_a_new_one(self, gateway):
        limits = {"rate_limit_per_minute": 1, "rate_limit_per_day": 2, "log_days": 3}

        moderation.save_plan(Plan(), {"name": "tiny", **limits}, actor=ROOT)

        assert Plan.objects.filter(name="tiny", **limits).exists()
        assert recorded("plan.created").target == "tiny"


def test_nothing_changed_is_nothing_noted(gateway, acme, alice):
    assert not moderation.change_workspace(acme, {"name": acme.name}, actor=ROOT)
    assert not moderation.change_user(alice, {"is_staff": False}, actor=ROOT)

    assert not AuditEvent.objects.exists()


def test_members_come_and_go(gateway, acme, charlie):
    member = moderation.add_member(acme, charlie, "viewer", actor=ROOT)
    assert recorded("member.added").details == {"role": "viewer"}

    moderation.remove_member(member, actor=ROOT)

    assert recorded("member.removed").target == str(charlie.pk)
    assert not Membership.objects.filter(workspace=acme, user=charlie).exists()
