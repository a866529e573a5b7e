"""Signatures after Standard Webhooks (https://www.standardwebhooks.com), symmetric `v1`.

`webhook-signature` is `v1,<base64>` of HMAC-SHA256 over `<id>.<timestamp>.<body>`, one for each
secret in force, separated by spaces. `x-signature` is an older form: hexadecimal, over the
body alone, with the newest secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets as random
from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32


def make_secret() -> str:
    return PREFIX + base64.b64encode(random.token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(_hmac(secret, signed).digest()).decode()


def headers(secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Of one delivery at `timestamp` (Unix seconds). `secrets`: the newest first."""
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(s, event_id, timestamp, body) for s in secrets),
        "x-signature": "sha256=" + _hmac(secrets[0], body).hexdigest(),
    }


def _hmac(secret: str, message: bytes) -> hmac.HMAC:
    return hmac.new(base64.b64decode(secret.removeprefix(PREFIX)), message, hashlib.sha256)
