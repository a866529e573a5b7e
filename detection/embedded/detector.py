"""From views and rules to a score, its categories, and the places that gave it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from detection.embedded import rules, views

CATEGORIES: tuple[str, ...] = (
    "jailbreak",
    "system_prompt_leak",
    "injection",
    "data_extraction",
    "encoding_attack",
    "delimiter_attack",
)
ContentType = Literal["user_input", "document", "tool_output", "model_output"]

BUDGET_SECONDS = 0.04
THRESHOLD = 0.6
EVIDENCE_MAX = 20
SCORE_MAX = 0.99
PLAIN = ("raw", "clean")
PLACES_BETWEEN_CLOCKS = 64
TAIL_CHARS = 1500
TRIES_MAX = 32  # how often a rule that was only found softened is tried again
SOFTENED_MIN = 0.2  # what the strongest dampeners leave of a rule
ECHO = 0.2  # what a second rule adds on the words that a stronger one already claimed

_book = rules.load()


@dataclass(frozen=True, slots=True)
class Detector:
    """Which rules judged: for answers, and for keys of caches."""

    name: str
    version: str
    weights_sha256: str


DETECTOR = Detector("embedded", _book.version, _book.sha256)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A place in the text as sent, in code points, and what it was taken for."""

    start: int
    end: int
    rule_id: str
    category: str
    view: str
    score: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """`score` is 0..1 for "malicious". `scanned_chars` is below `total_chars` only when the time
    budget ended first; then a low score is no clean bill. `reason` never repeats the text."""

    score: float
    categories: dict[str, float]
    threat_types: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    views: tuple[str, ...]
    language: str
    scanned_chars: int
    total_chars: int
    reason: str | None


class _Budget:
    """Says when to stop; asks the clock now and then, since asking costs too."""

    def __init__(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._steps = 0
        self.is_over = False

    def spent(self) -> bool:
        self._steps += 1
        return self.is_over or (not self._steps % PLACES_BETWEEN_CLOCKS and self.asked())

    def asked(self) -> bool:
        self.is_over = self.is_over or monotonic() > self._deadline
        return self.is_over


@dataclass(slots=True)
class _Hit:
    """The best place a rule was found at. `place` is which view, and where in that view's text."""

    rule: rules.Rule
    weight: float
    place: tuple[int, int, int]
    evidence: Evidence
    is_softened: bool
    tries: int = 0


def analyse(
    text: str,
    content_type: ContentType = "user_input",
    *,
    budget_seconds: float = BUDGET_SECONDS,
) -> Analysis:
    """Judge one text: pure computation, the same answer every time.

    Each rule counts once, where it is strongest. Rules that fired on different words are taken as
    independent chances of an attack (noisy-or); a second one on the same words adds little.
    """
    is_document = content_type in ("document", "tool_output")
    budget = _Budget(budget_seconds)
    hits: dict[str, _Hit] = {}
    names: list[str] = []
    scanned = len(text)
    for number, view in enumerate(views.views_of(text)):
        if number and budget.asked():
            tried = 0
        else:
            tried = _scan(number, view, is_document, hits, budget)
            if view.name not in names:
                names.append(view.name)
        if budget.is_over and tried < len(view.text):
            scanned = min(scanned, _seen(text, view, tried))
            break
    attacks = list(hits.values())
    score = _combined(attacks)
    categories = {
        name: value
        for name in CATEGORIES
        if (value := _combined([h for h in attacks if h.rule.category == name])) > 0
    }
    open_score = _combined([h for h in attacks if h.evidence.view in PLAIN])
    if score >= THRESHOLD > open_score:
        # It only shows once a disguise is taken off: the disguise is part of the attack.
        categories["encoding_attack"] = max(score, categories.get("encoding_attack", 0.0))
    ranked = sorted(categories, key=lambda name: -categories[name])
    threats = tuple(name for name in ranked if categories[name] >= THRESHOLD)
    if score >= THRESHOLD and not threats:
        threats = (ranked[0],)
    evidence = sorted((h.evidence for h in attacks), key=lambda e: (-e.score, e.start))
    return Analysis(
        score=score,
        categories=categories,
        threat_types=threats,
        evidence=tuple(evidence[:EVIDENCE_MAX]),
        views=tuple(names),
        language=views.language_of(text),
        scanned_chars=scanned,
        total_chars=len(text),
        reason=_reason(attacks, score),
    )


def _scan(
    number: int, view: views.View, is_document: bool, hits: dict[str, _Hit], budget: _Budget
) -> int:
    """Try the rules on one view; returns how many of its characters were tried."""
    text = view.text
    # The end first, so that padding cannot push an attack out of the budget.
    middle = max(0, len(text) - TAIL_CHARS) if len(text) > 2 * TAIL_CHARS else 0
    done = 0
    for first, last in ((middle, len(text)), (0, middle)):
        for start, rule in _book.places(text, first, last):
            if budget.spent():
                return done + start - first
            known = hits.get(rule.id)
            if known is not None and (not known.is_softened or known.tries >= TRIES_MAX):
                continue
            match = rule.pattern.match(text, start, start + rules.REACH)
            if match is None:
                continue
            hit = _hit(number, view, rule, match, is_document)
            if known is None or hit.weight > known.weight:
                hits[rule.id] = hit
            else:
                known.tries += 1
        done += last - first
    return done


def _hit(
    number: int, view: views.View, rule: rules.Rule, match: re.Match[str], is_document: bool
) -> _Hit:
    start, end = match.start(), max(match.end(), match.start() + 1)
    full = rule.weight_document if is_document else rule.weight
    relief = _book.relief(view.text, start, end, rule)
    weight = round(max(full * SOFTENED_MIN, full - relief), 4)
    evidence = Evidence(*view.span(start, end), rule.id, rule.category, view.name, weight)
    return _Hit(rule, weight, (number, start, end), evidence, relief > 0)


def _seen(text: str, view: views.View, tried: int) -> int:
    """How many characters of the sent text were judged when time ended inside `view`."""
    if view.name in PLAIN:
        return len(text) * tried // max(1, len(view.text))
    # The plain reading was seen whole, this one was not: its place counts as unseen.
    start, end = view.span(0, len(view.text))
    return len(text) - max(1, end - start)


def _combined(hits: Iterable[_Hit]) -> float:
    clean = 1.0
    claimed: list[tuple[int, int, int]] = []
    for hit in sorted(hits, key=lambda hit: (-hit.weight, hit.rule.id)):
        number, start, end = hit.place
        is_echo = any(n == number and start < e and s < end for n, s, e in claimed)
        clean *= 1.0 - hit.weight * (ECHO if is_echo else 1.0)
        claimed.append(hit.place)
    return round(min(SCORE_MAX, 1.0 - clean), 4)


def _reason(hits: list[_Hit], score: float) -> str | None:
    if score <= 0 or not hits:
        return None
    strongest = sorted(hits, key=lambda hit: -hit.weight)[:3]
    said = "; ".join(dict.fromkeys(hit.rule.title for hit in strongest))
    disguises = sorted({h.evidence.view for h in strongest} - set(PLAIN))
    hidden = f", hidden by {', '.join(disguises)}" if disguises else ""
    return f"Found {said}{hidden}."
