"""Generated requests to every operation: none is answered 5xx, and nobody else notices.

Bodies are right but for what is generated: of all Unicode, all depths, at the ends of ranges, in
keys and values. Queries, paths and headers hold the same. Afterwards a second tenant's call, log,
job and webhook are as ever, and nothing had to be parked: it was refused where it came in.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django import forms
from django.conf import settings
from django.contrib import admin
from django.db import connection
from django.http import QueryDict
from django.urls import URLPattern, get_resolver
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from accounts.models import SCOPES, Parked, UsageLog, Workspace
from conftest import SHARE
from detection.models import Job
from detection.tests.working import work_all
from gateway_project.core.api.endpoint import Asked
from gateway_project.core.api.forms import Form, ModelForm
from gateway_project.core.storable import NESTING_MAX, cleaned, unstorable
from gateway_project.tests.test_permissions import ALL, job_of, log_of
from robin.config import documents
from webhooks import services as webhooks
from webhooks.delivery import engine as deliveries
from webhooks.models import WebhookDelivery
from webhooks.receiving import inbox

# Those refuse what others take.
pytestmark = [pytest.mark.hostile, pytest.mark.needs_postgresql, pytest.mark.needs_redis]
DOCUMENT = json.loads((Path(__file__).resolve().parents[2] / "docs/openapi.json").read_text())
OURS = ("accounts", "detection", "webhooks", "robin", "portal", "gateway_project")


def nested(levels: int, inner: Any = 1) -> Any:
    for _ in range(levels):
        inner = {"a": inner} if levels % 2 else [inner]
    return inner


NUL, HALF = "a\x00b", "\ud800"
TIMES = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00-14:00",
    "0001-01-31T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T00:00:00+14:00",
    "1969-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01T00:00:00",
    "2026-01-01",
]
NUMBERS = [
    *(0, -1, 1, 2**15, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1),
    *(2**64, 10**30, 10**400, 0.1, -0.0, 5e-324, 1.7976931348623157e308),
    *(float("inf"), float("-inf"), float("nan")),
]
TEXTS = [NUL, "\x00", HALF, "\udfff\ud800", "", " ", "\ufeff", "\u202e", "\uffff", "\U0010ffff"]
TEXTS += ["x" * 300, "\U0001f600" * 300, "../../etc", "%00", "\\u0000", "'; --", "null", "\r\nX: y"]
DEEP = [nested(n) for n in (NESTING_MAX, NESTING_MAX + 1, 63, 100, 190, 201, 250, 900)]
HOLDING = [{NUL: 1}, {HALF: 1}, {"a": [{"b": NUL}]}, [[HALF]], {"a": 2**63}, {"a": float("inf")}]
HOLDING += [nested(NESTING_MAX - 1, NUL), {"": {"": [None, True, {}]}}]
values = st.one_of(
    # What is refused, what is at an end, and all the rest: each often enough to be met.
    st.sampled_from([NUL, HALF, "\x00", *HOLDING, *DEEP]),
    st.sampled_from([*TIMES, *NUMBERS, *TEXTS, None, True, [], {}]),
    st.text(st.characters(), max_size=20),
    st.integers(),
    st.floats(),
    st.datetimes().map(lambda at: f"{at.isoformat()}+13:59"),
    st.recursive(
        st.none() | st.booleans() | st.text(st.characters(), max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    ),
)
in_an_address = st.one_of(
    st.sampled_from([*TIMES, *map(str, NUMBERS[:-7]), *TEXTS]),
    st.text(st.characters(), max_size=12),
).map(lambda text: quote(text.encode(errors="surrogatepass")))
headers = st.fixed_dictionaries(
    {},
    optional={
        "User-Agent": st.sampled_from([b"a\x00b", b"\xff\xfe", b"x" * 500, b""]),
        "Idempotency-Key": st.sampled_from([b"\x00", b"\xff", b'""', b"x" * 300, b"a-key"]),
        "X-Request-ID": st.sampled_from([b"order-12345678\x00", b"\xff" * 9, b"order-12345678"]),
        "If-Match": st.sampled_from([b"*", b'"99999999999"', b"\xff", b'W/"1"']),
        "Prefer": st.sampled_from([b"respond-async", b"\xff"]),
        "Accept": st.sampled_from([b"text/html", b"application/x-ndjson", b"\xff"]),
    },
)

URL = "https://198.41.0.4/hook"
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/auth/register"): {"email": "a@b.example", "password": "correct horse", "name": "x"},
    ("POST", "/auth/rotate-key"): {"grace_seconds": 5},
    ("POST", "/v1/keys"): {
        "name": "x", "scopes": ["detect"], "allowed_cidrs": ["10.0.0.0/8"],
        "expires_at": "2999-01-01T00:00:00Z", "rate_limit_per_minute": 1, "rate_limit_per_day": 1,
    },
    ("PATCH", "/v1/keys/{id}"): {"name": "renamed", "expires_at": "2999-01-01T00:00:00Z"},
    ("POST", "/v1/detect"): {
        "text": "Good morning.", "config": {"timeout_seconds": 5.0}, "metadata": {"a": 1},
    },
    ("POST", "/v1/detect/score"): {"text": "Good morning."},
    ("POST", "/v1/detect/batch"): {
        "requests": [{"id": "1", "text": "Good morning.", "metadata": {"a": 1}}],
        "metadata": {"a": 1}, "config": {"confidence_threshold": 0.5},
    },
    ("POST", "/v1/detect/async"): {
        "text": "Good morning.", "metadata": {"a": 1}, "webhook_url": URL,
    },
    ("PUT", "/v1/policy"): {
        "mode": "monitor", "threshold": {"engine": 0.5}, "categories": {"injection": False},
        "allow": [{"text": "x", "note": "y"}], "deny": [{"digest": "0" * 64, "note": "y"}],
        "locked": ["mode"], "store_text": True,
    },
    ("POST", "/v1/feedback"): {"request_id": "{id}", "verdict": "correct", "note": "x"},
    ("POST", "/beta/litellm_basic_guardrail_api"): {"texts": ["Good morning."], "other": 1},
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
        "kind": "step/request", "step_id": "1", "llm_protocol": "openai.chat",
        "payload": {"messages": [{"role": "user", "content": "Good morning."}]},
    },
    ("POST", "/webhooks/register"): {"url": URL, "events": ["quota.80"], "description": "x"},
    ("PATCH", "/webhooks/{id}"): {"description": "renamed", "retry_count": 1},
    ("POST", "/webhooks/test"): {"webhook_id": "{id}", "event": "webhook.test"},
    ("POST", "/webhooks/{id}/rotate-secret"): {"overlap_seconds": 5},
    ("POST", "/webhooks/{id}/recover"): {
        "since": "2026-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z",
    },
    ("POST", "/inbox/{token}"): {"id": "x"},
    ("POST", "/api/v1/auth/login"): {"username": "nobody", "password": "x", "otp": "1"},
    ("POST", "/api/v1/users"): {
        "username": "eve", "email": "eve@robin.example", "password": "a good long password",
        "roles": ["ROLE_READONLY"], "isActive": True,
    },
    ("PUT", "/api/v1/users/{username}"): {"email": "eve@robin.example", "isActive": True},
    ("POST", "/api/v1/queue/actions"): {"action": "retry", "filter": {"search": "x"}},
    ("PUT", "/api/v1/config/{section}"): {"enabled": True, "host": "localhost", "port": 3310},
    ("POST", "/api/v1/blocklist"): {
        "type": "DOMAIN", "value": "spam.example", "reason": "x", "active": True,
        "expiresAt": "2999-01-01T00:00:00Z",
    },
    ("PATCH", "/api/v1/blocklist/{id}"): {"reason": "x", "expiresAt": "2999-01-01T00:00:00Z"},
    ("POST", "/api/v1/scanners/{scanner}/test"): {
        "config": {"enabled": True, "host": "localhost", "port": 3310},
    },
}  # fmt: skip
OPERATIONS = [(m, p) for m, p, view in ALL if getattr(view, "actions", None)]
PLAIN = [(m, p) for m, p, view in ALL if not getattr(view, "actions", None)]


def paths_of(value: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put, the whole body included."""
    found = [so_far]
    if isinstance(value, dict):
        found += [path for key in value for path in paths_of(value[key], (*so_far, key))]
    elif isinstance(value, list):
        found += [path for i, one in enumerate(value) for path in paths_of(one, (*so_far, i))]
    return found


def with_value(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[path[0]] = with_value(body[path[0]], path[1:], value)
    return copy


@st.composite
def mutated(draw: Any, body: Any) -> Any:
    """The body with one to two places replaced, or a key that nobody knows."""
    for _ in range(draw(st.integers(1, 3))):
        if isinstance(body, dict) and draw(st.integers(0, 5)) == 0:
            key = draw(st.sampled_from([NUL, HALF, "", "x" * 300]) | st.text(max_size=5))
            body = {**body, key: draw(values)}
        else:
            places = paths_of(body)
            body = with_value(body, draw(st.sampled_from(places[1:] or places)), draw(values))
    return body


def query_of(method: str, path: str) -> list[str]:
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower(), {})
    return [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]


def tried(examples: int) -> Any:
    return hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


class Neighbours:
    """Acme, whose requests are generated, and Globex, which must not notice."""

    def __init__(self, gateway: Any, acme_key: Any, globex_key: Any, globex_hook: Any) -> None:
        self.gateway, self.key, self.other, self.hook = gateway, acme_key, globex_key, globex_hook
        self.ids: dict[str, str] = {}
        self.staff: Any = None
        self.robin: Any = None

    def request(self, method: str, path: str, query: str, headers: Any, content: Any) -> Any:
        sent = dict(headers)
        if path.startswith("/api/v1/"):
            sent |= self.robin.bearer
        elif path.startswith("/admin"):
            sent |= self.staff
        else:
            sent["X-API-Key"] = str(self.key)
        if content is not None:
            sent["Content-Type"] = "application/json"
        address = f"{path}?{query}" if query else path
        return self.gateway.request(method, address, headers=sent, content=content)

    def settle(self) -> None:
        """What the worker does."""
        self.gateway.flush_usage()
        work_all()
        self.gateway.flush_usage()
        deliveries.deliver_all()

    def the_other_goes_on(self) -> None:
        before = UsageLog.objects.filter(workspace_id=self.other.row.workspace_id).count()
        mine = WebhookDelivery.objects.filter(webhook=self.hook, status="delivered")
        sent = mine.count()
        later = {"Prefer": "respond-async"}
        items = {"requests": [{"id": "1", "text": "Good evening.", "metadata": {"fine": 1}}]}
        answers = [
            self.gateway.detect("Good morning.", key=self.other),
            self.gateway.post("/v1/detect/batch", items, key=self.other, headers=later),
        ]
        assert [r.status_code for r in answers] == [200, 202]
        self.settle()
        job = Job.objects.get(pk=answers[1].json()["batch_id"])
        assert job.status == "complete"
        after = UsageLog.objects.filter(workspace_id=self.other.row.workspace_id).count()
        assert after - before == 2
        assert mine.count() - sent == 3  # two verdicts and a batch
        assert not Parked.objects.exists()


@pytest.fixture(name="neighbours")
def _neighbours(
    gateway: Any, engine: Any, make_key: Any, globex: Any, make_webhook: Any, member: Any,
    robin: Any, settings: Any, acme: Any,
) -> Neighbours:  # fmt: skip
    settings.RATE_LIMIT_ENABLED = False
    events = ["detection.completed", "batch.completed"]
    Workspace.objects.update(rate_limit_per_day=10**9)
    scopes = list(SCOPES)
    limits = {"rate_limit_per_minute": 2 * 10**9, "rate_limit_per_day": 2 * 10**9}
    key = make_key(scopes=scopes, **limits)
    own = make_webhook("/acme", events)
    hook = make_webhook("/globex", events, workspace=globex)
    found = Neighbours(gateway, key, make_key(globex, scopes=scopes, **limits), hook)
    found.robin = member("ROLE_ADMIN", is_superuser=True, is_staff=True, by_hand=True)
    found.staff = found.robin.bearer
    found.ids = {
        "key": str(make_key(name="victim").row.pk),
        "webhook": str(own.pk),
        "delivery": str(webhooks.test(own, "webhook.test").pk),
        "request": log_of(key.row),
        "batch": job_of(key.row, "batch"),
        "async": job_of(key.row, "async"),
        "inbox": inbox.of(acme).token,
    }
    return found


def own_id(path: str, ids: dict[str, str]) -> str:
    """Of the thing that the path is about."""
    for part, name in {
        "/webhooks/deliveries": "delivery", "/webhooks": "webhook", "/v1/requests": "request",
        "/v1/feedback": "request", "/v1/detect/batch": "batch", "/v1/detect/async": "async",
        "/inbox": "inbox",
    }.items():  # fmt: skip
        if path.startswith(part):
            return ids[name]
    return ids["key"]


KNOWN = {"section": "clamav", "scanner": "clamav", "username": "nobody", "code": "not_found"}


GROUPS = {
    "detect": ("/v1/detect", "/v1/guardrails/", "/beta/"),
    "keys and policy": ("/v1/keys", "/v1/policy", "/v1/limits", "/auth/"),
    "log and feedback": (
        "/v1/requests",
        "/v1/engines",
        "/v1/feedback",
        "/v1/audit",
        "/admin/",
        "/health",
    ),
    "webhooks": ("/webhooks", "/inbox"),
    "people of Robin": ("/api/v1/auth", "/api/v1/users", "/api/v1/blocklist"),
    "Robin": ("/api/v1/queue", "/api/v1/storage", "/api/v1/logs", "/api/v1/health"),
    "settings of Robin": ("/api/v1/config", "/api/v1/scanners", "/api/v1/metrics"),
}
EXAMPLES = 12
"""For each operation; all of them together are told to stay in half a minute."""


def of_group(prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(method, path) for method, path in OPERATIONS if path.startswith(prefixes)]


def test_every_operation_is_in_one_group() -> None:
    found = [operation for prefixes in GROUPS.values() for operation in of_group(prefixes)]

    assert sorted(found) == sorted(OPERATIONS)


@st.composite
def asked(draw: Any, operations: list[tuple[str, str]], ids: dict[str, str]) -> Any:
    """(method, path, query, headers, body) of one of these operations."""
    method, path = draw(st.sampled_from(operations))
    own = own_id(path, ids)
    parts = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    names = {part: KNOWN.get(part, own) for part in parts}
    if parts and draw(st.integers(0, 3)) == 0:
        names[draw(st.sampled_from(parts))] = draw(in_an_address)
    query = draw(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys([*query_of(method, path), "cursor"], in_an_address)
        )
    )
    sent = draw(headers) if draw(st.booleans()) else {}
    content = None
    if method in ("POST", "PUT", "PATCH"):
        usual = BODIES.get((method, path))
        body = draw(values if usual is None else mutated(usual))
        content = json.dumps(body).replace('"{id}"', f'"{own}"').encode()
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return method, path.format(**names), text, sent, content


@pytest.mark.parametrize("group", GROUPS)
def test_no_operation_fails_and_the_other_tenant_goes_on(
    neighbours: Neighbours, capfd: Any, group: str
) -> None:
    operations = of_group(GROUPS[group])

    @tried(EXAMPLES * len(operations))
    @given(asked(operations, neighbours.ids))
    def ask(request: Any) -> None:
        r = neighbours.request(*request)
        assert r.status_code < 500 or r.status_code == 501, (r.status_code, r.text[:300])

    ask()
    neighbours.settle()
    neighbours.the_other_goes_on()
    assert "unhandled_exception" not in "".join(capfd.readouterr())


@tried(60)
@given(place=st.sampled_from(PLAIN), query=in_an_address, name=in_an_address)
def test_no_page_of_the_installation_fails(
    neighbours: Neighbours, place: Any, query: str, name: str
) -> None:
    method, path = place
    address = re.sub(r"{[a-z_]+}", lambda _: name, path)
    r = neighbours.gateway.request(method, f"{address}?cursor={query}&q={query}")
    assert r.status_code < 500, r.text[:300]


# -- Pages ----------------------------------------------------------------------------------------


def all_of(kind: type) -> set[type]:
    return {kind}.union(*(all_of(one) for one in kind.__subclasses__()))


def own_forms() -> list[type]:
    import portal.urls  # noqa: F401 - and the admin's, by the resolver

    _ = get_resolver().url_patterns
    return [
        one
        for one in all_of(forms.BaseForm)
        if one.__module__.startswith(OURS) and ".tests" not in one.__module__
    ]


GOODBYE = "app/settings/delete"
"""It would delete the account, and who asks with it."""
FIELDS = sorted({name for one in own_forms() for name in getattr(one, "base_fields", {})})


def pages(patterns: list[Any]) -> list[str]:
    return [
        str(pattern.pattern)
        for pattern in patterns
        if isinstance(pattern, URLPattern) and str(pattern.pattern).startswith("app/")
    ]


PAGES = [page for page in pages(get_resolver().url_patterns[-1].url_patterns) if page != GOODBYE]


def address_of(page: str, ids: dict[str, str]) -> str:
    about = {
        "key_id": "key", "request_id": "request", "job_id": "batch", "webhook_id": "webhook",
        "delivery_id": "delivery",
    }  # fmt: skip
    address = "/" + page
    for name, kind in about.items():
        address = address.replace(f"<uuid:{name}>", ids[kind])
    return address.replace("<int:session_id>", "9" * 30)


def test_no_page_of_the_portal_fails(neighbours: Neighbours, owner: Any, capfd: Any) -> None:
    texts = st.sampled_from([*TIMES, *map(str, NUMBERS[:-7]), *TEXTS]) | st.text(max_size=12)
    names = st.sampled_from(
        [*FIELDS, "cursor", "at", "from", "seen", "range", "threshold", "workspace", "csv"]
    )

    @tried(6 * len(PAGES))
    @given(
        st.sampled_from(PAGES),
        st.dictionaries(names, texts, max_size=6),
        st.sampled_from(["GET", "POST", "FILES"]),
    )
    def ask(page: str, fields: dict[str, str], how: str) -> None:
        address = address_of(page, neighbours.ids)
        fields = {name: cleaned_of_halves(text) for name, text in fields.items()}
        if how == "GET":
            r = owner.get(address + "?" + urlencode(fields))
        elif how == "POST":
            content = urlencode(fields)
            r = owner.post(address, content, content_type="application/x-www-form-urlencoded")
        else:
            r = owner.post(address, fields)
        assert r.status_code < 500, (how, fields)

    owner.raise_request_exception = False
    ask()
    assert "unhandled_exception" not in "".join(capfd.readouterr())


BROKEN_FORMS = [
    ("multipart/form-data", b"ab"),
    ("multipart/form-data; boundary=\xff", b"ab"),
    (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="\0"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n=====\r\n--a--\r\n",
    ),
    (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="x"; filename="y"\r\n\r\n\r\n' * 120
        + b"--a--",
    ),
    ("application/x-www-form-urlencoded", b"a&" * 1500),
    ("application/x-www-form-urlencoded", b"%ff%00=%ed%a0%80&=&=&%"),
    ("text/plain; charset*=x''a", b"a"),
    (";*=", b"a"),
]


def test_no_form_that_cannot_be_read_fails(
    neighbours: Neighbours, gateway: Any, owner: Any, capfd: Any, is_in_turn: Callable[[], bool]
) -> None:
    """Of every page and operation: what comes is not what its Content-Type says."""
    addresses = {address_of(page, neighbours.ids) for page in PAGES}
    addresses |= {re.sub("{[a-z_]+}", "x", path) for _, path in (*PLAIN, *OPERATIONS)}
    addresses |= {"/" + page.replace("{}", "x") for page in SIGN_IN}
    addresses |= {f"/admin/{label.replace('.', '/')}/add/" for label in LISTS}
    cookies = {name: one.value for name, one in owner.cookies.items()}
    cookies["csrftoken"] = "a" * 32  # else the form is not even read
    known = {"Cookie": "; ".join(f"{name}={text}" for name, text in cookies.items())}
    for address in sorted(addresses - {"/" + GOODBYE}):
        of_robin = address.startswith(("/api/v1/", "/admin"))
        for media_type, body in BROKEN_FORMS:
            if not is_in_turn():
                continue
            sent = {**(neighbours.staff if of_robin else known)}
            sent["Content-Type"] = media_type.encode("latin-1")

            r = gateway.request("POST", address, content=body, headers=sent)

            assert r.status_code < 500 or r.status_code == 501, (address, media_type, body, r.text)
    assert "unhandled_exception" not in "".join(capfd.readouterr())


def sealed(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")


SIGNED: dict[str, Any] = {
    "id": "AAAA",
    "rawId": "AAAA",
    "type": "public-key",
    "clientExtensionResults": {},
    "response": {
        "clientDataJSON": sealed(b'{"type":"webauthn.get","challenge":"AAAA","origin":"http://x"}'),
        "authenticatorData": sealed(b"\0" * 37),
        "signature": "AAAA",
        "userHandle": "AAAA",
        "attestationObject": sealed(
            b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x58\x25" + b"\0" * 37
        ),
    },
}
NO_PARTS = [
    *(None, True, 1, [], {}, "x", "=", "\u20ac", "\x00", "A" * 5000),
    *map(sealed, [b"\xff", b"[]", b"{", b'{"type":1}', b"\x81" * 3000, b"\x9f" * 3000, b"\xbf"]),
    *map(sealed, [b"\0" * 36, b"\0" * 32 + b"\xff" * 40, b"\0" * 32 + b"\x40" + b"\x81" * 2000]),
]
NO_CREDENTIALS = ["[" * 60_000, "9" * 5000, "1e999", "null", "[]", '"x"', "{", '{"a":"\\u0000"}']


def test_no_passkey_that_is_none_fails(
    neighbours: Neighbours, gateway: Any, client: Any, owner: Any, capfd: Any
) -> None:
    """The library that takes one apart raises whatever its parsers meet."""
    texts = [*NO_CREDENTIALS, json.dumps(SIGNED)]
    for where in paths_of(SIGNED)[1:]:
        texts += [json.dumps(with_value(SIGNED, where, part)) for part in NO_PARTS]
        parent = SIGNED if len(where) == 1 else SIGNED[where[0]]
        rest = {name: value for name, value in parent.items() if name != where[-1]}
        texts.append(json.dumps(rest if len(where) == 1 else {**SIGNED, where[0]: rest}))
    pages_of = [
        (client, "/accounts/2fa/webauthn/login/"),
        (owner, "/accounts/2fa/webauthn/reauthenticate/"),
        (owner, "/accounts/2fa/webauthn/add/"),
    ]
    for browser, page in pages_of:
        browser.raise_request_exception = False
        browser.get(page)  # it begins what is then to be signed
        for text in texts if browser is client else texts[::5]:
            r = browser.post(page, {"credential": text, "name": "x"})
            assert r.status_code < 500, (page, text[:200])
    assert "unhandled_exception" not in "".join(capfd.readouterr())


SIGN_IN = [
    "accounts/login/", "accounts/signup/", "accounts/password/reset/", "accounts/email/",
    "accounts/confirm-email/{}/", "accounts/password/reset/key/{}-{}/", "accounts/2fa/",
    "accounts/2fa/authenticate/", "accounts/reauthenticate/", "accounts/sessions/",
]  # fmt: skip


@tried(60)
@given(
    st.sampled_from(SIGN_IN),
    in_an_address,
    st.dictionaries(
        st.sampled_from(["login", "password", "password1", "email", "code", "next", "action_add"]),
        st.sampled_from([*TIMES, *TEXTS]) | st.text(max_size=12),
        max_size=6,
    ),
    st.booleans(),
)
def test_no_page_of_the_sign_in_fails(
    gateway: Any, client: Any, page: str, name: str, fields: dict[str, str], is_post: bool
) -> None:
    client.raise_request_exception = False
    address = "/" + page.replace("{}", name)
    fields = {field: cleaned_of_halves(text) for field, text in fields.items()}
    r = client.post(address, fields) if is_post else client.get(address, fields)
    assert r.status_code < 500, (address, fields)


LISTS = sorted(model._meta.label_lower for model in admin.site._registry)


def test_no_page_of_the_admin_fails(neighbours: Neighbours, enter: Any, capfd: Any) -> None:
    root = enter(neighbours.robin.user)
    root.raise_request_exception = False
    texts = st.sampled_from([*TIMES, *map(str, NUMBERS[:-7]), *TEXTS, "gw_live_x", "a@b", "a.b"])
    texts |= st.uuids().map(str) | st.text(max_size=12)
    asked_for = ["q", "p", "o", "all", "e", "since", "until", "range", "state", "outcome", "plan"]
    filled_in = [*FIELDS, "action", "is_sure", "_selected_action", "_save", "index"]
    fields = st.dictionaries(st.sampled_from([*asked_for, *filled_in]), texts, max_size=6)
    actions = st.sampled_from(["", "rerun", "discard", "disable", "resend", "revoke", "suspend"])

    @tried(6 * len(LISTS))
    @given(
        st.sampled_from(LISTS),
        st.sampled_from(["list", "act", "add", "one"]),
        fields,
        actions,
        in_an_address,
    )
    def ask(label: str, what: str, given_fields: dict[str, str], action: str, name: str) -> None:
        values_of = {field: cleaned_of_halves(text) for field, text in given_fields.items()}
        address = f"/admin/{label.replace('.', '/')}/"
        match what:
            case "list":
                r = root.get(address + "?" + urlencode(values_of))
            case "act":
                r = root.post(address, {"action": action, "is_sure": "1", **values_of})
            case "add":
                r = root.post(f"{address}add/", values_of)
            case _:
                r = root.get(f"{address}{name}/change/")
        assert r.status_code < 500, (address, what, values_of)

    ask()
    assert "unhandled_exception" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("chosen", [NUL, "x", "9" * 30, "", "9999-12-31T23:59:59-14:00"])
def test_no_action_of_the_admin_fails_over_what_was_chosen(
    neighbours: Neighbours, enter: Any, chosen: str
) -> None:
    root = enter(neighbours.robin.user)
    root.raise_request_exception = False
    for model, page in admin.site._registry.items():
        address = f"/admin/{model._meta.label_lower.replace('.', '/')}/"
        for name in [*(page.actions or ()), "delete_selected"]:
            action = name if isinstance(name, str) else name.__name__
            sent = {"action": action, "is_sure": "1", "post": "yes", "_selected_action": [chosen]}
            r = root.post(address, sent)
            assert r.status_code < 500, (address, action, chosen)
        for part in ("change", "history", "delete"):
            r = root.get(f"{address}{quote(chosen) or '-'}/{part}/")
            assert r.status_code < 500, (address, part, chosen)


def cleaned_of_halves(text: str) -> str:
    """As browsers send it: they have no half pairs."""
    return text.encode(errors="replace").decode()


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "utf-16", "raw_unicode_escape"])
def test_no_charset_brings_in_what_the_bytes_do_not_hold(
    neighbours: Neighbours, charset: str
) -> None:
    sent = {"Content-Type": f"text/plain; charset={charset}", **neighbours.staff}
    for path in ("/admin/users?search=\\x00", "/admin/users?search=\\ud800"):
        r = neighbours.gateway.get(path, headers=sent)
        assert r.json()["results"] == []


@pytest.mark.parametrize("path", ["/", "/app/", "/admin/", "/accounts/login/", "/v1/keys"])
def test_no_cookie_brings_it_in(gateway: Any, path: str) -> None:
    sent = {"Cookie": settings.SESSION_COOKIE_NAME + r'="abcdefgh\000"'}

    r = gateway.get(path, headers=sent)

    assert (r.status_code, r.json()["code"]) == (422, "validation_error")


OF_OTHERS = ("/beta/", "/v1/guardrails/")
"""Contracts that are not ours: fields that nobody knows are not read."""
REFUSED_AS = {"/v1/guardrails/openguardrails/v1/evaluate": (400, "bad_request")}
"""OpenGuardrails says 400 to what is not valid; all others are 422."""


def refused_as(path: str) -> tuple[int, str]:
    return REFUSED_AS.get(path, (422, "validation_error"))


# -- The rule is one ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "query", "header"])
def test_nul_in_an_address_or_a_header_is_422_everywhere(gateway: Any, where: str) -> None:
    for method, path in [*OPERATIONS, ("GET", "/app/"), ("GET", "/admin/"), ("GET", "/nowhere")]:
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        address = path.format(**dict.fromkeys(names, "x"))
        address = {"path": f"{address}%00", "query": f"{address}?a=%00", "header": address}[where]
        sent = {"User-Agent": b"a\x00"} if where == "header" else {}

        r = gateway.request(method, address, headers=sent)

        assert (r.status_code, r.json()["code"]) == (422, "validation_error"), (method, path)


@pytest.mark.parametrize(
    "what",
    [NUL, HALF, 2**63, float("inf"), nested(NESTING_MAX + 1)],
    ids=["NUL", "half", "integer", "infinite", "deep"],
)
def test_what_no_store_takes_is_422_in_every_field(neighbours: Neighbours, what: Any) -> None:
    for (method, path), usual in BODIES.items():
        if path == "/inbox/{token}":
            continue  # takes any bytes, and mends them
        own = own_id(path, neighbours.ids)
        names = {part[1:-1]: own for part in path.split("/") if part.startswith("{")} | KNOWN
        for where in paths_of(usual):
            body = json.dumps(with_value(usual, where, what)).replace('"{id}"', f'"{own}"')
            r = neighbours.request(method, path.format(**names), "", {}, body.encode())
            if r.status_code in (200, 201, 202):
                # An item that is not fit fails alone; nothing of others' contracts is kept.
                assert path.startswith(("/v1/detect/batch", *OF_OTHERS)), (path, where, r.text)
            else:
                assert r.status_code == refused_as(path)[0], (path, where, r.status_code, r.text)


# -- The ends of every range, in every field -------------------------------------------------------

ENDS: list[Any] = [
    *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00-14:00"),
    *("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59+14:00"),
    *("1969-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01"),
    *(0, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**400, 0.1, 5e-324, 1.8e308),
    *(float("nan"), "", "x" * 70_000, HALF, NUL, None, True, [], {}, nested(NESTING_MAX + 2)),
]
ASKED_FOR = [one for one in ENDS if isinstance(one, str)] + ["1e400", "-0", "9" * 400, "\ufeff1"]
ASKED_BY_PEOPLE = ["0001-01-01T00:00", "9999-12-31T23:59", "0001-01", "9999-12", str(2**63)]
AS_TEXT = ["4000000000", "-1.5", "4e12", " 4e9", "+1", "inf", "nan"]
"""Numbers in a text."""
PLACES = ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00", "9" * 19]
CURSORS = [
    urlsafe_b64encode(text.encode()).decode()
    for place in PLACES
    for text in (
        *(f"{place} 5", f"{place} {2**63}"),  # of the log
        *(f"p={quote(place)}", f"p={quote(place)}&r=1", f"o={place}"),  # of other lists
    )
]
"""As ours, with each end as the place that they name."""


def spelt(value: Any) -> str:
    """JSON, with the numbers that its grammar has and Python's do not."""
    return json.dumps(value).replace("Infinity", "1e999")


def says_where(r: Any, field: str) -> bool:
    """Whether a refusal names the field, or what it lies in, and has words for each."""
    found = r.json()["errors"]
    root = field.partition(".")[0]  # the rule about several fields names them in its words
    return all(error["message"].strip() for error in found) and any(
        f"{field}.".startswith(f"{error['field']}.")
        or field.endswith(f".{error['field']}")  # of a document that the body holds
        or error["field"].startswith(f"{field}.")
        or (not error["field"] and root in error["message"])
        for error in found
    )


def test_the_ends_of_every_range_in_every_field(
    neighbours: Neighbours, is_in_turn: Callable[[], bool]
) -> None:
    tried_places, refused, wrong = 0, 0, []
    for (method, path), usual in BODIES.items():
        if path == "/inbox/{token}":
            continue  # takes any bytes
        own = own_id(path, neighbours.ids)
        names = {part[1:-1]: own for part in path.split("/") if part.startswith("{")} | KNOWN
        address = path.format(**names)
        for where in paths_of(usual)[1:]:
            field = ".".join(map(str, where))
            tried_places += 1
            for value in ENDS:
                if not is_in_turn():
                    continue
                body = spelt(with_value(usual, where, value)).replace('"{id}"', f'"{own}"')
                r = neighbours.request(method, address, "", {}, body.encode())
                report = (method, path, field, str(value)[:40], r.status_code, r.text[:300])
                is_refused = (r.status_code, r.json().get("code")) == refused_as(path)
                refused += is_refused
                if (r.status_code in (400, 500, 502, 503) and not is_refused) or (
                    is_refused and not says_where(r, field)
                ):
                    wrong.append(report)
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert tried_places > 90
    assert refused > 700 / SHARE


def test_the_ends_of_every_range_in_every_address(
    neighbours: Neighbours, is_in_turn: Callable[[], bool]
) -> None:
    wrong = []
    for method, path in OPERATIONS:
        if method not in ("GET", "DELETE"):
            continue
        own = own_id(path, neighbours.ids)
        parts = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        names = {part: KNOWN.get(part, own) for part in parts}
        for text in [*ASKED_FOR, *CURSORS]:
            value = quote(text.encode(errors="surrogatepass")[:3000])
            for name in query_of(method, path):
                if (text in CURSORS and name != "cursor") or not is_in_turn():
                    continue
                r = neighbours.request(method, path.format(**names), f"{name}={value}", {}, None)
                report = (method, path, name, text[:40], r.status_code, r.text[:300])
                is_refused = r.status_code == 422
                if r.status_code in (400, 500) or (is_refused and not says_where(r, name)):
                    wrong.append(report)
            for part in parts:
                if not is_in_turn():
                    continue
                address = path.format(**{**names, part: value or "%20"})
                r = neighbours.request(method, address, "", {}, None)
                if r.status_code in (400, 500):
                    wrong.append((method, path, part, text[:40], r.status_code, r.text[:300]))
    assert not wrong, "\n".join(map(str, wrong[:20]))


ON_EVERY_PAGE = {"workspace", "csv", "_to_field", "_selected_action"}
"""Names of choices, which the pages at random hold often enough."""


def schema_at(method: str, path: str, where: tuple[Any, ...]) -> dict[str, Any]:
    """What the document says of a place in a body; of a choice, all that is not null."""
    operation = DOCUMENT["paths"][path][method.lower()]
    found = next(iter(operation["requestBody"]["content"].values()))["schema"]
    for step in (*where, None):
        while "$ref" in found or "anyOf" in found:
            if "$ref" in found:
                found = DOCUMENT["components"]["schemas"][found["$ref"].rpartition("/")[2]]
            else:
                kinds = [one for one in found["anyOf"] if one.get("type") != "null"]
                found = kinds[0] if len(kinds) == 1 else {}
        if isinstance(step, int):
            found = found.get("items", {})
        elif step is not None:
            found = found.get("properties", {}).get(step, {})
    return found


def test_no_number_is_taken_where_the_document_says_text(neighbours: Neighbours) -> None:
    """Nor is one in a text taken for a time. An item of a batch fails alone, and is left out."""
    texts, times = 0, 0
    for (method, path), usual in BODIES.items():
        if method.lower() not in DOCUMENT["paths"].get(path, {}) or path.startswith(OF_OTHERS):
            continue
        own = own_id(path, neighbours.ids)
        names = {part[1:-1]: own for part in path.split("/") if part.startswith("{")} | KNOWN
        for where in paths_of(usual)[1:]:
            schema = schema_at(method, path, where)
            if schema.get("type") != "string" or where[0] == "requests":
                continue
            is_time = schema.get("format") == "date-time"
            texts, times = texts + 1, times + is_time
            for value in (4_000_000_000, 4e12, True, *(AS_TEXT if is_time else ())):
                body = json.dumps(with_value(usual, where, value)).replace('"{id}"', f'"{own}"')
                r = neighbours.request(method, path.format(**names), "", {}, body.encode())
                report = (method, path, where, value, r.text[:300])
                assert (r.status_code, r.json().get("code")) == refused_as(path), report
    assert texts > 25
    assert times >= 4


def test_no_number_in_an_address_is_taken_for_a_time(neighbours: Neighbours) -> None:
    times = 0
    for method, path in OPERATIONS:
        operation = DOCUMENT["paths"].get(path, {}).get(method.lower(), {})
        address = path.replace("{id}", own_id(path, neighbours.ids))
        for one in operation.get("parameters", ()):
            if one["schema"].get("format") == "date-time":
                times += 1
                for text in AS_TEXT:
                    query = f"{one['name']}={quote(text)}"
                    r = neighbours.request(method, address, query, {}, None)
                    assert r.status_code == 422, (method, path, query, r.text)
    assert times >= 8


@pytest.fixture
def names_read(monkeypatch: Any) -> set[str]:
    """What pages look for in a query."""
    found: set[str] = set()
    for how in ("__getitem__", "_getlist"):
        usual = getattr(QueryDict, how)

        def noted(self: Any, name: str, *more: Any, usual: Any = usual, **named: Any) -> Any:
            found.add(name)
            return usual(self, name, *more, **named)

        monkeypatch.setattr(QueryDict, how, noted)
    return found


def test_the_ends_of_every_range_in_every_query_of_a_page(
    neighbours: Neighbours,
    owner: Any,
    enter: Any,
    names_read: set[str],
    capfd: Any,
    is_in_turn: Callable[[], bool],
) -> None:
    """In each name that the page itself looks for."""
    staff = enter(neighbours.robin.user)
    asked_of = [(owner, address_of(page, neighbours.ids)) for page in PAGES]
    asked_of += [(staff, f"/admin/{label.replace('.', '/')}/") for label in LISTS]
    tried_places = 0
    for browser, address in asked_of:
        browser.raise_request_exception = False
        names_read.clear()
        browser.get(address)
        for name in sorted(names_read - ON_EVERY_PAGE):
            tried_places += 1
            for text in [*ASKED_BY_PEOPLE, *(CURSORS if name == "cursor" else ())]:
                if not is_in_turn():
                    continue
                r = browser.get(address, {name: text})
                assert r.status_code < 500, (address, name, text)
    assert tried_places > 80
    assert "unhandled_exception" not in "".join(capfd.readouterr())


def test_a_name_twice_is_422_in_every_object(neighbours: Neighbours) -> None:
    """Wherever it stands, and however it is spelt."""
    objects = 0
    for (method, path), usual in BODIES.items():
        if path == "/inbox/{token}":
            continue
        own = own_id(path, neighbours.ids)
        names = {part[1:-1]: own for part in path.split("/") if part.startswith("{")} | KNOWN
        for where in paths_of(usual):
            value = usual
            for step in where:
                value = value[step]
            if not isinstance(value, dict) or not value:
                continue
            name, inner = next(iter(value.items()))
            escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
            twice = f'{json.dumps(value)[:-1]}, "{escaped}": {json.dumps(inner)}}}'
            body = json.dumps(with_value(usual, where, "HERE")).replace('"HERE"', twice)
            objects += 1

            r = neighbours.request(
                method, path.format(**names), "", {}, body.replace('"{id}"', f'"{own}"').encode()
            )

            field = ".".join([*map(str, where), name])
            assert (r.status_code, r.json()["code"]) == refused_as(path), (path, body)
            assert [error["field"] for error in r.json()["errors"]] == [field]
    assert objects >= 30


def test_every_body_and_query_is_one_of_the_schemas_that_hold_to_it() -> None:
    for method, path, view in ALL:
        if actions := getattr(view, "actions", None):
            body = view.cls.declared(actions[method.lower()]).body
            assert body is None or issubclass(body, Asked), (method, path)
    for kind in documents.KINDS.values():
        assert issubclass(kind, Asked)


def test_every_form_holds_to_it() -> None:
    found = own_forms()

    assert len(found) > 15
    for one in found:
        assert issubclass(one, Form | ModelForm), one


@pytest.mark.parametrize(
    ("value", "is_fine"),
    [
        (nested(NESTING_MAX), True),
        (nested(NESTING_MAX + 1), False),
        (nested(100_000), False),
        ({"a": {"b": ["x", 1, 1.5, None, True]}}, True),
        (NUL, False),
        ({NUL: 1}, False),
        ([{"a": {HALF: 1}}], False),
        (2**63 - 1, True),
        (-(2**63), True),
        (2**63, False),
        (float("nan"), False),
        ("\U0001f600\ufeff\u202e\uffff", True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_rule(value: Any, is_fine: bool) -> None:
    assert (unstorable(value) is None) is is_fine


@given(st.text(st.characters()))
@tried(200)
def test_what_is_cleaned_is_storable(text: str) -> None:
    assert unstorable(cleaned(text)) is None


@given(values)
@tried(300)
@pytest.mark.django_db
def test_postgresql_takes_what_the_rule_lets_through(value: Any) -> None:
    if unstorable(value) is not None:
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb, %s::text", [json.dumps(value), json.dumps(value)])
