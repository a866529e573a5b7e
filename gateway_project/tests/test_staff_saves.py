"""What staff save is what they changed: columns that a page showed, and somebody else changed
meanwhile, stay as they are. Every form of every table of the admin is asked."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import ApiKey, Plan, User, Workspace
from gateway_project.tests.test_admin import signed_in
from portal.models import Announcement, Incident
from robin.models import RobinAccess

# By model: the field that one changes, its new value, and what another changed meanwhile. A group
# has no second column.
MEANWHILE = {
    User: ("first_name", "Ann", {"is_staff": True}),
    Workspace: ("name", "Acme Inc", {"is_confirmed": False, "rate_limit_per_day": 7}),
    Plan: ("keys_max", 9, {"rate_limit_per_day": 77}),
    ApiKey: ("name", "Another", {"rate_limit_per_minute": 3}),
    Incident: ("title", "Another", {"resolved_at": timezone.now().replace(microsecond=0)}),
    Announcement: ("text", "Another", {"level": "warn"}),
    RobinAccess: ("role", "ROLE_USER", {}),
    Group: ("name", "another", {}),
}


class Fields(HTMLParser):
    """`values` of a form, as a browser would send them."""

    def __init__(self, form):
        super().__init__()
        self.values = {}
        self._name = self._text = None
        self.feed(form)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        name = given.get("name")
        if tag == "input" and name and given.get("type") not in ("submit", "checkbox", "radio"):
            self.values.setdefault(name, []).append(given.get("value", ""))
        elif tag == "input" and name and "checked" in given:
            self.values.setdefault(name, []).append(given.get("value", "on"))
        elif tag in ("select", "textarea"):
            self._name, self._text = name, "" if tag == "textarea" else None
        elif tag == "option" and "selected" in given and self._name:
            self.values.setdefault(self._name, []).append(given.get("value", ""))

    def handle_data(self, data):
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag):
        if tag == "textarea" and self._text is not None:
            # The first line break after the tag is the template's.
            text = self._text.removeprefix("\r\n").removeprefix("\n")
            self.values.setdefault(self._name, []).append(text)
        if tag in ("select", "textarea"):
            self._name = self._text = None


@pytest.fixture
def rows(gateway, acme, acme_key, alice, charlie):
    """One of each, by model."""
    later = timezone.now() + timedelta(hours=1)
    return {
        User: alice,
        Workspace: acme,
        Plan: acme.plan,
        ApiKey: acme_key.row,
        Incident: Incident.objects.create(title="Slow"),
        Announcement: Announcement.objects.create(text="Hello", ends_at=later),
        RobinAccess: RobinAccess.objects.create(user=charlie, role="ROLE_ADMIN"),
        Group: Group.objects.get_or_create(name="support")[0],
    }


@pytest.fixture
def root(gateway):
    client = Client()
    browser = signed_in(gateway, User.objects.create_superuser("root@gateway.example", "x"))
    for name, value in browser.cookies.items():
        client.cookies[name] = value
    return client


def address(row):
    meta = row._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])


def opened(client, row):
    return sendable(client.get(address(row), headers={"Accept": "text/html"}).content.decode())


def sendable(page):
    """Of the first form with a button to save."""
    return Fields(re.search(r'<form[^>]*id="\w+_form".*?</form>', page, re.DOTALL)[0]).values


def saved(client, row, values):
    r = client.post(address(row), values, headers={"Accept": "text/html"})
    assert r.status_code == 302, re.findall(r"errorlist[^<]*<li>([^<]*)", r.content.decode())


def written(queries, table):
    """Columns of the updates of `table`."""
    found = set()
    for query in queries:
        if match := re.match(rf'UPDATE "{table}" SET (.*?) WHERE', query["sql"], re.DOTALL):
            found |= set(re.findall(r'"(\w+)" = ', match[1]))
    return found


def test_every_table_that_can_be_changed_is_asked(rows):
    changed = {
        model for model, page in admin.site._registry.items() if _has_fields(page, rows.get(model))
    }

    assert changed == set(MEANWHILE)


def _has_fields(page, row):
    """Whether a superuser may change any of them."""
    user = SimpleNamespace(
        is_superuser=True, is_staff=True, is_active=True, has_perm=lambda *_: True
    )
    request = SimpleNamespace(user=user, method="GET", GET={})
    if not page.has_change_permission(request):
        return False
    known = row if row is not None else page.model()
    named = {f for f in page.get_fields(request, known) if isinstance(f, str)}
    return bool(named - set(page.get_readonly_fields(request, known)))


@pytest.mark.parametrize("model", list(MEANWHILE), ids=lambda model: model.__name__)
class TestEachForm:
    def test_only_what_was_changed_is_written(self, root, rows, model):
        field, value, _ = MEANWHILE[model]
        row = rows[model]
        values = opened(root, row)

        with CaptureQueriesContext(connection) as queries:
            saved(root, row, {**values, field: value})

        assert written(queries, model._meta.db_table) == {field}
        row.refresh_from_db()
        assert getattr(row, field) == value

    def test_what_another_changed_meanwhile_stays(self, root, rows, model):
        field, value, others = MEANWHILE[model]
        row = rows[model]
        values = opened(root, row)
        model.objects.filter(pk=row.pk).update(**others)

        saved(root, row, {**values, field: value})

        row.refresh_from_db()
        assert {name: getattr(row, name) for name in others} == others
        assert getattr(row, field) == value

    def test_saving_without_a_change_writes_nothing(self, root, rows, model):
        row = rows[model]
        values = opened(root, row)

        with CaptureQueriesContext(connection) as queries:
            saved(root, row, values)

        assert written(queries, model._meta.db_table) == set()


def test_a_form_that_was_wrong_still_knows_what_was_shown(root, rows):
    """Both halves of a time, too: shown again, it compares with the first page, not with itself."""
    row = rows[Incident]
    values = opened(root, row)
    ended = timezone.now().replace(microsecond=0) + timedelta(minutes=1)
    wrong = {**values, "title": "", "started_at_0": ended.date().isoformat(),
             "started_at_1": ended.time().isoformat()}  # fmt: skip

    again = sendable(root.post(address(row), wrong).content.decode())
    saved(root, row, {**again, "title": "Slow again"})

    row.refresh_from_db()
    assert (row.title, row.started_at) == ("Slow again", ended)


def test_a_name_in_the_portal_takes_nothing_else_along(gateway, alice):
    browser = signed_in(gateway, alice)
    page = browser.get("/app/settings").text
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', page)[1]
    User.objects.filter(pk=alice.pk).update(mails_off=["digest"])

    r = browser._request(
        "POST", "/app/settings", data={"csrfmiddlewaretoken": token, "first_name": "Ann"}
    )

    alice.refresh_from_db()
    assert r.status_code == 302
    assert (alice.first_name, alice.mails_off) == ("Ann", ["digest"])


def test_who_is_gone_meanwhile_is_not_made_again(root, rows):
    row = rows[Announcement]
    values = opened(root, row)
    Announcement.objects.all().delete()

    r = root.post(address(row), {**values, "text": "Another"})

    assert r.status_code in (302, 404)
    assert not Announcement.objects.exists()
