"""Changes of plans by four eyes: proposed by one, confirmed by another, or not at all."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import time_machine
from django.contrib.admin.models import LogEntry
from django.core import mail
from django.utils import timezone

from accounts import moderation, roles, services
from accounts.models import AuditEvent, Plan, User
from accounts.tests.shapes import refusal
from gateway_project.staff import plans
from gateway_project.tests.test_admin import signed_in
from gateway_project.tests.test_desk import staff_of
from portal.models import PlanProposal

WHY = "Agreed with sales."


@pytest.fixture
def plan(acme):
    return acme.plan


@pytest.fixture
def second(gateway):
    """Of finance, who may confirm."""
    return signed_in(gateway, staff_of(roles.FINANCE))


def form_of(browser, plan, **changes):
    path = f"/admin/accounts/plan/{plan.pk}/change/"
    columns = [f.name for f in Plan._meta.concrete_fields if f.name != "name"]
    values = {name: getattr(plan, name) for name in columns}
    given = {name: "" if value is None else str(value) for name, value in values.items()}
    return browser.post(path, **{**given, **{k: str(v) for k, v in changes.items()}})


def decide(browser, decision, proposal=None):
    page = browser.get("/admin/desk/plans/").text
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', page)[1]
    found = proposal or PlanProposal.objects.get()
    data = {"csrfmiddlewaretoken": token, "proposal": str(found.pk), "decision": decision}
    return browser._request("POST", "/admin/desk/plans/", data=data)


def keys_max():
    return Plan.objects.get(pk="free").keys_max


class TestWithTwo:
    def test_it_waits_until_another_confirms(self, root, second, plan):
        r = form_of(root, plan, keys_max=7, price="€5", reason=WHY)

        assert r.status_code == 302
        assert keys_max() == plan.keys_max
        assert not LogEntry.objects.exists()
        page = second.get("/admin/desk/plans/").text
        for words in ("keys max", "<b>7</b>", "<b>€5</b>", WHY, "root@gateway.example"):
            assert words in page
        assert "1 plan change</a> waits" in second.get("/admin/desk/").text

        decide(second, "confirm")

        assert keys_max() == 7
        changed = AuditEvent.objects.get(action="plan.changed")
        assert changed.actor == "finance@gateway.example"
        assert changed.details["changes"]["keys_max"] == [plan.keys_max, 7]
        proposed = AuditEvent.objects.get(action="plan.change_proposed")
        assert (proposed.actor, proposed.details["reason"]) == ("root@gateway.example", WHY)
        confirmed = AuditEvent.objects.get(action="plan.change_confirmed")
        assert confirmed.details["proposed_by"] == "root@gateway.example"

    def test_who_may_confirm_it_gets_a_mail_and_who_proposed_it_the_outcome(
        self, root, second, plan, django_capture_on_commit_callbacks
    ):
        User.objects.filter(email="finance@gateway.example").update(language="de")
        with django_capture_on_commit_callbacks(execute=True):
            form_of(root, plan, keys_max=7, reason=WHY)

        [asked] = mail.outbox
        assert asked.to == ["finance@gateway.example"]
        assert asked.subject == "Eine Änderung des Tarifs „free“ wartet auf Ihre Bestätigung"
        for words in (WHY, "root@gateway.example", f"{plan.keys_max} → 7"):
            assert words in asked.body
        with django_capture_on_commit_callbacks(execute=True):
            decide(second, "confirm")

        notice = mail.outbox[1]
        assert (notice.to, len(mail.outbox)) == (["root@gateway.example"], 2)
        assert notice.subject == "Your change of the plan “free” is confirmed"
        assert "finance@gateway.example confirmed it." in notice.body

    def test_a_mail_server_that_is_away_stops_no_proposal(
        self, root, second, plan, settings, django_capture_on_commit_callbacks
    ):
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9  # nobody listens there
        with django_capture_on_commit_callbacks(execute=True):
            r = form_of(root, plan, keys_max=7, reason=WHY)

        assert r.status_code == 302
        assert "1 plan change</a> waits" in second.get("/admin/desk/").text

    def test_it_counts_from_the_next_call_on(self, root, second, gateway, plan, acme_key):
        form_of(root, plan, rate_limit_per_day=123, reason=WHY)
        before = gateway.get("/v1/limits", key=acme_key).json()["policies"]
        decide(second, "confirm")
        after = gateway.get("/v1/limits", key=acme_key).json()["policies"]

        assert 123 not in [one["limit"] for one in before]
        assert 123 in [one["limit"] for one in after]

    def test_nobody_confirms_their_own(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)

        decide(root, "confirm")

        assert keys_max() == plan.keys_max
        assert "You proposed this" in root.get("/admin/desk/plans/").text
        assert PlanProposal.objects.get().outcome == "waiting"

    def test_one_may_take_it_back_and_another_decline_it(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)
        decide(root, "decline")
        form_of(root, plan, keys_max=8, reason=WHY)
        decide(second, "decline", PlanProposal.objects.order_by("-id")[0])

        assert keys_max() == plan.keys_max
        assert {one.outcome for one in PlanProposal.objects.all()} == {"declined"}
        assert AuditEvent.objects.filter(action="plan.change_declined").count() == 2

    def test_it_is_decided_once(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)
        decide(second, "confirm")
        decide(second, "decline")

        assert "It is confirmed already" in second.get("/admin/desk/plans/").text
        assert keys_max() == 7
        assert AuditEvent.objects.filter(action="plan.changed").count() == 1

    def test_nobody_confirms_it_after_its_time(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)
        PlanProposal.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        decide(second, "confirm")

        text = second.get("/admin/desk/plans/").text
        assert "Nobody confirmed it in time" in text
        assert "not in time" in text
        assert keys_max() == plan.keys_max

    def test_a_plan_that_moved_on_is_not_overwritten(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)
        moderation.save_plan(plan, {"keys_max": 50}, actor=services.Actor("test"))
        decide(second, "confirm")

        assert "The plan was changed since (keys_max)" in second.get("/admin/desk/plans/").text
        assert keys_max() == 50
        assert PlanProposal.objects.get().outcome == "waiting"

    def test_what_else_of_it_was_changed_meanwhile_stays(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)
        moderation.save_plan(plan, {"price": "€9"}, actor=services.Actor("test"))
        decide(second, "confirm")

        found = Plan.objects.get(pk=plan.pk)
        assert (found.keys_max, found.price) == (7, "€9")

    def test_without_a_reason_the_form_asks(self, root, second, plan):
        r = form_of(root, plan, keys_max=7)

        assert (r.status_code, "errorlist" in r.text) == (200, True)
        assert not PlanProposal.objects.exists()

    def test_saving_it_as_it_is_proposes_nothing(self, root, second, plan):
        form_of(root, plan, reason=WHY)

        assert not PlanProposal.objects.exists()

    @pytest.mark.parametrize("role", [roles.SUPPORT, None])
    def test_others_of_staff_decide_nothing(self, root, second, gateway, plan, role):
        form_of(root, plan, keys_max=7, reason=WHY)
        browser = signed_in(gateway, staff_of(*([role] if role else [])))
        data = {"proposal": str(PlanProposal.objects.get().pk), "decision": "confirm"}
        page = browser.get("/admin/").text
        data["csrfmiddlewaretoken"] = re.search(r'csrfmiddlewaretoken" value="([^"]+)', page)[1]

        r = browser._request("POST", "/admin/desk/plans/", data=data)

        assert refusal(r) == (403, "permission_denied")
        assert keys_max() == plan.keys_max

    def test_it_wants_a_fresh_sign_in(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)

        with time_machine.travel(timezone.now() + timedelta(minutes=16), tick=True):
            r = decide(second, "confirm")

        assert "/reauthenticate/" in r.headers["location"]
        assert keys_max() == plan.keys_max

    def test_what_there_is_not_is_not_decided(self, root, second, plan):
        form_of(root, plan, keys_max=7, reason=WHY)

        decide(second, "burn")

        assert "There is no such proposal or decision" in second.get("/admin/desk/plans/").text
        assert PlanProposal.objects.get().outcome == "waiting"

    def test_a_new_plan_is_nobodys_yet_and_waits_for_nobody(self, root, second, plan):
        r = root.post("/admin/accounts/plan/add/", name="huge", rate_limit_per_minute="9",
                      rate_limit_per_day="9", log_days="9")  # fmt: skip

        assert r.status_code == 302
        assert Plan.objects.filter(pk="huge").exists()


class TestWithOne:
    def test_it_is_done_at_once(self, root, plan):
        assert form_of(root, plan, keys_max=7).status_code == 302

        assert keys_max() == 7
        assert "carried out at once" in root.get("/admin/desk/plans/").text

    @pytest.mark.parametrize("more", [(roles.SUPPORT,), ()])
    def test_others_who_could_not_confirm_do_not_count(self, root, plan, more):
        staff_of(*more)

        assert not plans.needs_two()

    def test_nor_does_one_who_is_suspended(self, root, second):
        assert plans.needs_two()
        User.objects.filter(email="finance@gateway.example").update(is_active=False)

        assert not plans.needs_two()

    @pytest.mark.parametrize("wanted", [True, False])
    def test_the_setting_says_otherwise(self, root, second, plan, settings, wanted):
        settings.STAFF_FOUR_EYES = wanted
        if wanted:
            User.objects.filter(email="finance@gateway.example").delete()

        form_of(root, plan, keys_max=7, **({"reason": WHY} if wanted else {}))

        assert (keys_max() == 7) != wanted
