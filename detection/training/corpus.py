"""What the model learns from: labelled files, given by path, and texts of our own making."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detection.training import disguises
from detection.training.grammar import Grammar

SEED = 7
DATA_SOURCES = (
    *("BIPIA", "spikee", "injecagent", "llmail-inject", "mcp-servers", "django", "tau2-"),
    *(
        "tau-bench",
        "tldr",
        "bastioncorpus-0.6.0/indirect",
        "gpteacher/answer",
        "postmark",
        "talon",
        "octokit",
        "spamassassin",
        "docs-",
    ),
)
"""Sources of what an assistant reads; all others are what people write to it."""
QUESTIONS = ("spikee/investment-advice-fp",)
"""What people ask an assistant, from a source that is else of what one reads."""
JUDGES = ("BIPIA",)
"""Never learnt from: a few mails with an order in them and without, by which others are judged."""
PAGES = ("docs-", "spamassassin")
"""Documentation and mails, of which there is much: too far from what people ask an assistant."""
ASKED = tuple(f"own/{name}" for name in ("claims", "deutsch", "sources", "switch"))
"""Attacks that only make sense where an assistant is spoken to: they say little about documents."""
TICKETS = ("banking77",)
"""What customers write: to an assistant as well as in a ticket that one reads."""
WISHES = ("self-instruct", "fastchat", "gpteacher", "awesome-chatgpt-prompts")
"""What people ask of an assistant: harmless as a prompt, and an attack inside a document."""
WISH_CHARS = 240
PROMPTS_EACH = 18
LANGUAGE_EACH = 4
ORDERS_EACH = 16
DOCUMENTS = 3200
DISGUISED = 700
SPLICED = 5000
SPLICED_LINES = re.compile(r"(?<=[.!?])\s+|\n+")
LINE_CHARS = 30, 300


@dataclass(frozen=True, slots=True)
class Example:
    """`head` is "prompt" or "data"; label 1 is an attack. `group` is left out as a whole when the
    model is judged."""

    text: str
    label: int
    source: str
    head: str
    host: str = ""
    """Of an order put into a text of another source: that source."""

    @property
    def group(self) -> str:
        return _group(self.source)

    @property
    def groups(self) -> frozenset[str]:
        """All sources that it was made of: left out when one of them is."""
        return frozenset(_group(source) for source in (self.source, self.host) if source)


def _group(source: str) -> str:
    parts = source.split("/")
    return "/".join(parts[:2]) if parts[0] == "own" else parts[0].split("#")[0]


def read(paths: Sequence[Path]) -> tuple[list[Example], dict[str, str]]:
    """The rows of the files and of the `*.jsonl` in the folders, and the SHA-256 of each file."""
    files = sorted(
        file
        for path in paths
        for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    )
    examples: list[Example] = []
    digests: dict[str, str] = {}
    for file in files:
        raw = file.read_bytes()
        digests[file.name] = hashlib.sha256(raw).hexdigest()
        for line in raw.splitlines():
            if line.strip():
                row = json.loads(line)
                source = str(row["source"])
                is_data = source.startswith(DATA_SOURCES) and not source.startswith(QUESTIONS)
                head = "data" if is_data else "prompt"
                examples.append(Example(row["text"][:10_000], row["label"], source, head))
                if source.startswith(TICKETS):
                    examples.append(Example(row["text"], row["label"], source, "data"))
                elif source.startswith(WISHES) and not row["label"] and not is_data:
                    examples.append(Example(row["text"][:WISH_CHARS], 1, source, "data"))
    return examples, digests


@cache
def own() -> list[Example]:
    """Our own texts, the same every time."""
    rng = random.Random(SEED)
    found = [*_prompts(rng), *_languages(rng), *_data(rng)]
    return list({(e.text, e.label, e.head): e for e in found}.values())


def enlarged(examples: Sequence[Example]) -> list[Example]:
    """With orders put into harmless texts, and with copies in disguise."""
    found = [*examples, *spliced(examples)]
    return [*found, *disguised(found)]


def judges(example: Example, head: str) -> bool:
    """Whether the head is judged by it and never learns from it."""
    return example.head == head and example.source.startswith(JUDGES)


def takes_part(example: Example, head: str) -> bool:
    """What each head learns from. What people ask of an assistant is an attack inside a document,
    so their harmless requests say nothing about documents."""
    if example.source.startswith(JUDGES) or example.host.startswith(JUDGES):
        return False
    if head == "prompt":
        is_near = example.label == 0 and not example.source.startswith(PAGES)
        return example.head == "prompt" or is_near
    is_asked = example.source.startswith(ASKED)
    return example.head == "data" or (example.label == 1 and not is_asked)


def spliced(examples: Sequence[Example]) -> list[Example]:
    """Orders between two lines of harmless texts of what an assistant reads, and the lines without
    them: what stands around an order says nothing."""
    rng = random.Random(SEED + 2)
    learnt = [e for e in examples if e.head == "data" and takes_part(e, "data")]
    hosts = [e for e in learnt if e.label == 0]
    by_group: dict[str, list[Example]] = {}
    for host in hosts:
        by_group.setdefault(host.group, []).append(host)
    orders = [e for e in learnt if e.label == 1 and 20 < len(e.text) < 400 and "\n" not in e.text]
    orders_of: dict[str, list[Example]] = {}
    for order in orders:
        orders_of.setdefault(order.group, []).append(order)
    found: list[Example] = []
    for _ in range(SPLICED):
        host = rng.choice(by_group[rng.choice(sorted(by_group))])
        order = rng.choice(orders_of[rng.choice(sorted(orders_of))])
        lines = [
            line
            for line in SPLICED_LINES.split(host.text)
            if LINE_CHARS[0] <= len(line) <= LINE_CHARS[1]
        ]
        if not lines:
            continue
        at = rng.randrange(len(lines))
        gap = rng.choice((" ", " ", "\n"))
        before, after = lines[at], lines[(at + 1) % len(lines)]
        place = rng.choice(("before", "after", "between"))
        parts = {
            "before": [order.text, before],
            "after": [before, order.text],
            "between": [before, order.text, after],
        }[place]
        found.append(Example(gap.join(parts), 1, order.source, "data", host.source))
        found.append(Example(gap.join((before, after)), 0, host.source, "data"))
    return found


def disguised(examples: Sequence[Example]) -> list[Example]:
    """Copies of both labels in disguise, so that a disguise says nothing by itself."""
    rng = random.Random(SEED + 1)
    short = [e for e in examples if 30 < len(e.text) < 400 and e.text.isascii()]
    found: list[Example] = []
    names = sorted(disguises.DISGUISES)
    for label in (0, 1):
        for head in ("prompt", "data"):
            pool = [e for e in short if (e.label, e.head) == (label, head)]
            for example in rng.sample(pool, min(len(pool), DISGUISED // 2)):
                if rng.random() < 0.3:
                    text = disguises.with_typos(example.text, rng)
                else:
                    text = disguises.DISGUISES[rng.choice(names)](example.text)
                found.append(Example(text, label, example.source, head, example.host))
    return found


def _prompts(rng: random.Random) -> Iterator[Example]:
    grammar = Grammar("prompts.toml")
    for label, table in ((1, "attacks"), (0, "harmless")):
        for family, templates in grammar.tables[table].items():
            for template in templates:
                for _ in range(PROMPTS_EACH * (1 if label else 2)):
                    text = grammar.sentence(template, rng)
                    yield Example(text, label, f"own/{family}", "prompt")
                    if family in ("security", "cyber") and rng.random() < 0.4:
                        yield Example(text, 0, f"own/{family}", "data")


def _languages(rng: random.Random) -> Iterator[Example]:
    grammar = Grammar("languages.toml")
    names = Grammar("data.toml").names
    for language, table in grammar.tables.items():
        if language == "orders":
            continue
        for label, kind in ((1, "attacks"), (0, "harmless")):
            for template in table[kind]:
                for _ in range(LANGUAGE_EACH):
                    text = grammar.sentence(template, rng)
                    yield Example(text, label, f"own/{language}", "prompt")
    grammar.names = names
    for language, templates in grammar.tables["orders"].items():
        for template in templates:
            for _ in range(LANGUAGE_EACH):
                yield Example(grammar.sentence(template, rng), 1, f"own/{language}", "data")


def _data(rng: random.Random) -> Iterator[Example]:
    grammar = Grammar("data.toml")
    orders, lines = grammar.tables["orders"], grammar.tables["lines"]

    def line(kind: str) -> str:
        return grammar.sentence(rng.choice(lines[kind]), rng)

    kinds = sorted(lines)
    for _ in range(DOCUMENTS):
        kind = rng.choice((*kinds, "mail", "tool", "tool"))
        gap = rng.choice((" ", "\n", "\n\n"))
        yield Example(
            gap.join(line(kind) for _ in range(rng.randrange(2, 9))), 0, f"own/{kind}", "data"
        )
    for family, templates in orders.items():
        for template in templates:
            for _ in range(ORDERS_EACH):
                order = grammar.sentence(template, rng, orders)
                if not order.endswith((".", "!", "?", ">", "/")):
                    order += rng.choice((".", "!", "", "."))
                kind = rng.choice(kinds)
                before = f"{line(kind)}{rng.choice((' ', chr(10)))}" if rng.random() < 0.5 else ""
                after = f"{rng.choice((' ', chr(10)))}{line(kind)}" if rng.random() < 0.4 else ""
                host = f"own/{kind}" if before or after else ""
                yield Example(f"{before}{order}{after}", 1, f"own/{family}", "data", host)
                if family in ("goal", "quiz") and rng.random() < 0.25:
                    # To an assistant, people say just that, and mean it.
                    yield Example(order, 0, "own/requests", "prompt")
