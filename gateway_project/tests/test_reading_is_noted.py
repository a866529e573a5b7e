"""Who reads a mail, or takes the log away, is in the audit trail: by the API and in the portal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.urls import URLPattern

import portal.urls
import robin.urls
from accounts.models import AuditEvent
from gateway_project.tests.test_portal_mail import MIXED, UID, enter, operator  # noqa: F401
from robin.permissions import Permission

PATH = "/north.example/ann/new/20261129.html.eml"
MAIL = f"?path={PATH}"
NOTED = {
    "robin-storage-file": ("robin.mail_read", f"/api/v1/storage/file?path={PATH}"),
    "robin-storage-raw": ("robin.mail_downloaded", f"/api/v1/storage/raw?path={PATH}"),
    "robin-logs-export": ("robin.log_exported", "/api/v1/logs/export?search=x"),
    "portal-mail-message": ("robin.mail_read", f"/app/mail/message?path={PATH}"),
    "portal-mail-raw": ("robin.mail_downloaded", f"/app/mail/message/raw?path={PATH}"),
    "portal-mail-logs-export": ("robin.log_exported", "/app/mail/logs/export"),
    "the page's table": ("robin.log_exported", "/app/mail/logs?csv=log"),
    "an item's lines": ("robin.log_exported", f"/app/mail/items/{UID}?log=1&csv=log"),
}
UNNOTED = {
    "robin-storage": "names",
    "robin-logs": "a page of it",
    "robin-logs-loggers": "names",
    "portal-mail-storage": "names",
    "portal-mail-html": "shown in the page of the mail only, which notes it",
    "portal-mail-logs": "a page of it",
    "portal-mail-failures": "the last error of each destination",
}


def reading() -> Iterator[str]:
    """All that gives what is in mails, or in the log."""
    for pattern in (*robin.urls.urlpatterns, *portal.urls.urlpatterns):
        if not isinstance(pattern, URLPattern):
            continue  # allauth's
        view = pattern.callback
        scope = getattr(view, "permission", None)
        if "get" in getattr(view, "actions", {}):
            scope = view.cls.declared(view.actions["get"]).scope
        if scope in (Permission.VIEW_STORAGE, Permission.VIEW_LOGS):
            yield str(pattern.name)


def test_every_way_to_read_is_in_one_of_the_tables():
    more = {"the page's table", "an item's lines"}
    assert set(reading()) == NOTED.keys() - more | UNNOTED.keys()


@pytest.mark.parametrize("name", NOTED)
def test_it_is_noted(operator, member, robin, name):  # noqa: F811
    action, path = NOTED[name]
    robin.seed.put(PATH.lstrip("/"), MIXED)
    asks = member("ROLE_OPERATOR", by_hand=True) if path.startswith("/api/") else operator
    r = asks.get(path)

    assert r.status_code == 200
    row = AuditEvent.objects.get(action=action)
    assert row.actor == asks.user.email
    assert row.details.get("path", PATH) == PATH


def test_the_html_of_a_mail_is_for_who_opened_its_page(operator, enter, robin):  # noqa: F811
    """Whatever headers come: a program sends the ones that it likes."""
    robin.seed.put(PATH.lstrip("/"), MIXED)
    bare = operator._request("GET", f"/app/mail/message/html{MAIL}")
    page = operator.get(f"/app/mail/message{MAIL}").text
    [frame] = [line for line in page.split('"') if line.startswith("/app/mail/message/html")]
    frame = frame.replace("&amp;", "&")
    shown = operator._request("GET", frame)
    of_another = enter()._request("GET", frame)
    another_mail = operator._request("GET", frame.replace("html.eml", "other.eml"))

    assert shown.status_code == 200
    assert "Sch\u00f6n" in shown.text
    for r in (bare, of_another, another_mail):
        assert r.status_code == 302
        assert r.headers["location"].startswith("/app/mail/message?path=")
