"""Verifying what the gateway sends (Standard Webhooks: https://www.standardwebhooks.com).

event = webhooks.verify(request_body, request_headers, "whsec_…")
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from gateway_guard.errors import WebhookVerificationError

TOLERANCE_SECONDS = 300
PREFIX = "whsec_"


def verify(
    body: Union[bytes, str],
    headers: Mapping[str, str],
    secrets: Union[str, Sequence[str]],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: Optional[float] = None,
) -> dict[str, Any]:
    """The event, if it is from the gateway, unchanged and recent.

    `body`: exactly the bytes that came, before anything parsed them. `headers`: of any
    framework. `secrets`: one, or during a rotation all that are valid. `now`: Unix seconds.
    Raises `WebhookVerificationError`.
    """
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    known = {str(name).lower(): str(value) for name, value in headers.items()}
    event_id = _header(known, "webhook-id")
    timestamp = _header(known, "webhook-timestamp")
    signatures = _header(known, "webhook-signature")
    if not re.fullmatch("[0-9]{1,15}", timestamp):
        raise WebhookVerificationError("webhook-timestamp is not a number of seconds.")
    age = (time.time() if now is None else now) - int(timestamp)
    if abs(age) > tolerance_seconds:
        when = "ago" if age > 0 else "ahead"
        raise WebhookVerificationError(
            f"Signed {abs(age):.0f} s {when}: a replay, or the clock of this machine is wrong."
        )
    signed = f"{event_id}.{timestamp}.".encode() + raw
    given = [one[3:] for one in signatures.split() if one.startswith("v1,")]
    expected = [
        base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
        for secret in ([secrets] if isinstance(secrets, str) else secrets)
    ]
    # All are compared: how long this takes says nothing.
    matches = [
        hmac.compare_digest(one.encode(), other.encode()) for one in expected for other in given
    ]
    if not any(matches):
        raise WebhookVerificationError(
            "No signature fits: another secret, or the body was changed on its way. Verify the "
            "bytes as they came, before anything parses them."
        )
    try:
        event = json.loads(raw)
    except ValueError as exc:
        raise WebhookVerificationError("Signed, but the body is not JSON.") from exc
    if not isinstance(event, dict):
        raise WebhookVerificationError("Signed, but the body is not an event.")
    return event


def _header(headers: Mapping[str, str], name: str) -> str:
    # WSGI and CGI call them HTTP_WEBHOOK_ID.
    value = headers.get(name) or headers.get("http_" + name.replace("-", "_"))
    if not value:
        raise WebhookVerificationError(f"The header {name} is missing.")
    return value


def _key(secret: str) -> bytes:
    text = secret[len(PREFIX) :] if secret.startswith(PREFIX) else secret
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise WebhookVerificationError("A secret begins with whsec_ and is base64.") from exc
    if not key:
        raise WebhookVerificationError("The secret is empty.")
    return key
