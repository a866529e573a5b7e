"""Password hashing: Argon2id at OWASP's sizes, two at a time.

Django's default takes 100 MiB a hash; ten sign-ins at once would be a gigabyte. 19 MiB and two
passes are OWASP's first choice, and the semaphore bounds what a worker can spend on them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from django.contrib.auth.hashers import Argon2PasswordHasher, BCryptSHA256PasswordHasher
from django.db import connection

from gateway_project.core.stores import database

HASHES_AT_ONCE_MAX = 2
_places = BoundedSemaphore(HASHES_AT_ONCE_MAX)


@contextmanager
def _place() -> Iterator[None]:
    """One of those few, for which nobody waits with a connection in hand."""
    if not connection.in_atomic_block:
        database.let_go()
    with _places:
        yield


class BoundedArgon2(Argon2PasswordHasher):
    time_cost = 2
    memory_cost = 19 * 1024  # KiB
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        with _place():
            return str(super().encode(password, salt))

    def verify(self, password: str, encoded: str) -> bool:
        with _place():
            return bool(super().verify(password, encoded))


class BCryptSHA256(BCryptSHA256PasswordHasher):
    """Accepted for imported accounts (cost 12); Argon2 replaces it at sign-in."""

    rounds = 12
