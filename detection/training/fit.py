"""Logistic regression over the windows of texts, and its weights in steps of one byte."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from detection.embedded import concepts, model, views
from detection.training.corpus import Example, takes_part

WINDOWS_MAX = 72
"""Windows of one text that are looked at, spread over it."""
SPREAD = 12
"""Of a harmless text, so many of them always count: long texts must not outweigh all others."""
MINED = {"prompt": 3, "data": 6}
"""And from the second round on so many more, those that the round before took for an attack: the
worst window of a text is what it is judged by."""
ROUNDS = {"prompt": 3, "data": 3}
KEPT_WINDOWS = 2
"""Of an attack, so many are attacks."""
L2 = {"prompt": 1e-4, "data": 1e-5}
STEPS = 35
IDEAS_SCALE = 0.35
IDEAS_ALONE = {"prompt": 0.2, "data": 0.5}
"""Weight of the copy of each window in which only ideas are seen: as in an unknown language."""
SEEN_MIN = 3
NEGATIVES = 3.0
WEIGHTIER = {"awesome-chatgpt-prompts": 5.0, "own/objects": 2.0}
"""Harmless texts that look like attacks, of which there are few."""
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Windows:
    """The features of all windows of some texts, one row a window."""

    examples: list[Example]
    owner: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    """A digest of each window's words."""
    spread: npt.NDArray[np.bool_]
    """Whether it is one of the `SPREAD` of its text."""
    words: csr_matrix
    ideas: csr_matrix


def windows_of(examples: Sequence[Example], lexicon: concepts.Lexicon) -> Windows:
    size = len(lexicon.names)
    known: dict[str, list[int]] = {}
    owner: list[int] = []
    keys: list[int] = []
    spread: list[bool] = []
    columns: list[npt.NDArray[np.int32]] = []
    values: list[npt.NDArray[np.float32]] = []
    counts = [0]
    idea_columns: list[int] = []
    idea_counts = [0]
    for number, example in enumerate(examples):
        for view in views.views_of(example.text):
            tokens = model.tokens_of(view.text)
            if not tokens:
                continue
            ideas = model.ideas_of(lexicon, view.text, tokens)
            flat: list[int] = []
            offsets = [0]
            for word, pair in zip(tokens.texts, model.pairs_of(tokens.texts), strict=True):
                if word not in known:
                    known[word] = model.buckets_of_word(word)
                flat += known[word]
                flat.append(pair)
                offsets.append(len(flat))
            every = np.array(flat, np.int32)
            windows = model.windows_of(tokens)
            windows = windows[:: max(1, -(-len(windows) // WINDOWS_MAX))]
            step = max(1, -(-len(windows) // SPREAD))
            for position, (start, end) in enumerate(windows):
                found = every[offsets[start] : offsets[end]]
                columns.append(found)
                values.append(np.full(len(found), 1 / model.SCALES[end - start], np.float32))
                counts.append(counts[-1] + len(found))
                here = {idea for at, several in ideas if start <= at < end for idea in several}
                chosen = model.idea_features(sorted(here)[: model.IDEAS_MAX], size)
                idea_columns += chosen
                idea_counts.append(idea_counts[-1] + len(chosen))
                owner.append(number)
                spread.append(position % step == 0)
                keys.append(zlib.crc32(" ".join(tokens.texts[start:end]).encode()))
    words = csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.array(counts, np.int64)),
        shape=(len(owner), model.BUCKETS),
    )
    all_ideas = csr_matrix(
        (np.full(len(idea_columns), IDEAS_SCALE, np.float32), idea_columns, idea_counts),
        shape=(len(owner), size + size * size),
    )
    return Windows(
        list(examples), np.array(owner), np.array(keys), np.array(spread), words, all_ideas
    )


@dataclass(slots=True)
class Weights:
    words: Floats
    ideas: Floats
    bias: float

    def margins(self, windows: Windows) -> Floats:
        # In the matrices' own precision: else each product would copy them whole.
        words, ideas = self.words.astype(np.float32), self.ideas.astype(np.float32)
        found: Floats = (windows.words @ words + windows.ideas @ ideas).astype(np.float64)
        return found + self.bias


def fit(windows: Windows, head: str, left_out: frozenset[str] = frozenset()) -> Weights:
    """Several rounds: of an attack, only its most suspicious windows are attacks; of a harmless
    text, they are what is most to be learnt."""
    examples = windows.examples
    used = np.array([takes_part(e, head) and e.groups.isdisjoint(left_out) for e in examples])
    labels = np.array([e.label for e in examples])
    groups = {name: at for at, name in enumerate(sorted({e.group for e in examples}))}
    group = np.array([groups[e.group] for e in examples])
    weightier = np.array([WEIGHTIER.get(name, 1.0) for name in groups])
    rows = np.flatnonzero(used[windows.owner])
    # What a harmless text says too is not the attack in the text around it.
    is_attack = labels[windows.owner[rows]] == 1
    harmless = np.isin(windows.keys[rows], windows.keys[rows][~is_attack])
    every = rows[~(is_attack & harmless)]
    weights = Weights(np.zeros(model.BUCKETS), np.zeros(windows.ideas.shape[1]), 0.0)
    rows = every[windows.spread[every]]
    for turn in range(ROUNDS[head]):
        if turn:
            margins = weights.margins(windows)
            rows = _most_suspicious(windows, every, labels, margins, MINED[head])
        owner = windows.owner[rows]
        weights = _solve(
            windows, rows, labels[owner], group[owner], weightier[group[owner]], weights, head
        )
    return weights


def _most_suspicious(
    windows: Windows,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    margins: Floats,
    mined: int,
) -> npt.NDArray[np.int64]:
    owner = windows.owner[rows]
    order = np.lexsort((-margins[rows], owner))
    sorted_rows, sorted_owner = rows[order], owner[order]
    first = np.r_[True, sorted_owner[1:] != sorted_owner[:-1]]
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.where(
        labels[sorted_owner] == 0,
        windows.spread[sorted_rows] | (rank < mined),
        rank < KEPT_WINDOWS,
    )
    return np.sort(sorted_rows[kept])


def _solve(
    windows: Windows,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    weightier: Floats,
    start: Weights,
    head: str,
) -> Weights:
    words, ideas = windows.words[rows], windows.ideas[rows]
    sign = np.where(labels == 1, 1.0, -1.0)
    # Each group counts by the root of its size, each label by its share.
    keys, inverse, sizes = np.unique(group * 2 + labels, return_inverse=True, return_counts=True)
    del keys
    importance = 1 / np.sqrt(sizes[inverse])
    for label, share in ((1, 1.0), (0, NEGATIVES)):
        chosen = labels == label
        importance[chosen] *= share / importance[chosen].sum()
    importance *= np.where(labels == 1, 1.0, weightier)
    seen = np.asarray((words > 0).sum(axis=0)).ravel() >= SEEN_MIN
    columns = np.flatnonzero(seen)
    words = words[:, columns]
    transposed, ideas_transposed = words.T.tocsr(), ideas.T.tocsr()
    count = len(columns)

    def loss(w: Floats) -> tuple[float, Floats]:
        short = w.astype(np.float32)
        idea_margin = (ideas @ short[count:-1]).astype(np.float64)
        bias = w[-1]
        whole = words @ short[:count] + idea_margin + bias
        total, gradient = 0.0, L2[head] * w
        gradient[-1] = 0
        for margin, part in ((whole, 1.0), (idea_margin + bias, IDEAS_ALONE[head])):
            signed = sign * margin
            total += part * float(importance @ np.logaddexp(0, -signed))
            pull = -part * importance * sign / (1 + np.exp(np.clip(signed, -60, 60)))
            gradient[-1] += pull.sum()
            # Small numbers, which single precision keeps when they are first made larger.
            larger = (pull * len(sign)).astype(np.float32)
            gradient[count:-1] += (ideas_transposed @ larger).astype(np.float64) / len(sign)
            if part == 1.0:
                gradient[:count] += (transposed @ larger).astype(np.float64) / len(sign)
        return total + L2[head] / 2 * float(w[:-1] @ w[:-1]), gradient

    begin = np.r_[start.words[columns], start.ideas, start.bias]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    on_words = np.zeros(model.BUCKETS)
    on_words[columns] = found.x[:count]
    return Weights(on_words, found.x[count:-1], float(found.x[-1]))


def text_margins(windows: Windows, margins: Floats) -> Floats:
    """The highest margin of each text; of one without words, very low."""
    found = np.full(len(windows.examples), -20.0)
    np.maximum.at(found, windows.owner, margins)
    return found
