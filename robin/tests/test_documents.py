"""The documents that Robin UI edits: kept here, echoed, and marked as not applied to Robin."""

from __future__ import annotations

import json

import pytest

from accounts.models import AuditEvent
from robin.models import Document
from robin.redaction import REDACTED
from robin.tests import contracts
from robin.tests.contracts import holds, shape

TEXT, BOOL, NUMBER = contracts.TEXT, {"type": "boolean"}, {"type": "number"}
SCHEMAS = {
    "clamav": shape({"enabled": BOOL, "host": TEXT, "port": NUMBER, "timeout": NUMBER}),
    "rspamd": shape(
        {"enabled": BOOL, "host": TEXT, "port": NUMBER, "rejectScore": NUMBER,
         "addHeaderScore": NUMBER}
    ),
    "dovecot": shape(
        {
            "protocols": {"type": "array", "items": TEXT},
            "listen": TEXT,
            "authentication": shape({"mechanisms": {"type": "array"}, "defaultRealm": TEXT}),
            "mailLocation": TEXT,
            "ssl": shape({"enabled": BOOL, "certFile": TEXT, "keyFile": TEXT}),
            "limits": shape({"maxConnections": NUMBER, "maxUserConnections": NUMBER}),
        }
    ),
}  # fmt: skip


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_first_begins_with_what_robin_says(ada, robin, name):
    r = ada.get(f"/api/v1/config/{name}")

    holds(SCHEMAS[name], r.json())
    assert r.headers["x-gateway-notice"] == "stored here, not applied to Robin"
    if name == "clamav":
        assert (r.json()["host"], r.json()["timeout"]) == ("clamav", 5000)
    if name == "rspamd":
        assert (r.json()["rejectScore"], r.json()["addHeaderScore"]) == (7, 7)


def test_the_first_of_dovecot_can_be_saved_as_it_is(ada):
    """Robin UI's form demands each of these; else its Save is grey."""
    found = ada.get("/api/v1/config/dovecot").json()
    demanded = (found["listen"], found["mailLocation"], *found["limits"].values())
    assert all((*demanded, found["ssl"]["certFile"], found["ssl"]["keyFile"]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_is_echoed_kept_and_there_without_robin(ada, robin, name):
    sent = ada.get(f"/api/v1/config/{name}").json()
    if name != "dovecot":
        sent["host"] = "scanner.example"
    text = {"headers": {"Content-Type": "text/plain"}, "content": json.dumps(sent)}

    saved = ada.request("PUT", f"/api/v1/config/{name}", **text)

    assert (saved.status_code, saved.json()) == (200, sent)
    robin.run(robin.service.stop())
    assert ada.get(f"/api/v1/config/{name}").json() == sent
    assert Document.objects.get(pk=name).updated_by == ada.user.email
    event = AuditEvent.objects.get(action="robin.document.saved")
    assert event.target == name
    if name != "dovecot":
        assert event.details["changes"]["host"] == [None, "scanner.example"]


def test_the_trail_says_what_changed_and_no_secret(ada):
    for key in ("first-secret", "second-secret"):
        ada.request("PUT", "/api/v1/config/rspamd", json={"apiKey": key, "port": 11334})

    [_, event] = AuditEvent.objects.filter(action="robin.document.saved").order_by("id")
    assert event.details["changes"] == {"apiKey": [REDACTED, REDACTED]}


@pytest.mark.parametrize(
    ("body", "status"),
    [("", 400), ("{", 400), ("[]", 422), ('{"timeout": 5}', 422), ('{"port": "x"}', 422),
     ('{"hots": "x"}', 422), ('{"timeout": NaN}', 422)],
)  # fmt: skip
def test_what_is_no_document(ada, body, status):
    r = ada.request("PUT", "/api/v1/config/clamav", content=body)
    assert r.status_code == status
    holds(contracts.PROBLEM, r.json())
    assert not Document.objects.exists()


def test_a_secret_is_written_and_never_shown(ada):
    body = {"enabled": True, "host": "r", "apiKey": "rspamd-key-1"}
    for sent in (body, {**body, "apiKey": "[redacted]"}):
        saved = ada.request("PUT", "/api/v1/config/rspamd", json=sent)
        assert saved.json()["apiKey"] == "[redacted]"
    assert ada.get("/api/v1/config/rspamd").json()["apiKey"] == "[redacted]"
    assert Document.objects.get().content["apiKey"] == "rspamd-key-1"


def test_other_sections_are_robin_s_own(ada, robin):
    relay = ada.get("/api/v1/config/relay")
    assert relay.json()["maxRetryCount"] == 30
    assert "x-gateway-notice" not in relay.headers
    assert ada.get("/api/v1/config/nothing").status_code == 404
    assert ada.request("PUT", "/api/v1/config/relay", json={}).status_code == 501
    assert "[redacted]" in ada.get("/api/v1/config/vault").text
