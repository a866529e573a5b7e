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

from django.utils.translation import gettext_noop

from gateway_project.core.sentences import Sentence
from webhooks import signing
from webhooks.signing import PREFIX

TOLERANCE_SECONDS = 300
"""Standard Webhooks' libraries refuse what is further from their clock."""
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
NEEDED = (ID, TIMESTAMP, SIGNATURE)
NAMES_SHOWN = 5
RE_SERIALISED = Sentence(
    gettext_noop(
        "The body was re-serialised: the same JSON in other bytes. Verify the raw body, before it "
        "is parsed."
    )
)
Tone = Literal["good", "warn", "bad"]


class Secret(NamedTuple):
    """One of the webhook's; `label` goes into a sentence: "the current secret"."""

    label: Sentence | str
    text: str


class Sent(NamedTuple):
    """What we sent under an id: its bytes, and the Unix seconds of each attempt."""

    event_id: str
    body: bytes
    timestamps: Sequence[int]


class Finding(NamedTuple):
    tone: Tone
    sentence: Sentence

    @property
    def message(self) -> str:
        return self.sentence.translated()


@dataclass(slots=True)
class Verdict:
    """`is_valid`: a signature fits, whatever the clock says. `findings`: the gravest first."""

    is_valid: bool = False
    matched: str = ""
    findings: list[Finding] = field(default_factory=list)

    def add(self, tone: Tone, sentence: str | Sentence, /, **facts: Any) -> None:
        filled = sentence if isinstance(sentence, Sentence) else Sentence(sentence, **facts)
        self.findings.append(Finding(tone, filled))


class _Content(NamedTuple):
    """Bytes that may have been signed, and what it means if they were."""

    signed: bytes
    meaning: Sentence | None = None


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
            gettext_noop("Missing: %(names)s. A proxy may have dropped it, or it was not copied."),
            names=", ".join(missing),
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
                gettext_noop("“%(text)s” is no v1 signature: it must read “v1,” and then base64."),
                text=part[:40],
            )
            continue
        try:
            digest = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            verdict.add(
                "bad",
                gettext_noop("A signature is not base64: it was cut off, or it is hexadecimal."),
            )
            continue
        if len(digest) != hashlib.sha256().digest_size:
            verdict.add(
                "bad",
                gettext_noop("A signature has the wrong length: it was cut off when copied."),
            )
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
    as_received = _Content(_signed(event_id, timestamp, body))
    contents = [as_received, *_others(event_id, timestamp, body, sent)]
    for content in contents:
        for secret in secrets:
            for key, mistake in _keys(secret.text):
                digest = hmac.digest(key, content.signed, "sha256")
                if not any(hmac.compare_digest(digest, one) for one in signatures):
                    continue
                if content.meaning is None and mistake is None:
                    _say_valid(secret, verdict)
                    return
                verdict.matched = str(secret.label)
                for sentence in (content.meaning, mistake):
                    if sentence is not None:
                        verdict.add("bad", sentence)
                text = gettext_noop("But for that it fits %(secret)s.")
                verdict.add("warn", text, secret=secret.label)
                return
    if sent is not None and sent.body != body:
        verdict.add("bad", difference(sent.body, body))
    verdict.add(
        "bad",
        gettext_noop(
            "No secret of this webhook made this signature. It is another webhook's, or the secret "
            "has ended since, or the signature was changed on its way."
        ),
    )


def _say_valid(secret: Secret, verdict: Verdict) -> None:
    verdict.matched = str(secret.label)
    verdict.is_valid = True
    text = gettext_noop("The signature is right: it was made with %(secret)s.")
    verdict.add("good", text, secret=secret.label)


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
                Sentence(
                    gettext_noop("The id was changed: we sent webhook-id %(id)s."),
                    id=sent.event_id,
                ),
            )
        for seconds in sent.timestamps:
            if str(seconds) != timestamp:
                yield _Content(
                    _signed(event_id, str(seconds), body),
                    Sentence(
                        gettext_noop(
                            "The timestamp was changed: we sent webhook-timestamp %(seconds)s."
                        ),
                        seconds=str(seconds),
                    ),
                )
    for other, meaning in _bodies(body):
        yield _Content(_signed(event_id, timestamp, other), meaning)
    yield _Content(
        body,
        Sentence(
            gettext_noop("The body alone was signed. Sign “%(content)s”, joined by full stops."),
            content=f"{ID}.{TIMESTAMP}.body",
        ),
    )


def _bodies(body: bytes) -> Iterator[tuple[bytes, Sentence]]:
    if body.endswith((b"\n", b"\r", b" ", b"\t")):
        text = gettext_noop("The body has blanks or a line break at its end that we did not send.")
        yield body.rstrip(), Sentence(text)
    if body.startswith(b"\xef\xbb\xbf"):
        text = gettext_noop("The body begins with a byte order mark that we did not send.")
        yield body[3:], Sentence(text)
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return
    for ascii_only in (True, False):
        for separators in ((", ", ": "), (",", ":")):
            dumped = json.dumps(whole, ensure_ascii=ascii_only, separators=separators)
            if (other := dumped.encode(errors="replace")) != body:
                yield other, RE_SERIALISED


def _keys(secret: str) -> Iterator[tuple[bytes, Sentence | None]]:
    """The key of a secret, then what people take for it."""
    encoded = secret.removeprefix(PREFIX)
    yield signing.key(secret), None
    text = gettext_noop(
        "Wrong encoding of the secret: the key is what follows “whsec_”, decoded from base64; "
        "here the whole text was the key."
    )
    yield secret.encode(), Sentence(text)
    text = gettext_noop(
        "Wrong encoding of the secret: the key is what follows “whsec_”, decoded from base64; "
        "here it was not decoded."
    )
    yield encoded.encode(), Sentence(text)


def difference(ours: bytes, theirs: bytes) -> Sentence:
    """How the body that was received differs from the one that was sent, in a sentence or two."""
    if not theirs:
        return Sentence(
            gettext_noop(
                "The body is empty. Something read it before you did; read the raw body once."
            )
        )
    if ours.strip() == theirs.strip():
        return Sentence(
            gettext_noop("The body was changed: blanks or a line break at its beginning or end.")
        )
    try:
        sent, received = json.loads(ours), json.loads(theirs)
    except (ValueError, RecursionError):
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        return Sentence(
            gettext_noop(
                "The body was changed, and is not JSON any more: it differs from byte %(at)s on "
                "(%(theirs)s bytes instead of %(ours)s)."
            ),
            at=str(at),
            theirs=len(theirs),
            ours=len(ours),
        )
    if sent == received:
        return RE_SERIALISED
    names = list(_changed(sent, received, ""))
    shown = ", ".join(names[:NAMES_SHOWN])
    if len(names) <= NAMES_SHOWN:
        return Sentence(
            gettext_noop("The body was changed: %(names)s is not what we sent."), names=shown
        )
    return Sentence(
        gettext_noop("The body was changed: %(names)s and %(more)s more is not what we sent."),
        names=shown,
        more=str(len(names) - NAMES_SHOWN),
    )


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
        text = gettext_noop("webhook-timestamp is not a number of seconds since 1970.")
        verdict.add("bad", text)
        return
    seconds = int(text)
    if seconds > 10**11:
        verdict.add(
            "bad",
            gettext_noop("webhook-timestamp is in milliseconds; it has to be in seconds."),
        )
        return
    away = abs(now - seconds)
    if away <= TOLERANCE_SECONDS:
        text = gettext_noop("The timestamp is %(seconds)s s from now, within five minutes.")
        verdict.add("good", text, seconds=str(away))
        return
    tone: Tone = "warn" if verdict.is_valid else "bad"
    old = gettext_noop(
        "The timestamp is %(length)s old: libraries refuse more than five minutes. "
        "If you pasted an earlier request that is no fault; else set your receiver's clock."
    )
    ahead = gettext_noop(
        "The timestamp is %(length)s ahead of our clock: libraries refuse more than five minutes. "
        "If you pasted an earlier request that is no fault; else set your receiver's clock."
    )
    verdict.add(tone, old if seconds < now else ahead, length=_length(away))


def _length(seconds: int) -> Sentence:
    """Never less than two of its unit."""
    if seconds < 7200:
        return Sentence(gettext_noop("%(number)s minutes"), number=str(seconds // 60))
    if seconds < 172_800:
        return Sentence(gettext_noop("%(number)s hours"), number=str(seconds // 3600))
    return Sentence(gettext_noop("%(number)s days"), number=str(seconds // 86_400))


def _judge_secret(given: str, secrets: Sequence[Secret], verdict: Verdict) -> None:
    bare = given.strip().strip("\"'").strip()
    for secret in secrets:
        if hmac.compare_digest(
            bare.removeprefix(PREFIX).rstrip("=").encode(),
            secret.text.removeprefix(PREFIX).rstrip("=").encode(),
        ):
            if bare != given:
                text = gettext_noop("Your receiver's secret has blanks or quotes around it.")
                verdict.add("bad", text)
            tone: Tone = "good" if verdict.matched in ("", str(secret.label)) else "warn"
            text = gettext_noop("Your receiver's secret is %(secret)s of this webhook.")
            verdict.add(tone, text, secret=secret.label)
            return
    verdict.add(
        "bad",
        gettext_noop(
            "Wrong secret: what your receiver has is none of this webhook's. Each webhook has its "
            "own; if it is lost, rotate it."
        ),
    )
