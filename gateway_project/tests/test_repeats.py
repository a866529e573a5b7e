"""`Idempotency-Key` on everything that makes or changes something: all of the URL conf."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.conf import settings

from accounts import idempotency, retention, services
from accounts.models import ApiKey, IdempotencyRecord, UsageLog, User
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.models import Job
from detection.tests.test_batch import items, remaining
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.core import clock
from gateway_project.core.ratelimit import ONCE, SCRIPT, denials
from gateway_project.core.stores import redis
from gateway_project.tests.test_permissions import BODIES, TABLE, target, victim  # noqa: F401
from gateway_project.tests.test_robin_permissions import TABLE as ROBIN
from webhooks.models import WebhookSecret

ONE_KEY = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
KEYED = sorted(
    (method, path)
    for method, path in TABLE
    if method in idempotency.METHODS and not path.startswith(("/inbox", "/admin"))
)
SCOPES = ["detect", "batch", "keys:write", "webhooks", "usage:read"]
NOT_DONE_TWICE = {("DELETE", "/auth/revoke?key_id={id}"), ("DELETE", "/auth/revoke")}


@pytest.fixture(autouse=True)
def nobody_is_remembered():
    denials.clear()


@pytest.fixture
def caller(make_key):
    return make_key(scopes=SCOPES)


def asked(method, path, target_id):
    body = BODIES.get((method, path))
    if path == "/auth/register":
        body = {"email": "new@initech.example", "password": "correct horse battery"}
    if path == "/webhooks/test":
        body = {"webhook_id": target_id}
    if path == "/v1/feedback":
        body = {"request_id": target_id, "verdict": "correct"}
    names = dict.fromkeys(("id", "api_key_id", "request_id"), target_id)
    return path.format(**names), {} if body is None else {"json": body}


def again(gateway, key, method, url, more, once=ONE_KEY):
    return gateway.request(method, url, key=key, headers={"Idempotency-Key": once}, **more)


def test_there_are_as_many_as_there_are():
    assert len(KEYED) == 27


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_a_repeat_is_given_the_first_answer(gateway, engine, caller, target, method, path):  # noqa: F811
    url, more = asked(method, path, target)
    key = None if path == "/auth/register" else caller
    first = again(gateway, key, method, url, more)
    second = again(gateway, key, method, url, more)

    assert first.status_code < 300, first.text
    assert "idempotency-replayed" not in first.headers
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotency-replayed"] == "true"
    for name in ("location", "etag", "cache-control", "content-type"):
        assert second.headers.get(name) == first.headers.get(name)


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in KEYED if not p.startswith("/auth/re")]
)
def test_a_repeat_takes_nothing_of_the_day(
    gateway, engine, caller, target, settings, method, path  # noqa: F811
):  # fmt: skip
    settings.IDEMPOTENCY_PER_DAY = 1
    url, more = asked(method, path, target)
    first, second = (again(gateway, caller, method, url, more) for _ in range(2))
    new = again(gateway, caller, method, url, more, once="another-" + ONE_KEY)

    assert first.status_code < 300, first.text
    assert (second.status_code, second.content) == (first.status_code, first.content)
    is_litellm = path.startswith("/beta/")  # for its own fallback
    denied = (503, "guardrail_unavailable") if is_litellm else (429, "quota_exceeded")
    assert refusal(new) == denied


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in KEYED if m != "DELETE" and "resend" not in p]
)
def test_another_request_under_the_same_key_is_refused(
    gateway, engine, caller, target, method, path  # noqa: F811
):  # fmt: skip
    url, more = asked(method, path, target)
    key = None if path == "/auth/register" else caller
    assert again(gateway, key, method, url, more).status_code < 300
    changed = json.dumps(more["json"]) + " "
    if path == "/auth/register":
        changed = json.dumps({**more["json"], "name": "Other"})
    other = {"content": changed, "headers": {"Content-Type": "application/json"}}
    other["headers"]["Idempotency-Key"] = ONE_KEY

    r = gateway.request(method, url, key=key, **other)

    assert refusal(r) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_the_document_says_so(method, path):
    document = json.loads((settings.BASE_DIR / "docs/openapi.json").read_text())
    operation = document["paths"][path.partition("?")[0]][method.lower()]

    assert "Idempotency-Key" in {one["name"] for one in operation["parameters"]}
    assert {"409", "422"} <= set(operation["responses"])


# -- Secrets -------------------------------------------------------------------------------------


SECRETS = [
    ("POST", "/v1/keys"),
    ("POST", "/auth/rotate-key"),
    ("POST", "/auth/register"),
    ("POST", "/webhooks/register"),
    ("POST", "/webhooks/{id}/rotate-secret"),
]


@pytest.mark.parametrize(("method", "path"), SECRETS)
def test_a_secret_is_kept_encrypted_for_an_hour(
    gateway, caller, target, method, path, time_machine  # noqa: F811
):  # fmt: skip
    url, more = asked(method, path, target)
    key = None if path == "/auth/register" else caller
    first = again(gateway, key, method, url, more)
    secret = next(
        word
        for word in first.text.replace('"', " ").split()
        if word.startswith(("gw_live_", "whsec_"))
    )
    record = IdempotencyRecord.objects.get()

    assert record.holds_secret
    assert secret not in record.body
    assert first.headers["cache-control"] == "no-store, no-transform"
    IdempotencyRecord.objects.update(created_at=clock.now() - timedelta(minutes=61))
    assert refusal(again(gateway, key, method, url, more)) == (409, "idempotency_expired")
    retention.prune()
    record.refresh_from_db()
    assert record.body == ""
    assert refusal(again(gateway, key, method, url, more)) == (409, "idempotency_expired")


@pytest.mark.parametrize("grace", [0, 60])
def test_a_lost_answer_of_rotating_locks_nobody_out(gateway, engine, make_key, grace):
    key = make_key()
    more = {"json": {"grace_seconds": grace}}
    lost = again(gateway, key, "POST", "/auth/rotate-key", more)

    found = again(gateway, key, "POST", "/auth/rotate-key", more)

    assert found.json() == lost.json()
    assert gateway.detect(HARMLESS, key=found.json()["api_key"]["key"]).status_code == 200
    assert ApiKey.objects.count() == 2


@pytest.mark.parametrize(
    ("made", "once", "url"),
    [
        ("rotate-1", "rotate-1", "/auth/rotate-key"),
        ("0" * 40, "0" * 40, "/auth/rotate-key"),
        (ONE_KEY, ONE_KEY.replace("6", "7"), "/auth/rotate-key"),
        (ONE_KEY, ONE_KEY, "/v1/keys"),
        (ONE_KEY, None, "/auth/rotate-key"),
    ],
    ids=["short", "one character", "another", "another call", "none"],
)
def test_who_found_an_ended_key_gets_nothing_by_it(gateway, make_key, made, once, url):
    key = make_key(scopes=SCOPES)
    more = {"json": {"grace_seconds": 0}}
    assert again(gateway, key, "POST", "/auth/rotate-key", more, once=made).status_code == 201

    headers = {} if once is None else {"Idempotency-Key": once}
    r = gateway.request("POST", url, key=key, headers=headers, **more)

    assert refusal(r) in {(401, "invalid_api_key"), (422, "idempotency_mismatch")}
    assert "gw_live_" not in r.text


def test_another_key_of_the_workspace_is_not_given_the_secret(gateway, make_key):
    one, other = make_key(), make_key()
    body = {"json": {}}
    first = again(gateway, one, "POST", "/auth/rotate-key", body)

    r = again(gateway, other, "POST", "/auth/rotate-key", body)

    assert first.status_code == 201
    assert refusal(r) == (422, "idempotency_mismatch")


def test_a_registration_is_repeated_only_with_the_password(gateway):
    body = {"email": "new@initech.example", "password": "correct horse battery"}
    first = again(gateway, None, "POST", "/auth/register", {"json": body})

    other = {"json": {**body, "password": "another horse battery"}}
    wrong = again(gateway, None, "POST", "/auth/register", other)
    plain = gateway.post("/auth/register", body)

    assert first.status_code == 201
    assert refusal(wrong) == refusal(plain) == (409, "email_taken")
    assert User.objects.count() == 1
    assert body["password"] not in str(IdempotencyRecord.objects.values())


def test_what_the_version_before_remembered_is_known(gateway, caller, make_webhook, settings):
    body = {"json": {"webhook_id": str(make_webhook().pk)}}
    first = again(gateway, caller, "POST", "/webhooks/test", body)
    content = first.request.content.decode()
    before = settings.KEY_PEPPERS.digest(f"POST /webhooks/test\n{content}")
    IdempotencyRecord.objects.update(fingerprint=before)

    r = again(gateway, caller, "POST", "/webhooks/test", body)

    assert r.json() == first.json()
    assert r.headers["idempotency-replayed"] == "true"


def test_secrets_are_rotated_once(gateway, caller, make_webhook):
    webhook = make_webhook()
    url = f"/webhooks/{webhook.pk}/rotate-secret"
    for _ in range(3):
        again(gateway, caller, "POST", url, {"json": {}})

    assert WebhookSecret.objects.filter(webhook=webhook).count() == 2


# -- Once, however many come at once --------------------------------------------------------------


def spent(before, after):
    return {name: before[name] - after[name] for name in ("minute", "day", "workspace_day")}


CALLS = {
    "a verdict": ("/v1/detect", {"text": ATTACK}, 1),
    "with an address": ("/v1/detect", {"text": ATTACK, "webhook_url": "https://198.41.0.4/x"}, 1),
    "a batch": ("/v1/detect/batch", {"requests": items(HARMLESS, ATTACK, HARMLESS)}, 3),
    "later": ("/v1/detect/async", {"text": ATTACK, "webhook_url": "https://198.41.0.4/x"}, 1),
}
CALLS["a batch for later"] = (*CALLS["a batch"][:1], {**CALLS["a batch"][1]}, 3)


@pytest.mark.parametrize("name", CALLS)
def test_many_at_once_pay_once(gateway, engine, caller, name):
    url, body, day = CALLS[name]
    headers = {"X-API-Key": caller, "Idempotency-Key": ONE_KEY}
    if name == "a batch for later":
        headers["Prefer"] = "respond-async"
    engine.is_slow(0.2)
    before = remaining(gateway, caller)

    answers = gateway.at_once(
        [{"method": "POST", "url": url, "json": body, "headers": headers}] * 8
    )

    ok = [r for r in answers if r.status_code < 300]
    others = [r for r in answers if r.status_code >= 300]
    assert ok
    assert {r.content for r in ok} == {ok[0].content}
    assert {refusal(r) for r in others} <= {(409, "idempotency_in_progress")}
    taken = spent(before, remaining(gateway, caller))
    assert taken["day"] == taken["workspace_day"] == day
    r = gateway.request("POST", url, json=body, headers=headers)
    assert r.content == ok[0].content
    assert spent(before, remaining(gateway, caller))["day"] == day
    assert Job.objects.count() == (name in ("later", "a batch for later"))


def test_a_repeated_verdict_is_judged_and_logged_once(gateway, engine, caller):
    more = {"json": {"text": ATTACK, "metadata": {"order": 7}}}
    first = again(gateway, caller, "POST", "/v1/detect", more)
    asked_before = len(engine.asked)
    again(gateway, caller, "POST", "/v1/detect", more)

    assert first.json()["metadata"] == {"order": 7}
    assert len(engine.asked) == asked_before
    gateway.flush_usage()
    assert UsageLog.objects.count() == 1


def test_a_refusal_is_not_remembered(gateway, engine, caller):
    body = {"text": HARMLESS, "config": {"on_unavailable": "fail_closed"}}
    engine.is_down()
    refused = again(gateway, caller, "POST", "/v1/detect", {"json": body})
    engine.is_well()

    r = again(gateway, caller, "POST", "/v1/detect", {"json": body})

    assert refusal(refused) == (503, "detection_unavailable")
    assert r.status_code == 200
    assert "idempotency-replayed" not in r.headers


def test_a_refused_limit_claims_nothing(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect(HARMLESS, key=key)
    more = {"json": {"text": HARMLESS}}
    assert refusal(again(gateway, key, "POST", "/v1/detect", more)) == (429, "rate_limited")
    key.row.rate_limit_per_minute = 5
    services.update_key(key.row, {"rate_limit_per_minute": 5}, actor=Actor("test"))

    assert again(gateway, key, "POST", "/v1/detect", more).status_code == 200


def test_another_workspace_has_keys_of_its_own(gateway, engine, caller, globex_key):
    more = {"json": {"text": HARMLESS}}
    first = again(gateway, caller, "POST", "/v1/detect", more)
    other = again(gateway, globex_key, "POST", "/v1/detect", more)

    assert "idempotency-replayed" not in other.headers
    assert first.json()["request_id"] != other.json()["request_id"]


def test_two_at_once_make_one_key(gateway, caller):
    answers = []

    def make():
        answers.append(again(gateway, caller, "POST", "/v1/keys", {"json": {"name": "one"}}))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ApiKey.objects.filter(name="one").count() == 1
    assert {r.status_code for r in answers} <= {201, 409}


@pytest.mark.needs_redis
def test_it_costs_one_trip_and_without_the_header_nothing(gateway, engine, caller, counted):
    pipe = redis.connection()
    gateway.detect(HARMLESS, key=caller)
    more = {"json": {"text": HARMLESS}}
    again(gateway, caller, "POST", "/v1/detect", more, once="warm")  # the script is loaded
    counted.sql = counted.hops = 0
    sent = []
    submit = pipe.submit
    pipe.submit = lambda packed: sent.append(packed) or submit(packed)
    try:
        gateway.detect(HARMLESS, key=caller)
        plain = len(sent)
        before = pipe.round_trips
        repeated = again(gateway, caller, "POST", "/v1/detect", more, once="warm")
        trips = pipe.round_trips - before
    finally:
        pipe.submit = submit

    assert plain == 2  # the limits and the score, together
    assert repeated.headers["idempotency-replayed"] == "true"
    assert trips == 1
    assert (counted.sql, counted.hops) == (0, 0)


@pytest.mark.needs_redis
def test_what_lies_in_redis_is_encrypted_and_ends(gateway, engine, caller):
    again(
        gateway, caller, "POST", "/v1/detect", {"json": {"text": ATTACK, "metadata": {"who": "x"}}}
    )
    client = redis.client()
    gateway.get("/v1/limits", key=caller)  # behind what nobody waits for
    (key,) = client.scan_iter("once:*")

    assert b"metadata" not in client.get(key)
    assert 3500 < client.ttl(key) <= 3600
    assert ONE_KEY.encode() not in key


def test_an_answer_that_is_too_large_for_what_is_left_is_not_kept(
    gateway, engine, caller, monkeypatch
):
    monkeypatch.setattr(idempotency, "ANSWER_BYTES_PER_HOUR", 100)
    more = {"json": {"text": HARMLESS}}
    for _ in range(2):
        r = again(gateway, caller, "POST", "/v1/detect", more)
        assert r.status_code == 200
        assert "idempotency-replayed" not in r.headers


def test_the_second_script_is_the_first_with_a_claim():
    assert ONCE.count("#KEYS - 1") == SCRIPT.count("#KEYS") == 2
    assert "cost = 0" in ONCE
    assert "return {out, before}" in ONCE


# -- People of Robin ------------------------------------------------------------------------------


OF_ROBIN = {(m, path) for m, path in ROBIN if m in idempotency.METHODS}
NOT_REMEMBERED = {
    # A cookie or a ticket is good once, and has a rule of its own about repeats.
    *(("POST", f"/api/v1/auth/{name}") for name in ("login", "refresh", "logout", "ws-ticket")),
    # They change nothing.
    ("POST", "/api/v1/scanners/{scanner}/test"),
    *(("POST", f"/api/v1/queue/{name}") for name in ("pause", "resume")),
    *(("POST", f"/api/v1/queue/{{uid}}/{name}") for name in ("pause", "resume")),
    ("DELETE", "/api/v1/logs"),
    # A file, of which each entry is added once whatever comes.
    ("POST", "/api/v1/blocklist/import"),
}


@pytest.mark.parametrize(("method", "path"), sorted(OF_ROBIN - NOT_REMEMBERED))
def test_the_document_says_so_of_robin(method, path):
    document = json.loads((settings.BASE_DIR / "docs/openapi.json").read_text())
    operation = document["paths"][path][method.lower()]

    assert "Idempotency-Key" in {one["name"] for one in operation["parameters"]}
    assert {"409", "422"} <= set(operation["responses"])


ENTRY = {"type": "DOMAIN", "value": "spam.example", "reason": "x"}
NEW_USER = {
    "username": "eve", "email": "eve@robin.example", "password": "a good long password",
    "roles": ["ROLE_READONLY"],
}  # fmt: skip
ITEM = "/api/v1/queue/{uid}"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/users", NEW_USER),
        ("PUT", "/api/v1/users/{username}", {"isActive": False}),
        ("DELETE", "/api/v1/users/{username}", None),
        ("POST", "/api/v1/blocklist", ENTRY),
        ("PATCH", "/api/v1/blocklist/{id}", {"reason": "y"}),
        ("DELETE", "/api/v1/blocklist/{id}", None),
        ("POST", f"{ITEM}/retry", {}),
        ("POST", f"{ITEM}/bounce", {}),
        ("DELETE", ITEM, None),
        ("POST", "/api/v1/queue/actions", {"action": "delete", "uids": ["{uid}"]}),
        ("POST", "/api/v1/config/reload", {}),
        ("PUT", "/api/v1/config/{section}", {"enabled": True}),
    ],
)
def test_a_repeat_of_a_person_is_given_the_first_answer(
    gateway, robin, member, settings, method, path, body
):
    """And takes nothing of the day."""
    ada = member("ROLE_ADMIN", is_superuser=True, by_hand=True)
    other = member("ROLE_READONLY", signed_in=False)
    entry = ada.post("/api/v1/blocklist", {**ENTRY, "value": "first.example"}).json()["id"]
    uid = robin.seed.queue.select(["READY"])[3].uid
    names = {"username": other.user.username, "id": entry, "uid": uid, "section": "clamav"}
    text = json.dumps(body).replace("{uid}", uid)
    more = {} if body is None else {"content": text}
    headers = {"Idempotency-Key": ONE_KEY, "Content-Type": "application/json"}
    robin.client.asked.clear()
    settings.IDEMPOTENCY_PER_DAY = 1

    first, second, new = (
        ada.request(method, path.format(**names), headers={**headers, **key}, **more)
        for key in ({}, {}, {"Idempotency-Key": "another-" + ONE_KEY})
    )

    assert first.status_code < 300, first.text
    assert "idempotency-replayed" not in first.headers
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotency-replayed"] == "true"
    assert refusal(new) == (429, "quota_exceeded")
    acts = [asked for asked, _ in robin.client.asked if asked != "GET"]
    assert len(acts) <= 1


def test_a_person_under_the_key_of_another_does_what_they_asked(gateway, robin, member):
    body = {"json": ENTRY, "headers": {"Idempotency-Key": ONE_KEY}}
    ada, eve = (member("ROLE_ADMIN", by_hand=True) for _ in range(2))
    answers = [one.request("POST", "/api/v1/blocklist", **body) for one in (ada, eve)]

    assert [r.status_code for r in answers] == [201, 409]
    assert answers[1].json()["code"] == "conflict"


def test_a_refusal_of_a_person_is_not_remembered(gateway, robin, member):
    ada = member("ROLE_ADMIN", by_hand=True)
    headers = {"Idempotency-Key": ONE_KEY}
    wrong = ada.request("POST", "/api/v1/blocklist", json={**ENTRY, "reason": ""}, headers=headers)
    right = ada.request("POST", "/api/v1/blocklist", json=ENTRY, headers=headers)
    another = {**ENTRY, "value": "b.example"}
    mixed = ada.request("POST", "/api/v1/blocklist", json=another, headers=headers)

    assert [wrong.status_code, right.status_code] == [422, 201]
    assert refusal(mixed) == (422, "idempotency_mismatch")


def test_looking_is_never_a_repeat(gateway, robin, member):
    ada = member("ROLE_ADMIN", by_hand=True)
    answers = [
        ada.get(path, headers={"Idempotency-Key": ONE_KEY})
        for path in ("/api/v1/queue", "/api/v1/logs/export", "/api/v1/blocklist")
        for _ in range(2)
    ]

    assert {r.status_code for r in answers} == {200}
    assert not any("idempotency-replayed" in r.headers for r in answers)


@pytest.mark.parametrize(("method", "path"), sorted(OF_ROBIN & NOT_REMEMBERED))
def test_what_does_not_say_so_knows_no_repeats(gateway, robin, member, settings, method, path):
    """Otherwise it would refuse by problems that its operation does not declare."""
    settings.IDEMPOTENCY_PER_DAY = 1
    ada = member("ROLE_ADMIN", by_hand=True)
    url = path.replace("{uid}", robin.seed.queue.select(["READY"])[3].uid)
    url = url.replace("{scanner}", "rspamd")
    headers = {"Idempotency-Key": ONE_KEY, "Content-Type": "application/json"}
    answers = [
        ada.request(method, url, headers=headers, content=body) for body in ("{}", '{"a": 1}')
    ]

    document = json.loads((settings.BASE_DIR / "docs/openapi.json").read_text())
    declared = document["paths"][path][method.lower()]["responses"]
    for r in answers:
        assert str(r.status_code) in declared
        assert r.status_code not in (409, 429), r.text
        assert "idempotency_" not in r.text
        assert "idempotency-replayed" not in r.headers
