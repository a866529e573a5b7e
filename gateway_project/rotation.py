"""Which keys and peppers stored things need, encrypting them anew, and when an old one may go.

Fernet's tokens do not name their key, so each is tried. What is encrypted is found by its shape: a
column may be one token, or JSON that holds some. `SecretInUse` notes which secrets stored things
may need; whoever starts without one of them says so at once (`note_in_use`).
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from allauth.mfa.models import Authenticator
from cryptography.fernet import Fernet, InvalidToken
from django import db
from django.conf import settings
from django.db import models, transaction

from accounts.models import ApiKey, IdempotencyRecord, Parked, SecretInUse, StoredText
from detection.models import JobChunk
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.system.presence import fingerprint
from webhooks.models import WebhookSecret

# Version 0x80 and a time before 2106, then at least an IV, one block and the HMAC (Fernet's spec).
TOKEN = re.compile(r"gAAAA[A-Za-z0-9_-]{93,}={0,2}")
SLICE_ROWS = 200
PASSES_MAX = 5
UNKNOWN = "unknown"
KEYS, PEPPERS = "FIELD_ENCRYPTION_KEYS", "KEY_PEPPERS"
log = get_logger("gateway.secrets")


@dataclass(frozen=True, slots=True)
class Column:
    """`holds_tokens`: what it encrypts may itself hold tokens (a parked row with its text)."""

    model: type[models.Model]
    field: str
    holds_tokens: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.__name__}.{self.field}"


# Texts that customers send come last: they are the many.
ENCRYPTED = (
    Column(WebhookSecret, "encrypted"),
    Column(Authenticator, "data"),
    Column(Parked, "payload", holds_tokens=True),
    Column(IdempotencyRecord, "body"),
    Column(JobChunk, "items"),
    Column(StoredText, "encrypted"),
)


@dataclass(slots=True)
class Tally:
    """Values by the key that they need: fingerprints, or `UNKNOWN`."""

    rows: int = 0
    rotated: int = 0
    by_key: Counter[str] = field(default_factory=Counter)


@lru_cache(maxsize=8)
def _keyring(keys: tuple[str, ...]) -> tuple[tuple[str, Fernet], ...]:
    return tuple((fingerprint(KEYS, key), Fernet(key)) for key in keys)


def _opened(token: str) -> tuple[str, bytes]:
    """The fingerprint of the key that opens a token, and what is in it; `UNKNOWN`: none does."""
    for name, key in _keyring(tuple(settings.FIELD_ENCRYPTION_KEYS)):
        try:
            return name, key.decrypt(token.encode())
        except InvalidToken:
            continue
    return UNKNOWN, b""


def encrypted_anew(text: str, tally: Tally, *, holds_tokens: bool = False) -> str:
    """`text` with each of its tokens by the key in front, at the time of the old one."""
    [(current, key), *_] = _keyring(tuple(settings.FIELD_ENCRYPTION_KEYS))

    def anew(match: re.Match[str]) -> str:
        token = match[0]
        name, content = _opened(token)
        tally.by_key[name] += 1
        if name == UNKNOWN:
            return token
        inside = content
        if holds_tokens and (b"gAAAA" in content):
            inside = encrypted_anew(content.decode("latin-1"), tally).encode("latin-1")
        if name == current and inside == content:
            return token
        return key.encrypt_at_time(inside, key_time(token)).decode()

    return TOKEN.sub(anew, text)


def key_time(token: str) -> int:
    """When a token was made, in Unix seconds: it stands in front, readable."""
    return int.from_bytes(urlsafe_b64decode(token)[1:9], "big")


def _slices(column: Column, rows: int) -> Iterator[list[tuple[Any, Any]]]:
    """Primary keys with values, by the index of the primary key; short statements."""
    every = column.model._base_manager.order_by("pk")
    found = list(every.values_list("pk", column.field)[:rows])
    while found:
        yield found
        found = list(every.filter(pk__gt=found[-1][0]).values_list("pk", column.field)[:rows])


def count(progress: Callable[[str, int], None] = lambda *_: None) -> dict[str, Tally]:
    """How many stored values need each key, by column. Reads all of them, changes nothing."""
    return {column.name: _walk(column, progress, change=False) for column in ENCRYPTED}


def rotate(
    progress: Callable[[str, int], None] = lambda *_: None, rows: int = SLICE_ROWS
) -> dict[str, Tally]:
    """Encrypt everything anew by the key in front; the tallies are of what was found at last.

    Again until a pass finds nothing to do: rows that others wrote meanwhile are in the next. It may
    be stopped at any time, and begun again.
    """
    done: Counter[str] = Counter()
    for _ in range(PASSES_MAX):
        found = {c.name: _walk(c, progress, change=True, rows=rows) for c in ENCRYPTED}
        done.update({name: tally.rotated for name, tally in found.items()})
        if not any(tally.rotated for tally in found.values()):
            break
    for name, tally in found.items():
        tally.rotated = done[name]
    return found


def _walk(
    column: Column,
    progress: Callable[[str, int], None],
    *,
    change: bool,
    rows: int = SLICE_ROWS,
) -> Tally:
    tally = Tally()
    for piece in _slices(column, rows):
        changed = {}
        for pk, value in piece:
            tally.rows += 1
            text = value if isinstance(value, str) else json.dumps(value)
            anew = encrypted_anew(text, tally, holds_tokens=column.holds_tokens)
            if anew != text:
                changed[pk] = (value, anew if isinstance(value, str) else json.loads(anew))
        if change and changed:
            tally.rotated += _write(column, changed)
        progress(column.name, tally.rows)
    return tally


def _write(column: Column, changed: dict[Any, tuple[Any, Any]]) -> int:
    """Only where nobody wrote meanwhile: whoever did used a key of its own choice."""
    written = 0
    with transaction.atomic():
        for pk, (old, new) in sorted(changed.items(), key=lambda item: str(item[0])):
            same = {"pk": pk, column.field: old}
            written += column.model._base_manager.filter(**same).update(**{column.field: new})
    return written


# -- In use ---------------------------------------------------------------------------------------


def known_here() -> dict[tuple[str, str], str]:
    """Fingerprints by setting and name: a pepper's is its version, a key's its fingerprint."""
    keys = [name for name, _ in _keyring(tuple(settings.FIELD_ENCRYPTION_KEYS))]
    return {
        **{(KEYS, name): name for name in keys},
        **{
            (PEPPERS, str(version)): fingerprint(PEPPERS, pepper)
            for version, pepper in settings.KEY_PEPPERS.by_version
        },
    }


def missing_here() -> list[str]:
    """What stored things may need and this process does not have, in sentences. Two queries."""
    known = known_here()
    found = []
    # An API key names its pepper, whether or not the pepper was noted.
    in_use = {(PEPPERS, str(v)): known.get((PEPPERS, str(v)), "") for v in peppers_needed()}
    for setting, name, print_ in SecretInUse.objects.values_list("setting", "name", "fingerprint"):
        in_use[setting, name] = print_
    for (setting, name), print_ in in_use.items():
        mine = known.get((setting, name))
        if mine == print_:
            continue
        if setting == KEYS:
            found.append(f"{KEYS} lacks the key {print_}: what it encrypted cannot be read here.")
        elif mine is None:
            found.append(f"{PEPPERS} lacks version {name}: API keys made with it are refused.")
        else:
            found.append(
                f"{PEPPERS} has another pepper as version {name} ({mine}) than the one that API "
                f"keys were made with ({print_}): all of those are refused."
            )
    return sorted(found)


def note_in_use() -> list[str]:
    """When a process starts: say what it lacks, and note what it will use from now on.

    A process that lacks something notes, too: its settings may be the wrong ones, but it serves,
    and what it makes needs them.
    """
    missing = missing_here()
    for sentence in missing:
        log.error("secret_missing", do=sentence, alert=True)
    known = known_here()
    noted = set(SecretInUse.objects.values_list("setting", "name"))
    in_front = {(KEYS, next(name for setting, name in known if setting == KEYS))}
    in_front.add((PEPPERS, str(settings.KEY_PEPPERS.current_version)))
    # At the first start nobody knows what was used before: all that are configured.
    settings_noted = {setting for setting, _ in noted}
    new = [
        SecretInUse(setting=setting, name=name, fingerprint=known[setting, name])
        for setting, name in known
        if (setting, name) not in noted
        and ((setting, name) in in_front or setting not in settings_noted)
    ]
    SecretInUse.objects.bulk_create(new, ignore_conflicts=True)
    return missing


def try_to_note_in_use() -> None:
    """The same, for a process that starts whatever its database says."""
    try:
        note_in_use()
    except db.Error as exc:
        log.info("secrets_not_compared", error=type(exc).__name__)


def peppers_needed() -> dict[int, int]:
    """Usable API keys by the version of their pepper."""
    by_version = ApiKey.objects.usable().order_by("pepper_version").values("pepper_version")
    return {
        row["pepper_version"]: row["keys"] for row in by_version.annotate(keys=models.Count("pk"))
    }


def forget_unused(tallies: dict[str, Tally]) -> None:
    """After rotating: only what is needed, or in front, is still in use.

    While there are values that no key here opens, any key that was noted may be theirs.
    """
    needed = {name for tally in tallies.values() for name in tally.by_key}
    needed.add(fingerprint(KEYS, settings.FIELD_ENCRYPTION_KEYS[0]))
    if UNKNOWN not in needed:
        SecretInUse.objects.filter(setting=KEYS).exclude(name__in=needed).delete()
    versions = {str(version) for version in peppers_needed()}
    versions.add(str(settings.KEY_PEPPERS.current_version))
    SecretInUse.objects.filter(setting=PEPPERS).exclude(name__in=versions).delete()
