"""Making a backup, restoring it, and trying whether it could be restored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_hex
from time import monotonic
from typing import Any

import psycopg
import pyrage
from django.conf import settings

from accounts.events import audit
from gateway_project import rotation
from gateway_project.backups import MADE, NOTED, VERIFIED, BackupError, manifest, postgres
from gateway_project.backups.manifest import Manifest
from gateway_project.backups.storage import MANIFEST, SUFFIX, Store
from gateway_project.core import clock
from gateway_project.core.clock import utc_text

Progress = Callable[[str, int], None]
NO_KEY = (
    "Make a pair with `age-keygen -o backup-key.txt` (or: .venv/bin/python -c 'import pyrage; k = "
    "pyrage.x25519.Identity.generate(); print(k, k.to_public())'), keep the secret half away from "
    "this machine, and set BACKUP_RECIPIENTS=age1…"
)


def recipients() -> list[Any]:
    """Whoever has one of their secret halves can read the backup. Raises `BackupError`."""
    if not settings.BACKUP_RECIPIENTS:
        raise BackupError(
            f"BACKUP_RECIPIENTS is not set: a backup is never left readable. {NO_KEY}"
        )
    found: list[Any] = []
    for text in settings.BACKUP_RECIPIENTS:
        kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
        try:
            found.append(kind.Recipient.from_str(text))
        except pyrage.RecipientError:
            raise BackupError(
                f"BACKUP_RECIPIENTS: {text!r} is no age recipient. {NO_KEY}"
            ) from None
    return found


def identities(text: str) -> list[Any]:
    """Of a file as `age-keygen` writes it, or of an unencrypted SSH key. Raises `BackupError`."""
    found: list[Any] = []
    try:
        if "-----BEGIN" in text:
            found.append(pyrage.ssh.Identity.from_buffer(text.encode()))
        else:
            lines = (line.strip() for line in text.splitlines())
            found += [
                pyrage.x25519.Identity.from_str(x) for x in lines if x and not x.startswith("#")
            ]
    except pyrage.IdentityError:
        found = []
    if not found:
        raise BackupError("The identity is none of age's: a line AGE-SECRET-KEY-1….")
    return found


def make(store: Store, *, actor: dict[str, Any], progress: Progress) -> Manifest:
    """Dump one snapshot of the database into `store`, and note it in the audit trail."""
    to, database = recipients(), postgres.target()
    began = monotonic()
    name = f"gateway-{datetime.fromtimestamp(clock.time(), UTC):%Y%m%dT%H%M%SZ}"
    with postgres.connected(database) as connection:
        # What is counted is what is dumped: both see this transaction's snapshot.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        [snapshot] = connection.execute("SELECT pg_export_snapshot()").fetchone() or [""]
        # They go on meanwhile: the dump has them as far as now, or further.
        sequences = manifest.sequences(connection)
        major = connection.info.server_version // 10_000
        writer = store.writer(f"{name}{SUFFIX}")
        try:
            postgres.dump(
                database,
                snapshot=snapshot,
                major=major,
                recipients=to,
                into=writer,
                progress=lambda size: progress("dumped", size),
            )
            progress("counting", 0)
            found = manifest.describe(
                connection,
                gateway=settings.VERSION,
                made_at=utc_text(clock.now()),
                postgresql=major,
                dump=f"{name}{SUFFIX}",
            )
            found.objects |= sequences
            found.bytes, found.sha256 = writer.bytes, writer.sha256
            writer.commit()
        except BaseException:
            writer.abort()
            raise
    store.write(f"{name}{MANIFEST}", found.model_dump_json(indent=1).encode())
    facts: dict[str, Any] = {"where": store.where, "bytes": found.bytes, "rows": found.rows}
    audit(MADE, target=name, seconds=round(monotonic() - began, 1), **facts, **actor)
    return found


def note(words: str, *, actor: dict[str, Any]) -> None:
    """Somebody else made a backup."""
    audit(NOTED, note=words, **actor)


@dataclass(frozen=True, slots=True)
class Tried:
    """`differences`: from what was backed up. `unreadable`: secrets that are missing here."""

    manifest: Manifest
    differences: list[str]
    unreadable: list[str]


def load(store: Store, name: str) -> tuple[str, Manifest]:
    chosen = name.removesuffix(SUFFIX).removesuffix(MANIFEST) or store.newest()
    return chosen, manifest.read(store.read(f"{chosen}{MANIFEST}"))


def restore(
    store: Store, name: str, *, keys: list[Any], into: dict[str, Any], progress: Progress
) -> Tried:
    """Fill the empty database `into`, and compare it with the manifest. Raises `BackupError`."""
    _, expected = load(store, name)
    with postgres.connected(into) as connection:
        if not postgres.is_empty(connection):
            raise BackupError(
                f"The database {into['dbname']} is not empty: nothing was changed. Make a fresh "
                "one (createdb), and name it by DATABASE_URL."
            )
        major = connection.info.server_version // 10_000
    if major < expected.postgresql:
        raise BackupError(
            f"The backup is of PostgreSQL {expected.postgresql}, this server is {major}: restore "
            "into one that is not older."
        )
    with store.reader(expected.dump) as file:
        source = _Digesting(file)
        postgres.restore(
            into,
            major=major,
            identities=keys,
            source=source,
            progress=lambda size: progress("restored", size),
        )
    if source.sha256 != expected.sha256:
        raise BackupError("The backup was changed after it was made: its digest differs.")
    progress("comparing", 0)
    with postgres.connected(into) as connection:
        found = manifest.describe(
            connection, gateway="", made_at="", postgresql=major, dump=expected.dump
        )
    return Tried(expected, manifest.differences(expected, found), _missing(expected))


def verify(
    store: Store, name: str, *, keys: list[Any], actor: dict[str, Any], progress: Progress
) -> Tried:
    """Restore into a fresh database beside the real one, compare, and drop it again."""
    began = monotonic()
    chosen, _ = load(store, name)
    with postgres.scratch_database(f"gateway_verify_{token_hex(6)}") as database:
        tried = restore(store, chosen, keys=keys, into=database, progress=progress)
    if not tried.differences and not tried.unreadable:
        facts: dict[str, Any] = {"where": store.where, "rows": tried.manifest.rows}
        audit(VERIFIED, target=chosen, seconds=round(monotonic() - began, 1), **facts, **actor)
    return tried


def _missing(expected: Manifest) -> list[str]:
    """Secrets that what is restored needs and these settings do not have."""
    here = rotation.known_here()
    known = {f"{setting} {name}": print_ for (setting, name), print_ in here.items()}
    return [
        f"{name} ({print_}) is not in these settings" + (" as it was" if name in known else "")
        for name, print_ in expected.keys.items()
        if known.get(name) != print_
    ]


class _Digesting:
    """A reader that digests what it gives."""

    def __init__(self, file: Any) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._file.read(size)
        self._sha256.update(content)
        return content

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()
