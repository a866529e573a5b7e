"""From views, rules and the model to a score, its categories, and the places that gave it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from time import thread_time
from typing import Literal

from detection.embedded import model, rules, views

CATEGORIES: tuple[str, ...] = (
    "jailbreak",
    "system_prompt_leak",
    "injection",
    "data_extraction",
    "encoding_attack",
    "delimiter_attack",
)
ContentType = Literal[
    "user_input",
    "document",
    "tool_output",
    "model_output",
    "tool_definition",
    "tool_call",
    "memory_write",
    "system",
]
READ: frozenset[str] = frozenset({"document", "tool_output", "tool_definition", "memory_write"})
"""What a model reads as facts, so that an order to it is out of place."""

RULES_AT: dict[str, dict[str, float]] = {
    "model_output": dict.fromkeys(CATEGORIES, 0.8),
    "system": {**dict.fromkeys(CATEGORIES, 0.3), "injection": 0.7, "data_extraction": 0.7},
}
"""What is left of a rule's weight, by type and category: answers are full of code, and who writes
to the system says what it is, what to keep to itself and where the user's text begins."""

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

VERSION = "8.0"
MODEL_SHOWN_MIN = 0.2  # below, the model's part is no evidence
TITLES = {
    "prompt": "wording that attacks on assistants have",
    "data": "an order to an assistant inside content",
}
# A text that is no prompt but data from its first sign on: a mail, a page, a list, JSON. Orders in
# it count as in a document. A prompt that holds some is not meant: there, people want orders done.
DATA = re.compile(
    r"\s{0,8}(?:[\[{<]|- \w+:|(?:from|to|subject|sender|date|email_from)\b ?[:=])", re.IGNORECASE
)

_book = rules.load()


@dataclass(frozen=True, slots=True)
class Detector:
    """Which rules and weights judged: for answers, and for keys of caches."""

    name: str
    version: str
    weights_sha256: str


DETECTOR = Detector(
    "embedded",
    f"{VERSION}.{_book.version}",
    hashlib.sha256(f"{_book.sha256} {model.digest()}".encode()).hexdigest(),
)


@cache
def load() -> model.Model:
    """The model, read once (some 50 ms). Called before processes fork, they share its weights."""
    return model.load()


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
    """`score` is 0..1 for "malicious". `scanned_chars` is below `total_chars` when not all of the
    text was looked at; then a low score is no clean bill, and `unseen` says why: `time` (the budget
    ended, or a view has more words than are read), `decoding` (more encoded text than is decoded),
    `language` (a script or language of which neither rules nor model know a word). `reason` never
    repeats the text."""

    score: float
    categories: dict[str, float]
    threat_types: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    views: tuple[str, ...]
    language: str
    scanned_chars: int
    total_chars: int
    reason: str | None
    unseen: tuple[str, ...] = ()


class _Budget:
    """Says when to stop. Asking costs too: not at every step.

    What counts is the thread's own time, so that who else is busy changes no answer.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = thread_time() + seconds
        self.is_over = False

    def asked(self) -> bool:
        self.is_over = self.is_over or thread_time() > self._deadline
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


@dataclass(slots=True)
class _Judgement:
    """The most suspicious window that one head of the model found, in whichever view."""

    finding: model.Finding
    view: views.View
    weight: float


@dataclass(slots=True)
class _Case:
    """What was found in a text so far."""

    content_type: str
    is_document: bool
    heads: tuple[str, ...]
    judge: model.Model
    hits: dict[str, _Hit] = field(default_factory=dict)
    judgements: dict[str, _Judgement] = field(default_factory=dict)
    softened: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Which dampeners hold around which words of this text."""

    def is_softened(self, start: int, end: int) -> bool:
        """Whether context softened what rules found there: a question about attacks, a quotation,
        a line of code. The model knows no context, and then says nothing."""
        here = [
            hit
            for hit in self.hits.values()
            if hit.evidence.start < end and start < hit.evidence.end
        ]
        return bool(here) and all(hit.is_softened for hit in here)

    def score(self, *, category: str | None = None, plain_only: bool = False) -> float:
        """Of everything, of one category, or of what shows without taking a disguise off."""
        hits = [
            hit
            for hit in self.hits.values()
            if category in (None, hit.rule.category)
            and not (plain_only and hit.evidence.view not in PLAIN)
        ]
        by_model = max(
            (
                j.weight
                for j in self.judgements.values()
                if category in (None, j.finding.category)
                and not (plain_only and j.view.name not in PLAIN)
            ),
            default=0.0,
        )
        clean = (1.0 - _combined(hits)) * (1.0 - by_model)
        return round(min(SCORE_MAX, 1.0 - clean), 4)


def analyse(
    text: str,
    content_type: ContentType = "user_input",
    *,
    budget_seconds: float = BUDGET_SECONDS,
    judge: model.Model | None = None,
) -> Analysis:
    """Judge one text: pure computation, the same answer every time. By other weights than those
    that were shipped, where `judge` has some.

    Each rule counts once, where it is strongest. Rules that fired on different words are taken as
    independent chances of an attack (noisy-or); a second one on the same words adds little.
    """
    is_document = content_type in READ
    heads = model.HEADS if is_document or DATA.match(text) else model.HEADS[:1]
    judge = judge or load()  # the first time, before the clock runs
    budget = _Budget(budget_seconds)
    case = _Case(content_type, is_document, heads, judge)
    names: list[str] = []
    scanned = len(text)
    limits = views.Limits()
    strange = 0
    for number, view in enumerate(views.views_of(text, limits)):
        if not number:
            strange = views.unknown_letters(text, view)
        if number and budget.asked():
            tried = 0
        else:
            tried = _look(number, view, case, budget)
            if view.name not in names:
                names.append(view.name)
        if tried < len(view.text):
            scanned = min(scanned, _seen(text, view, tried))
            if budget.is_over:
                break
    unseen = ["time"] if scanned < len(text) else []
    if limits.undecoded:
        scanned = min(scanned, max(0, len(text) - limits.undecoded))
        unseen.append("decoding")
    if strange:
        scanned = min(scanned, len(text) - strange)
        unseen.append("language")
    score = case.score()
    categories = {name: value for name in CATEGORIES if (value := case.score(category=name)) > 0}
    if score >= THRESHOLD > case.score(plain_only=True):
        # It only shows once a disguise is taken off: the disguise is part of the attack.
        categories["encoding_attack"] = max(score, categories.get("encoding_attack", 0.0))
    ranked = sorted(categories, key=lambda name: -categories[name])
    threats = tuple(name for name in ranked if categories[name] >= THRESHOLD)
    if score >= THRESHOLD and not threats:
        threats = (ranked[0],)
    evidence = [hit.evidence for hit in case.hits.values()]
    for judgement in case.judgements.values():
        evidence += _evidence(judgement)
    evidence.sort(key=lambda e: (-e.score, e.start, e.end, e.rule_id))
    return Analysis(
        score=score,
        categories=categories,
        threat_types=threats,
        evidence=tuple(evidence[:EVIDENCE_MAX]),
        views=tuple(names),
        language=views.language_of(text),
        scanned_chars=scanned,
        total_chars=len(text),
        reason=_reason(case, score),
        unseen=tuple(unseen),
    )


def _look(number: int, view: views.View, case: _Case, budget: _Budget) -> int:
    """Rules, then the model, on one view; returns how many of its characters both have seen."""
    tried = _scan(number, view, case, budget)
    if budget.asked():
        return 0
    findings, reached = case.judge.find(view.text, case.heads, budget.asked, view.changed)
    for finding in findings:
        weight = case.judge.weight(finding, case.content_type)
        if weight <= 0 or case.is_softened(*view.span(finding.start, finding.end)):
            continue
        known = case.judgements.get(finding.head)
        # Of two that are certain the higher one: what a disguise hides speaks louder without it.
        if known is None or (weight, finding.margin) > (known.weight, known.finding.margin):
            case.judgements[finding.head] = _Judgement(finding, view, weight)
    return min(tried, reached)


def _evidence(judgement: _Judgement) -> list[Evidence]:
    """The window, the ideas in it, and the words that spoke most for an attack."""
    finding, view, weight = judgement.finding, judgement.view, judgement.weight
    if weight < MODEL_SHOWN_MIN:
        return []
    window = view.span(finding.start, finding.end)
    category, name = finding.category, f"model.{finding.head}"
    found = [Evidence(*window, name, category, view.name, weight)]
    if len(finding.ideas) > 1:
        ideas = f"{name}.ideas.{'+'.join(finding.ideas)}"
        found.append(Evidence(*window, ideas, category, view.name, weight))
    for start, end, share in finding.parts:
        score = round(weight * share, 4)
        place = view.span(start, end)
        found.append(Evidence(*place, f"{name}.word", category, view.name, score))
    return found


def _scan(number: int, view: views.View, case: _Case, budget: _Budget) -> int:
    """Try the rules on one view; returns how many of its characters were tried."""
    text, changed, hits = view.text, view.changed, case.hits
    # The end first, so that padding cannot push an attack out of the budget.
    middle = max(0, len(text) - TAIL_CHARS) if len(text) > 2 * TAIL_CHARS else 0
    done = steps = 0
    place, differs = -1, True
    for first, last in ((middle, len(text)), (0, middle)):
        for start, rule in _book.places(text, first, last):
            steps += 1
            if not steps % PLACES_BETWEEN_CLOCKS and budget.asked():
                return done + start - first
            known = hits.get(rule.id)
            if known is not None and (not known.is_softened or known.tries >= TRIES_MAX):
                continue
            # Where a view is the plain text, it would only find again what was found there.
            if changed is not None and start != place:
                place, differs = start, rules.could_differ(changed, start)
            if not differs:
                continue
            match = rule.pattern.match(text, start, start + rules.REACH)
            if match is None:
                continue
            hit = _hit(number, view, rule, match, case)
            if known is None or hit.weight > known.weight:
                hits[rule.id] = hit
            else:
                known.tries += 1
        done += last - first
    return done


def _hit(
    number: int, view: views.View, rule: rules.Rule, match: re.Match[str], case: _Case
) -> _Hit:
    start, end = match.start(), max(match.end(), match.start() + 1)
    full = rule.weight_document if case.is_document else rule.weight
    full *= RULES_AT.get(case.content_type, {}).get(rule.category, 1.0)
    relief = _book.relief(view.text, start, end, rule, case.softened)
    weight = round(max(full * SOFTENED_MIN, full - relief), 4)
    evidence = Evidence(*view.span(start, end), rule.id, rule.category, view.name, weight)
    return _Hit(rule, weight, (number, start, end), evidence, relief > 0)


def _seen(text: str, view: views.View, tried: int) -> int:
    """How many characters of the sent text were judged when the end was not reached in `view`."""
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


def _reason(case: _Case, score: float) -> str | None:
    if score <= 0:
        return None
    found = [(hit.weight, hit.rule.title, hit.evidence.view) for hit in case.hits.values()]
    for judgement in case.judgements.values():
        if judgement.weight >= MODEL_SHOWN_MIN:
            title = TITLES[judgement.finding.head]
            if len(judgement.finding.ideas) > 1:
                title += f" (ideas close together: {', '.join(judgement.finding.ideas)})"
            found.append((judgement.weight, title, judgement.view.name))
    if not found:
        return None
    strongest = sorted(found, key=lambda item: -item[0])[:3]
    titles = "; ".join(dict.fromkeys(title for _, title, _ in strongest))
    disguises = sorted({view for _, _, view in strongest} - set(PLAIN))
    hidden = f", hidden by {', '.join(disguises)}" if disguises else ""
    return f"Found {titles}{hidden}."
