"""Where engines are and what kind they are: `DETECTION_ENGINE_URL` and `DETECTION_ENGINES`, read.

An address is a URL. Its scheme says the kind, its user information is the engine's key, and its
query the options of the kind, of which unknown ones are refused: a mistyped one would be silent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT = "default"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
RESERVED = frozenset({DEFAULT, "engine", "fallback", "none"})

_EVERY = frozenset({"window"})
_GO = _EVERY | {"floor"}
_JUDGE = _EVERY | {"model", "tokens", "reasoning", "price_in", "price_out"}
_LAKERA = _EVERY | {"project", "price"}
_AZURE = _EVERY | {"version", "price"}
_LLMGUARD = _EVERY | {"scanner"}
OPTIONS: Mapping[str, frozenset[str]] = {
    "http": _GO,
    "https": _GO,
    "embedded": frozenset(),
    "onnx": _EVERY | {"threads", "attack", "file", "calibration"},
    "openai+http": _JUDGE,
    "openai+https": _JUDGE,
    "lakera+http": _LAKERA,
    "lakera+https": _LAKERA,
    "azure+http": _AZURE,
    "azure+https": _AZURE,
    "llmguard+http": _LLMGUARD,
    "llmguard+https": _LLMGUARD,
}
LOCAL = frozenset({"embedded", "onnx"})
"""Kinds that judge inside the gateway's own process: no text leaves it."""
_NUMBERS = frozenset(
    {"window", "floor", "price_in", "price_out", "price", "threads", "tokens", "reasoning"}
)


class BadAddress(ValueError):
    """The sentence says what is wrong, and never repeats the key."""


@dataclass(frozen=True, slots=True)
class Address:
    """`url` has neither key nor options: `http(s)://host[:port][/path]`, or a model's folder."""

    name: str
    kind: str
    url: str
    user: str
    secret: str
    options: Mapping[str, str]

    @property
    def service(self) -> str:
        """As metrics, breakers and `/health` call it."""
        return "engine" if self.name == DEFAULT else f"engine_{self.name}"

    @property
    def shown(self) -> str:
        """Enough to tell it from another, without the key."""
        options = " ".join(f"{name}={value}" for name, value in sorted(self.options.items()))
        return f"{self.kind} {self.url} {options}".strip()

    def number(self, option: str, default: int) -> int:
        return int(float(self.options.get(option, default)))

    def fraction(self, option: str, default: float) -> float:
        return float(self.options.get(option, default))


def parse(text: str, name: str = DEFAULT) -> Address:
    """Raises `BadAddress`."""
    url = urlsplit(text.strip())
    kind = url.scheme
    if kind not in OPTIONS:
        known = ", ".join(f"{one}:" for one in OPTIONS)
        raise BadAddress(f"The engine '{name}' has no scheme that is known. Use one of {known}")
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    unknown = sorted(set(options) - OPTIONS[kind])
    if unknown:
        known = ", ".join(sorted(OPTIONS[kind])) or "none"
        raise BadAddress(
            f"The engine '{name}' has unknown options: {', '.join(unknown)}. {kind}: knows {known}"
        )
    for option in _NUMBERS & set(options):
        try:
            number = float(options[option])
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise BadAddress(f"Of the engine '{name}' the option '{option}' is no number from 0 on")
    if kind in LOCAL:
        where = unquote(f"{url.netloc}{url.path}")
        if kind == "onnx" and not where:
            raise BadAddress(f"The engine '{name}' names no model: onnx:/models/prompt-guard")
        return Address(name, kind, where, "", "", options)
    try:
        port = url.port
    except ValueError:
        raise BadAddress(f"The engine '{name}' has a port that is no number") from None
    if not url.hostname:
        raise BadAddress(f"The engine '{name}' names no host: {kind}://host")
    if kind.startswith("openai") and not options.get("model"):
        raise BadAddress(f"The engine '{name}' names no model: {kind}://host/v1?model=NAME")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    netloc = host if port is None else f"{host}:{port}"
    plain = f"{kind.rpartition('+')[2]}://{netloc}{url.path.rstrip('/')}"
    user, secret = unquote(url.username or ""), unquote(url.password or "")
    return Address(name, kind, plain, user, secret, options)


def parse_all(default: str, named: str) -> dict[str, Address]:
    """By name; `named` is `name=url` with white space between. Raises `BadAddress`."""
    found = {DEFAULT: parse(default)}
    for entry in named.split():
        name, is_there, text = entry.partition("=")
        if not is_there or not NAME.match(name):
            raise BadAddress(
                "DETECTION_ENGINES is name=url, with spaces or lines between. A name has small "
                "letters, digits, - and _, and begins with a letter"
            )
        if name in RESERVED or name in found:
            raise BadAddress(f"DETECTION_ENGINES cannot name '{name}': it is taken")
        found[name] = parse(text, name)
    return found
