"""The signature debugger: for each way to go wrong, the sentence that names it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest
from standardwebhooks import Webhook as Library

from webhooks import signing
from webhooks.receiving.debugger import Secret, Sent, examine, read_headers

CURRENT, OLD, FOREIGN = (signing.make_secret() for _ in range(3))
SECRETS = [Secret("the current secret", CURRENT), Secret("the old secret", OLD)]
NOW = 1_777_636_800
BODY = b'{"id": "evt-1", "data": {"score": 0.5, "name": "caf\\u00e9"}}'
SENT = Sent("evt-1", BODY, [NOW - 60, NOW])


def headers(secret=CURRENT, event_id="evt-1", at=NOW, body=BODY):
    return signing.headers([secret], event_id, at, body)


def messages(verdict):
    return " ".join(finding.message for finding in verdict.findings)


def test_what_a_library_accepts_is_valid_and_says_with_which_secret():
    for secret, name in ((CURRENT, "the current secret"), (OLD, "the old secret")):
        verdict = examine(headers(secret), BODY, SECRETS, now=NOW)
        assert verdict.is_valid
        assert verdict.matched == name
        assert {finding.tone for finding in verdict.findings} == {"good"}


def test_it_agrees_with_the_library():
    now = int(time.time())
    made = headers(at=now)
    Library(CURRENT).verify(BODY.decode(), made)
    assert examine(made, BODY, SECRETS, now=now).is_valid


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (json.dumps(json.loads(BODY), separators=(",", ":")).encode(), "re-serialised"),
        (json.dumps(json.loads(BODY), ensure_ascii=False).encode(), "re-serialised"),
        (BODY + b"\n", "line break"),
        (BODY.replace(b"0.5", b"0.9"), "data.score is not what we sent"),
        (BODY[:-2], "differs from byte"),
        (b"", "The body is empty"),
    ],
)
def test_a_changed_body_is_named(body, says):
    verdict = examine(headers(), body, SECRETS, now=NOW, sent=SENT)

    assert not verdict.is_valid
    assert verdict.matched == "the current secret"
    assert says in messages(verdict)


def test_a_re_serialised_body_is_recognised_without_our_copy():
    compact = json.dumps(json.loads(BODY), separators=(",", ":")).encode()

    assert "re-serialised" in messages(examine(headers(), compact, SECRETS, now=NOW))


def test_a_changed_id_and_a_changed_time_are_named():
    changed_id = {**headers(), "webhook-id": "evt-2"}
    changed_at = {**headers(), "webhook-timestamp": str(NOW + 5)}

    assert "The id was changed" in messages(examine(changed_id, BODY, SECRETS, now=NOW, sent=SENT))
    assert "timestamp was changed" in messages(
        examine(changed_at, BODY, SECRETS, now=NOW, sent=SENT)
    )


@pytest.mark.parametrize("away", [301, -301, 90_000, 900_000])
def test_an_old_or_early_timestamp_is_named_beside_a_right_signature(away):
    verdict = examine(headers(at=NOW - away), BODY, SECRETS, now=NOW)

    assert verdict.is_valid
    assert "five minutes" in messages(verdict)
    assert "warn" in {finding.tone for finding in verdict.findings}


def test_milliseconds_are_named():
    made = {**headers(), "webhook-timestamp": str(NOW * 1000)}

    verdict = examine(made, BODY, SECRETS, now=NOW)

    assert "milliseconds" in messages(verdict)


@pytest.mark.parametrize(
    "key", [CURRENT, CURRENT.removeprefix("whsec_")], ids=["as we show it", "without its prefix"]
)
def test_a_secret_that_was_not_decoded_is_named(key):
    digest = hmac.digest(key.encode(), b"evt-1.%d." % NOW + BODY, hashlib.sha256)
    made = {**headers(), "webhook-signature": "v1," + base64.b64encode(digest).decode()}

    assert "Wrong encoding of the secret" in messages(examine(made, BODY, SECRETS, now=NOW))


def test_a_signature_over_the_body_alone_is_named():
    digest = hmac.digest(base64.b64decode(CURRENT[6:]), BODY, hashlib.sha256)
    made = {**headers(), "webhook-signature": "v1," + base64.b64encode(digest).decode()}

    assert "body alone" in messages(examine(made, BODY, SECRETS, now=NOW))


def test_another_webhooks_signature_matches_nothing():
    verdict = examine(headers(FOREIGN), BODY, SECRETS, now=NOW, sent=SENT)

    assert not verdict.is_valid
    assert not verdict.matched
    assert "No secret of this webhook" in messages(verdict)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (CURRENT, "is the current secret"),
        (OLD, "is the old secret"),
        (f" {CURRENT}\n", "blanks or quotes"),
        (FOREIGN, "Wrong secret"),
        ("nonsensé", "Wrong secret"),
    ],
    ids=["current", "old", "with blanks", "foreign", "nonsense"],
)
def test_the_receivers_secret_is_compared(given, says):
    assert says in messages(examine(headers(), BODY, SECRETS, now=NOW, receivers_secret=given))


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name):
    verdict = examine({**headers(), name: ""}, BODY, SECRETS, now=NOW)

    assert not verdict.is_valid
    assert name in messages(verdict)


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        ("sha256=abc", "no v1"),
        ("v1,!!", "not base64"),
        ("v1,AAAA", "wrong length"),
        ("v1", "wrong"),
    ],
)
def test_a_malformed_signature_is_named(signature, says):
    made = {**headers(), "webhook-signature": signature}

    assert says in messages(examine(made, BODY, SECRETS, now=NOW))


@pytest.mark.parametrize(
    "text",
    [
        "Webhook-Id: evt-1\nWEBHOOK-TIMESTAMP:  5 \n\nx: y",
        "> webhook-id: evt-1\r\n> webhook-timestamp: 5",
        '{"Webhook-Id": "evt-1", "webhook-timestamp": 5}',
        "HTTP_WEBHOOK_ID: evt-1\nHTTP_WEBHOOK_TIMESTAMP: 5",
        "'webhook-id': 'evt-1',\n'webhook-timestamp': '5',",
    ],
)
def test_headers_are_read_as_people_have_them(text):
    found = read_headers(text)

    assert found["webhook-id"] == "evt-1"
    assert found["webhook-timestamp"] == "5"


@pytest.mark.parametrize("text", ["", "[" * 100_000, "nonsense", ":::", "\x00"])
def test_nonsense_is_no_error(text):
    verdict = examine(read_headers(text), text.encode(), SECRETS, now=NOW, sent=SENT)

    assert not verdict.is_valid
