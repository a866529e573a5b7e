"""pg_dump and pg_restore: found, fed, and believed only when they end well."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psycopg
import pyrage
from django.conf import settings
from psycopg import sql

from gateway_project.backups import BackupError

ROOT = Path("/usr/lib/postgresql")  # Debian keeps a folder there for each major version
PIPE_BYTES = 1 << 20
Database = Mapping[str, Any]


def target(database: str = "") -> dict[str, Any]:
    """libpq's words for the database of the settings, or another one on its server."""
    found = settings.DATABASES["default"]
    if not found["ENGINE"].endswith("postgresql"):
        raise BackupError(
            "DATABASE_URL names no PostgreSQL. Stop the gateway and copy SQLite's file instead."
        )
    options = {k: v for k, v in found.get("OPTIONS", {}).items() if k.startswith("ssl")}
    parameters = {
        "host": found["HOST"],
        "port": str(found["PORT"] or ""),
        "user": found["USER"],
        "password": found["PASSWORD"],
        "dbname": database or found["NAME"],
        **options,
    }
    return {name: value for name, value in parameters.items() if value}


@contextmanager
def connected(database: Database, **more: Any) -> Iterator[psycopg.Connection[Any]]:
    try:
        connection = psycopg.connect(**{**database, "connect_timeout": 5}, **more)
    except psycopg.Error as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise BackupError(f"The database does not answer: {reason}") from None
    with connection:
        yield connection


def program(name: str, major: int) -> str:
    """pg_dump must not be older than the server; the nearest that fits is taken."""
    candidates = [str(path) for path in ROOT.glob(f"*/bin/{name}")]
    if on_path := shutil.which(name):
        candidates.append(on_path)
    versions: dict[int, str] = {}
    for path in candidates:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        if found := re.search(r"\) (\d+)", done.stdout):
            versions.setdefault(int(found[1]), path)
    fit = sorted(version for version in versions if version >= major)
    if not fit:
        have = f"Here: {', '.join(map(str, sorted(versions)))}." if versions else "There is none."
        raise BackupError(
            f"{name} of PostgreSQL {major} or newer is needed. {have} On Debian: apt-get install "
            f"postgresql-client-{major}; in an image: built with POSTGRESQL_CLIENT={major}"
        )
    return versions[fit[0]]


def environment(database: Database) -> dict[str, str]:
    """The password goes by the environment: a command line can be read by everybody."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    names |= {"dbname": "PGDATABASE", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
    names |= {"sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY"}
    variables = {names[word]: str(value) for word, value in database.items() if word in names}
    return {**os.environ, **variables, "PGCONNECT_TIMEOUT": "5"}


class Counting:
    """A reader or writer that tells how much went through it."""

    def __init__(self, file: Any, progress: Callable[[int], None]) -> None:
        self._file, self._progress, self.bytes = file, progress, 0

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._file.read(size)
        self._count(len(content))
        return content

    def write(self, content: bytes) -> int:
        self._file.write(content)
        self._count(len(content))
        return len(content)

    def flush(self) -> None:
        self._file.flush()

    def _count(self, size: int) -> None:
        self.bytes += size
        self._progress(self.bytes)


def dump(
    database: Database,
    *,
    snapshot: str,
    major: int,
    recipients: Sequence[Any],
    into: Any,
    progress: Callable[[int], None],
) -> None:
    """Write the snapshot, encrypted, into a file-like object. Raises `BackupError`."""
    command = [
        *(program("pg_dump", major), "--format=custom", "--no-owner", "--no-privileges"),
        *(f"--snapshot={snapshot}", "--lock-wait-timeout=30s"),
    ]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=stderr, env=environment(database)
        )
        output: Any = process.stdout
        try:
            with output:
                pyrage.encrypt_io(Counting(output, progress), into, recipients)
        except (OSError, pyrage.EncryptError) as exc:
            raise BackupError(f"It could not be written: {exc}") from None
        finally:
            code = process.wait()  # nobody reads it any more: it ends
        if code:
            raise BackupError(f"pg_dump failed: {_last(stderr)}")


def restore(
    database: Database,
    *,
    major: int,
    identities: Sequence[Any],
    source: Any,
    progress: Callable[[int], None],
) -> None:
    """Fill an empty database with what was dumped. Raises `BackupError`."""
    command = [
        *(program("pg_restore", major), "--no-owner", "--no-privileges", "--exit-on-error"),
        *("--single-transaction", f"--dbname={database['dbname']}"),
    ]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stderr=stderr, env=environment(database)
        )
        entry: Any = process.stdin
        trouble = ""
        try:
            pyrage.decrypt_io(source, Counting(entry, progress), identities)
        except (OSError, pyrage.DecryptError) as exc:
            # What came so far may look whole to pg_restore: it must not end well.
            trouble = str(exc)
            process.kill()
        finally:
            with suppress(OSError):
                entry.close()
            code = process.wait()
        if code and (not trouble or code != -signal.SIGKILL):
            raise BackupError(f"pg_restore failed: {_last(stderr)}")
        if trouble:
            raise BackupError(
                f"The backup cannot be read: {trouble}. Is it whole, and the identity the one of "
                "its recipients?"
            )


def _last(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it did not say why"


def is_empty(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace "
        "AND relkind IN ('r', 'p')"
    ).fetchone()
    return row is not None and not row[0]


@contextmanager
def scratch_database(name: str) -> Iterator[dict[str, Any]]:
    """A database of that name on the server of the settings, for as long as the block takes."""
    with connected(target(), autocommit=True) as connection:
        try:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(
                    sql.Identifier(name)
                )
            )
        except psycopg.errors.InsufficientPrivilege:
            raise BackupError(
                "The database's user may not make a database to try the backup in. "
                f"As its superuser: ALTER ROLE {target()['user']} CREATEDB"
            ) from None
        try:
            yield target(name)
        finally:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
