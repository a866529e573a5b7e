"""What every client library does alike: ../vectors."""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from gateway_guard import AsyncClient, Client, _core, errors, webhooks

from .replay import address, replaying

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
CALLS = json.loads((VECTORS / "calls.json").read_text())
BATCHES = json.loads((VECTORS / "batches.json").read_text())
SIGNATURES = json.loads((VECTORS / "signatures.json").read_text())
OPERATIONS = json.loads((VECTORS / "operations.json").read_text())


def detect(base_url, case):
    settings = {name: case[name] for name in ("timeout", "max_retries", "fail_open")}
    with Client("gw_live_x", base_url=base_url, **settings) as client:
        return client.detect("Hello")


def detect_async(base_url, case):
    settings = {name: case[name] for name in ("timeout", "max_retries", "fail_open")}

    async def run():
        async with AsyncClient("gw_live_x", base_url=base_url, **settings) as client:
            return await client.detect("Hello")

    return asyncio.run(run())


@pytest.mark.parametrize("ask", [detect, detect_async], ids=["sync", "async"])
@pytest.mark.parametrize("case", CALLS, ids=lambda case: case["name"])
def test_a_call(case, ask):
    expected = case["expect"]
    with replaying(case["replies"]) as server:
        try:
            found = ask(address(server), case)
        except errors.GatewayError as exc:
            found = exc

    assert len(server.seen) == expected["attempts"]
    keys = {headers.get("Idempotency-Key") for _, headers, _ in server.seen}
    assert len(keys) == 1
    assert None not in keys
    if "waits_at_least" in expected:
        assert server.seen[1][0] - server.seen[0][0] >= expected["waits_at_least"]
    if "error" in expected:
        assert isinstance(found, errors.GatewayError), found
        assert getattr(found, "code", type(found).__name__) == expected["error"]
        if "error_class" in expected:
            assert isinstance(found, getattr(errors, expected["error_class"]))
        assert [e.field for e in getattr(found, "errors", ())] == expected.get("fields", [])
    else:
        assert found.decision == expected["decision"], found
        assert found.failed_open is expected.get("failed_open", False)
        assert found.meta.attempts == expected["attempts"]
        left = {limit.name: limit.remaining for limit in found.meta.rate_limits}
        assert left == expected.get("remaining", left)


def many(base_url, found):
    with Client("gw_live_x", base_url=base_url, max_retries=0, timeout=5) as client:
        for one in client.detect_many(["Hello", "World"]):
            found.append(one.id)


def many_async(base_url, found):
    async def run():
        async with AsyncClient("x", base_url=base_url, max_retries=0, timeout=5) as client:
            async for one in client.detect_many(["Hello", "World"]):
                found.append(one.id)

    asyncio.run(run())


@pytest.mark.parametrize("ask", [many, many_async], ids=["sync", "async"])
@pytest.mark.parametrize("case", BATCHES, ids=lambda case: case["name"])
def test_a_batch(case, ask):
    expected, found, failed = case["expect"], [], None
    with replaying(case["replies"]) as server:
        try:
            ask(address(server), found)
        except errors.GatewayError as exc:
            failed = getattr(exc, "code", type(exc).__name__)

    assert (found, failed) == (expected["ids"], expected.get("error"))
    assert len(server.seen) == expected["calls"]


def test_the_second_thousand_is_waited_for_and_made_once(monkeypatch):
    """The gateway knew the first: it is away, and not elsewhere."""
    monkeypatch.setattr(_core, "ITEMS_MAX", 1)
    error = {"code": "x", "message": "x"}
    one, other = (
        {"status": 200, "body": {"results": [{"id": n, "status": "error", "error": error}]}}
        for n in "01"
    )
    found = []
    with replaying([one, {"drop": True}, {"drop": True}, other]) as server:
        many(address(server), found)

    assert found == ["0", "1"]
    keys = [headers["Idempotency-Key"] for _, headers, _ in server.seen]
    assert len(set(keys)) == 2
    assert len(set(keys[1:])) == 1


@pytest.mark.parametrize("case", SIGNATURES, ids=lambda case: case["name"])
def test_a_signature(case):
    def verify():
        return webhooks.verify(case["body"], case["headers"], case["secrets"], now=case["now"])

    if case["valid"]:
        assert verify() == json.loads(case["body"])
    else:
        with pytest.raises(errors.WebhookVerificationError):
            verify()


def test_every_code_has_a_class_of_its_own_or_says_why_not():
    codes = {case["expect"]["error"] for case in CALLS if "error" in case["expect"]}
    codes -= {"moon_phase", "full"}  # of a later version

    assert {code for code in codes if code[0].islower()} <= set(errors.BY_CODE)


def test_a_mistake_of_the_settings_is_no_absence_of_the_gateway():
    settings = json.loads((VECTORS / "settings.json").read_text())
    for one in settings["addresses"]:
        Client("gw_live_x", base_url=one).close()
    for one in settings["no_addresses"]:
        with pytest.raises(ValueError, match="base_url"):
            Client("gw_live_x", base_url=one)
    for one in settings["no_keys"]:
        with pytest.raises(ValueError, match="API key"):
            Client(one, base_url="http://x")
    for one in settings["no_timeouts"]:
        with pytest.raises(ValueError, match="timeout is in seconds"):
            Client("gw_live_x", base_url="http://x", timeout=float(one))
        with (
            Client("gw_live_x", base_url="http://x", fail_open=True) as client,
            pytest.raises(ValueError, match="timeout is in seconds"),
        ):
            client.detect("x", timeout=float(one))


ID = "01a206fe-78a1-766d-896f-d02e80a236dd"
ASKED = {
    "detect": lambda client, _: client.detect("x"),
    "score": lambda client, _: client.score("x"),
    "batches.create": lambda client, _: client.batches.create(["x"]),
    "batches.create in the background": lambda client, _: client.batches.create(
        ["x"], in_background=True
    ),
    "batches.get": lambda client, one: client.batches.get(one),
    "batches.cancel": lambda client, one: client.batches.cancel(one),
    "batches.results": lambda client, one: client.batches.results(one, timeout=0),
    "submit": lambda client, _: client.submit("x"),
    "submitted": lambda client, one: client.submitted(one),
    "feedback": lambda client, _: client.feedback(ID, "correct"),
    "limits": lambda client, _: client.limits(),
    "profile": lambda client, _: client.profile(),
    "audit": lambda client, _: client.audit(),
    "keys.list": lambda client, _: client.keys.list(),
    "keys.create": lambda client, _: client.keys.create(),
    "keys.get": lambda client, one: client.keys.get(one),
    "keys.update": lambda client, one: client.keys.update(one, name="x"),
    "keys.revoke": lambda client, one: client.keys.revoke(one),
    "keys.rotate": lambda client, _: client.keys.rotate(),
    "policy.get": lambda client, _: client.policy.get(),
    "policy.set": lambda client, _: client.policy.set({}),
    "requests.list": lambda client, _: client.requests.list(),
    "requests.get": lambda client, one: client.requests.get(one),
    "webhooks.list": lambda client, _: client.webhooks.list(),
    "webhooks.create": lambda client, _: client.webhooks.create("https://x.example"),
    "webhooks.get": lambda client, one: client.webhooks.get(one),
    "webhooks.update": lambda client, one: client.webhooks.update(one, is_active=True),
    "webhooks.delete": lambda client, one: client.webhooks.delete(one),
    "webhooks.test": lambda client, one: client.webhooks.test(one),
    "webhooks.rotate_secret": lambda client, one: client.webhooks.rotate_secret(one),
    "webhooks.events": lambda client, _: client.webhooks.events(),
    "webhooks.per_request": lambda client, _: client.webhooks.per_request(),
    "webhooks.deliveries": lambda client, one: client.webhooks.deliveries(one),
    "webhooks.delivery": lambda client, one: client.webhooks.delivery(one),
    "webhooks.resend": lambda client, one: client.webhooks.resend(one),
    "webhooks.recover": lambda client, one: client.webhooks.recover(one, "2026-05-01T12:00:00Z"),
}
NOT_ONE_CALL = {"close", "raw", "detect_many", "batches.wait"}


@contextmanager
def asking(base_url):
    with Client("gw_live_x", base_url=base_url, max_retries=1, timeout=20) as client:

        def ask(name, one=ID):
            found = ASKED[name](client, one)
            return list(found) if inspect.isgenerator(found) else found

        yield ask


@contextmanager
def asking_async(base_url):
    async def done(name, one):
        found = ASKED[name](client, one)
        return [each async for each in found] if inspect.isasyncgen(found) else await found

    with asyncio.Runner() as runner:
        client = AsyncClient("gw_live_x", base_url=base_url, max_retries=1, timeout=20)
        yield lambda name, one=ID: runner.run(done(name, one))
        runner.run(client.aclose())


def applies(answer, operation):
    return {
        "all": True,
        "bodies": "body" in operation,
        "known": not operation.get("is_any_object"),
        "lists": operation.get("is_list", False),
    }[answer["of"]]


def good(operation):
    reply = {"status": operation["status"], "headers": {"content-type": "application/json"}}
    return reply | ({"body": operation["body"]} if "body" in operation else {"text": ""})


BOTH = pytest.mark.parametrize("asking", [asking, asking_async], ids=["sync", "async"])


@BOTH
@pytest.mark.parametrize("operation", OPERATIONS["operations"], ids=lambda one: one["name"])
def test_no_call_takes_another_answer_for_the_gateways(operation, asking):
    line = (operation["method"], operation["path"].format(id=ID))
    with replaying([]) as server, asking(address(server)) as ask:
        for answer in OPERATIONS["answers"]:
            if not applies(answer, operation):
                continue
            bad = json.loads(json.dumps(answer["reply"]).replace("{path}", line[1]))
            server.replies[:], server.lines[:] = [bad], []
            with pytest.raises(errors.GatewayError) as caught:
                ask(operation["name"])
            assert type(caught.value).__name__ == answer["error"], answer["name"]
            assert server.lines == [line] * (1 + answer["repeated"]), answer["name"]
            if answer["repeated"]:
                server.replies[:] = [bad, good(operation)]
                server.seen.clear()
                ask(operation["name"])
                assert len(server.seen) == 2, answer["name"]


@BOTH
@pytest.mark.parametrize(
    "operation",
    [one for one in OPERATIONS["operations"] if "{id}" in one["path"]],
    ids=lambda one: one["name"],
)
def test_an_id_stays_one_part_of_the_path(operation, asking):
    before, after = operation["path"].split("{id}")
    with replaying([good(operation)]) as server, asking(address(server)) as ask:
        for one in OPERATIONS["ids"]:
            ask(operation["name"], one)
        for one in OPERATIONS["no_ids"]:
            with pytest.raises(ValueError, match="is an id in it empty"):
                ask(operation["name"], one)

    sent = [path.removeprefix(before).removesuffix(after) for _, path in server.lines]
    assert not any({*"/?#"} & {*part} for part in sent)
    assert [unquote(part) for part in sent] == OPERATIONS["ids"]


def test_each_call_is_among_them():
    with Client("gw_live_x", base_url="http://gateway.example") as client:
        parts = {"": client} | {
            f"{name}.": part for name, part in vars(client).items() if not name.startswith("_")
        }
        calls = {
            before + name
            for before, part in parts.items()
            for name, _ in inspect.getmembers(part, inspect.ismethod)
            if not name.startswith("_")
        }

    assert {*ASKED} == {one["name"] for one in OPERATIONS["operations"]}
    assert calls - NOT_ONE_CALL <= {*ASKED}
