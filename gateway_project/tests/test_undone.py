"""What is answered with 503 has not happened, at whichever write or command its store fails.

Every operation that writes, and every form that a page shows (of the portal, the public ones, those
of staff and of Robin's operators), so a new one is among them. Each is sent with a database that is
away at its first commit, with one that is slow at one write after the other, and with a Redis that
is away from one command after the other on: refusing, or silent. None is answered 500; what is
answered 503 has changed nothing, or its answer says so; and sent again it is done, once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.core.internal import ratelimit
from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django.utils import timezone

from accounts import parking, services
from accounts.models import Membership, User, Workspace, WorkspaceDomain
from accounts.services import Actor
from detection import tasks
from detection.policies import policy as policies
from gateway_project.staff.actions import ACTIONS
from gateway_project.tests.failing_store import FailingRedis, FailingStore
from gateway_project.tests.shown_forms import acts_of, forms_of, linked, opened
from gateway_project.tests.test_generated import (  # noqa: F401 - a fixture
    BODIES,
    KNOWN,
    OPERATIONS,
    _neighbours,
    own_id,
)
from gateway_project.tests.test_waiting import QUEUE
from gateway_project.tests.undone import Asked, Stores, Tried
from portal.models import Announcement, Incident, Mailing, PlanProposal
from portal.tests.furnished import STRANGERS_PAGES, furnish, pages
from portal.tests.test_posting import POSTED, PURE
from robin.models import BlocklistEntry, RefreshFamily, RobinAccess
from robin.queue import jobs, scan
from webhooks.receiving import inbox

pytestmark = [
    *(pytest.mark.hostile, pytest.mark.needs_postgresql, pytest.mark.needs_redis),
    pytest.mark.timeout(300),
]
ACTOR = Actor("test")
WRITING = [one for one in OPERATIONS if one[0] != "GET"]
DONE_ALL_THE_SAME = {
    # Robin does these, and says so. That their audit could not be written is in the log.
    ("POST", "/api/v1/queue/actions"),
    ("POST", "/api/v1/config/reload"),
    ("PUT", "/api/v1/config/{section}"),
    ("POST", "/api/v1/scanners/{scanner}/test"),
    *(f"portal-mail-do:{act}" for act in ("retry", "bounce", "delete")),
    # It is paused. What was on its way is given up by the worker, which closes the rest anyway.
    *("portal-webhook-switch", "admin:webhooks_webhook_changelist:disable"),
    # It is led to a page that says that nobody knows, and shows what is so.
    *(f"admin:breakers:{state}" for state in ("open", "closed", "auto")),
}
"""What is answered as done although a store failed, and why."""
ASKED_OF_ROBIN = frozenset({"accounts_auditevent"})
"""What is asked of its queue is in the trail before it is asked, and that it failed."""
NOT_DONE = {
    "account_reset_password": "there is nobody of that name",
    "mfa_login_webauthn": "it asks for what a key signed",
    "admin:detection_feedback_changelist:export": "of none there is a text that is stored",
    "portal-landing": "it judges a text, and keeps nothing",
    "portal-language:de": "a cookie holds it",
}
"""Forms that stay forms, as they are filled in here: nothing is written by them."""
NOT_SHOWN = {
    **dict.fromkeys(("portal-mail-do", "portal-mail-action-cancel"), "on pages of Robin: below"),
    **dict.fromkeys(("portal-mail-queue-ticket", "portal-playground-key"), "a script asks for it"),
    "portal-end-session": "on a list of browsers that signed in by the form",
    "portal-invitation-accept": "on the page of who has no workspace, as the next",
    "portal-domain-join": "",
    "portal-delete-undo": "on the page of who asked to be deleted",
}
"""Forms of the portal that no page of a workspace shows."""


@pytest.fixture
def stores(gateway: Any, settings: Any, monkeypatch: Any) -> Iterator[Stores]:
    """Nothing happens by itself, nothing is counted or logged, and nobody waits long."""
    settings.RATE_LIMIT_ENABLED = False
    settings.ROBIN_TIMEOUT_SECONDS = 0.1
    monkeypatch.setattr(scan, "QUICK_SECONDS", 0.1)
    monkeypatch.setattr(ratelimit, "CACHE_LOCK_WAIT_TIMEOUT", 0.0)
    monkeypatch.setattr(tasks, "take_turns_behind", lambda: None)
    logging.disable()
    yield Stores(gateway, FailingStore(monkeypatch), FailingRedis(monkeypatch))
    logging.disable(logging.NOTSET)


@pytest.fixture
def known(neighbours: Any) -> dict[str, str]:
    """What names in paths stand for, of what no id of the neighbours is."""
    entry = BlocklistEntry.objects.create(type="DOMAIN", value="old.example")
    return {**KNOWN, "username": neighbours.robin.user.email, "entry": str(entry.pk)}


def test_no_operation_is_refused_and_done(
    neighbours: Any, known: dict[str, str], stores: Stores
) -> None:
    stores.keep()
    wrong, hidden = {}, set()
    for method, path in WRITING:
        own = known["entry"] if "blocklist" in path else own_id(path, neighbours.ids)
        parts = [part[1:-1] for part in path.split("/") if "{" in part]
        address = path.format(**{part: known.get(part, own) for part in parts})
        body = json.dumps(BODIES[method, path]) if (method, path) in BODIES else ""
        content = body.replace('"{id}"', f'"{own}"').encode() or None
        # So that one that is sent again is the same one; those two are answered 501 in any case.
        is_named = method == "POST" and not path.endswith(("/pause", "/resume"))
        headers = {"Idempotency-Key": f"a-key-of{path}"} if is_named else {}

        tried = Tried(
            stores,
            partial(neighbours.request, method, address, "", headers, content),
            ASKED_OF_ROBIN if path.startswith(QUEUE) else frozenset(),
        )

        if tried.wrong:
            wrong[method, path] = tried.wrong
        if tried.is_hidden:
            hidden.add((method, path))
    assert wrong == {}
    assert hidden <= DONE_ALL_THE_SAME
    assert stores.left() == {}


TYPED = {
    "name": "Another", "email": "new@initech.example", "domain": "initech.example", "note": "x",
    "url": "https://198.41.0.4/other", "text": "x", "password": "a good long password",
    "login": "alice@acme.example", "first_name": "Ann", "verdict": "correct",
    "oldpassword": "a good long password",
    **dict.fromkeys(("password1", "password2"), "correct horse battery"),
    # of staff
    "old_password": "x", **dict.fromkeys(("new_password1", "new_password2"), "another good one"),
    "reason": "They asked for it.", "slug": "another", "title": "Slow", "subject": "Slow",
    "rate_limit_per_minute": "7", "rate_limit_per_day": "7", "log_days": "7",
    "per_minute": "7", "per_day": "7", "policy": '{"mode": "monitor"}', "keys_max": "7",
    "ends_at_0": "2999-01-01", "ends_at_1": "00:00", "updates-0-text": "x",
}  # fmt: skip
"""What people type where a form begins empty."""


@pytest.fixture
def furnished(owner: Any, alice: Any, charlie: Any, acme: Any) -> list[str]:
    """Pages of a workspace that has something on each of them."""
    of = furnish(acme)
    policies.save(acme, {"mode": "enforce"}, actor=ACTOR)
    rotated, _ = services.issue_key(acme, actor=ACTOR, name="old")
    services.rotate_key(rotated, grace_seconds=3_600, actor=ACTOR)
    WorkspaceDomain.objects.create(workspace=acme, domain="acme.example", token="t", role="member")
    EmailAddress.objects.create(user=alice, email=alice.email, primary=True, verified=True)
    inbox.receive(inbox.of(acme).pk, {}, b"{}")
    Membership.objects.create(workspace=acme, user=charlie, role="member")
    return [*pages(of), f"/app/keys/{rotated.pk}"]


def test_no_form_is_refused_and_done(
    owner: Any, furnished: list[str], engine: Any, stores: Stores
) -> None:
    stranger = Client()
    seen = [*opened(owner, furnished), *linked(owner, "/accounts/", "/app/settings")]
    of_owner = [form for page in seen for form in forms_of(*page, TYPED)]
    public = opened(stranger, STRANGERS_PAGES)
    of_anybody = [form for page in public for form in forms_of(*page, TYPED)]
    stores.keep(owner, stranger)

    found, others = Asked(stores, owner, of_owner), Asked(stores, stranger, of_anybody)

    not_done = (found.not_done.keys() | others.not_done.keys()) - PURE.keys()
    names = {name.partition(":")[0] for name in found.names | others.names}
    assert {**found.wrong, **others.wrong} == {}
    assert found.hidden | others.hidden <= DONE_ALL_THE_SAME
    assert not_done == {name for name in NOT_DONE if not name.startswith("admin:")}, "fill it in"
    assert {pattern.name for pattern in POSTED} - names == set(NOT_SHOWN)
    assert stores.left() == {}


@pytest.fixture
def of_staff(
    furnished: Any, acme: Any, alice: Any, bob: Any, charlie: Any, globex: Any
) -> dict[str, str]:
    """Something of every kind that staff do something about; what they choose it by."""
    now = timezone.now()
    later = now + timedelta(hours=1)
    for number in range(2):
        parking.park("usage.row", str(number), ValueError(), workspace_id=acme.pk)
        for n in range(2):
            said = Announcement.objects.create(text="Hello", ends_at=later)
            if n:
                unknown = [str(bob.pk)]
                Mailing.objects.create(
                    announcement=said, subject="x", begun_by="x", unknown=unknown
                )
        Incident.objects.create(title="Slow")
        BlocklistEntry.objects.create(type="DOMAIN", value=f"old{number}.example")
    for user in (charlie, alice):
        RobinAccess.objects.create(user=user, role="ROLE_ADMIN")
        RefreshFamily.objects.create(
            user=user, password_stamp="x", created_at=now, expires_at=later
        )
    User.objects.create_user("held@x.example", "x", is_active=False)
    Workspace.objects.filter(pk=globex.pk).update(suspended_at=now)
    Workspace.objects.filter(pk=acme.pk).update(plan="scale")
    PlanProposal.objects.create(
        plan_id="free", changes={"keys_max": 9}, before={"keys_max": acme.plan.keys_max},
        reason="Because.", proposer_id=bob.pk, proposed_by=bob.email, expires_at=later,
    )  # fmt: skip
    new = User.objects.create_user("aaron@acme.example", "x")
    EmailAddress.objects.create(user=new, email=new.email, primary=True)
    Membership.objects.create(workspace=acme, user=new, role="member")
    key, _ = services.issue_key(acme, actor=ACTOR, name="ending", expires_at=later)
    return {"workspace": str(acme.pk), "user": str(bob.pk), "api_key": str(key.pk)}


def test_no_act_of_staff_is_refused_and_done(
    enter: Any, of_staff: dict[str, str], globex: Any, engine: Any, stores: Stores
) -> None:
    """On every page that leads on from the admin's first one: what its lists offer, too."""
    root = enter(User.objects.create_superuser("root@gateway.example", "x"))
    ContentType.objects.get_for_models(*admin.site._registry)
    typed = {**TYPED, **of_staff}
    customers = [f"/admin/desk/{of_staff['workspace']}/", f"/admin/desk/{globex.pk}/reinstate/"]
    seen = list(linked(root, "/admin/", "/admin/", *customers))
    stores.keep(root)
    forms = [form for page in seen for form in forms_of(*page, typed)]
    forms += [act for page in seen for act in acts_of(root, *page, typed, stores.come_back)]

    found = Asked(stores, root, forms)

    # What is only looked at the admin shows in a form as well.
    not_done = {name for name, status in found.not_done.items() if status != 403}
    assert found.wrong == {}
    assert found.hidden <= DONE_ALL_THE_SAME
    assert not_done == {name for name in NOT_DONE if name.startswith("admin:")}, "fill it in"
    offered = {f"admin:desk-act:{name}" for name in ACTIONS}
    for model, page in admin.site._registry.items():
        of_page = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        offered |= {f"{of_page}:{getattr(act, '__name__', act)}" for act in page.actions}
    assert offered <= found.names
    assert stores.left() == {}


def test_no_act_on_robins_queue_is_refused_and_done(
    member: Any, enter: Any, robin: Any, stores: Stores
) -> None:
    user = member("ROLE_ADMIN", by_hand=True).user
    operator = enter(user)
    queue = robin.seed.queue
    queue.items = dict(list(queue.items.items())[:20])
    trail = {"actor": user.email}
    jobs.begin(
        "retry", list(queue.items), by=user.pk, is_forced=False, trail=trail, details={}, last_try=0
    )
    of_a_filter = "/app/mail/act?action=bounce&state=DEAD&all=1"
    seen = linked(operator, "/app/mail", of_a_filter, "/app/mail-queue")
    forms = [form for page in seen for form in forms_of(*page, TYPED)]
    stores.keep(operator, queue=queue)

    found = Asked(stores, operator, forms, ASKED_OF_ROBIN)

    names = {name.partition(":")[0] for name in found.names}
    assert found.wrong == {}
    assert found.hidden <= DONE_ALL_THE_SAME
    assert found.not_done == {}
    assert names >= {"portal-mail-do", "portal-mail-action-cancel", "portal-mail-alerts"}
    assert stores.left() == {}
