"""The embedded detector on one core: how long a text takes, by length and kind of text.

`python -m benchmarks.detector`. CPU time of this process, and the time that passed, of one call
each; every text is another one, made of the sentences that the detector learns from. Hostile texts
show what is the longest that anything may take: the budget, and the step after which it is seen.
"""

from __future__ import annotations

import os
import random
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, process_time

from detection.embedded import Analysis, ContentType, analyse
from detection.embedded.detector import BUDGET_SECONDS
from detection.training import corpus, disguises

LENGTHS = (100, 1_000, 10_000)
SEED = 5
FOREIGN = frozenset(("own/ru", "own/ar", "own/hi", "own/zh", "own/ja", "own/ko", "own/th"))
HOSTILE: dict[str, str] = {
    "one word": "a" * 10_000,
    "letters apart": "a " * 5_000,
    "base64": "aGVsbG8gd29ybGQgaG93 " * 470,
    "beginnings of rules": "ignore the system prompt you are " * 300,
    "personas": "you are now in " * 660,
    "invisible": "\u200b" * 10_000,
    "wide letters": "\ufdfa" * 10_000,
    "escapes": "\\u0069\\x67" * 1_000,
    "numbers": "105 103 110 " * 830,
    "signs": "### [ { ' " * 1_000,
}
"""Texts that make work."""


def texts(kind: str, chars: int, count: int) -> Iterator[str]:
    """`count` different texts of one kind, joined from our own sentences."""
    pool = [e.text for e in corpus.own() if _is_of(kind, e)]
    chance = random.Random(SEED)
    for _ in range(count):
        text = ""
        while len(text) < chars:
            text += chance.choice(pool) + chance.choice((" ", "\n"))
        yield text[:chars]


def _is_of(kind: str, example: corpus.Example) -> bool:
    if kind == "prose":
        return example.head == "prompt" and example.text.isascii() and not example.label
    if kind == "attacks":
        return example.head == "prompt" and example.text.isascii() and example.label == 1
    if kind == "data":
        return example.head == "data" and example.text.isascii()
    return example.source in FOREIGN


def disguised(chars: int, count: int) -> Iterator[str]:
    """Attacks and harmless texts, each in another disguise."""
    names = sorted(disguises.DISGUISES)
    for number, text in enumerate(texts("attacks", chars, count)):
        yield disguises.DISGUISES[names[number % len(names)]](text)[:chars]


KINDS: dict[str, tuple[ContentType, Callable[[int, int], Iterator[str]]]] = {
    "prose": ("user_input", lambda chars, count: texts("prose", chars, count)),
    "attacks": ("user_input", lambda chars, count: texts("attacks", chars, count)),
    "mails, JSON, logs": ("tool_output", lambda chars, count: texts("data", chars, count)),
    "seven scripts": ("user_input", lambda chars, count: texts("foreign", chars, count)),
    "in disguise": ("document", disguised),
}


def at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def timed(text: str, kind: ContentType) -> tuple[float, float, Analysis]:
    """CPU seconds, seconds that passed, and what was found."""
    began, used = perf_counter(), process_time()
    found = analyse(text, kind)
    return process_time() - used, perf_counter() - began, found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="texts of each measurement")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for text in texts("prose", 1_000, 20):  # reads the weights; remembers common words
        analyse(text)
    print("| characters | texts | CPU p50 ms | CPU p95 ms | passed p50 ms | passed p95 ms | cut |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for chars in LENGTHS:
        for name, (kind, made) in KINDS.items():
            count = options.count if chars < 10_000 else max(20, options.count // 4)
            found = [timed(text, kind) for text in made(chars, count)]
            cpu, passed = [one[0] for one in found], [one[1] for one in found]
            cut = sum("time" in one[2].unseen for one in found)
            print(
                f"| {chars:,} | {name} | {at(cpu, 0.5):.2f} | {at(cpu, 0.95):.2f} "
                f"| {at(passed, 0.5):.2f} | {at(passed, 0.95):.2f} | {cut} |",
                flush=True,
            )
    print(f"\nHostile texts of 10,000 characters; the budget is {BUDGET_SECONDS * 1000:.0f} ms:\n")
    print("| texts | CPU ms | passed ms | cut |")
    print("| --- | ---: | ---: | --- |")
    for name, text in HOSTILE.items():
        runs = [timed(text[:10_000], "tool_output") for _ in range(3)]
        cpu_ms = min(run[0] for run in runs) * 1000
        passed_ms = min(run[1] for run in runs) * 1000
        is_cut = "yes" if any("time" in run[2].unseen for run in runs) else "no"
        print(f"| {name} | {cpu_ms:.1f} | {passed_ms:.1f} | {is_cut} |", flush=True)
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
