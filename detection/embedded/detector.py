"""From views and rules to a score, its categories, and the places that gave it."""

from __future__ import annotations

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
        if not self._steps % PLACES_BETWEEN_CLOCKS and monotonic() > self._deadline:
            self.is_over = True
        return self.is_over


@dataclass(slots=True)
class _Hit:
    rule: rules.Rule
    weight: float
    evidence: Evidence


def analyse(
    text: str,
    content_type: ContentType = "user_input",
    *,
    budget_seconds: float = BUDGET_SECONDS,
) -> Analysis:
    """Judge one text: pure computation, the same answer every time.

    Each rule counts once, with its strongest view. The score is what remains when every rule that
    fired is an independent chance of an attack (noisy-or), less what the dampeners subtract.
    """
    is_document = content_type in ("document", "tool_output")
    budget = _Budget(budget_seconds)
    hits: dict[str, _Hit] = {}
    names: list[str] = []
    scanned = 0
    for view in views.views_of(text):
        if view.name not in names:
            names.append(view.name)
        tried = _scan(view, is_document, hits, budget)
        if view.name in PLAIN:
            scanned = len(text) * tried // max(1, len(view.text))
        elif budget.is_over:
            # The plain reading was seen whole, this one was not: its place counts as unseen.
            start, end = view.span(0, len(view.text))
            scanned = min(scanned, len(text) - (end - start))
        if budget.is_over:
            break
    attacks = [hit for hit in hits.values() if not hit.rule.dampens]
    relief = sum(hit.weight for hit in hits.values() if hit.rule.dampens)
    score = _combined(attacks, relief)
    categories = {
        name: value
        for name in CATEGORIES
        if (value := _combined([h for h in attacks if h.rule.category == name], relief)) > 0
    }
    open_score = _combined([h for h in attacks if h.evidence.view in PLAIN], relief)
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


def _scan(view: views.View, is_document: bool, hits: dict[str, _Hit], budget: _Budget) -> int:
    """Try the rules on one view; returns how many of its characters were tried."""
    text = view.text
    # The end first, so that padding cannot push an attack out of the budget.
    middle = max(0, len(text) - TAIL_CHARS) if len(text) > 2 * TAIL_CHARS else 0
    done = 0
    for first, last in ((middle, len(text)), (0, middle)):
        for offset, rule in _book.places(text[first:last]):
            if budget.spent():
                return done + offset
            if rule.id in hits:
                continue
            start = first + offset
            match = rule.pattern.match(text, start, start + rules.REACH)
            if match is None:
                continue
            weight = rule.weight_document if is_document else rule.weight
            raw_start, raw_end = view.span(match.start(), max(match.end(), match.start() + 1))
            evidence = Evidence(raw_start, raw_end, rule.id, rule.category, view.name, weight)
            hits[rule.id] = _Hit(rule, weight, evidence)
        done += last - first
    return done


def _combined(hits: Iterable[_Hit], relief: float) -> float:
    clean = 1.0
    for hit in hits:
        clean *= 1.0 - hit.weight
    return round(min(SCORE_MAX, max(0.0, 1.0 - clean - (relief if clean < 1 else 0.0))), 4)


def _reason(hits: list[_Hit], score: float) -> str | None:
    if score <= 0 or not hits:
        return None
    strongest = sorted(hits, key=lambda hit: -hit.weight)[:3]
    said = "; ".join(dict.fromkeys(hit.rule.title for hit in strongest))
    disguises = sorted({h.evidence.view for h in strongest} - set(PLAIN))
    hidden = f", hidden by {', '.join(disguises)}" if disguises else ""
    return f"Found {said}{hidden}."
