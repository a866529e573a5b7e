"""Make the weights of the embedded detector: `make train DATA=path` (see docs/detectors.md).

Each group of sources is left out once, and judged by a model that never saw it: the table printed
says what data of another kind would meet; so is a quarter of all texts, which says what more of the
same would. The weights that are written learn from everything. The same data and the same packages
(requirements/train.txt) give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from detection.embedded import concepts, model, views
from detection.training import corpus, fit, provenance
from detection.training.corpus import Example
from detection.training.fit import Floats

POINTS: dict[str, dict[str, list[tuple[float, float]]]] = {
    "prompt": {
        "": [(-1.1, 0.0), (1.5, 0.6), (5.4, 0.94)],
        "document": [(3.5, 0.0), (5.5, 0.6), (9.4, 0.94)],
        "tool_output": [(3.5, 0.0), (5.5, 0.6), (9.4, 0.94)],
    },
    "data": {
        "": [(-0.7, 0.0), (0.3, 0.6), (3.1, 0.94)],
        "document": [(-2.3, 0.0), (-1.3, 0.6), (1.5, 0.94)],
    },
}
"""What margins mean, by content type, "" for all others: (margin, score). Chosen from the shares of
left-out texts that are printed. More harmless documents than others may lie above 0.6."""
PACKAGES = ("numpy", "scipy")
"""What the same bytes depend on beside the texts."""
BACKGROUND = {"prompt": 0.0, "data": 1.0}
LENGTH = {"prompt": 0.0, "data": 0.6}
"""What the rest of a text, and its length, take off, chosen in the same way."""
HALF_LANGUAGES = frozenset("de es pt pl ru id sv hu ar hi zh ko fa".split())  # noqa: SIM905
FOLDS = [
    fold.split()
    for fold in """
deepset BIPIA llmail-inject postmark talon spamassassin clinc150 own/mode own/requests packages
mcp-servers docs-fastapi docs-opensource docs-recipes docs-handbook docs-prometheus docs-react
docs-govuk docs-tau2

bastioncorpus-0.6.0 prompt-shield spikee self-instruct tau-bench
docs-slack docs-jc own/leak own/trigger own/page

Lakera Giskard injecagent banking77 fabric own/persona own/cyber own/framed own/mail own/letter
own/asks

garak GPTFuzzer gpteacher tldr octokit own/secret own/everyday own/task own/quiz own/tool own/record
own/howto own/conditional

awesome-chatgpt-prompts fastchat own/override own/security own/figurative own/goal own/errand
own/voices own/objects
""".strip().split("\n\n")
]
"""Whole sources that are left out together. Kinds alike stand in one fold, where they can."""


def folds_of(examples: Sequence[Example]) -> list[frozenset[str]]:
    """Every group in one fold; languages in two, so that a language is judged by the others."""
    groups = {e.group for e in examples}
    folds = [frozenset(fold) & groups for fold in FOLDS]
    rest = groups.difference(*folds)
    languages = {g for g in rest if g.startswith("own/")}
    half = {g for g in languages if g.removeprefix("own/") in HALF_LANGUAGES}
    folds[0] |= half
    folds[1] |= rest - half
    return [fold for fold in folds if fold]


def out_of_fold(windows: fit.Windows, head: str, lexicon: concepts.Lexicon) -> Floats:
    """The margin of each text as the detector gives it, by a model that saw nothing of its group.

    Of texts made of two sources there is none: the other one may have been learnt from.
    """
    examples = windows.examples
    found = np.full(len(examples), np.nan)
    for fold in folds_of(examples):
        weights = fit.fit(windows, head, fold)
        judge = model.Model(lexicon, [as_head(head, weights)[0]])
        for at, example in enumerate(examples):
            is_new = example.group in fold and not example.host
            if is_new and (corpus.takes_part(example, head) or corpus.judges(example, head)):
                found[at] = margin_of(judge, head, example.text)
    return found


def margin_of(judge: model.Model, head: str, text: str) -> float:
    """The highest margin of all views of a text; of one without words, very low."""
    findings = (judge.find(view.text, [head])[0] for view in views.views_of(text))
    return max((finding.margin for several in findings for finding in several), default=-20.0)


def held_out(windows: fit.Windows, head: str) -> tuple[list[Example], Floats]:
    """A quarter of the texts, by their digest, and their margins by a model of the others."""
    chosen = np.array([zlib.crc32(e.text[:80].encode()) % 4 == 0 for e in windows.examples])
    rows = np.flatnonzero(~chosen[windows.owner])
    numbers = np.cumsum(~chosen) - 1
    others = fit.Windows(
        [e for e, out in zip(windows.examples, chosen, strict=True) if not out],
        numbers[windows.owner[rows]],
        windows.keys[rows],
        windows.spread[rows],
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
            if example.label == label and not np.isnan(margin):
                groups.setdefault(example.group, []).append(margin)
        for group, found in sorted(groups.items()):
            share = sum(m > at for m in found) / len(found)
            print(f"  {name:<13}{group:<28}{len(found):>6}  {share:6.1%}")


def in_steps(weights: Floats) -> tuple[bytes, float]:
    """Weights as signed bytes, and what one step is worth. The largest few are cut."""
    largest = float(np.quantile(np.abs(weights[weights != 0]), 0.9995))
    step = largest / 127
    return np.clip(np.rint(weights / step), -127, 127).astype(np.int8).tobytes(), step


def as_head(name: str, weights: fit.Weights) -> tuple[model.Head, bytes]:
    """A head as the detector reads it, and the bytes of its weights."""
    words, step = in_steps(weights.words)
    ideas, ideas_step = in_steps(weights.ideas)
    points = POINTS[name]
    few = min(model.margin_at(known, model.FEW_WORDS) for known in points.values())
    head = model.Head(
        name,
        memoryview(words).cast("b"),
        step,
        memoryview(ideas).cast("b"),
        ideas_step * fit.IDEAS_SCALE,
        round(weights.bias, 6),
        points,
        BACKGROUND[name],
        LENGTH[name],
        few,
    )
    return head, words + ideas


def write(
    out: Path, lexicon: concepts.Lexicon, made: dict[str, fit.Weights], digests: dict[str, str]
) -> None:
    """Write the heads that were made; those that were not stay as they are."""
    kept = {} if len(made) == len(model.HEADS) else _kept(out)
    body = b""
    entries = []
    for name in model.HEADS:
        if name not in made:
            entry, weights = kept[name]
            entries.append({**entry, **_meaning(name)})
            body += weights
            continue
        head, weights = as_head(name, made[name])
        body += weights
        entries.append(
            {
                "name": name,
                "step": head.step,
                "ideas_step": head.ideas_step,
                "bias": head.bias,
                **_meaning(name),
                "data": digests,
                "texts": provenance.texts(),
                "features": provenance.features(),
                "packages": {package: metadata.version(package) for package in PACKAGES},
                "weights": hashlib.sha256(weights).hexdigest(),
            }
        )
    about = {
        "format": model.FORMAT,
        "buckets": model.BUCKETS,
        "ideas": lexicon.names,
        "heads": entries,
    }
    out.write_bytes(json.dumps(about).encode() + b"\n" + zlib.compress(body, 9))


def _meaning(name: str) -> dict[str, Any]:
    """What margins of a head mean: chosen, not learnt, so it may change while the weights stay."""
    return {"points": POINTS[name], "background": BACKGROUND[name], "length": LENGTH[name]}


def _kept(out: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """What is said of each head of a file, and its weights."""
    model.load(out)  # refuses one that was made for other ideas
    line, _, packed = out.read_bytes().partition(b"\n")
    entries = json.loads(line)["heads"]
    body = zlib.decompress(packed)
    size = len(body) // len(entries)
    return {
        entry["name"]: (entry, body[at * size : (at + 1) * size])
        for at, entry in enumerate(entries)
    }


def main() -> None:
    parser = ArgumentParser("python -m detection.training", description=__doc__)
    parser.add_argument("data", nargs="+", type=Path, help="JSONL files, or folders of them")
    parser.add_argument("--out", type=Path, default=model.FILE)
    parser.add_argument(
        "--head", choices=model.HEADS, help="make this one anew; the other stays as it is in OUT"
    )
    parser.add_argument("--no-tables", action="store_true", help="judge nothing that was left out")
    arguments = parser.parse_args()
    examples, digests = corpus.read(arguments.data)
    examples += corpus.own()
    examples += corpus.spliced(examples)
    examples += corpus.disguised(examples)
    lexicon = concepts.load()
    print(f"{len(examples):,} texts", flush=True)
    made = {}
    for head in [arguments.head] if arguments.head else model.HEADS:
        chosen = [e for e in examples if corpus.takes_part(e, head) or corpus.judges(e, head)]
        windows = fit.windows_of(chosen, lexicon)
        print(f"{head}: {len(windows.owner):,} windows", flush=True)
        made[head] = fit.fit(windows, head)
        if not arguments.no_tables:
            at = POINTS[head][""][1][0]
            print_table(*held_out(windows, head), head, f"texts held out at random, above {at}", at)
            left_out = out_of_fold(windows, head, lexicon)
            title = f"whole sources left out, above {at}"
            print_table(windows.examples, left_out, head, title, at)
    write(arguments.out, lexicon, made, digests)
    print(f"\n{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
