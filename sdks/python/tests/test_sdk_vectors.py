"""What every client library does alike: ../vectors."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway_guard import AsyncClient, Client, _core, errors, webhooks

from .replay import address, replaying

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
CALLS = json.loads((VECTORS / "calls.json").read_text())
BATCHES = json.loads((VECTORS / "batches.json").read_text())
SIGNATURES = json.loads((VECTORS / "signatures.json").read_text())


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
