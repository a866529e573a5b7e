"""What `manage.py evaluate` reads, counts and draws. Pure: no network, no database.

A text lives in `Sample` until it is answered. `Outcome`, and everything made of it, keeps only the
text's digest and length, so that no table, CSV or page can show one.

An undefined figure is None: a file without attacks has no recall, one without benign texts no
false-positive rate, and precision and F1 need both.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from detection.embedded.views import language_of
from detection.models import TEXT_CHARS_MAX
from detection.schemas import Text
from gateway_project.core.storable import storable

NOT_JSON = "not a line of JSON in UTF-8 with each name once"
NOT_OBJECT = "not a JSON object"
NO_TEXT = "no text"
EMPTY = "empty text"
TOO_LONG = f"over {TEXT_CHARS_MAX:,} characters"
NOT_TEXT = "NUL or lone surrogate"
NO_LABEL = "label is not 0 or 1"

NAME_CHARS_MAX = 120
Z_95 = 1.959964  # of the standard normal distribution
NONE = "\N{EN DASH}"
NBSP = "\N{NO-BREAK SPACE}"
COLUMNS = (
    *("Texts", "Attacks", "Benign", "Precision", "Recall", "95 %", "F1"),
    *("FPR", "95 %", "p50", "p95", "p99"),
)
BINS = 20  # of the histogram of confidences
LATENCY_BINS = 40
_text = TypeAdapter[str](Annotated[Text, AfterValidator(storable)])


class Answer(BaseModel):
    """What is used of the API's answer. Anything else in it is left alone."""

    is_malicious: bool
    confidence: float = Field(ge=0, le=1, allow_inf_nan=False)
    status: str
    threshold: float | None = None
    decision: str = ""
    threat_types: list[str] = []
    source: str = ""
    endpoint: str | None = None
    degraded_reason: str | None = None
    would_flag: bool = False

    @model_validator(mode="after")
    def _as_if_enforced(self) -> Answer:
        """A key that only monitors flags nothing, and finds the same."""
        self.is_malicious = self.is_malicious or self.would_flag
        return self

    @property
    def is_settled(self) -> bool:
        """Whether the engine's own verdict stands: an attack found early needs no more reading."""
        return self.status == "complete" or (self.status == "partial" and self.is_malicious)

    @property
    def score(self) -> float:
        """The confidence as thresholds see it; below all of them when it says nothing.

        An engine with a floor never scores below it: the API then answers "not malicious" at any
        threshold, and so must a curve over thresholds.
        """
        is_floor = self.threshold is not None and self.confidence >= self.threshold
        return -1.0 if is_floor and not self.is_malicious else self.confidence


@dataclass(frozen=True, slots=True)
class Sample:
    """One good row: label 1 is an attack, 0 is benign; lines count from 1."""

    file: str
    line: int
    text: str
    label: int
    source: str
    language: str = ""

    def outcome(
        self,
        *,
        skipped: str = "",
        answer: Answer | None = None,
        latency_ms: float | None = None,
    ) -> Outcome:
        # A lone surrogate has no UTF-8: its digest is of the bytes it would have.
        raw = self.text.encode("utf-8", "surrogatepass")
        return Outcome(
            self.file,
            self.line,
            self.source,
            self.label,
            hashlib.sha256(raw).hexdigest()[:16],
            len(self.text),
            skipped,
            answer,
            latency_ms,
            self.language or language_of(self.text),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: answered, or skipped for a reason. Never holds the text."""

    file: str
    line: int
    source: str = ""
    label: int | None = None
    sha256: str = ""
    chars: int | None = None
    skipped: str = ""
    answer: Answer | None = None
    latency_ms: float | None = None
    language: str = ""
    """As the row says, else the script that most letters are of."""


# -- Reading --------------------------------------------------------------------------------------


def printable(name: str, *, chars_max: int = NAME_CHARS_MAX) -> str:
    """A name from a file or a server, fit for any output: no control characters, not endless."""
    name = name.encode("utf-8", "replace").decode()
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= chars_max else name[: chars_max - 1] + "…"


def names_of(paths: Sequence[Path]) -> list[str]:
    """What to call the files: the last part, or the whole path where that is not enough."""
    last, names = Counter(path.name for path in paths), list[str]()
    for path in paths:
        name = printable(path.name if last[path.name] == 1 else str(path))
        names.append(name if name not in names else f"{name} #{len(names) + 1}")
    return names


def rows_in(path: Path) -> tuple[int, str]:
    """How many rows (lines that are not blank) a file has, and the SHA-256 of the whole of it."""
    digest, rows = hashlib.sha256(), 0
    with path.open("rb") as lines:
        for line in lines:
            digest.update(line)
            rows += bool(line.strip())
    return rows, digest.hexdigest()


def read(path: Path, name: str, limit: int | None = None) -> Iterator[Sample | Outcome]:
    """The first `limit` rows of a file. A bad one comes as an `Outcome` that says why."""
    rows = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            rows += 1
            if limit is not None and rows > limit:
                return
            yield parse(line, name, number)


def parse(line: bytes, file: str, number: int) -> Sample | Outcome:
    try:
        # Not orjson: it takes lone surrogates for broken JSON; they have a reason of their own.
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return Outcome(file, number, skipped=NOT_JSON)
    if not isinstance(row, dict):
        return Outcome(file, number, skipped=NOT_OBJECT)
    text, label, source = row.get("text"), row.get("label"), row.get("source")
    source = printable(source) if isinstance(source, str) else ""
    if not isinstance(text, str):
        return Outcome(file, number, source, skipped=NO_TEXT)
    language = row.get("language")
    language = printable(language, chars_max=40) if isinstance(language, str) else ""
    sample = Sample(file, number, text, 0, source, language)
    if type(label) is not int or label not in (0, 1):  # `true` is no label
        return Outcome(
            file, number, source, None, sample.outcome().sha256, len(text), skipped=NO_LABEL
        )
    sample = Sample(file, number, text, label, source, language)
    reason = why_not(text)
    return sample.outcome(skipped=reason) if reason else sample


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # two texts, or two labels: which one would be judged?
        raise ValueError("a name stands twice")
    return found


def why_not(text: str) -> str:
    """Why the API would refuse the text, by its own rules; empty when it would not.

    Asking would tell as much, but a hundred refusals in a minute are limited for the address.
    """
    if not text:
        return EMPTY
    if len(text) > TEXT_CHARS_MAX:
        return TOO_LONG
    try:
        _text.validate_python(text, strict=True)
    except ValidationError:
        return NOT_TEXT
    return ""


def prefix(source: str) -> str:
    """The first two parts: `shield/edge/base64_case_7` counts as `shield/edge`."""
    return "/".join(source.split("/")[:2]) or "(no source)"


# -- Words ----------------------------------------------------------------------------------------


def percent(share: float | None, sign: str = f"{NBSP}%") -> str:
    """`97.2 %`. Only a share that is exactly 0 or 1 is shown as 0 % or 100 %."""
    if share is None:
        return NONE
    if share in (0, 1):
        return f"{share * 100:.0f}{sign}"
    bound = "<0.1" if share < 0.0005 else ">99.9" if share >= 0.9995 else ""
    return f"{bound or format(share * 100, '.1f')}{sign}"


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


# -- Counting -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of a count, 0 to 1, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, n: int) -> Rate | None:
        if n == 0:
            return None
        share, z2 = hits / n, Z_95 * Z_95
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        # At the ends the bound is exact; rounding must not put the share outside its interval.
        return cls(
            share,
            0.0 if hits == 0 else max(0.0, middle - half),
            1.0 if hits == n else min(1.0, middle + half),
        )

    @property
    def text(self) -> str:
        return percent(self.value)

    @property
    def interval(self) -> str:
        """Both ends, in percent."""
        return f"{percent(self.low, '')}{NONE}{percent(self.high, '')}"


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` (0 to 1) of the sorted values lie, interpolated."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of answered texts, and what follows from them. Latencies in ms, sorted."""

    name: str
    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0
    latencies_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def attacks(self) -> int:
        return self.caught + self.missed

    @property
    def benign(self) -> int:
        return self.false_alarms + self.passed

    @property
    def n(self) -> int:
        return self.attacks + self.benign

    @property
    def recall(self) -> Rate | None:
        return Rate.of(self.caught, self.attacks)

    @property
    def false_positive_rate(self) -> Rate | None:
        return Rate.of(self.false_alarms, self.benign)

    @property
    def precision(self) -> float | None:
        flagged = self.caught + self.false_alarms
        return self.caught / flagged if flagged and self.attacks and self.benign else None

    @property
    def f1(self) -> float | None:
        if not (self.attacks and self.benign):
            return None
        return 2 * self.caught / (2 * self.caught + self.false_alarms + self.missed)

    def latency_ms(self, share: float) -> float | None:
        return percentile(self.latencies_ms, share)

    @property
    def precision_text(self) -> str:
        return percent(self.precision)

    @property
    def f1_text(self) -> str:
        return percent(self.f1)

    def cells(self) -> list[str]:
        """The row of the table of figures, under `COLUMNS`."""
        shares: list[str] = [percent(self.precision, "")]
        for rate in (self.recall, self.false_positive_rate):
            shares += [percent(rate.value, ""), rate.interval] if rate else [NONE, NONE]
        shares.insert(3, percent(self.f1, ""))
        counts = [f"{n:,}" for n in (self.n, self.attacks, self.benign)]
        return counts + shares + [milliseconds(self.latency_ms(q)) for q in (0.50, 0.95, 0.99)]


def measure(name: str, outcomes: Iterable[Outcome]) -> Figures:
    counts: Counter[tuple[int | None, bool]] = Counter()
    latencies = []
    for outcome in outcomes:
        if outcome.answer is not None:
            counts[outcome.label, outcome.answer.is_malicious] += 1
            latencies.append(outcome.latency_ms or 0.0)
    return Figures(
        name,
        caught=counts[1, True],
        missed=counts[1, False],
        false_alarms=counts[0, True],
        passed=counts[0, False],
        latencies_ms=tuple(sorted(latencies)),
    )


def measure_by(outcomes: Iterable[Outcome], key: Callable[[Outcome], str]) -> list[Figures]:
    """One row a group, in the order in which the groups first appear."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return [measure(name, members) for name, members in groups.items()]


def sweep(outcomes: Iterable[Outcome], thresholds: Sequence[float]) -> list[tuple[float, Figures]]:
    """What each threshold would have given: `[(threshold, figures without latencies)]`."""
    scores: dict[int, list[float]] = {0: [], 1: []}
    for outcome in outcomes:
        if outcome.answer is not None and outcome.label is not None:
            scores[outcome.label].append(outcome.answer.score)
    benign, attacks = sorted(scores[0]), sorted(scores[1])
    points = []
    for threshold in thresholds:
        missed, passed = bisect_left(attacks, threshold), bisect_left(benign, threshold)
        points.append(
            (
                threshold,
                Figures("", len(attacks) - missed, missed, len(benign) - passed, passed),
            )
        )
    return points


RATES = (0.01, 0.02, 0.05, 0.1)
"""False-positive rates at which engines are compared, each at a threshold of its own."""


@dataclass(frozen=True, slots=True)
class Roc:
    """Recall over the false-positive rate, a point for each threshold, the highest first.

    `area` is the chance that an attack scores above a benign text.
    """

    points: tuple[tuple[float, float, float], ...]  # threshold, false-positive rate, recall
    area: float

    @property
    def path(self) -> str:
        """As an SVG path in a square of one."""
        return "M0 1" + "".join(f"L{rate:.4f} {1 - recall:.4f}" for _, rate, recall in self.points)

    @property
    def near(self) -> str:
        """The same for false-positive rates to a tenth, ten times as wide."""
        inside = [point for point in self.points if point[1] <= max(RATES)]
        steps = "".join(f"L{rate * 10:.4f} {1 - recall:.4f}" for _, rate, recall in inside)
        return f"M0 1{steps}" + ("H1" if inside else "")

    def at(self, rate: float) -> tuple[float, float] | None:
        """The lowest threshold that flags at most that share of benign texts, and its recall."""
        good = [
            (threshold, recall) for threshold, of_benign, recall in self.points if of_benign <= rate
        ]
        return good[-1] if good else None


def roc(outcomes: Iterable[Outcome]) -> Roc | None:
    """None without attacks or without benign texts that were answered."""
    scored = [(o.answer.score, o.label) for o in outcomes if o.answer is not None]
    attacks = sum(label == 1 for _, label in scored)
    benign = len(scored) - attacks
    if not attacks or not benign:
        return None
    points: list[tuple[float, float, float]] = []
    caught = false_alarms = 0
    area = 0.0
    for score, members in groupby(sorted(scored, key=lambda one: -one[0]), key=lambda one: one[0]):
        labels = [label for _, label in members]
        hits = sum(label == 1 for label in labels)
        alarms = len(labels) - hits
        area += alarms * (caught + hits / 2)
        caught, false_alarms = caught + hits, false_alarms + alarms
        if score >= 0:  # below: the engine said nothing, at any threshold
            points.append((score, false_alarms / benign, caught / attacks))
    return Roc(tuple(points), area / (attacks * benign))


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two engines say of the same texts of one class: how many both flagged, one alone, none.
    `chance`: how likely so lopsided a split is if both are as good (McNemar's exact test)."""

    name: str
    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def chance(self) -> float:
        n, k = self.first_only + self.second_only, min(self.first_only, self.second_only)
        half = n * math.log(0.5)
        ways = (
            math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + half)
            for i in range(k + 1)
        )
        return min(1.0, 2 * sum(ways))

    @property
    def chance_text(self) -> str:
        return "<0.001" if self.chance < 0.001 else f"{self.chance:.3f}"


def pairs(first: Iterable[Outcome], second: Iterable[Outcome]) -> list[Pairs]:
    """Attacks, then benign texts: those that both engines answered."""
    flagged = {(o.file, o.line): o.answer.is_malicious for o in second if o.answer is not None}
    counts: dict[int, Counter[tuple[bool, bool]]] = {1: Counter(), 0: Counter()}
    for o in first:
        if o.answer is not None and o.label is not None and (o.file, o.line) in flagged:
            counts[o.label][o.answer.is_malicious, flagged[o.file, o.line]] += 1
    return [
        Pairs(name, c[True, True], c[True, False], c[False, True], c[False, False])
        for name, c in (("attacks", counts[1]), ("benign", counts[0]))
    ]


@dataclass(slots=True)
class Run:
    """How it was run. `seconds`: from the first request to the last answer."""

    url: str
    command: str
    started: str
    concurrency: int
    content_type: str
    asked_threshold: float | None
    files: list[tuple[str, int, str]]  # name, rows to read, SHA-256
    seconds: float = 0.0
    stopped: str = ""  # why it ended early; empty when it did not
    limit_waits: int = 0
    engine: str = ""  # empty: whom the key's policy says
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(rows for _, rows, _ in self.files)

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.answer is not None]

    @property
    def per_second(self) -> float | None:
        return len(self.answered) / self.seconds if self.seconds else None

    def sort(self) -> None:
        """Answers come as they come; the output is in the order of the input."""
        order = {name: number for number, (name, _, _) in enumerate(self.files)}
        self.outcomes.sort(key=lambda outcome: (order[outcome.file], outcome.line))

    def by_file(self) -> list[Figures]:
        found = {f.name: f for f in measure_by(self.outcomes, lambda outcome: outcome.file)}
        return [found.get(name) or Figures(name) for name, _, _ in self.files]

    def by_source(self) -> list[Figures]:
        return measure_by(self.answered, lambda outcome: prefix(outcome.source))

    def by_language(self) -> list[Figures]:
        found = measure_by(self.answered, lambda outcome: outcome.language)
        return sorted(found, key=lambda figures: -figures.n)

    def roc(self) -> Roc | None:
        return roc(self.outcomes)

    def total(self) -> Figures:
        return measure("Total", self.outcomes)

    def skipped(self) -> list[tuple[str, int]]:
        return Counter(o.skipped for o in self.outcomes if o.skipped).most_common()

    def answers(self, of: Callable[[Answer], str]) -> list[tuple[str, int]]:
        """How often each value of `of` was answered, the most frequent first."""
        return Counter(of(o.answer) for o in self.outcomes if o.answer is not None).most_common()

    def degraded(self) -> list[tuple[str, int]]:
        """`[("degraded, fallback, connect_error", 12)]`: answers that are not settled."""
        return Counter(
            printable(", ".join(filter(None, (a.status, a.source, a.degraded_reason))))
            for a in (o.answer for o in self.outcomes)
            if a is not None and not a.is_settled
        ).most_common()

    def threshold(self) -> float | None:
        """The threshold that most answers applied."""
        applied = Counter(o.answer.threshold for o in self.outcomes if o.answer is not None)
        applied.pop(None, None)
        return applied.most_common(1)[0][0] if applied else self.asked_threshold


# -- Drawing: positions and heights are shares of the plot, 0 to 1 --------------------------------


def bins(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Of the confidences, by class: `{low, high, attacks, benign, up, down}`.

    Heights are shares of the class, so that few benign texts are seen beside many attacks.
    """
    counts = {0: [0] * BINS, 1: [0] * BINS}
    for o in outcomes:
        if o.answer is not None and o.label is not None:
            counts[o.label][min(int(o.answer.confidence * BINS), BINS - 1)] += 1
    heights = {label: [n / max(sum(ns), 1) for n in ns] for label, ns in counts.items()}
    most = max(heights[0] + heights[1]) or 1.0
    return [
        {
            "low": f"{i / BINS:.2f}",
            "high": f"{(i + 1) / BINS:.2f}",
            "attacks": counts[1][i],
            "benign": counts[0][i],
            "up": heights[1][i] / most,
            "down": heights[0][i] / most,
        }
        for i in range(BINS)
    ]


def curves(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Recall and false-positive rate over the threshold, as SVG paths; empty where undefined."""
    points = sweep(outcomes, [i / 200 for i in range(201)])
    paths = {"recall": "", "rate": ""}
    for threshold, f in points:
        for name, rate in (("recall", f.recall), ("rate", f.false_positive_rate)):
            if rate is not None:
                step = f"H{threshold:.3f}V" if paths[name] else "M0,"
                paths[name] += f"{step}{1 - rate.value:.4f}"
    return paths


def latency_plot(ordered: Sequence[float]) -> dict[str, Any]:
    """Bins to a little beyond p99, the last with all that is slower; ticks and percentiles.

    `{bins: [{start, n, up}], ticks: [(text, position)], marks: [(name, text, position)]}`
    """
    end = (percentile(ordered, 0.99) or 0.0) * 1.1
    if not end:
        return {}
    counts = Counter(min(int(ms / end * LATENCY_BINS), LATENCY_BINS - 1) for ms in ordered)
    most = max(counts.values())
    power = 10 ** math.floor(math.log10(end))
    step = next(s for s in (power / 5, power / 2, power, power * 2) if end / s <= 6)
    at = [(f"p{q}", percentile(ordered, q / 100) or 0.0) for q in (50, 95, 99)]
    return {
        "bins": [
            {"start": milliseconds(end * i / LATENCY_BINS), "n": counts[i], "up": counts[i] / most}
            for i in range(LATENCY_BINS)
        ],
        "ticks": [(f"{step * i:,g}", step * i / end) for i in range(int(end / step) + 1)],
        "marks": [(name, milliseconds(ms), ms / end) for name, ms in at],
    }
