"""Rules as data (`rules.toml`), compiled once, and where in a text to try them.

Trying every pattern at every place would take longer than a request may. A rule names words that it
begins with: the text is cut into words once, and each word's first letters lead to the few rules
worth trying there. Dampeners are only looked at around a place where a rule fired.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

FILE = Path(__file__).with_name("rules.toml")
REACH = 400  # characters after an anchor that a pattern may look at
KEY_CHARS = 2
ANCHOR_CHARS_MAX = 20
WORDS_KEPT = 8192
"""Words whose rules are remembered; then all are forgotten, which is cheap and bounded."""
TOKEN = re.compile(r"[^\W_][\w'’-]*")
MACRO = re.compile(r"\{([a-z_]+)\}")
UNSPACED = re.compile(
    "[\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
SENTENCE_END = re.compile(r"[.!?]\s|[。！？\n]")
BEFORE_CHARS = 140
AFTER_CHARS = 90
RELIEF_MAX = 0.5  # all dampeners together: they make a rule doubtful, never void


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; see `rules.toml` for what the fields mean."""

    id: str
    title: str
    category: str
    pattern: re.Pattern[str]
    weight: float
    weight_document: float
    languages: tuple[str, ...]
    dampens: str  # "" for a rule; a dampener looks "before", "after" or at the whole "sentence"
    softens: tuple[str, ...]  # what a dampener works on: categories, or beginnings of rule ids
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
    dampeners: tuple[Rule, ...] = ()
    by_key: dict[str, list[tuple[str, Rule]]] = field(default_factory=dict)
    ascii_signs: list[tuple[str, Rule]] = field(default_factory=list)
    other_signs: list[tuple[str, Rule]] = field(default_factory=list)
    dampeners_of: dict[str, tuple[Rule, ...]] = field(default_factory=dict)
    known: dict[str, tuple[tuple[str, Rule], ...]] = field(default_factory=dict)

    def of(self, word: str) -> tuple[tuple[str, Rule], ...]:
        """The rules to try where `word` stands, each with what must be read there to be sure, or ""
        when the word says it. Words met lately are known."""
        word = word[:ANCHOR_CHARS_MAX]
        found = self.known.get(word)
        if found is None:
            # One letter: what follows it belongs to the anchor, and may be no part of the word.
            key = word if len(word) >= KEY_CHARS else f"{word} "
            found = tuple(
                ("" if word.startswith(anchor) else anchor, rule)
                for anchor, rule in self.by_key.get(key[:KEY_CHARS], ())
                if word.startswith(anchor) or anchor.startswith(word)
            )
            if len(self.known) >= WORDS_KEPT:
                self.known.clear()
            self.known[word] = found
        return found

    def places(
        self, text: str, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, Rule]]:
        """Where between `first` and `last` each rule is worth trying.

        Positions repeat when several rules begin alike. What begins before `last` counts, even if
        it ends behind it.
        """
        last = len(text) if last is None else last
        known = self.known
        for match in TOKEN.finditer(text, first, last):
            start, end = match.span()
            word = match[0] if end < last else text[start : start + ANCHOR_CHARS_MAX]
            found = known.get(word)
            if found is None:
                found = self.of(word)
            for anchor, rule in found:
                if not anchor or text.startswith(anchor, start):
                    yield start, rule
        signs = self.ascii_signs
        if not text.isascii() and UNSPACED.search(text):
            signs = signs + self.other_signs
        for sign, rule in signs:
            start = text.find(sign, first, last + len(sign) - 1)
            while start >= 0:
                yield start, rule
                start = text.find(sign, start + len(sign), last + len(sign) - 1)

    def relief(
        self, text: str, start: int, end: int, rule: Rule, known: dict[tuple[str, str], bool]
    ) -> float:
        """How much the sentence around `text[start:end]` speaks against `rule`, 0..`RELIEF_MAX`.

        `known` is what was found out about this text so far: rules that fire at one place share it.
        """
        relief = 0.0
        for dampener, around in self._around(text, start, end, rule):
            key = (dampener.id, around)
            holds = known.get(key)
            if holds is None:
                holds = known[key] = dampener.pattern.search(around) is not None
            if holds:
                relief += dampener.weight
                if relief >= RELIEF_MAX:
                    return RELIEF_MAX
        return relief

    def softening(self, text: str, start: int, end: int, rule: Rule) -> list[Rule]:
        """The dampeners that hold for `rule` at `text[start:end]`."""
        return [d for d, around in self._around(text, start, end, rule) if d.pattern.search(around)]

    def _around(self, text: str, start: int, end: int, rule: Rule) -> Iterator[tuple[Rule, str]]:
        """The dampeners of a rule, and what each looks at.

        They see that sentence only: a harmless question elsewhere must not excuse an attack.
        """
        before = text[max(0, start - BEFORE_CHARS) : start]
        begin = max((match.end() for match in SENTENCE_END.finditer(before)), default=0)
        before = before[begin:]
        after = text[end : end + AFTER_CHARS]
        stop = SENTENCE_END.search(after)
        after = after[: stop.end()] if stop else after
        around = {"before": before, "after": after, "sentence": before + text[start:end] + after}
        for dampener in self.dampeners_of[rule.id]:
            yield dampener, around[dampener.dampens]


def could_differ(changed: Sequence[int], start: int) -> bool:
    """Whether a rule that is tried at `start` could read one of the places, which are in order."""
    at = bisect_left(changed, start - BEFORE_CHARS)
    return at < len(changed) and changed[at] < start + REACH + AFTER_CHARS


def load(path: Path = FILE) -> RuleBook:
    """Read and compile the rules. Raises `ValueError` naming the rule that is wrong."""
    raw = path.read_bytes()
    data = tomllib.loads(raw.decode())
    macros: dict[str, str] = data["macros"]
    entries = [_compile(entry, macros) for entry in data["rule"]]
    rules = tuple(rule for rule in entries if not rule.dampens)
    dampeners = tuple(rule for rule in entries if rule.dampens)
    book = RuleBook(data["version"], hashlib.sha256(raw).hexdigest(), rules, dampeners)
    for rule in rules:
        book.dampeners_of[rule.id] = tuple(
            dampener
            for dampener in dampeners
            if rule.id.startswith(dampener.softens) or rule.category in dampener.softens
        )
        for word in rule.words:
            # One-letter words are matched with the blank that follows them.
            anchor = word if len(word) >= KEY_CHARS else f"{word} "
            if len(anchor) > ANCHOR_CHARS_MAX:
                raise ValueError(f"rule {rule.id}: {anchor} is too long")
            book.by_key.setdefault(anchor[:KEY_CHARS], []).append((anchor, rule))
        for sign in rule.signs:
            (book.ascii_signs if sign.isascii() else book.other_signs).append((sign, rule))
    return book


def _compile(entry: dict[str, object], macros: dict[str, str]) -> Rule:
    def texts(name: str, *default: str) -> tuple[str, ...]:
        return tuple(str(value) for value in cast(list[object], entry.get(name, default)))

    # In the form that texts are read in: Thai, for one, is decomposed there.
    source = unicodedata.normalize("NFKC", str(entry["pattern"]))
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
        languages=texts("languages", "en"),
        dampens=str(entry.get("dampens", "")),
        softens=texts("softens"),
        words=texts("words"),
        signs=tuple(unicodedata.normalize("NFKC", sign) for sign in texts("signs")),
        positive=texts("positive"),
        negative=texts("negative"),
    )
