"""What of Robin's settings and log nobody may read: known by its name, or by what it looks like.

A name is not enough: people write keys of their own into Robin's files, and passwords into
addresses. Nor is a look: a short password looks like a word. So either hides, and a list of what
is harmless under a telling name (`passwordQuery`, `authType`) is let through unless it looks
secret.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

REDACTED = "[redacted]"

SECRET = re.compile(
    r"pass(?!ive|through|ed\b)|pwd|secret|token|authvalue|authorization|basic_?auth|bearer|"
    r"credential|api[_-]?key|auth$|private|cookie|salt$|seed$|hmac|jwt|otp$|pin$|sig$|signature|"
    r"(?<!public)(?<!queue)(?<!pool)(?<!sort)(?<!routing)(?<!primary)key$",
    re.IGNORECASE,
)
ALL_BELOW = re.compile(
    r"headers$|passwords?$|secrets?$|tokens?$|credentials?$|cookies?$|keys$", re.IGNORECASE
)
"""What lies under such a name is secret, however it is called."""
HARMLESS = re.compile(
    r"bypass|(?:query|path|file|dir|enabled|type|length|size|timeout|count|limit|millis|seconds|"
    r"minutes|hours|days|attempts|retries|algorithm|mechanisms?|column|table|field|scheme|method|"
    r"url|uri|endpoint|host|port|selector|prefix)$",
    re.IGNORECASE,
)
WORDS = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|auth[_-]?key|"
    r"sig(?:nature)?|credential|authorization|auth(?:value)?|client[_-]?secret|private[_-]?key|"
    r"x-amz-[a-z-]+|key|code|otp|hmac|jwt|session(?:id)?"
)
IN_TEXT = re.compile(
    # user:password@host, with or without a scheme
    r"(?P<user>(?:://|//|\b)[^\s/:@\"'<>,;=]*:)(?!//)[^\s/@\"'<>]+(?=@[\w.\[-])"
    rf"|(?P<name>(?<![A-Za-z])[\w-]*?(?:{WORDS})[\"']?(?:\s+is)?\s*(?:=|:(?!/))\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:Basic|Bearer)\s+[^\s,;\"']+|[^\s&;,\"'}<>)\]]+)"
    r"|(?P<scheme>\b(?:Basic|Bearer)\s+)[A-Za-z0-9+/=._~-]{8,}"
    r"|(?P<resp>\bresp=)\S+",
    re.IGNORECASE,
)
SHAPES = re.compile(
    r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)"  # PEM
    r"|\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"  # a JWT
    r"|\$(?:2[abxy]|argon2\w*|5|6|y|pbkdf2[\w-]*)\$\S+"  # crypt(5)
    r"|\{(?:S?SHA\d*|S?MD5|CRYPT|PLAIN|CLEAR\w*|BLF-CRYPT|ARGON2\w*|PBKDF2\w*|CRAM-MD5)"
    r"(?:\.[a-z0-9]+)?\}\S+"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\b(?:gh[pousr]|github_pat)_\w{16,}|\bsk[_-][\w-]{12,}"
    r"|\bxox[abprs]-[\w-]{8,}|\bAIza[\w-]{20,}|\bhv[sbr]\.[\w-]{8,}|\bglpat-[\w-]{8,}"
    r"|\bSG\.[\w-]{8,}\.[\w-]+|\bwhsec_\S+|\bgw_live_\w+",
    re.DOTALL,
)
PAIR = re.compile(r"[\w.@+-]+:(?=[^\s/]*[A-Za-z])(?=[^\s/]*[\d!#$%^&*+])[^\s/:]{6,}")
"""`user:password`, and no `host:port`, address or class path."""
WORD = re.compile(r"[A-Za-z0-9+/_=~-]{20,}")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
BITS_MIN = 3.4
"""Of a letter of something random; names and paths have fewer, or few kinds of letters."""


def without_secrets(text: str) -> str:
    """The same with each secret that shows by its look, or by a name beside it, replaced."""
    return IN_TEXT.sub(_masked, SHAPES.sub(REDACTED, text))


def _masked(match: re.Match[str]) -> str:
    if match["value"] in ("true", "false", "null", "none", "", '""', REDACTED):
        return match[0]  # whether something is set is no secret
    kept = match["user"] or match["name"] or match["scheme"] or match["resp"]
    return str(kept) + REDACTED


def redacted(value: Any, *, is_secret: bool = False, is_all_below: bool = False) -> Any:
    """Settings with every secret replaced: by the name it stands under, or by its look."""
    if isinstance(value, dict):
        found = {}
        for name, inner in value.items():
            all_below = is_all_below or bool(ALL_BELOW.search(str(name)))
            named = bool(SECRET.search(str(name))) and not HARMLESS.search(str(name))
            # `auth: {url, method, …}` is a group of settings: each stands under a name of its own.
            secret = all_below or (named and not isinstance(inner, dict))
            found[name] = redacted(inner, is_secret=secret, is_all_below=all_below)
        return found
    if isinstance(value, list):
        return [redacted(one, is_secret=is_secret, is_all_below=is_all_below) for one in value]
    if isinstance(value, bool) or value is None or value == "":
        return value  # whether something is set is no secret
    if is_secret:
        return REDACTED
    if isinstance(value, str):
        return REDACTED if _looks_secret(value) else without_secrets(value)
    return value


def _looks_secret(text: str) -> bool:
    text = text.strip()
    if PAIR.fullmatch(text):
        return True
    if not WORD.fullmatch(text) or UUID.fullmatch(text) or text.startswith("/"):
        return False
    kinds = sum(bool(re.search(kind, text)) for kind in ("[a-z]", "[A-Z]", r"\d"))
    letters = Counter(text)
    bits = -sum(n / len(text) * math.log2(n / len(text)) for n in letters.values())
    is_hex = re.fullmatch(r"[0-9a-fA-F]{24,}", text) is not None
    return is_hex or (kinds >= 2 and bool(re.search(r"\d", text)) and bits >= BITS_MIN)
