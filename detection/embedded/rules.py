"""Rules as data (`rules.toml`), compiled once, and where in a text to try them.

Trying every pattern at every place would take longer than a request may. A rule names words that it
begins with: the text is cut into words once, and each word's first letters lead to the few rules
worth trying there.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

FILE = Path(__file__).with_name("rules.toml")
REACH = 400  # characters after an anchor that a pattern may look at
KEY_CHARS = 2
TOKEN = re.compile(r"[^\W_][\w'’-]*")
MACRO = re.compile(r"\{([a-z_]+)\}")
UNSPACED = re.compile("[\u0600-\u06ff\u0900-\u097f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; see `rules.toml` for what the fields mean."""

    id: str
    title: str
    category: str
    pattern: re.Pattern[str]
    weight: float
    weight_document: float
    dampens: bool
    words: tuple[str, ...]
    signs: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(slots=True)
class RuleBook:
    """All rules, indexed by how they begin."""

    version: str
    sha256: str
    rules: tuple[Rule, ...]
    by_key: dict[str, list[tuple[str, Rule]]] = field(default_factory=dict)
    ascii_signs: list[tuple[str, Rule]] = field(default_factory=list)
    other_signs: list[tuple[str, Rule]] = field(default_factory=list)

    def places(self, text: str) -> Iterator[tuple[int, Rule]]:
        """Where each rule is worth trying. Positions repeat when several rules begin alike."""
        by_key = self.by_key
        for match in TOKEN.finditer(text):
            start = match.start()
            for word, rule in by_key.get(text[start : start + KEY_CHARS], ()):
                if text.startswith(word, start):
                    yield start, rule
        signs = self.ascii_signs
        if not text.isascii() and UNSPACED.search(text):
            signs = signs + self.other_signs
        for sign, rule in signs:
            start = text.find(sign)
            while start >= 0:
                yield start, rule
                start = text.find(sign, start + len(sign))


def load(path: Path = FILE) -> RuleBook:
    """Read and compile the rules. Raises `ValueError` naming the rule that is wrong."""
    raw = path.read_bytes()
    data = tomllib.loads(raw.decode())
    macros: dict[str, str] = data["macros"]
    rules = tuple(_compile(entry, macros) for entry in data["rule"])
    book = RuleBook(data["version"], hashlib.sha256(raw).hexdigest(), rules)
    for rule in rules:
        for word in rule.words:
            # One-letter words are matched with the blank that follows them.
            anchor = word if len(word) >= KEY_CHARS else f"{word} "
            book.by_key.setdefault(anchor[:KEY_CHARS], []).append((anchor, rule))
        for sign in rule.signs:
            (book.ascii_signs if sign.isascii() else book.other_signs).append((sign, rule))
    return book


def _compile(entry: dict[str, object], macros: dict[str, str]) -> Rule:
    def texts(name: str) -> tuple[str, ...]:
        return tuple(str(value) for value in cast(list[object], entry.get(name, [])))

    source = str(entry["pattern"])
    for _ in range(4):  # macros may use macros
        source = MACRO.sub(lambda match: macros[match[1]], source)
    try:
        pattern = re.compile(source, re.DOTALL)
    except re.error as exc:
        raise ValueError(f"rule {entry['id']}: {exc}") from exc
    weight = float(str(entry["weight"]))
    return Rule(
        id=str(entry["id"]),
        title=str(entry["title"]),
        category=str(entry["category"]),
        pattern=pattern,
        weight=weight,
        weight_document=float(str(entry.get("weight_document", weight))),
        dampens=bool(entry.get("dampens", False)),
        words=texts("words"),
        signs=texts("signs"),
        positive=texts("positive"),
        negative=texts("negative"),
    )
