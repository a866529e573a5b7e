"""The document by a stranger's eyes: Schemathesis makes requests of it and judges the answers.

Requests of each operation are as the document says, at the ends of what it says, and just beyond.
None fails, each answer is one of those it tells of, and what it forbids is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from django.test import AsyncClient, Client
from hypothesis import given
from rest_framework.test import APIClient
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks

from accounts.tests.shapes import refusal
from gateway_project.tests import contract
from gateway_project.tests.contract import DOCUMENT, NotAsDocumented
from gateway_project.tests.test_generated import GROUPS, Neighbours, of_group, own_id, tried
from gateway_project.tests.test_generated import _neighbours as _neighbours

SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
load_all_checks()
# Left out is `positive_data_acceptance`: what no schema can say is refused as well (an address that
# is not public, a password that everybody has, `since` behind `until`).
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
]
EXAMPLES = 3
"""Of each operation, of what is right and of what is wrong; beside what lies at the ends."""
COVERED_MAX = 60
# These end the credential that asks, or are sent by Schemathesis itself to see what a file may be;
# `test_permissions.py` and `test_blocklist.py` ask them.
LEFT_OUT = {
    *("/auth/revoke", "/auth/rotate-key", "/api/v1/auth/logout", "/api/v1/blocklist/import"),
}


def ask(neighbours: Neighbours, case: Case) -> None:
    """Send it with the credential that its operation wants, and judge what is answered."""
    sent: dict[str, Any] = case.as_transport_kwargs(base_url="http://testserver")
    path = case.operation.path
    query = httpx.QueryParams(sent.get("params") or {})
    request = httpx.Request(
        sent["method"], sent["url"], params=query or None, json=sent.get("json"),
        content=sent.get("data") if isinstance(sent.get("data"), bytes | str) else None,
    )  # fmt: skip
    headers = {
        name: value
        for name, value in dict(sent.get("headers") or {}).items()
        if value is not None and name.lower() not in ("authorization", "x-api-key", "cookie")
    }
    if request.content and "content-type" not in map(str.lower, headers):
        headers["Content-Type"] = case.media_type or "application/json"
    address = request.url.raw_path.decode()
    for name in ("{id}", "{request_id}", "{api_key_id}", "{token}"):
        if name in path and case.meta and case.meta.generation.mode == GenerationMode.POSITIVE:
            own = path.replace(name, quote(own_id(path, neighbours.ids)))
            address = own + ("?" + address.partition("?")[2]).rstrip("?")
    answer = neighbours.request(
        sent["method"], address.partition("?")[0], address.partition("?")[2], headers,
        request.content or None,
    )  # fmt: skip
    wanted = CHECKS
    if "501" not in DOCUMENT["paths"][path][sent["method"].lower()]["responses"]:
        wanted = [*CHECKS, not_a_server_error]
    case.validate_response(answer, checks=wanted)


def is_about_credentials(case: Case) -> bool:
    """Those `ask` sends itself, and `test_permissions.py` leaves out."""
    phase: Any = case.meta.phase.data if case.meta else None
    return "Authorization" in (getattr(phase, "description", None) or "")


@pytest.mark.parametrize("group", GROUPS)
def test_every_operation_is_as_the_document_says(
    neighbours: Neighbours, group: str, is_in_turn: Callable[[], bool]
) -> None:
    for method, path in of_group(GROUPS[group]):
        if path in LEFT_OUT:
            continue
        operation = SCHEMA[path][method]
        both = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
        covered = SCHEMA.iter_coverage_cases(
            operation, generation_modes=both, generation_config=SCHEMA.config.generation
        )
        for _, case in zip(range(COVERED_MAX), covered, strict=False):
            if case.method == method and not is_about_credentials(case) and is_in_turn():
                ask(neighbours, case)

        @tried(EXAMPLES)
        @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        def as_it_says(case: Case) -> None:
            ask(neighbours, case)

        as_it_says()


# -- The hook in the test clients -----------------------------------------------------------------


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document says something else of `GET /webhooks/events`."""
    described = {"200": {"description": "Nothing.", "headers": {}}}
    operation = {**DOCUMENT["paths"]["/webhooks/events"]["get"], "responses": described}
    monkeypatch.setitem(DOCUMENT["paths"], "/webhooks/events", {"get": operation})


@pytest.mark.parametrize("client", [Client, APIClient])
def test_djangos_and_drfs_clients_are_held_to_it(gateway: Any, lying: None, client: Any) -> None:
    with pytest.raises(NotAsDocumented, match="a body where none is declared"):
        client().get("/webhooks/events")


def test_the_gateways_own_client_is_held_to_it(gateway: Any, lying: None) -> None:
    with pytest.raises(NotAsDocumented, match="not declared"):
        gateway.get("/webhooks/events")


def test_djangos_async_client_is_held_to_it(gateway: Any, lying: None) -> None:
    with pytest.raises(NotAsDocumented):
        gateway.run(AsyncClient().get("/webhooks/events"))


JSON = {"content-type": "application/json", "x-request-id": "x", "server-timing": "x"}
PROBLEM = {**JSON, "content-type": "application/problem+json"}


@pytest.mark.parametrize(
    ("status", "headers", "content", "why"),
    [
        (418, JSON, b"{}", "status is not declared"),
        (200, {**JSON, "content-type": "text/html"}, b"<p>", "content type is not declared"),
        (200, JSON, b'{"results": 1, "next": null}', "1 is not of type 'array'"),
        (200, JSON, b'{"results": []}', "'next' is a required property"),
        (200, {"content-type": "application/json"}, b"{}", "the header X-Request-ID is missing"),
        (200, {**JSON, "x-new": "1"}, b"{}", "headers are not declared: x-new"),
        (200, {**JSON, "x-ratelimit-limit": "1, 2"}, b"{}", "is no number"),
        (
            429,
            {**JSON, "content-type": "application/problem+json"},
            b"{}",
            "Retry-After is missing",
        ),
    ],
)
def test_what_is_not_in_the_document_is_found(
    status: int, headers: dict[str, str], content: bytes, why: str
) -> None:
    with pytest.raises(NotAsDocumented, match=why):
        contract.check("GET", "/v1/keys", status, headers, content)


def test_what_is_in_it_passes(gateway: Any, acme_key: Any) -> None:
    contract.check("GET", "/v1/keys/", 200, JSON, b'{"results": [], "next": null}')
    contract.check("GET", "/app/keys", 200, {"content-type": "text/html"}, b"<p>")
    assert refusal(gateway.get("/v1/keys", key=acme_key)) == (403, "scope_denied")
