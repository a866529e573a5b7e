"""The text of an API key and its digest. Pure: no model, no settings.

`gw_live_<32 base62>_<6 base62 of CRC32>`, or `gw_test_…` for a key that never bills: the prefix
lets leak scanners find a key, the checksum lets us refuse a typo without asking the database. What
is stored is an HMAC-SHA256 with a pepper that lives outside the database; the pepper's version is
stored with it, so that it can be changed.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX, TEST_PREFIX = "gw_live_", "gw_test_"
SECRET_CHARS = 32  # 190 bits
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY = re.compile(r"(gw_live_|gw_test_)([0-9A-Za-z]{22,64})_([0-9A-Za-z]{6})\Z")


@dataclass(frozen=True, slots=True)
class Peppers:
    """Versioned peppers, the current one first: `KEY_PEPPERS="2:new,1:old"`."""

    by_version: tuple[tuple[int, bytes], ...]

    @classmethod
    def parse(cls, text: str) -> Peppers:
        """Raise `ValueError` saying what is wrong with the setting."""
        pairs = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            version, colon, pepper = part.partition(":")
            if not colon or not version.isdigit() or len(pepper) < 16:
                raise ValueError("each entry is <version>:<pepper of at least 16 characters>")
            pairs.append((int(version), pepper.encode()))
        if not pairs or len({version for version, _ in pairs}) != len(pairs):
            raise ValueError("needs at least one entry, and each version once")
        return cls(tuple(pairs))

    @property
    def current_version(self) -> int:
        return self.by_version[0][0]

    def digest(self, key: str) -> str:
        """Hex HMAC of `key` with the current pepper."""
        return hmac.digest(self.by_version[0][1], key.encode(), "sha256").hex()

    def digests(self, key: str) -> list[str]:
        """With every pepper, the current one first: what a stored key may be found under."""
        raw = key.encode()
        return [hmac.digest(pepper, raw, "sha256").hex() for _, pepper in self.by_version]


def make_key(prefix: str = PREFIX) -> str:
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARS))
    return f"{prefix}{secret}_{checksum(secret, prefix)}"


def checksum(secret: str, prefix: str = PREFIX) -> str:
    """Six base62 digits of the CRC32 of the prefix and secret, zero-padded."""
    number = zlib.crc32(f"{prefix}{secret}".encode())
    digits = ""
    for _ in range(6):
        number, rest = divmod(number, 62)
        digits = ALPHABET[rest] + digits
    return digits


def is_well_formed(text: str) -> bool:
    """Whether `text` has the shape of a key and its checksum fits; says nothing of its validity."""
    match = KEY.match(text)
    if match is None:
        return False
    prefix, secret, check = match.groups()
    return hmac.compare_digest(checksum(secret, prefix), check)
