"""Secrets at rest that we must read again (Fernet: AES-128-CBC with HMAC-SHA256).

`FIELD_ENCRYPTION_KEYS` has the current key first; the others still decrypt. What can be compared by
digest alone, such as API keys, is not encrypted but hashed (`accounts/keys.py`).
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class Cipher:
    """Raises `ValueError` when a key is none."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise ValueError("each entry is 32 bytes in URL-safe base64") from None

    def encrypt(self, content: bytes) -> str:
        return self._fernet.encrypt(content).decode()

    def decrypt(self, token: str) -> bytes:
        return self._fernet.decrypt(token.encode())


@lru_cache(maxsize=8)
def _cipher(keys: tuple[str, ...]) -> Cipher:
    return Cipher(keys)


def encrypt(text: str) -> str:
    return encrypt_bytes(text.encode())


def encrypt_bytes(content: bytes) -> str:
    return _cipher(tuple(settings.FIELD_ENCRYPTION_KEYS)).encrypt(content)


def decrypt(token: str) -> str:
    """Raises `Undecryptable` when none of the keys fits: a key was lost, or the text changed."""
    return decrypt_bytes(token).decode()


def decrypt_bytes(token: str) -> bytes:
    """The same for what is no text."""
    return _decrypt(tuple(settings.FIELD_ENCRYPTION_KEYS), token)


def decrypt_secret(token: str) -> str:
    """The same, remembered: the secret of a busy webhook is asked for a thousand times a second.

    Not for customers' texts, which would stay in memory after they are erased.
    """
    return _remembered(tuple(settings.FIELD_ENCRYPTION_KEYS), token).decode()


def _decrypt(keys: tuple[str, ...], token: str) -> bytes:
    try:
        return _cipher(keys).decrypt(token)
    except InvalidToken as exc:
        raise Undecryptable from exc


_remembered = lru_cache(maxsize=4096)(_decrypt)


class Undecryptable(Exception):
    """No key of `FIELD_ENCRYPTION_KEYS` decrypts it."""
