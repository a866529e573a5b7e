"""DELETE /auth/revoke"""

from __future__ import annotations

from uuid import uuid4

import pytest

from accounts.models import ApiKey, AuditEvent
from accounts.tests.shapes import fields, problem, refusal, same_but_for_ids


def revoke(gateway, key, key_id=None):
    path = "/auth/revoke" if key_id is None else f"/auth/revoke?key_id={key_id}"
    return gateway.delete(path, key=key)


def is_revoked(key):
    return ApiKey.objects.get(pk=key.row.pk).revoked_at is not None


def test_it_revokes_the_calling_key_at_once(gateway, engine, acme_key):
    assert gateway.get("/v1/limits", key=acme_key).status_code == 200

    r = revoke(gateway, acme_key)

    assert (r.status_code, r.content) == (204, b"")
    assert is_revoked(acme_key)
    problem(gateway.get("/v1/limits", key=acme_key), 401, "invalid_api_key")
    problem(gateway.get("/auth/profile", key=acme_key), 401, "invalid_api_key")
    problem(gateway.detect("Good morning.", key=acme_key), 401, "invalid_api_key")


def test_it_takes_the_own_id_without_a_scope(gateway, acme_key):
    r = revoke(gateway, acme_key, acme_key.row.pk)

    assert r.status_code == 204
    assert is_revoked(acme_key)


def test_it_revokes_another_key_of_the_workspace_with_the_scope(gateway, acme_key, acme_admin_key):
    assert gateway.get("/v1/limits", key=acme_key).status_code == 200

    r = revoke(gateway, acme_admin_key, acme_key.row.pk)

    assert r.status_code == 204
    assert is_revoked(acme_key)
    assert not is_revoked(acme_admin_key)
    assert gateway.get("/v1/limits", key=acme_key).status_code == 401


def test_it_needs_the_scope_for_another_key(gateway, acme_key, acme_admin_key):
    r = revoke(gateway, acme_key, acme_admin_key.row.pk)

    body = problem(r, 403, "scope_denied")
    assert "keys:write" in body["detail"]
    assert not is_revoked(acme_admin_key)


def test_a_strangers_key_is_as_missing_as_one_that_never_was(gateway, acme_key, globex_key):
    other, missing = (
        revoke(gateway, globex_key, acme_key.row.pk),
        revoke(gateway, globex_key, uuid4()),
    )

    problem(other, 404, "not_found")
    assert same_but_for_ids(other, missing)
    assert not is_revoked(acme_key)


@pytest.mark.parametrize("value", ["", "x", "123", "00000000-0000-0000-0000-00000000000g"])
def test_the_id_must_be_a_uuid(gateway, acme_key, value):
    r = revoke(gateway, acme_key, value)

    assert fields(r) == {"key_id": "not a UUID"}
    assert not is_revoked(acme_key)


def test_doing_it_twice_is_doing_it_once(gateway, acme_key, acme_admin_key):
    codes = [revoke(gateway, acme_admin_key, acme_key.row.pk).status_code for _ in range(2)]

    assert codes == [204, 204]
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


def test_it_waits_for_no_limit(gateway, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.get("/auth/profile", key=key)
    assert refusal(gateway.get("/auth/profile", key=key)) == (429, "rate_limited")

    assert revoke(gateway, key).status_code == 204


def test_it_is_audited(gateway, acme_key):
    r = revoke(gateway, acme_key)

    event = AuditEvent.objects.get(action="key.revoked")
    assert event.target == str(acme_key.row.pk)
    assert event.actor == f"key {acme_key[:12]}…"
    assert event.client_ip == "127.0.0.1"
    assert event.request_id == r.headers["x-request-id"]


def test_the_successor_of_a_rotation_outlives_the_old_key(gateway, acme_key):
    new = gateway.post("/auth/rotate-key", {}, key=acme_key).json()["api_key"]["key"]

    revoke(gateway, acme_key)

    assert refusal(gateway.get("/v1/limits", key=acme_key)) == (401, "invalid_api_key")
    assert gateway.get("/v1/limits", key=new).status_code == 200
