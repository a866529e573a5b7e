"""Make the weights of the embedded detector: `make train DATA=path` (see docs/detectors.md).

Each group of sources is left out once, and judged by a model that never saw it: the table printed
says what data of another kind would meet; so is a quarter of all texts, which says what more of the
same would. The weights that are written learn from everything. The same data and the same packages
(requirements/train.txt) give the same bytes.
"""

from __future__ import annotations

import json
import zlib
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detection.embedded import concepts, model
from detection.training import corpus, fit
from detection.training.corpus import Example
from detection.training.fit import Floats

POINTS: dict[str, list[list[float]]] = {
    "prompt": [[-1.1, 0.0], [1.5, 0.6], [5.4, 0.94]],
    "data": [[-0.1, 0.0], [1.6, 0.6], [4.4, 0.94]],
}
"""What margins mean: (margin, score). Chosen from the shares of held-out texts that are printed."""
HALF_LANGUAGES = frozenset("de es pt pl ru id sv hu ar hi zh ko fa".split())  # noqa: SIM905
FOLDS = """
deepset BIPIA llmail-inject clinc150 own/mode own/requests packages mcp-servers
bastioncorpus-0.6.0 prompt-shield spikee self-instruct tau-bench own/leak own/trigger own/page
Lakera Giskard injecagent banking77 fabric own/persona own/cyber own/framed own/mail own/asks
garak GPTFuzzer gpteacher tldr own/secret own/everyday own/task own/tool own/conditional
awesome-chatgpt-prompts fastchat own/override own/security own/figurative own/goal own/objects
""".strip().splitlines()
"""Whole sources that are left out together. Kinds alike stand in one fold, where they can."""


def folds_of(examples: Sequence[Example]) -> list[frozenset[str]]:
    """Every group in one fold; languages in two, so that a language is judged by the others."""
    groups = {e.group for e in examples}
    folds = [frozenset(fold.split()) & groups for fold in FOLDS]
    rest = groups.difference(*folds)
    languages = {g for g in rest if g.startswith("own/")}
    half = {g for g in languages if g.removeprefix("own/") in HALF_LANGUAGES}
    folds[0] |= half
    folds[1] |= rest - half
    return [fold for fold in folds if fold]


def out_of_fold(windows: fit.Windows, head: str) -> Floats:
    """The margin of each text, by a model that saw nothing of its group."""
    groups = np.array([e.group for e in windows.examples])
    found = np.full(len(groups), -20.0)
    for fold in folds_of(windows.examples):
        weights = fit.fit(windows, head, fold)
        chosen = np.isin(groups, sorted(fold))
        found[chosen] = fit.text_margins(windows, weights.margins(windows))[chosen]
    return found


def held_out(windows: fit.Windows, head: str) -> tuple[list[Example], Floats]:
    """A quarter of the texts, by their digest, and their margins by a model of the others."""
    chosen = np.array([zlib.crc32(e.text[:80].encode()) % 4 == 0 for e in windows.examples])
    rows = np.flatnonzero(~chosen[windows.owner])
    numbers = np.cumsum(~chosen) - 1
    others = fit.Windows(
        [e for e, out in zip(windows.examples, chosen, strict=True) if not out],
        numbers[windows.owner[rows]],
        windows.keys[rows],
        windows.words[rows],
        windows.ideas[rows],
    )
    margins = fit.text_margins(windows, fit.fit(others, head).margins(windows))
    examples = [e for e, out in zip(windows.examples, chosen, strict=True) if out]
    return examples, margins[chosen]


def print_table(
    examples: Sequence[Example], margins: Floats, head: str, title: str, at: float
) -> None:
    """Shares above the margin by group: recall for attacks, false alarms for harmless texts."""
    print(f"\n{head}: {title}")
    for label, name in ((1, "found"), (0, "false alarms")):
        groups: dict[str, list[float]] = {}
        for example, margin in zip(examples, margins, strict=True):
            if example.label == label and fit.takes_part(example, head):
                groups.setdefault(example.group, []).append(margin)
        for group, found in sorted(groups.items()):
            share = sum(m > at for m in found) / len(found)
            print(f"  {name:<13}{group:<28}{len(found):>6}  {share:6.1%}")


def in_steps(weights: Floats) -> tuple[bytes, float]:
    """Weights as signed bytes, and what one step is worth. The largest few are cut."""
    largest = float(np.quantile(np.abs(weights[weights != 0]), 0.9995))
    step = largest / 127
    return np.clip(np.rint(weights / step), -127, 127).astype(np.int8).tobytes(), step


def write(
    out: Path,
    lexicon: concepts.Lexicon,
    heads: dict[str, tuple[fit.Weights, list[list[float]]]],
    digests: dict[str, str],
) -> None:
    body = b""
    entries = []
    for name, (weights, points) in heads.items():
        words, step = in_steps(weights.words)
        ideas, ideas_step = in_steps(weights.ideas)
        body += words + ideas
        entries.append(
            {
                "name": name,
                "step": step,
                "ideas_step": ideas_step * fit.IDEAS_SCALE,
                "bias": round(weights.bias, 6),
                "points": points,
            }
        )
    about = {
        "format": model.FORMAT,
        "buckets": model.BUCKETS,
        "ideas": lexicon.names,
        "heads": entries,
        "data": digests,
    }
    out.write_bytes(json.dumps(about).encode() + b"\n" + zlib.compress(body, 9))


def main() -> None:
    parser = ArgumentParser("python -m detection.training", description=__doc__)
    parser.add_argument("data", nargs="+", type=Path, help="JSONL files, or folders of them")
    parser.add_argument("--out", type=Path, default=model.FILE)
    arguments = parser.parse_args()
    examples, digests = corpus.read(arguments.data)
    examples += corpus.own()
    examples += corpus.disguised(examples)
    lexicon = concepts.load()
    print(f"{len(examples):,} texts", flush=True)
    windows = fit.windows_of(examples, lexicon)
    print(f"{len(windows.owner):,} windows", flush=True)
    heads = {}
    for head in model.HEADS:
        at = POINTS[head][1][0]
        print_table(*held_out(windows, head), head, f"texts held out at random, above {at}", at)
        left_out = out_of_fold(windows, head)
        print_table(examples, left_out, head, f"whole sources left out, above {at}", at)
        heads[head] = (fit.fit(windows, head), POINTS[head])
    write(arguments.out, lexicon, heads, digests)
    print(f"\n{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
