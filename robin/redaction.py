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
    r"pass(?!ive|through|ed\b)|pwd|pw$|psk$|mnemonic|secret|token(?!i[sz])|authvalue|authorization|basic_?auth|bearer|"
    r"credential|api[_-]?key|auth$|(?:auth|access|recovery|backup)[_-]?code|private|cookie|salt$|seed$|hmac|jwt|otp$|pin$|sig$|signature|"
    r"(?<!public)(?<!queue)(?<!pool)(?<!sort)(?<!routing)(?<!primary)(?<!hot)(?<!by)(?<!domain)key$",
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
    *("pass", "password", "passwd", "passphrase", "pwd", "secret", "token", "key", "sig", "otp"),
    *("signature", "credential", "authorization", "auth", "authvalue", "code", "hmac", "jwt"),
    *("session", "sessionid"),
)
"""What a name ends with that has a secret for its value: `api_key`, `X-Amz-Signature`."""
ENDS = "|".join(f"(?<={word})" for word in WORDS)
HOLDS = "passw|passphrase|secret|credential|api[_-]?key"
"""What a name may have anywhere: `password2`, `secretValue`."""
SEPARATOR = (
    r"(?:(?:\\*[\"']|%22)?(?:\s+is)?\s*(?:=>|->|=|:(?!/)|%3D|%3A|(?<=[\w-])>)\s*(?:%22)?"
    r"|\s+(?=[\"']))"
)
SCHEMES = "Basic|Bearer|Token|ApiKey|Negotiate|NTLM"
LISTS = r"Digest|OAuth|Hawk|MAC|AWS4-[\w-]+|SCRAM-[\w-]+"
"""Schemes of which many words follow: all of them."""
# Strangers write what is searched here, as long as they like: runs are taken whole (`++`), never
# letter by letter, so that the time grows with the text and not with its square.
ADDRESS = re.compile(
    # //user:password@host, whatever the password holds; //host:port/… is none
    r"(?P<url>(?<=//)[^\s/:@\"'<>]{0,200}+:)(?!\d{1,5}(?:[/?#\s]|\Z))"
    r"(?:[^\s\"'<>@]{0,500}+@)++(?=[\w.\[-])"
    # the same without a scheme
    r"|(?P<user>(?<![^\s/:@\"'<>,;=])[^\s/:@\"'<>,;=]++:)"
    r"(?!//)[^\s/@\"'<>]{1,2000}+(?=@[\w.\[-])"
    r"|(?P<thin>(?<=thin:)[^/\s]{1,200}+/)[^@\s]{1,200}+(?=@)",
    re.IGNORECASE,
)
NAMED = re.compile(
    r"(?P<cookie>\b(?:set-)?cookie2?[\"']?\s*[:=]\s*).*"
    rf"|(?P<name>(?<![\w-])(?:x-amz-[a-z-]++|(?=[\w-]{{0,40}}?(?:{HOLDS}))[\w-]++"
    rf"|[\w-]++(?:{ENDS})){SEPARATOR})"
    r"(?P<value>\\+\"[^\"]*\"|\"(?:[^\"\\]++|\\.)*+\"|'[^']*'|\{[^}]{0,2000}+\}|\[[^\]]{0,2000}+\]"
    rf"|(?:{LISTS})\s.*|(?:{SCHEMES})\s+[^\s,;\"']+|[^\s&;,\"'}}<>)\]]+)"
    rf"|(?P<scheme>\b(?:{SCHEMES})\s+)[A-Za-z0-9+/=._~-]{{8,}}"
    r"|(?P<flag>(?<!\S)(?:-u|--user)\s+(?=\S{1,200}:)|(?<!\S)--(?:[a-z]{1,10}-)?"
    r"(?:password|passwd|pass|token|secret|api-?key)\s+)(?!-)\S+"
    r"|(?P<resp>\bresp=)\S+",
    re.IGNORECASE | re.DOTALL,
)
TELLS = (
    *({*WORDS} - {"session", "sessionid"}),
    *("session:", "session=", 'session"', "sessionid", "cookie", "resp=", "x-amz-", "-u ", "--u"),
    *("basic", "bearer", "negotiate", "ntlm"),
)
"""In small letters: each of `NAMED` has one, and most lines have none, which is quicker seen."""
SHAPES = re.compile(
    r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)"  # PEM
    r"|\beyJ[\w-]{5,}+\.[\w-]{5,}(?:\.[\w-]*)?"  # a JWT
    r"|\$(?:2[abxy]|argon2\w*|5|6|y|pbkdf2[\w-]*)\$\S+"  # crypt(5)
    r"|\{(?:S?SHA\d*|S?MD5|CRYPT|PLAIN|CLEAR\w*|BLF-CRYPT|ARGON2\w*|PBKDF2\w*|CRAM-MD5)"
    r"(?:\.[a-z0-9]+)?\}\S+"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\b(?:gh[pousr]|github_pat)_\w{16,}|\bsk[_-][\w-]{12,}"
    r"|\bxox[abprs]-[\w-]{8,}|\bAIza[\w-]{20,}|\bhv[sbr]\.[\w-]{8,}|\bglpat-[\w-]{8,}"
    r"|\bSG\.[\w-]{8,}\.[\w-]+|\bwhsec_\S+|\bgw_live_\w+",
    re.DOTALL,
)
SIGNS = (
    *("-----BEGIN", "eyJ", "$", "{", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("github_pat_", "sk_", "sk-", "xox", "AIza", "hvs.", "hvb.", "hvr.", "glpat-", "SG."),
    *("whsec_", "gw_live_"),
)
"""Each of `SHAPES` has one; to look for them takes a fortieth of the time."""
PARAMETER = re.compile(
    r"(?P<name>(?:\A|;)\s*(?P<key>[\w.-]++(?: [\w.-]++){0,3}+)\s*=)"
    r"(?:\"[^\"]{0,200}\"|'[^']{0,200}'|\{[^}]{0,200}\}|[^;])+"
)
"""Of a connection string: a value has blanks, and ends at the semicolon."""
TARGET = re.compile(r"(?<=://)[^\s\"'<>]++")
PIECE = re.compile(r"[^/?#&=@]++")
"""Of an address: a webhook's has its secret as one part of the path, or as the user."""
NAME = re.compile(r"[\w-]+")
PAIR = re.compile(r"[\w.@+-]+:(?=[^\s/]*[A-Za-z])(?=[^\s/]*[\d!#$%^&*+])[^\s/:]{6,}")
"""`user:password`, and no `host:port`, address or class path."""
WORD = re.compile(r"[A-Za-z0-9+/_=~-]{20,}")
PART = r"(?:[A-Z]{2,12}\d{0,4}|[A-Z]?[a-z]{2,12}\d{0,3}|\d{1,4}[a-z]?)"
JOINED = re.compile(rf"{PART}(?:[_/-]{PART})+")
"""Names of ciphers and machines: `TLS_AES_256_GCM_SHA384`, `mx1-eu-west-2b`."""
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
BITS_MIN = 3.4
"""Of a letter of something random; names and paths have fewer, or few kinds of letters."""


def without_secrets(text: str) -> str:
    """The same with each secret that shows by its look, or by a name beside it, replaced."""
    if any(sign in text for sign in SIGNS):
        text = SHAPES.sub(REDACTED, text)
    if "@" in text:
        text = ADDRESS.sub(_masked_address, text)
    if "://" in text:
        text = TARGET.sub(_masked_target, text)
    small = text.lower()
    return NAMED.sub(_masked, text) if any(tell in small for tell in TELLS) else text


def _masked_address(match: re.Match[str]) -> str:
    kept = match["url"] or match["user"] or match["thin"]
    return f"{kept}{REDACTED}{'@' if match['url'] else ''}"


def _masked_target(match: re.Match[str]) -> str:
    return PIECE.sub(lambda piece: REDACTED if _looks_secret(piece[0]) else piece[0], match[0])


def _masked_parameter(match: re.Match[str]) -> str:
    return f"{match['name']}{REDACTED}" if _tells_of_secret(match["key"]) else match[0]


def _masked(match: re.Match[str]) -> str:
    if match["value"] in ("true", "false", "null", "none", "", '""', REDACTED):
        return match[0]  # whether something is set is no secret
    if (match["value"] or "").startswith("uid=") and UUID.fullmatch(match["value"][4:]):
        return match[0]  # "Processing session: uid=…" is how Robin names whose try begins
    name = NAME.findall(match["name"] or "")[:1]
    if name and HARMLESS.search(name[0]) and not name[0].lower().endswith(WORDS):
        return match[0]
    return f"{match[str(match.lastgroup).replace('value', 'name')]}{REDACTED}"


def redacted(value: Any, *, is_secret: bool = False, is_all_below: bool = False) -> Any:
    """Settings with every secret replaced: by the name it stands under, or by its look."""
    if isinstance(value, dict):
        found = {}
        for name, inner in value.items():
            all_below = is_all_below or bool(ALL_BELOW.search(str(name)))
            named = _tells_of_secret(str(name))
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
        if _looks_secret(value):
            return REDACTED
        return without_secrets(PARAMETER.sub(_masked_parameter, value))
    return value


def _tells_of_secret(name: str) -> bool:
    return bool(SECRET.search(name)) and not HARMLESS.search(name)


def _looks_secret(text: str) -> bool:
    text = text.strip()
    if PAIR.fullmatch(text):
        return True
    if not WORD.fullmatch(text) or UUID.fullmatch(text) or text.startswith("/"):
        return False
    if JOINED.fullmatch(text):
        return False
    kinds = sum(bool(re.search(kind, text)) for kind in ("[a-z]", "[A-Z]", r"\d"))
    letters = Counter(text)
    bits = -sum(n / len(text) * math.log2(n / len(text)) for n in letters.values())
    is_hex = re.fullmatch(r"[0-9a-fA-F]{24,}", text) is not None
    return is_hex or (kinds >= 2 and bool(re.search(r"\d", text)) and bits >= BITS_MIN)
