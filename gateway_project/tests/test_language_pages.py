"""The pages in German: whole, and English for programs all the same."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.urls import reverse
from django.utils import timezone, translation

from accounts import moderation, services
from accounts.models import User
from accounts.services import Actor
from gateway_project.staff import actions, labels, plans
from gateway_project.tests.test_language import (
    GERMAN,
    Page,
    fragments,
    glued,
    is_of_the_moment,
    read,
)
from portal.models import Announcement, Incident, StaffNote
from portal.tests import furnished
from robin.tests.test_message import MIXED

KNOWN_MIN = 1000
"""So many pieces of English are looked for: fewer would mean that the pages are not in it."""
MAIL = (
    *("/app/mail-queue", "/app/mail-queue?to=nobody", "/app/mail/items"),
    *("/app/mail/items?state=DEAD", "/app/mail/items?search=nobody", "/app/mail/items?tries=x"),
    *("/app/mail/items/{uid}", "/app/mail/items/{uid}?log=1", "/app/mail/actions"),
    *("/app/mail/act?action=retry&state=DEAD&all=1", "/app/mail/act?action=delete&uid={uid}"),
    *("/app/mail/act?action=bounce&uid={uid}", "/app/mail/storage", "/app/mail/storage?path=/nope"),
    *("/app/mail/message?path=/north.example/ann/new/20261129.html.eml",),
    *("/app/mail/logs", "/app/mail/logs?level=ERROR", "/app/mail/logs?search=nobody&live=1"),
    *("/app/mail/charts", "/app/mail/charts?range=30d", "/app/mail/alerts", "/app/mail/failures"),
)
EMPTY = (
    *("/app/", "/app/keys", "/app/keys?q=nobody", "/app/requests", "/app/requests?status=4xx"),
    *("/app/requests?status=nonsense", "/app/requests?live=1", "/app/requests/files", "/app/jobs"),
    *("/app/webhooks", "/app/inbox", "/app/quality", "/app/quality?verdict=correct", "/app/usage"),
    *("/app/usage?month=2026-10", "/app/audit", "/app/audit?actor=nobody", "/app/policy"),
    *("/app/policy?like=workspace", "/app/welcome", "/app/first-steps?seen=9"),
)


@pytest.fixture
def operator(enter, member, robin):
    return enter(member("ROLE_OPERATOR", signed_in=False).user)


def in_english(page, known):
    shown = " ".join(page.for_people)
    return [piece for piece in known if piece in shown][:5] or glued(shown)[:5]


@pytest.fixture(scope="module")
def known():
    found = sorted(set(fragments()), key=len, reverse=True)
    assert len(found) > KNOWN_MIN
    return found


def differences(english, german):
    pairs = list(zip(english.for_programs, german.for_programs, strict=False))
    found = [pair for pair in pairs if pair[0] != pair[1] and not is_of_the_moment(*pair)]
    return found[:3] or len(english.for_programs) - len(german.for_programs)


def check(client, paths, known):
    wrong = {}
    for path in paths:
        english, german = read(client, path), read(client, path, **{"Accept-Language": "de"})
        if found := (differences(english, german) or in_english(german, known)):
            wrong[path] = found
    assert wrong == {}, wrong


def test_mail_pages(operator, robin, known):
    robin.seed.put("north.example/ann/new/20261129.html.eml", MIXED)
    robin.seed.note("ERROR", "smtp.EmailDelivery", "x" * 40)
    uid = next(iter(robin.seed.queue.items.values())).uid

    check(operator, [path.format(uid=uid) for path in MAIL], known)


def test_mail_pages_while_robin_is_away(operator, robin, known):
    robin.run(robin.client.stop())
    robin.run(robin.service.stop())

    check(operator, ["/app/mail-queue", "/app/mail/items", "/app/mail/logs"], known)


def test_empty_pages(owner, known):
    check(owner, EMPTY, known)


def test_pages_of_a_viewer(viewer, acme, known):
    check(viewer, list(furnished.pages(furnished.furnish(acme))), known)


def test_what_a_form_says_of_what_is_wrong(owner, acme, known):
    of = furnished.furnish(acme)
    forms = {
        "/app/keys": {"name": "", "scopes": "", "allowed_cidrs": "x", "tags": "x" * 60},
        f"/app/keys/{of.key_id}/revoke": {"name": "another"},
        f"/app/keys/{of.key_id}/policy": {"version": 1, "threshold_engine": "2"},
        "/app/policy": {"version": 99, "mode": "enforce", "on_unavailable": "fallback"},
        "/app/webhooks": {"url": "http://10.0.0.1/", "events": ["webhook.test"]},
        f"/app/webhooks/{of.webhook_id}/debug": {"headers": "webhook-id: x\nwebhook-timestamp: 1\n"
                                                 "webhook-signature: v1,AAAA", "body": "{}"},
        f"/app/keys/{of.key_id}/calibrate": {"content_type": "user_input"},
        f"/app/requests/{of.request_id}/allow": {"text": "another", "where": "key"},
        "/app/people": {"email": "ann's@bücher.example", "role": "viewer"},
        "/app/workspaces/new": {"name": ""},
    }  # fmt: skip
    wrong = {}
    for path, fields in forms.items():
        answer = owner.post(path, fields, headers=GERMAN, follow=True)
        if found := in_english(Page(answer.content.decode()), known):
            wrong[path] = found
    assert wrong == {}, wrong


def test_a_refusal_is_german_on_a_page_and_english_for_a_program(gateway, owner, acme):
    key, text = services.issue_key(acme, actor=Actor("test"), name="one", scopes=["keys:write"])
    services.rotate_key(key, grace_seconds=3600, actor=Actor("test"))
    page = owner.post(
        f"/app/keys/{key.pk}/rotate", {"grace_seconds": "0"}, headers=GERMAN, follow=True
    ).content.decode()
    answer = gateway.request(
        "POST",
        "/auth/rotate-key",
        key=text,
        headers={"Accept-Language": "de"},
        json={},
    )

    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("This key was rotated or revoked already.")
    assert "Dieser Schlüssel wurde bereits" in page
    assert answer.json()["detail"] not in page
    assert translation.get_language() == "en"


def read_by_people(client, paths, known):
    """Of pages whose lists stand in another order in another language."""
    wrong = {}
    for path in paths:
        if found := in_english(read(client, path, **{"Accept-Language": "de"}), known):
            wrong[path] = found
    assert wrong == {}, wrong


@pytest.fixture
def root(gateway, enter):
    return enter(User.objects.create_superuser("root@gateway.example", "x"))


def test_the_desk(root, acme, known):
    of = furnished.furnish(acme)
    other = User.objects.create_superuser("other@gateway.example", "x")
    StaffNote.objects.create(workspace=acme, text="Likes tea.", written_by="x")
    plans.propose(
        acme.plan, {"keys_max": 7}, reason="Agreed.", by=other, actor=Actor("other@gateway.example")
    )
    moderation.change_workspace(acme, {"rate_limit_per_day": 5}, actor=Actor("test"))
    desk = f"/admin/desk/{acme.pk}/"

    read_by_people(
        root,
        [
            *("/admin/desk/", "/admin/desk/?q=nobody", "/admin/desk/?q=a", "/admin/desk/board/"),
            *("/admin/desk/background/", "/admin/desk/plans/", "/admin/breakers/", desk),
            *(
                f"{desk}?request={of.request_id}&found=x",
                *(f"{desk}{name}/" for name in actions.ACTIONS),
            ),
        ],
        known,
    )


def test_the_tables_of_the_admin(root, acme, known):
    furnished.furnish(acme)
    Announcement.objects.create(text="x", level="warn", ends_at=timezone.now())
    Incident.objects.create(title="x", impact="minor", components=[])
    paths = ["/admin/"]
    for model, page in admin.site._registry.items():
        if model._meta.app_label not in labels.OURS:
            continue
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        paths.append(reverse(f"{name}_changelist"))
        if row := page.model._default_manager.first():
            paths.append(reverse(f"{name}_change", args=[row.pk]))
    assert len(paths) > 30
    read_by_people(root, paths, known)


INTERNAL = {
    *(
        "id",
        "ID",
        "key hash",
        "last4",
        "pepper version",
        "limit subject",
        "is closing",
        "is noticed",
    ),
    *(
        "expiry told for",
        "grace told for",
        "grace untold",
        "wanted events",
        "last failed at",
        "is claimed",
    ),
    *(
        "inbox",
        "lane",
        "step",
        "steps max",
        "payload",
        "password stamp",
        "upstream ms",
        "traceparent",
    ),
    *("username", "first name", "last name", "password", "last login", "date joined"),
    *("superuser status", "staff status"),
    *(f"latency {n:02}" for n in range(15)),
    "latency ms sum",
}
"""Columns that no page of the admin shows, or that Django names."""


def test_each_column_that_staff_see_is_named():
    named = {*labels.TABLES, *labels.COLUMNS}
    found = set()
    for model in admin.site._registry:
        if model._meta.app_label in labels.OURS:
            meta = model._meta
            found |= {str(meta.verbose_name), str(meta.verbose_name_plural)}
            found |= {str(column.verbose_name) for column in meta.local_fields}

    assert found - named - INTERNAL == set()
    with translation.override("de"):
        assert str(admin.site._registry[User].model._meta.verbose_name) == "Benutzer"
