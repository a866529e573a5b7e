"""Signatures after Standard Webhooks (https://www.standardwebhooks.com), by its own library.

`webhook-signature` holds one symmetric `v1` signature for each secret in force, separated by
spaces. `x-signature` is an older form, which the library does not know: hexadecimal
HMAC-SHA256 over the body alone, with the newest secret.
"""

from __future__ import annotations

import base64
import hmac
import secrets as random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook, WebhookVerificationError

PREFIX = "whsec_"
SECRET_BYTES = 32


def make_secret() -> str:
    return PREFIX + base64.b64encode(random.token_bytes(SECRET_BYTES)).decode()


def headers(secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Of one delivery at `timestamp` (Unix seconds). `secrets`: the newest first."""
    at, text = datetime.fromtimestamp(timestamp, UTC), body.decode()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(Webhook(s).sign(event_id, at, text) for s in secrets),
        "x-signature": "sha256=" + hmac.new(key(secrets[0]), body, "sha256").hexdigest(),
    }


def is_accepted(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """What a receiver's library says of it now. `headers`: lower-case names."""
    try:
        Webhook(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError):  # the latter: no text, or no signature at all
        return False
    return True


def key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX))
