"""Why a signature does not verify: what was received, held against all that we know. Pure.

`examine` first has Standard Webhooks' library say what it says at a receiver. When that accepts
none, one thing at a time is changed (the clock, secret, its encoding, id, time, body, what was
signed) until the signature does match: that one thing is what went wrong on the way.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from webhooks import signing
from webhooks.signing import PREFIX

TOLERANCE_SECONDS = 300
"""Standard Webhooks' libraries refuse what is further from their clock."""
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
NEEDED = (ID, TIMESTAMP, SIGNATURE)
NAMES_SHOWN = 5
RE_SERIALISED = (
    "The body was re-serialised: the same JSON in other bytes. Verify the raw body, before it is "
    "parsed."
)
Tone = Literal["good", "warn", "bad"]


class Secret(NamedTuple):
    """One of the webhook's; `label` goes into a sentence: "the current secret"."""

    label: str
    text: str


class Sent(NamedTuple):
    """What we sent under an id: its bytes, and the Unix seconds of each attempt."""

    event_id: str
    body: bytes
    timestamps: Sequence[int]


class Finding(NamedTuple):
    tone: Tone
    message: str


@dataclass(slots=True)
class Verdict:
    """`is_valid`: a signature fits, whatever the clock says. `findings`: the gravest first."""

    is_valid: bool = False
    matched: str = ""
    findings: list[Finding] = field(default_factory=list)

    def add(self, tone: Tone, message: str) -> None:
        self.findings.append(Finding(tone, message))


class _Content(NamedTuple):
    """Bytes that may have been signed, and what it means if they were."""

    signed: bytes
    meaning: str


def read_headers(text: str) -> dict[str, str]:
    """`{lower-case name: value}` of pasted headers: lines, curl's `> ` lines, JSON, or WSGI's."""
    found: dict[str, str] = {}
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict):
        pairs = [(str(name), str(value)) for name, value in whole.items()]
    else:
        lines = (line.strip().lstrip("<>").strip() for line in text.splitlines())
        pairs = [(name, value) for name, _, value in (line.partition(":") for line in lines)]
    for name, value in pairs:
        name = name.strip().strip("\"'").lower().replace("_", "-").removeprefix("http-")
        value = value.strip().rstrip(",").strip("\"'")
        if name and value:
            found[name] = value
    return found


def id_in(body: bytes) -> str:
    """The id that a body names, which is the one it was sent under."""
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return str(whole.get("id", "")) if isinstance(whole, dict) else ""


def examine(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[Secret],
    *,
    now: int,
    sent: Sent | None = None,
    receivers_secret: str = "",
) -> Verdict:
    """Check what a receiver got, and say what differs.

    `headers`: lower-case names. `sent`: what we know under that id. `receivers_secret`: what the
    receiver verifies with, if it was told. `now`: Unix seconds.
    """
    verdict = Verdict()
    missing = [name for name in NEEDED if not headers.get(name)]
    if missing:
        verdict.add(
            "bad",
            f"Missing: {', '.join(missing)}. A proxy may have dropped it, or it was not copied.",
        )
    signatures = _signatures(headers.get(SIGNATURE, ""), verdict)
    if not missing and signatures:
        _match(headers, body, secrets, signatures, sent, verdict)
        _judge_time(headers[TIMESTAMP], now, verdict)
    if receivers_secret:
        _judge_secret(receivers_secret, secrets, verdict)
    return verdict


def _signatures(header: str, verdict: Verdict) -> list[bytes]:
    """The digests of a `webhook-signature`; what is none is told."""
    found = []
    for part in header.split():
        version, _, text = part.partition(",")
        if version != "v1":
            verdict.add(
                "bad",
                f"“{part[:40]}” is no v1 signature: it must read “v1,” and then base64.",
            )
            continue
        try:
            digest = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            verdict.add("bad", "A signature is not base64: it was cut off, or it is hexadecimal.")
            continue
        if len(digest) != hashlib.sha256().digest_size:
            verdict.add("bad", "A signature has the wrong length: it was cut off when copied.")
            continue
        found.append(digest)
    return found


def _match(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[Secret],
    signatures: Sequence[bytes],
    sent: Sent | None,
    verdict: Verdict,
) -> None:
    for secret in secrets:
        if signing.is_accepted(secret.text, headers, body):
            _say_valid(secret, verdict)
            return
    # Not now, or not at all. The library tells neither which, nor why.
    event_id, timestamp = headers[ID], headers[TIMESTAMP]
    as_received = _Content(_signed(event_id, timestamp, body), "")
    contents = [as_received, *_others(event_id, timestamp, body, sent)]
    for content in contents:
        for secret in secrets:
            for key, mistake in _keys(secret.text):
                digest = hmac.digest(key, content.signed, "sha256")
                if not any(hmac.compare_digest(digest, one) for one in signatures):
                    continue
                if not content.meaning and not mistake:
                    _say_valid(secret, verdict)
                    return
                verdict.matched = secret.label
                for message in filter(None, (content.meaning, mistake)):
                    verdict.add("bad", message)
                verdict.add("warn", f"But for that it fits {secret.label}.")
                return
    if sent is not None and sent.body != body:
        verdict.add("bad", difference(sent.body, body))
    verdict.add(
        "bad",
        "No secret of this webhook made this signature. It is another webhook's, or the secret "
        "has ended since, or the signature was changed on its way.",
    )


def _say_valid(secret: Secret, verdict: Verdict) -> None:
    verdict.matched = secret.label
    verdict.is_valid = True
    verdict.add("good", f"The signature is right: it was made with {secret.label}.")


def _signed(event_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{event_id}.{timestamp}.".encode() + body


def _others(event_id: str, timestamp: str, body: bytes, sent: Sent | None) -> Iterator[_Content]:
    """What may have been signed instead of what was received, one change at a time."""
    if sent is not None:
        if sent.body != body:
            yield _Content(_signed(event_id, timestamp, sent.body), difference(sent.body, body))
        if sent.event_id != event_id:
            yield _Content(
                _signed(sent.event_id, timestamp, body),
                f"The id was changed: we sent webhook-id {sent.event_id}.",
            )
        for seconds in sent.timestamps:
            if str(seconds) != timestamp:
                yield _Content(
                    _signed(event_id, str(seconds), body),
                    f"The timestamp was changed: we sent webhook-timestamp {seconds}.",
                )
    for other, meaning in _bodies(body):
        yield _Content(_signed(event_id, timestamp, other), meaning)
    yield _Content(
        body, f"The body alone was signed. Sign “{ID}.{TIMESTAMP}.body”, joined by full stops."
    )


def _bodies(body: bytes) -> Iterator[tuple[bytes, str]]:
    if body.endswith((b"\n", b"\r", b" ", b"\t")):
        yield body.rstrip(), "The body has blanks or a line break at its end that we did not send."
    if body.startswith(b"\xef\xbb\xbf"):
        yield body[3:], "The body begins with a byte order mark that we did not send."
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return
    for ascii_only in (True, False):
        for separators in ((", ", ": "), (",", ":")):
            text = json.dumps(whole, ensure_ascii=ascii_only, separators=separators)
            if (other := text.encode(errors="replace")) != body:
                yield other, RE_SERIALISED


def _keys(secret: str) -> Iterator[tuple[bytes, str]]:
    """The key of a secret, then what people take for it."""
    encoded = secret.removeprefix(PREFIX)
    yield signing.key(secret), ""
    wrong = "Wrong encoding of the secret: the key is what follows “whsec_”, decoded from base64; "
    yield secret.encode(), wrong + "here the whole text was the key."
    yield encoded.encode(), wrong + "here it was not decoded."


def difference(ours: bytes, theirs: bytes) -> str:
    """How the body that was received differs from the one that was sent, in a sentence or two."""
    if not theirs:
        return "The body is empty. Something read it before you did; read the raw body once."
    if ours.strip() == theirs.strip():
        return "The body was changed: blanks or a line break at its beginning or end."
    try:
        sent, received = json.loads(ours), json.loads(theirs)
    except (ValueError, RecursionError):
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        return (
            f"The body was changed, and is not JSON any more: it differs from byte {at} on "
            f"({len(theirs):,} bytes instead of {len(ours):,})."
        )
    if sent == received:
        return RE_SERIALISED
    names = list(_changed(sent, received, ""))
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"The body was changed: {', '.join(names[:NAMES_SHOWN])}{more} is not what we sent."


def _changed(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            below = f"{path}.{name}" if path else str(name)
            if name not in ours or name not in theirs:
                yield below
            else:
                yield from _changed(ours[name], theirs[name], below)
    elif ours != theirs or type(ours) is not type(theirs):
        yield path or "everything"


def _judge_time(text: str, now: int, verdict: Verdict) -> None:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        verdict.add("bad", "webhook-timestamp is not a number of seconds since 1970.")
        return
    seconds = int(text)
    if seconds > 10**11:
        verdict.add("bad", "webhook-timestamp is in milliseconds; it has to be in seconds.")
        return
    away = abs(now - seconds)
    if away <= TOLERANCE_SECONDS:
        verdict.add("good", f"The timestamp is {away} s from now, within five minutes.")
        return
    side = "old" if seconds < now else "ahead of our clock"
    tone: Tone = "warn" if verdict.is_valid else "bad"
    verdict.add(
        tone,
        f"The timestamp is {_length(away)} {side}: libraries refuse more than five minutes. "
        "If you pasted an earlier request that is no fault; else set your receiver's clock.",
    )


def _length(seconds: int) -> str:
    if seconds < 7200:
        return f"{seconds // 60} minutes"
    return f"{seconds // 3600} hours" if seconds < 172_800 else f"{seconds // 86_400} days"


def _judge_secret(given: str, secrets: Sequence[Secret], verdict: Verdict) -> None:
    bare = given.strip().strip("\"'").strip()
    for secret in secrets:
        if hmac.compare_digest(
            bare.removeprefix(PREFIX).rstrip("=").encode(),
            secret.text.removeprefix(PREFIX).rstrip("=").encode(),
        ):
            if bare != given:
                verdict.add("bad", "Your receiver's secret has blanks or quotes around it.")
            tone: Tone = (
                "good" if not verdict.matched or secret.label == verdict.matched else "warn"
            )
            verdict.add(tone, f"Your receiver's secret is {secret.label} of this webhook.")
            return
    verdict.add(
        "bad",
        "Wrong secret: what your receiver has is none of this webhook's. Each webhook has its own; "
        "if it is lost, rotate it.",
    )
