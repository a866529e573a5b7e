"""A page that stood open while another tab, or a colleague, saved: only what was typed is taken."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.http import QueryDict
from django.utils import timezone

import portal
from accounts import mailing
from accounts.models import ApiKey, Workspace
from accounts.services import Actor
from gateway_project.core.api.forms import EditForm
from gateway_project.tests.test_staff_saves import Fields
from portal.mail.alerts import AlertsForm
from robin.queue import alarms
from webhooks import services
from webhooks.models import Webhook

ACTOR = Actor("test")
VERSION = "its page names the version that it shows, and no other may be in force"
NEW = "nothing stands that it would change"
ONE = "one field, which is what the button sends"
OTHERS = {
    "EnginesForm": VERSION,
    "PolicyForm": VERSION,
    "FeedbackForm": ONE,
    "AllowForm": NEW,
    "InviteForm": NEW,
    "RecoverForm": NEW,
    "UploadForm": NEW,
}
"""Forms with something filled in that are no `EditForm`, and why."""


def form_of(page: str) -> dict[str, list[str]]:
    [form] = re.findall(r'<form class="form" method="post">.*?</form>', page, re.DOTALL)
    return Fields(form).values


def opened(client: Any, path: str) -> dict[str, Any]:
    return form_of(client.get(path, HTTP_ACCEPT="text/html").content.decode())


def saved(client: Any, path: str, values: dict[str, Any]) -> None:
    answer = client.post(path, values)
    assert answer.status_code == 302, answer.content.decode()


def test_a_key_keeps_the_networks_that_the_other_tab_named(owner, acme_key):
    found, path = ApiKey.objects.filter(pk=acme_key.row.pk), f"/app/keys/{acme_key.row.pk}/edit"
    found.update(scopes=["detect", "batch"], allowed_cidrs=["10.0.0.0/8", "192.0.2.0/24"])
    values = opened(owner, path)
    found.update(scopes=["detect"], allowed_cidrs=["203.0.113.0/24"], rate_limit_per_day=7)

    saved(owner, path, {**values, "tags": "shop"})

    row = found.get()
    assert (row.tags, row.allowed_cidrs) == (["shop"], ["203.0.113.0/24"])
    assert (row.scopes, row.rate_limit_per_day) == (["detect"], 7)


def test_a_page_shows_the_minute_of_an_expiry_and_changes_none_of_its_seconds(owner, acme_key):
    found, path = ApiKey.objects.filter(pk=acme_key.row.pk), f"/app/keys/{acme_key.row.pk}/edit"
    soon = timezone.now() + timedelta(days=9)
    found.update(expires_at=soon)
    values = opened(owner, path)

    saved(owner, path, {**values, "name": "Till"})
    assert found.get().expires_at == soon

    found.update(expires_at=soon + timedelta(days=9))
    saved(owner, path, {**values, "name": "Shop"})
    assert found.get().expires_at == soon + timedelta(days=9)

    saved(owner, path, {**values, "expires_at": ""})
    assert found.get().expires_at is None


def test_what_is_wrong_is_shown_again_with_what_the_page_showed(owner, acme_key):
    found, path = ApiKey.objects.filter(pk=acme_key.row.pk), f"/app/keys/{acme_key.row.pk}/edit"
    values = opened(owner, path)
    found.update(allowed_cidrs=["203.0.113.0/24"])
    again = owner.post(path, {**values, "name": ""}).content.decode()

    saved(owner, path, {**form_of(again), "name": "Till"})

    assert (found.get().name, found.get().allowed_cidrs) == ("Till", ["203.0.113.0/24"])


def test_a_webhook_keeps_the_events_that_the_other_tab_took_away(owner, acme):
    made, _ = services.register(acme.pk, "https://198.41.0.4/hook", ["quota.80"], actor=ACTOR)
    path = f"/app/webhooks/{made.pk}/edit"
    values = opened(owner, path)
    Webhook.objects.filter(pk=made.pk).update(events=["quota.100"], retry_count=2)

    saved(owner, path, {**values, "description": "ours"})

    made.refresh_from_db()
    assert (made.description, made.events, made.retry_count) == ("ours", ["quota.100"], 2)


def test_a_workspace_keeps_the_second_factor_that_the_other_tab_asked_for(owner, acme, alice):
    Authenticator.objects.create(user=alice, type=Authenticator.Type.WEBAUTHN, data={})
    values = opened(owner, "/app/workspace")
    Workspace.objects.filter(pk=acme.pk).update(requires_two_factors=True)

    saved(owner, "/app/workspace", {**values, "name": "Acme 2"})

    acme.refresh_from_db()
    assert (acme.name, acme.requires_two_factors) == ("Acme 2", True)


def test_mails_that_a_link_turned_off_stay_off(owner, alice):
    values = opened(owner, "/app/settings/mails")
    mailing.turn_off(alice, "news")

    saved(owner, "/app/settings/mails", values)

    alice.refresh_from_db()
    assert not mailing.wants(alice, "news")


@pytest.mark.django_db
def test_alerts_keep_what_the_other_tab_set():
    shown = AlertsForm(alarms.alarms())
    values = Fields("".join(map(str, shown))).values
    alarms.change({"oldest": (True, 7)}, ["ops@acme.example"], actor=ACTOR)
    sent = QueryDict(mutable=True)
    for name, found in {**values, "dead": ["9"]}.items():
        sent.setlist(name, found)

    form = AlertsForm(alarms.alarms(), sent)

    assert form.is_valid()
    assert form.changes() == {"dead": 9}
    assert form.wanted()["oldest"] == (True, 7)


def test_every_form_that_begins_with_what_stands_is_one_of_these():
    """What it begins with, and is no constant, is as a rule what a row holds."""
    plain = set()
    for path in Path(portal.__file__).parent.rglob("[!t]*.py"):
        names = {name for part in ast.parse(path.read_text()).body for name in _filled_in(part)}
        module = ".".join(("portal", *path.relative_to(portal.__path__[0]).with_suffix("").parts))
        forms = {name: getattr(importlib.import_module(module), name) for name in names}
        plain |= {name for name, form in forms.items() if not issubclass(form, EditForm)}

    assert plain == set(OTHERS)


def _filled_in(part: ast.AST) -> Iterator[str]:
    """The forms that get an `initial`: in their class, or where they are made."""
    for one in ast.walk(part):
        if isinstance(one, ast.Attribute) and ast.unparse(one) == "self.initial":
            yield part.name
        if isinstance(one, ast.Call) and any(
            word.arg == "initial" and isinstance(word.value, ast.Dict) for word in one.keywords
        ):
            yield part.name if hasattr(part, "bases") else one.func.id
