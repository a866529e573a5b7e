"""Signatures, held against a published example and against an HMAC made by hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest

from webhooks import signing

BODY = '{"naïve": "☃"}'.encode()


def by_hand(secret: str, content: bytes) -> hmac.HMAC:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return hmac.new(key, content, hashlib.sha256)


def test_the_published_example():
    sent = signing.headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )

    assert sent["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert sent["webhook-timestamp"] == "1614265330"
    assert sent["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_in_force_sign_beside_each_other_and_the_newest_the_older_form():
    new, old = signing.make_secret(), signing.make_secret()

    sent = signing.headers([new, old], "evt_1", 1_700_000_000, BODY)

    content = b"evt_1.1700000000." + BODY
    assert sent["webhook-signature"].split(" ") == [
        "v1," + base64.b64encode(by_hand(secret, content).digest()).decode()
        for secret in (new, old)
    ]
    assert sent["x-signature"] == "sha256=" + by_hand(new, BODY).hexdigest()


class TestAccepted:
    def test_either_secret_of_an_overlap(self):
        new, old, foreign = (signing.make_secret() for _ in range(3))
        sent = signing.headers([new, old], "evt_1", int(time.time()), BODY)

        accepted = [signing.is_accepted(s, sent, BODY) for s in (new, old, foreign)]

        assert accepted == [True, True, False]

    @pytest.mark.parametrize(
        ("changed", "body"),
        [
            ({}, BODY + b" "),
            ({}, b"\xff\xfe"),
            ({"webhook-id": "evt_2"}, BODY),
            ({"webhook-timestamp": "1700000000"}, BODY),
            ({"webhook-signature": "v1"}, BODY),
            ({"webhook-signature": "v1,no base64"}, BODY),
            ({"webhook-signature": ""}, BODY),
        ],
        ids=["body", "no text", "id", "time", "half a signature", "no base64", "none"],
    )
    def test_nothing_else_is(self, changed, body):
        secret = signing.make_secret()
        sent = signing.headers([secret], "evt_1", int(time.time()), BODY)
        assert signing.is_accepted(secret, sent, BODY)

        assert not signing.is_accepted(secret, sent | changed, body)
