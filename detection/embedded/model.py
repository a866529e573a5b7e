"""A linear model over the words of a text, sentence by sentence, and over the ideas in them.

Two heads: one for what people write to an assistant, one for what an assistant reads (documents,
the answers of tools), where an order to it is itself the attack. Both weigh the same features:

* words, pairs of neighbouring words, and pieces of words (three to five characters), each by a
  stable hash into a fixed number of buckets;
* ideas (`concepts.py`) and pairs of ideas that stand in one window, whatever the language.

A window is a sentence, two or three neighbouring ones, or a part of a long one. The most suspicious
window counts, so that an order is not diluted by the text around it. Everything is additive: a
word is weighed once (and remembered), a window is a difference of two running sums.

`weights.bin` is written by `python -m detection.training`: one line of JSON that describes it, then
the weights as bytes, compressed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise
from math import log2, sqrt
from operator import add, itemgetter
from pathlib import Path
from typing import NamedTuple

from detection.embedded import concepts

FILE = Path(__file__).with_name("weights.bin")
FORMAT = 3
HEADS = ("prompt", "data")
BUCKETS = 1 << 18
WORDS_KEPT = 8192
"""Weighed words that are remembered; then all are forgotten, which is cheap and bounded."""
WORD_CHARS_MAX = 40
TOKENS_MAX = 12_000
SENTENCE_TOKENS_MAX = 48
JOINED_TOKENS_MAX = 72
WHOLE_TOKENS_MAX = 140
IDEAS_MAX = 14
TOKENS_OFFSET = 3
"""Added to a window's number of tokens, so that two words alone decide little."""
PARTS_SHOWN = 3
FAR_TOKENS = 40
"""Windows so far from the most suspicious one are the rest of the text."""
BACKGROUND_FROM = -1.0
BACKGROUND_MAX = 2.5
"""Above which margin the rest counts, and the most that it takes off: else an attacker would hide
an order among others."""
LENGTH_FROM = 4
LENGTH_MAX = 128
"""From how many windows on, and up to how many, each doubling of them takes something off."""
WORDS_MIN = 5
FEW_WORDS = 0.55
"""The highest score of a window of fewer words than that: they may mean anything."""

_LETTER = rf"[^\W\d_{concepts.UNSPACED}]"
_MARKS = "\u0900-\u0dff\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f"


def _pattern_of_tokens(*, letters: str, unspaced: bool, mails: bool) -> re.Pattern[str]:
    mail = r"|(?P<mail>[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,4})" if mails else ""
    run = rf"|(?P<unspaced>[{concepts.UNSPACED}]{{1,200}})" if unspaced else ""
    return re.compile(
        r"(?P<url>https?://[^\s\"'<>)\]]{1,400}|www\.[^\s\"'<>)\]]{1,400})"
        rf"{mail}|(?P<word>{letters}){run}"
        r"|(?P<number>\d+(?:[.,:]\d+)*|(?:\\x[0-9a-f]{2}|\\u[0-9a-f]{4})+)"
        r"|(?P<line>(?:\\[nrt]|\s*\n\s*)+)"
        r"|(?P<mark>[^\w\s])"
    )


# By whether a text is ASCII and whether it has an @: to look for what cannot be there takes time.
TOKENS = {
    (is_ascii, mails): _pattern_of_tokens(
        letters=r"[A-Za-z][A-Za-z'-]*"
        if is_ascii
        else rf"(?:{_LETTER}|[{_MARKS}])(?:{_LETTER}+|[{_MARKS}'’-]+)*",
        unspaced=not is_ascii,
        mails=mails,
    )
    for is_ascii in (True, False)
    for mails in (True, False)
}
ENDS = frozenset(".!?。！？।؟…")
BORDERS = frozenset("{}[]|<>。！？।\n")
QUOTES = frozenset("\"'“”`")
AFTER_QUOTES = frozenset(",:}]\n")
Ideas = tuple[int, ...]
BOUNDARY = "\n"
PLACEHOLDERS = {"url": "<url>", "mail": "<mail>", "number": "<num>", "line": BOUNDARY}


class Tokens:
    """Words and signs in the form that is weighed, and where each stands in the view.

    Three lists, not a list of tokens: thousands of small objects would take longer than the rest.
    """

    __slots__ = ("ends", "starts", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.starts: list[int] = []
        self.ends: list[int] = []

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Finding:
    """The most suspicious window of a text, for one head.

    `margin` is the sum of its weights, less what the rest of the text has; the higher, the likelier
    an attack. `parts` are the words that spoke most for it, as places in the view's text with the
    share each has of what speaks for an attack, of `words` words in all; `ideas` are the names of
    the ideas that did.
    """

    head: str
    margin: float
    start: int
    end: int
    words: int
    parts: tuple[tuple[int, int, float], ...]
    ideas: tuple[str, ...]
    category: str


# -- Features: what training and judging share ----------------------------------------------------


def tokens_of(text: str) -> Tokens:
    """The tokens of a view's text (lower case), at most `TOKENS_MAX`."""
    tokens = Tokens()
    texts, starts, ends = tokens.texts, tokens.starts, tokens.ends
    for match in TOKENS[text.isascii(), "@" in text].finditer(text):
        kind = match.lastgroup
        start, end = match.span()
        if kind == "word":
            found = match[0]
            if found[-1] in "'’-" or end - start > WORD_CHARS_MAX:
                found = found[:WORD_CHARS_MAX].rstrip("'’-")
        elif kind == "mark":
            found = match[0]
        elif kind == "unspaced":
            _add_unspaced(tokens, match[0], start)
            continue
        else:
            found = PLACEHOLDERS[kind or ""]
        texts.append(found)
        starts.append(start)
        ends.append(end)
        if len(texts) >= TOKENS_MAX:
            break
    return tokens


def _add_unspaced(tokens: Tokens, run: str, start: int) -> None:
    """Scripts without spaces: every two neighbouring characters are a token."""
    count = max(1, len(run) - 1)
    tokens.texts += [run[at : at + 2] for at in range(count)]
    tokens.starts += range(start, start + count)
    tokens.ends += [min(start + len(run), at + 2) for at in range(start, start + count)]


def bucket(feature: str) -> int:
    # Not `hash`, which differs from process to process.
    return zlib.crc32(feature.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def buckets_of_word(word: str) -> list[int]:
    """The word itself, and its pieces when it is long enough to have any."""
    found = [bucket(word)]
    if len(word) > 3 and word[0] != "<":
        whole = f"^{word}$"
        if whole.isascii():  # as `bucket` does, but encoded once: most words of codes are new
            raw, crc32, mask = whole.encode(), zlib.crc32, BUCKETS - 1
            for size in (3, 4, 5):
                found += [crc32(raw[at : at + size]) & mask for at in range(len(raw) - size + 1)]
        else:
            for size in (3, 4, 5):
                found += [bucket(whole[at : at + size]) for at in range(len(whole) - size + 1)]
    return found


def windows_of(tokens: Tokens) -> list[tuple[int, int]]:
    """Where windows begin and end, as positions in `tokens`; fewer than two for each of them."""
    sentences = _sentences(tokens)
    count = len(tokens)
    found: list[tuple[int, int]] = []
    if len(sentences) > 1 and 0 < count <= WHOLE_TOKENS_MAX:
        found.append((0, count))
    for position, (start, end) in enumerate(sentences):
        if end - start > SENTENCE_TOKENS_MAX:
            half = SENTENCE_TOKENS_MAX // 2
            for begin in range(start, end - half, half):
                found.append((begin, min(end, begin + SENTENCE_TOKENS_MAX)))
            continue
        found.append((start, end))
        for _, last in sentences[position + 1 : position + 3]:
            if last - start > JOINED_TOKENS_MAX:
                break
            found.append((start, last))
    return found


def _sentences(tokens: Tokens) -> list[tuple[int, int]]:
    """Sentences, lines, and the fields of JSON and the like, if a word is in them."""
    texts, starts, ends = tokens.texts, tokens.starts, tokens.ends
    found: list[tuple[int, int]] = []
    begin, count = 0, len(texts)
    has_words = False
    for at, text in enumerate(texts):
        if text[0].isalpha():
            has_words = True
            if at + 1 < count:
                continue
        elif at + 1 < count:
            following = texts[at + 1]
            if text in ENDS:
                if starts[at + 1] == ends[at] and following != BOUNDARY:
                    continue
            elif text in QUOTES:
                if following not in AFTER_QUOTES:
                    continue
            elif text not in BORDERS:
                continue
        if has_words:
            found.append((begin, at + 1))
        begin, has_words = at + 1, False
    return found


def ideas_of(lexicon: concepts.Lexicon, text: str, tokens: Tokens) -> list[tuple[int, Ideas]]:
    """The ideas of a text with the position of the token each stands at, in order."""
    found: list[tuple[int, Ideas]] = []
    pair_stems, of, known = lexicon.pair_stems, lexicon.of, lexicon.known
    texts = tokens.texts
    for at, word in enumerate(texts):
        ideas = known.get(word)
        if ideas is None:
            ideas = of(word)
        if word in pair_stems and at + 1 < len(texts):
            ideas = (*ideas, *lexicon.of_pair(word, texts[at + 1]))
        if ideas:
            found.append((at, ideas))
    if not text.isascii():
        at, starts = 0, tokens.starts
        for place, ideas in lexicon.in_unspaced(text):
            while at + 1 < len(starts) and starts[at + 1] <= place:
                at += 1
            found.append((at, ideas))
        found.sort()
    return found


def idea_features(ideas: Sequence[int], size: int) -> list[int]:
    """Numbers of the features of a set of ideas: `size` single ones, then all pairs."""
    ideas = sorted(set(ideas))[:IDEAS_MAX]
    return ideas + [size + first * size + second for first, second in combinations(ideas, 2)]


def _holds(places: Sequence[int], start: int, end: int) -> bool:
    """Whether one of the places, which are in order, lies between the two."""
    at = bisect_left(places, start)
    return at < len(places) and places[at] < end


def _with_ideas(
    windows: Sequence[tuple[int, int]], ideas: Sequence[tuple[int, Ideas]], counts: Sequence[int]
) -> list[_Window]:
    """Each window with the ideas in it, a bit each; `counts` are the words before each token.
    Windows without a word are left out: they say nothing."""
    places = [at for at, _ in ideas]
    masks = [sum({1 << idea for idea in several}) for _, several in ideas]
    found: list[_Window] = []
    for start, end in windows:
        words = counts[end] - counts[start]
        if words:
            here = 0
            for mask in masks[bisect_left(places, start) : bisect_left(places, end)]:
                here |= mask
            found.append((start, end, here, words < WORDS_MIN))
    return found


def _ideas_in(mask: int) -> Ideas:
    """The ideas of a mask, in order, at most `IDEAS_MAX`."""
    return tuple(idea for idea in range(mask.bit_length()) if mask >> idea & 1)[:IDEAS_MAX]


SCALES = [sqrt(tokens + TOKENS_OFFSET) for tokens in range(WHOLE_TOKENS_MAX + 1)]
"""What the sum over a window of so many tokens is divided by."""


LENGTHS = [max(0.0, log2(max(1, windows) / LENGTH_FROM)) for windows in range(LENGTH_MAX + 1)]
"""How often the windows of a text double, beyond those of a short one."""


def pairs_of(texts: Sequence[str]) -> list[int]:
    """The bucket of each token and the one before it: of `before word`, in UTF-8."""
    hashed = [_hashed(text) for text in texts]
    return _pairs([raw for raw, _ in hashed], [digest for _, digest in hashed])


def _hashed(word: str) -> tuple[bytes, int]:
    """A word's bytes, and the digest of all that begins with it and a blank."""
    raw = word.encode("utf-8", "surrogatepass")
    return raw, zlib.crc32(raw + b" ")


def _pairs(raws: Sequence[bytes], digests: Sequence[int]) -> list[int]:
    # A digest can be gone on with: the first word's need not be made again.
    mask = BUCKETS - 1
    before = (_hashed(BOUNDARY)[1], *digests)
    return [digest & mask for digest in map(zlib.crc32, raws, before)]


# -- Judging --------------------------------------------------------------------------------------


Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Head:
    """The weights of one head. `words` are in steps of `step`, `ideas` in steps of `ideas_step`."""

    name: str
    words: memoryview
    step: float
    ideas: memoryview
    ideas_step: float
    bias: float
    points: Mapping[str, Points]
    """What margins mean, by content type, "" for all others: (margin, score) in rising order;
    between two, a straight line."""
    background: float
    """How much of what the rest of a text has is taken off its most suspicious window: where all
    of a text is orders to its reader (a recipe, a guide), one more is none to an assistant."""
    length: float
    """How much each doubling of a text's windows takes off: of more windows that say nothing, the
    worst one looks worse."""
    few: float
    """The highest margin of a window of fewer than `WORDS_MIN` words: it must not hide others."""


def _scaled(points: Points, margin: float) -> float:
    if margin <= points[0][0]:
        return points[0][1]
    for (low, from_score), (high, to_score) in pairwise(points):
        if margin <= high:
            share = (margin - low) / (high - low)
            return round(from_score + share * (to_score - from_score), 4)
    return points[-1][1]


def margin_at(points: Points, score: float) -> float:
    """The margin that gives a score between the first and the last of the points."""
    for (low, from_score), (high, to_score) in pairwise(points):
        if score <= to_score:
            return low + (high - low) * (score - from_score) / (to_score - from_score)
    return points[-1][0]


def _weights_at(weights: memoryview, places: Sequence[int]) -> Sequence[int]:
    # All at once takes a third of the time that one by one does; `itemgetter` wants two or more.
    return itemgetter(*places)(weights) if len(places) > 1 else [weights[at] for at in places]


def _is_word(token: str) -> bool:
    # Two letters may be a piece of a code; two characters of a script without spaces are a word.
    return token[0].isalpha() and (len(token) > 2 or not token.isascii())


class _Best(NamedTuple):
    margin: float
    start: int
    end: int
    ideas: Ideas


_Word = tuple[bytes, int, bool, *tuple[int, ...]]
"""What is remembered of a word: `_hashed`, `_is_word`, and its weight by head."""
_Window = tuple[int, int, int, bool]
"""From which token to which, the ideas in it (a bit each), and whether it has few words."""


class Model:
    """The weights, and the words that were weighed lately. One for a process; forks share it."""

    def __init__(self, lexicon: concepts.Lexicon, heads: Sequence[Head]) -> None:
        self.lexicon = lexicon
        self.heads = {head.name: head for head in heads}
        self.remembered: dict[str, _Word] = {}
        self.remembered_ideas: dict[int, tuple[float, ...]] = {}

    def weight(self, finding: Finding, kind: str = "") -> float:
        """The score of a finding in a text of that content type, 0..1: 0.6 where few harmless
        texts lie above (see `points`)."""
        if not finding.words:
            return 0.0  # codes, not words: what they say is for the views that decode them
        points = self.heads[finding.head].points
        weight = _scaled(points.get(kind) or points[""], finding.margin)
        return weight if finding.words >= WORDS_MIN else min(weight, FEW_WORDS)

    def find(
        self,
        text: str,
        names: Sequence[str],
        spent: Callable[[], bool] | None = None,
        among: Sequence[int] | None = None,
    ) -> tuple[list[Finding], int]:
        """The most suspicious window for each head of `names`, and how far the text was read.

        `spent` says when to stop; it is asked once for some windows. `among` are places in the
        text: only windows around one of them count.
        """
        tokens = tokens_of(text)
        reached = len(text) if len(tokens) < TOKENS_MAX else tokens.ends[-1]
        windows = windows_of(tokens)
        if among is not None:
            windows = [
                w for w in windows if _holds(among, tokens.starts[w[0]], tokens.ends[w[1] - 1])
            ]
        if not windows:
            return [], reached
        if spent is not None and spent():
            return [], 0
        raws, digests, are_words, *by_head = zip(*self._words(tokens.texts), strict=True)
        pairs = _pairs(raws, digests)
        counts = list(accumulate(are_words, initial=0))
        seen = _with_ideas(windows, ideas_of(self.lexicon, text, tokens), counts)
        found: list[Finding] = []
        for number, (name, head) in enumerate(self.heads.items()):
            if name not in names:
                continue
            each = map(add, by_head[number], _weights_at(head.words, pairs))
            sums = list(accumulate(each, initial=0))
            best, last = self._best(head, number, sums, seen, spent)
            if last < len(seen):
                reached = min(reached, tokens.starts[seen[last][0]])
            if best is not None:
                found.append(self._finding(head, tokens, sums, best))
        return found, reached

    def _words(self, texts: Sequence[str]) -> list[_Word]:
        known = self.remembered
        found: list[_Word] = []
        for text in texts:
            word = known.get(text)
            if word is None:
                buckets = buckets_of_word(text)
                weights = [sum(_weights_at(head.words, buckets)) for head in self.heads.values()]
                raw, digest = _hashed(text)
                word = (raw, digest, _is_word(text), *weights)
                if len(known) >= WORDS_KEPT:
                    known.clear()
                known[text] = word
            found.append(word)
        return found

    def _best(
        self,
        head: Head,
        number_of_head: int,
        sums: Sequence[int],
        windows: Sequence[_Window],
        spent: Callable[[], bool] | None,
    ) -> tuple[_Best | None, int]:
        """The window with the highest margin, and how many windows were looked at."""
        known = self.remembered_ideas
        highest, best = -1e9, None
        margins: list[float] = []
        step, bias, scales = head.step, head.bias, SCALES
        for number, (start, end, ideas, is_few) in enumerate(windows):
            if spent is not None and not number % 32 and spent():
                windows = windows[:number]
                break
            weights = known.get(ideas)
            if weights is None:
                weights = self._weights_of_ideas(_ideas_in(ideas))
                if len(known) >= WORDS_KEPT:
                    known.clear()
                known[ideas] = weights
            margin = (
                bias
                + weights[number_of_head]
                + (sums[end] - sums[start]) * step / scales[end - start]
            )
            margins.append(-1e9 if is_few else margin)
            if is_few and margin > head.few:
                margin = head.few
            if margin > highest:
                highest, best = margin, (start, end, ideas)
        if best is None:
            return None, len(windows)
        start, end, ideas = best
        if head.background:
            before, after = start - FAR_TOKENS, end + FAR_TOKENS
            rest = max(
                (
                    m
                    for m, w in zip(margins, windows, strict=True)
                    if w[1] <= before or w[0] >= after
                ),
                default=-1e9,
            )
            highest -= min(BACKGROUND_MAX, max(0.0, head.background * (rest - BACKGROUND_FROM)))
        if head.length:
            several = sum(not is_few for *_, is_few in windows)
            highest -= head.length * LENGTHS[min(several, LENGTH_MAX)]
        return _Best(highest, start, end, _ideas_in(ideas)), len(windows)

    def _weights_of_ideas(self, ideas: Ideas) -> tuple[float, ...]:
        """For each head."""
        found = idea_features(ideas, len(self.lexicon.names))
        return tuple(
            head.ideas_step * sum(_weights_at(head.ideas, found)) for head in self.heads.values()
        )

    def _finding(self, head: Head, tokens: Tokens, sums: Sequence[int], best: _Best) -> Finding:
        weights = [
            (sums[at + 1] - sums[at], at)
            for at in range(best.start, best.end)
            if sums[at + 1] > sums[at] and tokens.texts[at] != BOUNDARY
        ]
        total = sum(weight for weight, _ in weights) or 1
        shown = sorted(weights, key=lambda item: (-item[0], item[1]))[:PARTS_SHOWN]
        names, category = self._leading(head, best.ideas)
        return Finding(
            head.name,
            round(best.margin, 4),
            tokens.starts[best.start],
            tokens.ends[best.end - 1],
            sum(map(_is_word, tokens.texts[best.start : best.end])),
            tuple(
                (tokens.starts[at], tokens.ends[at], round(weight / total, 4))
                for weight, at in shown
            ),
            names,
            category,
        )

    def _leading(self, head: Head, ideas: Sequence[int]) -> tuple[tuple[str, ...], str]:
        """The ideas that weigh most in this window, and the category that they speak for."""
        size = len(self.lexicon.names)
        weights = {idea: float(head.ideas[idea]) for idea in ideas}
        for position, first in enumerate(ideas):
            for second in ideas[position + 1 :]:
                shared = head.ideas[size + first * size + second] / 2
                weights[first] += shared
                weights[second] += shared
        leading = sorted((i for i in ideas if weights[i] > 0), key=lambda i: (-weights[i], i))[:4]
        votes: dict[str, float] = {}
        for idea in leading:
            category = self.lexicon.categories[idea]
            votes[category] = votes.get(category, 0.0) + weights[idea]
        best = max(votes, key=lambda category: (votes[category], category), default="injection")
        return tuple(self.lexicon.names[idea] for idea in leading), best


def digest() -> str:
    """SHA-256 of all that decides: the weights and the lexicon."""
    return hashlib.sha256(FILE.read_bytes() + concepts.FILE.read_bytes()).hexdigest()


def load(path: Path = FILE) -> Model:
    """Read the weights. Raises `ValueError` when they were made for other ideas or features."""
    raw = path.read_bytes()
    head_line, _, packed = raw.partition(b"\n")
    about = json.loads(head_line)
    lexicon = concepts.load()
    size = len(lexicon.names)
    if (about["format"], about["buckets"]) != (FORMAT, BUCKETS) or about["ideas"] != list(
        lexicon.names
    ):
        raise ValueError(f"{path.name} was not made for this code: make train")
    body = memoryview(zlib.decompress(packed)).cast("b")
    heads = []
    at = 0
    for entry in about["heads"]:
        words = body[at : at + BUCKETS]
        ideas = body[at + BUCKETS : at + BUCKETS + size + size * size]
        at += BUCKETS + size + size * size
        points = {kind: tuple(map(tuple, pairs)) for kind, pairs in entry["points"].items()}
        heads.append(
            Head(
                entry["name"],
                words,
                entry["step"],
                ideas,
                entry["ideas_step"],
                entry["bias"],
                points,
                entry["background"],
                entry["length"],
                min(margin_at(pairs, FEW_WORDS) for pairs in points.values()),
            )
        )
    return Model(lexicon, heads)
