"""Locks by name, for the whole installation, that end with the transaction (PostgreSQL).

Never a session's: behind a pooler the session is somebody else's by then. SQLite needs none, since
its transactions exclude each other.
"""

from __future__ import annotations

from hashlib import blake2b

from django.db import connection


def hold(name: str) -> None:
    """Wait until nobody else holds it."""
    _ask("SELECT pg_advisory_xact_lock(%s)", name)


def try_to_hold(name: str) -> bool:
    """False, at once, when somebody else holds it."""
    return _ask("SELECT pg_try_advisory_xact_lock(%s)", name) is not False


def _ask(statement: str, name: str) -> object:
    if connection.vendor != "postgresql":
        return None
    number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
    with connection.cursor() as cursor:
        cursor.execute(statement, [number])
        (answer,) = cursor.fetchone() or (None,)
    return answer
