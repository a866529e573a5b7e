"""Who may do what under `/api/v1`: every route, every role. A missing route fails.

The value is the permission that a route asks for, "token" for any signed-in user, "public" for
everybody.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway_project.core.api.endpoint import API_KEY
from gateway_project.tests.test_permissions import ALL
from robin.permissions import PERMISSIONS, Role

TABLE: dict[tuple[str, str], str] = {
    ("POST", "/api/v1/auth/login"): "public",
    ("POST", "/api/v1/auth/refresh"): "public",
    ("POST", "/api/v1/auth/logout"): "public",
    ("GET", "/api/v1/auth/verify"): "public",
    ("GET", "/api/v1/auth/me"): "token",
    ("POST", "/api/v1/auth/ws-ticket"): "VIEW_QUEUE",
    ("GET", "/api/v1/users"): "MANAGE_USERS",
    ("POST", "/api/v1/users"): "MANAGE_USERS",
    ("PUT", "/api/v1/users/{username}"): "MANAGE_USERS",
    ("DELETE", "/api/v1/users/{username}"): "MANAGE_USERS",
    ("GET", "/api/v1/users/{username}/sessions"): "MANAGE_USERS",
    ("DELETE", "/api/v1/users/{username}/sessions/{session_id}"): "MANAGE_USERS",
    ("GET", "/api/v1/health"): "public",
    ("GET", "/api/v1/health/aggregate"): "public",
    ("GET", "/api/v1/queue"): "VIEW_QUEUE",
    ("GET", "/api/v1/queue/json"): "VIEW_QUEUE",
    ("GET", "/api/v1/queue/stats"): "VIEW_QUEUE",
    ("POST", "/api/v1/queue/actions"): "MANAGE_QUEUE",
    ("GET", "/api/v1/queue/actions/{job_id}"): "VIEW_QUEUE",
    ("DELETE", "/api/v1/queue/actions/{job_id}"): "MANAGE_QUEUE",
    ("POST", "/api/v1/queue/pause"): "MANAGE_QUEUE",
    ("POST", "/api/v1/queue/resume"): "MANAGE_QUEUE",
    ("GET", "/api/v1/queue/{uid}"): "VIEW_QUEUE",
    ("DELETE", "/api/v1/queue/{uid}"): "DELETE_QUEUE_ITEMS",
    ("POST", "/api/v1/queue/{uid}/retry"): "MANAGE_QUEUE",
    ("POST", "/api/v1/queue/{uid}/bounce"): "MANAGE_QUEUE",
    ("POST", "/api/v1/queue/{uid}/pause"): "MANAGE_QUEUE",
    ("POST", "/api/v1/queue/{uid}/resume"): "MANAGE_QUEUE",
    ("GET", "/api/v1/storage"): "VIEW_STORAGE",
    ("GET", "/api/v1/storage/file"): "VIEW_STORAGE",
    ("GET", "/api/v1/storage/raw"): "VIEW_STORAGE",
    ("GET", "/api/v1/logs"): "VIEW_LOGS",
    ("DELETE", "/api/v1/logs"): "MANAGE_SERVER_CONFIG",
    ("GET", "/api/v1/logs/loggers"): "VIEW_LOGS",
    ("GET", "/api/v1/logs/export"): "VIEW_LOGS",
    ("GET", "/api/v1/config"): "VIEW_SETTINGS",
    ("POST", "/api/v1/config/reload"): "MANAGE_SERVER_CONFIG",
    ("GET", "/api/v1/config/{section}"): "VIEW_SETTINGS",
    ("PUT", "/api/v1/config/{section}"): "MANAGE_SERVER_CONFIG",
    ("GET", "/api/v1/blocklist"): "VIEW_SECURITY",
    ("POST", "/api/v1/blocklist"): "MANAGE_SECURITY",
    ("PATCH", "/api/v1/blocklist/{id}"): "MANAGE_SECURITY",
    ("DELETE", "/api/v1/blocklist/{id}"): "MANAGE_SECURITY",
    ("POST", "/api/v1/blocklist/import"): "MANAGE_SECURITY",
    ("GET", "/api/v1/blocklist/export"): "VIEW_SECURITY",
    ("GET", "/api/v1/scanners/{scanner}/status"): "VIEW_SECURITY",
    ("POST", "/api/v1/scanners/{scanner}/test"): "MANAGE_SECURITY",
    ("GET", "/api/v1/metrics"): "VIEW_METRICS",
    ("GET", "/api/v1/metrics/system"): "VIEW_METRICS",
    ("GET", "/api/v1/metrics/queue"): "VIEW_METRICS",
    ("GET", "/api/v1/metrics/export"): "VIEW_METRICS",
}
ENDS_ACCESS = ("POST", "/api/v1/auth/logout")
"""So it is asked last."""
VIEWS = {(m, template): view for m, template, view in ALL if template.startswith("/api/v1/")}
each_route = pytest.mark.parametrize(
    ("method", "path"), [pytest.param(m, p, id=f"{m} {p}") for m, p in TABLE]
)


def test_no_route_is_missing() -> None:
    assert set(VIEWS) == set(TABLE)


@each_route
def test_it_declares_what_the_table_says(method: str, path: str) -> None:
    view = VIEWS[(method, path)]
    declared = view.cls.declared(view.actions[method.lower()])
    needed = TABLE[(method, path)]

    assert declared.public == (needed == "public")
    assert declared.scope == (None if needed in ("public", "token") else needed)
    assert declared.public or declared.credential is not API_KEY


def test_every_role_is_let_in_or_kept_out(
    gateway: Any, member: Any, acme_key: str, settings: Any
) -> None:
    settings.RATE_LIMIT_ENABLED = False
    uid = "6f0c1a52-7c7e-4b1b-9a55-2d4b8b7f1e10"
    ids = dict.fromkeys(("uid", "id", "job_id", "session_id"), uid)
    # An administrator who is a superuser too: giving roles takes both (robin/tests/test_users.py).
    people: dict[Any, Any] = {
        role: member(role, is_superuser=role == Role.ADMIN, by_hand=True) for role in Role
    }
    people["staff"] = member(None, is_staff=True, by_hand=True)
    for (method, template), needed in sorted(TABLE.items(), key=lambda row: row[0] == ENDS_ACCESS):
        path = template.format(username="nobody", section="clamav", scanner="clamav", **ids)
        body = {"json": {}} if method in ("POST", "PUT", "PATCH") else {}
        for role, person in people.items():
            r = person.request(method, path, **body)
            report = (method, path, role, r.text)
            may = needed in ("public", "token") or needed in PERMISSIONS.get(role, ())
            assert (r.status_code == 403) == (not may), report
            # The refresh cookie is not there, and an empty body signs nobody in.
            assert r.status_code != 401 or needed == "public", report
        for headers in ({}, {"X-API-Key": acme_key}, {"Authorization": f"Bearer {acme_key}"}):
            r = gateway.request(method, path, headers=headers, **body)
            report = (method, path, headers, r.text)
            if needed == "public":
                assert r.status_code != 403, report
            else:
                assert r.status_code == 401, report
                assert r.json()["message"]
