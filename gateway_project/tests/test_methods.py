"""`Allow` tells the truth: of every address, what it lists is answered, and nothing else is."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import pytest

from gateway_project.core.api.methods import methods_of
from gateway_project.tests.test_generated import PAGES, SIGN_IN
from gateway_project.tests.test_permissions import ALL

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE")
NAMES = {
    "code": "not_found",
    "section": "clamav",
    "scanner": "clamav",
    "session_id": "1",
    "slug": "limits",
}


def filled(template: str) -> str:
    return re.sub(
        r"[{<](?:\w+:)?(\w+)[}>]", lambda found: NAMES.get(found[1], str(uuid4())), template
    )


ENDPOINTS = sorted({template for _, template, view in ALL if hasattr(view, "actions")})
OTHERS = sorted(
    {template for _, template, view in ALL if not hasattr(view, "actions")}
    | {f"/{page}" for page in (*PAGES, *SIGN_IN) if "{}" not in page}
    | {"/admin/", "/admin/login/", "/admin/accounts/apikey/", "/nowhere", "/static/portal/site.css"}
)
ROBINS_HEALTH = ("/api/v1/health", "/api/v1/health/aggregate")


def answered(gateway: Any, address: str) -> dict[str, Any]:
    return {method: gateway.request(method, address) for method in METHODS}


def test_there_are_many() -> None:
    assert len(ENDPOINTS) > 60
    assert len(OTHERS) > 40


@pytest.mark.parametrize("template", [*ENDPOINTS, *OTHERS])
def test_it_lists_what_is_answered(gateway: Any, settings: Any, template: str) -> None:
    settings.RATE_LIMIT_ENABLED = False

    answers = answered(gateway, filled(template))
    for method in ("GET", "HEAD"):
        if answers[method].headers.get("location", "").startswith("/accounts/login/"):
            del answers[method]  # whether it would be answered is told to who has signed in

    assert answers["OPTIONS"].status_code in (404, 405) or template.startswith("/accounts/")
    refused = {method for method, r in answers.items() if r.status_code == 405}
    lists = {
        frozenset(r.headers["allow"].split(", ")) for r in answers.values() if "allow" in r.headers
    }
    if refused:
        assert {allowed & set(answers) for allowed in lists} == {frozenset(answers) - refused}
    for method in refused - {"HEAD"}:
        assert answers[method].json()["code"] == "method_not_allowed"
    assert ("GET" in refused) == ("HEAD" in refused)
    if template in ROBINS_HEALTH:  # there is no Robin here, and nothing known of its queue
        for method in ("GET", "HEAD"):
            assert answers.pop(method).status_code == 503
    assert not any(r.status_code >= 500 for r in answers.values())


def test_a_view_that_says_nothing_is_a_page_with_a_form() -> None:
    assert methods_of(lambda request: None) == ("GET", "HEAD", "POST")
