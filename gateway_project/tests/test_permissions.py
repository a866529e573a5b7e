"""Who may do what: every route of the API, every kind of caller.

A route that is missing from the table fails `test_no_route_is_missing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from django.contrib import admin
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from accounts import services
from accounts.models import SCOPES, ApiKey, UsageLog, new_id
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.jobs import store
from detection.jobs.judging import Item
from detection.models import Job
from webhooks import services as webhooks
from webhooks.receiving import inbox

# For every caller, in this order: nobody, a key with the needed scope, one without it, a stranger's
# key with that scope, and a revoked key.
CALLERS = ("nobody", "allowed", "unscoped", "stranger", "revoked")
PUBLIC = (200, 200, 200, 200, 200)
OWN = (401, 200, 200, 200, 401)  # needs a key, no scope: everybody sees what is theirs
TABLE: dict[tuple[str, str], tuple[int, ...]] = {
    ("POST", "/auth/register"): (201, 201, 201, 201, 201),
    ("GET", "/auth/profile"): OWN,
    ("POST", "/auth/rotate-key"): (401, 201, 201, 201, 401),
    ("DELETE", "/auth/revoke"): (401, 204, 204, 204, 401),
    ("DELETE", "/auth/revoke?key_id={id}"): (401, 204, 403, 404, 401),
    ("GET", "/v1/limits"): OWN,
    ("GET", "/v1/keys"): (401, 200, 403, 200, 401),
    ("POST", "/v1/keys"): (401, 201, 403, 201, 401),
    ("GET", "/v1/keys/{id}"): (401, 200, 403, 404, 401),
    ("PATCH", "/v1/keys/{id}"): (401, 200, 403, 404, 401),
    ("DELETE", "/v1/keys/{id}"): (401, 204, 403, 404, 401),
    ("GET", "/v1/audit"): (401, 200, 403, 200, 401),
    ("GET", "/v1/engines/costs"): (401, 200, 403, 200, 401),
    ("GET", "/v1/requests"): (401, 200, 403, 200, 401),
    ("GET", "/v1/requests/{request_id}"): (401, 200, 403, 404, 401),
    ("POST", "/v1/detect"): (401, 200, 403, 200, 401),
    ("POST", "/v1/detect/score"): (401, 200, 403, 200, 401),
    ("POST", "/v1/detect/batch"): (401, 200, 403, 200, 401),
    ("GET", "/v1/detect/batch/{id}"): (401, 200, 403, 404, 401),
    ("DELETE", "/v1/detect/batch/{id}"): (401, 200, 403, 404, 401),
    ("POST", "/v1/detect/async"): (401, 202, 403, 202, 401),
    ("GET", "/v1/detect/async/{id}"): (401, 200, 403, 404, 401),
    ("POST", "/beta/litellm_basic_guardrail_api"): (401, 200, 403, 200, 401),
    ("POST", "/v1/guardrails/portkey"): (401, 200, 403, 200, 401),
    ("POST", "/v1/guardrails/kong"): (401, 200, 403, 200, 401),
    ("POST", "/v1/guardrails/agentgateway/request"): (401, 200, 403, 200, 401),
    ("POST", "/v1/guardrails/agentgateway/response"): (401, 200, 403, 200, 401),
    ("POST", "/v1/guardrails/openguardrails/v1/evaluate"): (401, 200, 403, 200, 401),
    ("GET", "/v1/policy"): (401, 200, 403, 200, 401),
    ("PUT", "/v1/policy"): (401, 200, 403, 200, 401),
    ("POST", "/v1/feedback"): (401, 201, 403, 404, 401),
    ("POST", "/webhooks/register"): (401, 201, 403, 201, 401),
    ("GET", "/webhooks/list"): (401, 200, 403, 200, 401),
    ("POST", "/webhooks/test"): (401, 202, 403, 404, 401),
    ("GET", "/webhooks/per-request"): (401, 200, 403, 200, 401),
    ("GET", "/webhooks/events"): PUBLIC,
    ("GET", "/webhooks/{id}"): (401, 200, 403, 404, 401),
    ("PATCH", "/webhooks/{id}"): (401, 200, 403, 404, 401),
    ("DELETE", "/webhooks/{id}"): (401, 204, 403, 404, 401),
    ("POST", "/webhooks/{id}/rotate-secret"): (401, 200, 403, 404, 401),
    ("GET", "/webhooks/{id}/deliveries"): (401, 200, 403, 404, 401),
    ("POST", "/webhooks/{id}/recover"): (401, 202, 403, 404, 401),
    ("GET", "/webhooks/deliveries/{id}"): (401, 200, 403, 404, 401),
    ("POST", "/webhooks/deliveries/{id}/resend"): (401, 202, 403, 404, 401),
    ("POST", "/inbox/{token}"): (202,) * 5,  # the token is the right to
    ("GET", "/health"): PUBLIC,
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/health/seen"): (404,) * 5,  # for a signed question alone; `test_doctor.py`
    ("GET", "/metrics"): PUBLIC,  # from here; `test_metrics_are_not_for_everybody`
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/docs"): PUBLIC,
    ("GET", "/docs/errors"): PUBLIC,
    ("GET", "/docs/search"): PUBLIC,
    ("GET", "/docs/{slug}"): PUBLIC,
    ("GET", "/redoc"): PUBLIC,
    ("GET", "/status"): PUBLIC,
    ("GET", "/status.atom"): PUBLIC,
    ("GET", "/changelog"): PUBLIC,
    ("GET", "/terms"): PUBLIC,
    ("GET", "/privacy"): PUBLIC,
    ("GET", "/problems/{code}"): PUBLIC,
    ("GET", "/admin"): (302,) * 5,
    # Staff find more there: test_staff_api.py
    ("GET", "/admin/stats"): (404,) * 5,
    ("GET", "/admin/users"): (404,) * 5,
    ("GET", "/admin/usage/{api_key_id}"): (404,) * 5,
    ("GET", "/"): PUBLIC,
    ("GET", "/language"): (302,) * 5,
    ("GET", "/guides/"): PUBLIC,
    ("GET", "/guides"): (302,) * 5,
    ("GET", "/guides/{slug}"): PUBLIC,
    ("GET", "/guides/{slug}.md"): PUBLIC,
    ("GET", "/llms.txt"): PUBLIC,
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/auth/rotate-key"): {},
    ("POST", "/v1/keys"): {},
    ("PATCH", "/v1/keys/{id}"): {"name": "renamed"},
    ("POST", "/v1/detect"): {"text": "Good morning."},
    ("POST", "/v1/detect/score"): {"text": "Good morning."},
    ("PUT", "/v1/policy"): {"mode": "monitor"},
    ("POST", "/beta/litellm_basic_guardrail_api"): {"texts": ["Good morning."]},
    ("POST", "/v1/guardrails/portkey"): {
        "eventType": "beforeRequestHook",
        "request": {"json": {"messages": [{"role": "user", "content": "Good morning."}]}},
    },
    ("POST", "/v1/guardrails/kong"): {"content": "Good morning.", "source": "INPUT"},
    ("POST", "/v1/guardrails/agentgateway/request"): {
        "body": {"messages": [{"role": "user", "content": "Good morning."}]}
    },
    ("POST", "/v1/guardrails/agentgateway/response"): {
        "body": {"choices": [{"message": {"role": "assistant", "content": "Good morning."}}]}
    },
    ("POST", "/v1/guardrails/openguardrails/v1/evaluate"): {
        **dict.fromkeys(("agent_id", "agent_type", "agent_workspace", "agent_user"), ""),
        "kind": "step/request",
        "step_id": "1",
        "llm_protocol": "openai.chat",
        "payload": {"messages": [{"role": "user", "content": "Good morning."}]},
    },
    ("POST", "/v1/detect/batch"): {"requests": [{"id": "1", "text": "Good morning."}]},
    ("POST", "/v1/detect/async"): {
        "text": "Good morning.",
        "webhook_url": "https://198.41.0.4/hook",
    },
    ("POST", "/webhooks/register"): {"url": "https://198.41.0.4/hook"},
    ("PATCH", "/webhooks/{id}"): {"description": "renamed"},
    ("POST", "/webhooks/{id}/rotate-secret"): {},
    ("POST", "/webhooks/{id}/recover"): {"since": "2026-01-01T00:00:00Z"},
}
ROWS = [
    pytest.param(method, path, dict(zip(CALLERS, statuses, strict=True)), id=f"{method} {path}")
    for (method, path), statuses in TABLE.items()
]
emails = (f"person{n}@initech.example" for n in count())


def routes(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(method, template, view) of all routes; methods of plain views are taken for GET."""
    for pattern in patterns:
        route = prefix + str(pattern.pattern).strip("^$")
        if isinstance(pattern, URLResolver):
            if pattern.app_name != "admin" and route != "accounts/":
                yield from routes(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            if route.startswith(("accounts/", "app/")):
                continue  # pages: `test_portal.py`
            names = re.findall(r"<[^>]+>", route)
            template = "/" + route
            for name in names:
                template = template.replace(name, "{" + name.strip("<>").partition(":")[2] + "}")
            for method in getattr(pattern.callback, "actions", None) or {"get": ""}:
                if method != "head":
                    yield method.upper(), template, pattern.callback


ALL = list(routes(get_resolver().url_patterns))


@pytest.fixture
def victim(make_key: Any) -> ApiKey:
    """The key of Acme that others reach for."""
    row: ApiKey = make_key(name="victim").row
    return row


@pytest.fixture
def target(victim: ApiKey, request: pytest.FixtureRequest) -> str:
    """The id that the row's path speaks of: of Acme's key, request, webhook or delivery."""
    path = request.getfixturevalue("path")
    if path.startswith(("/v1/requests", "/v1/feedback")):
        return log_of(victim)
    if path.startswith("/v1/detect/"):
        return job_of(victim, path)
    if path.startswith("/inbox"):
        return inbox.of(victim.workspace).token
    if not path.startswith("/webhooks"):
        return str(victim.pk)
    webhook, _ = webhooks.register(
        victim.workspace_id, "https://198.41.0.4/hook", ["quota.80"], actor=Actor("test")
    )
    if path.startswith("/webhooks/deliveries"):
        return str(webhooks.test(webhook, "webhook.test").pk)
    return str(webhook.pk)


def job_of(key: ApiKey, path: str) -> str:
    """A batch or a single text of the key that waits."""
    kind = Job.Kind.ASYNC if "async" in path else Job.Kind.BATCH
    order = store.Order(kind, key.workspace_id, key.pk, str(new_id()))
    job, _ = store.create(order, [Item("1", None, {"code": "x", "message": "x"})])
    return str(job.pk)


def log_of(key: ApiKey) -> str:
    """A request of the key in the log."""
    request_id = new_id()
    UsageLog.objects.create(
        request_id=request_id, api_key_id=key.pk, workspace_id=key.workspace_id,
        endpoint="/v1/detect", http_status=200, request_size=1, response_time_ms=1,
        created_at=timezone.now(), is_malicious=False, confidence=0.1, decision="allow",
    )  # fmt: skip
    return str(request_id)


@pytest.fixture
def callers(make_key: Any, globex: Any, request: pytest.FixtureRequest) -> dict[str, str | None]:
    """Who may do it comes last: nothing is changed for the others before."""
    scopes = ["detect", "batch", "keys:write", "webhooks", "usage:read", "audit:read"]
    is_log = request.getfixturevalue("path").startswith(("/v1/requests", "/v1/engines"))
    revoked = make_key(scopes=scopes)
    services.revoke_key(revoked.row, actor=Actor("test"))
    return {
        "nobody": None,
        "revoked": str(revoked),
        "unscoped": str(make_key(scopes=["detect" if is_log else "usage:read"])),
        "stranger": str(make_key(globex, scopes=scopes)),
        "allowed": str(make_key(scopes=scopes)),
    }


@pytest.mark.parametrize(("method", "path", "statuses"), ROWS)
def test_it_answers_as_the_table_says(
    gateway: Any,
    engine: Any,
    victim: ApiKey,
    target: str,
    callers: dict[str, str | None],
    method: str,
    path: str,
    statuses: dict[str, int],
) -> None:
    names = dict.fromkeys(("id", "api_key_id", "request_id", "token"), target)
    slug = "keys" if path.startswith("/docs") else "quickstart"
    names |= {"code": "not_found", "slug": slug}
    for who, key in callers.items():
        body = BODIES.get((method, path))
        if path == "/auth/register":
            body = {"email": next(emails), "password": "correct horse battery"}
        if path == "/webhooks/test":
            body = {"webhook_id": target}
        if path == "/v1/feedback":
            body = {"request_id": target, "verdict": "correct"}
        json = {} if body is None else {"json": body}

        r = gateway.request(method, path.format(**names), key=key, **json)

        assert r.status_code == statuses[who], who
        if r.status_code >= 400:
            assert r.headers["content-type"] == "application/problem+json"
            victim.refresh_from_db()
            assert victim.revoked_at is None
            assert victim.name == "victim"


def test_no_route_is_missing() -> None:
    in_the_table = {(method, path.partition("?")[0]) for method, path in TABLE}
    # Roles instead of keys: test_robin_permissions.py
    others = {(m, template) for m, template, _ in ALL if not template.startswith("/api/v1/")}

    assert others == in_the_table


def test_no_route_is_behind_the_admins_back() -> None:
    """The admin is the one part of the URLs that the table leaves out."""
    left_out = [
        str(pattern.pattern)
        for pattern in get_resolver().url_patterns
        if isinstance(pattern, URLResolver) and pattern.app_name == "admin"
    ]

    assert left_out == ["admin/"]
    assert admin.site.name == "admin"


@pytest.mark.parametrize(
    ("method", "path"),
    sorted({(m, p) for m, p in TABLE if p.startswith(("/v1", "/auth", "/webhooks"))}),
)
def test_only_registration_and_the_catalogue_of_events_are_public(method: str, path: str) -> None:
    """What the views declare agrees with the table."""
    views = {(m, template): view for m, template, view in ALL}
    view = views[(method, path.partition("?")[0])]

    declared = view.cls.declared(view.actions[method.lower()])

    assert declared.public == (path in ("/auth/register", "/webhooks/events"))
    needs_scope = TABLE[(method, path)][2] == 403 and "?" not in path
    assert (declared.scope is not None) == needs_scope


# -- The key that a playground holds ---------------------------------------------------------------

OF_KEYS = [
    (method, path)
    for method, path in TABLE
    if path.startswith(("/auth/", "/v1/keys", "/v1/policy")) and path != "/auth/register"
]
ITS_OWN = {
    ("GET", "/auth/profile"),
    ("GET", "/v1/policy"),
    ("DELETE", "/auth/revoke"),
    ("DELETE", "/auth/revoke?key_id={id}"),
}
LASTING = {"expires_at": None, "scopes": list(SCOPES)}


@pytest.fixture
def of_session(gateway: Any, acme: Any, alice: Any, acme_admin_key: Any) -> Any:
    """What an operation answers about such a key; none is there that was not, or works longer."""
    key, text = services.session_key(acme, alice, actor=Actor("test"))

    def ask(method: str, path: str, *, by: str = text) -> Any:
        body = LASTING if method == "PATCH" else BODIES.get((method, path))
        json = {} if body is None else {"json": body}
        answer = gateway.request(method, path.format(id=key.pk), key=by, **json)
        later = timezone.now() + services.SESSION_KEY_LIFE
        assert list(ApiKey.objects.usable(later)) == [acme_admin_key.row]
        return answer

    return ask


@pytest.mark.hostile
@pytest.mark.parametrize(("method", "path"), OF_KEYS)
def test_a_playgrounds_key_makes_nothing_of_itself(of_session: Any, method: str, path: str) -> None:
    assert of_session(method, path).is_success is ((method, path) in ITS_OWN)


@pytest.mark.hostile
@pytest.mark.parametrize(("method", "path"), [one for one in OF_KEYS if "{id}" in one[1]])
def test_no_other_key_finds_a_playgrounds(
    of_session: Any, acme_admin_key: Any, method: str, path: str
) -> None:
    assert refusal(of_session(method, path, by=acme_admin_key)) == (404, "not_found")


# -- Metrics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "", "unix"])
def test_metrics_are_not_for_everybody(gateway: Any, address: str) -> None:
    assert refusal(gateway.get("/metrics", client_ip=address)) == (404, "not_found")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "::1", "fd00::5"])
def test_metrics_are_for_our_own_network(gateway: Any, address: str) -> None:
    assert gateway.get("/metrics", client_ip=address).text.startswith("# HELP ")


OF_PROXIES = [
    *("Forwarded", "Forwarded-For", "Via", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Host"),
    *("X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Scheme"),
    *("X-Forwarded-Ssl", "X-Forwarded-Prefix", "X-Forwarded-Client-Cert", "X-Original-URL"),
    *("X-Original-Forwarded-For", "X-Real-IP", "X-Real-Port", "X-Client-IP", "Client-IP"),
    *("X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "CF-Ray", "CDN-Loop"),
    *("Fastly-Client-IP", "Fly-Client-IP", "X-Envoy-External-Address", "X-Azure-ClientIP"),
    *("X-Azure-SocketIP", "X-Amzn-Trace-Id", "X-Amz-Cf-Id", "X-Appengine-User-IP"),
    *("X-Cloud-Trace-Context", "X-Scheme", "Front-End-Https", "X-Vercel-Id", "X-ProxyUser-IP"),
]


@pytest.mark.parametrize("header", OF_PROXIES)
def test_metrics_are_not_for_who_comes_through_a_proxy(gateway: Any, header: str) -> None:
    """Whose address it names, and whether it is one of ours, is not known."""
    r = gateway.get("/metrics", headers={header: "10.0.0.1"}, client_ip="127.0.0.1")

    assert refusal(r) == (404, "not_found")


def test_a_token_for_metrics_also_comes_through_a_proxy(gateway: Any, settings: Any) -> None:
    settings.METRICS_TOKEN = "scrape-me"
    sent = {"Authorization": "Bearer scrape-me", "X-Forwarded-For": "8.8.8.8"}

    assert gateway.get("/metrics", headers=sent).text.startswith("# HELP ")


def test_a_token_for_metrics_replaces_the_network(gateway: Any, settings: Any) -> None:
    settings.METRICS_TOKEN = "scrape-me"

    def status(token: str | None, address: str) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        code: int = gateway.get("/metrics", headers=headers, client_ip=address).status_code
        return code

    assert status("scrape-me", "8.8.8.8") == 200
    assert status("scrape-m", "127.0.0.1") == 404
    assert status(None, "127.0.0.1") == 404


WRONG = [
    ("GET", "/auth/register", {"POST"}),
    ("PUT", "/auth/profile", {"GET", "HEAD"}),
    ("GET", "/auth/rotate-key", {"POST"}),
    ("POST", "/auth/revoke", {"DELETE"}),
    ("DELETE", "/v1/keys", {"GET", "HEAD", "POST"}),
    ("PUT", "/v1/keys/{id}", {"GET", "HEAD", "PATCH", "DELETE"}),
    ("POST", "/v1/limits", {"GET", "HEAD"}),
    ("GET", "/v1/detect", {"POST"}),
    ("GET", "/webhooks/register", {"POST"}),
    ("POST", "/webhooks/{id}", {"GET", "HEAD", "PATCH", "DELETE"}),
    ("POST", "/health", {"GET", "HEAD"}),
    ("POST", "/metrics", {"GET", "HEAD"}),
]


@pytest.mark.parametrize(("method", "path", "allowed"), WRONG)
def test_another_method_is_405_and_says_which_are_right(
    gateway: Any, victim: ApiKey, acme_admin_key: str, method: str, path: str, allowed: set[str]
) -> None:
    r = gateway.request(method, path.format(id=victim.pk), key=acme_admin_key)

    assert r.status_code == 405
    assert r.json()["code"] == "method_not_allowed"
    assert {name.strip() for name in r.headers["allow"].split(",")} - {"OPTIONS"} == allowed


@pytest.mark.parametrize(
    "path",
    [
        "/auth/register",
        "/auth/profile",
        "/v1/keys",
        "/v1/limits",
        "/v1/detect",
        "/webhooks/list",
    ],
)
def test_options_is_never_an_error_of_ours(gateway: Any, path: str) -> None:
    assert gateway.request("OPTIONS", path).status_code < 500
