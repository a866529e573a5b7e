"""Judge documentation that nothing was learnt from: `python -m detection.training.held_out PATH…`.

Each path is a git directory or a folder; what lies first in it (a package, a language of manuals)
is a project. Printed: how many harmless texts are taken for attacks, by path and content type, and
how many are found once one of `detection/tests/judged.toml`'s orders is put into them. The texts
stay where they are, and the same ones are chosen every time.
"""

from __future__ import annotations

import random
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from detection.embedded import ContentType, analyse
from detection.training import documents

SEED = 20261130
JUDGED = Path(__file__).parents[1] / "tests" / "judged.toml"
THRESHOLD = 0.6
KINDS: tuple[ContentType, ...] = ("document", "tool_output")
EACH_PROJECT = 5
EACH_PATH = 300
DOCUMENT = re.compile(
    r"(?:^|/)(?:readme|change|news|copyright|copying|install|todo|faq|howto|licen[cs]e|notes)[^/]*$"
    r"|\.(?:mdx?|rst|txt|html?|adoc|pod|[1-8]|json|xml|csv|log|ya?ml|conf|service)(?:\.gz)?$",
    re.IGNORECASE,
)
HOSTS = 60
PLACES = ("start", "middle", "end")


def texts_of(path: Path) -> Iterator[str]:
    """Pieces of documents, a few of each project."""
    source = documents.source_of(path)
    projects: dict[str, list[str]] = {}
    for name in source.names():
        if DOCUMENT.search(name):
            projects.setdefault(name.partition("/")[0], []).append(name)
    most = max(EACH_PROJECT, EACH_PATH // max(1, len(projects)))
    names = sorted(projects)
    random.Random(SEED).shuffle(names)
    count = 0
    for project in names:
        each = -(-most // len(projects[project]))
        for text in documents.texts(source, projects[project], min(most, EACH_PATH - count), each):
            yield text
            count += 1


def inserted(host: str, order: str, place: str) -> str:
    """The order as a paragraph of its own: first, last, or between two paragraphs or lines."""
    if place == "start":
        return f"{order}\n\n{host}"
    if place == "end":
        return f"{host}\n\n{order}"
    half = len(host) // 2
    at = max(host.find("\n", half), 0) or half
    return f"{host[:at]}\n{order}\n{host[at:]}"


def share(texts: list[str], kind: ContentType) -> str:
    hits = sum(analyse(text, kind, budget_seconds=60).score >= THRESHOLD for text in texts)
    return f"{hits:>4} of {len(texts):<4} {hits / max(1, len(texts)):6.1%}"


def main(arguments: list[str]) -> None:
    if not arguments:
        raise SystemExit(__doc__)
    orders = tomllib.loads(JUDGED.read_text())["inserted"]["orders"]
    every: dict[str, list[str]] = {"harmless": [], **{place: [] for place in PLACES}}
    for path in map(Path, arguments):
        rng = random.Random(SEED)
        texts = list(dict.fromkeys(texts_of(path)))
        every["harmless"] += texts
        shown = "  ".join(f"{kind} {share(texts, kind)}" for kind in KINDS)
        print(f"{path}, harmless: {shown}", flush=True)
        for number, host in enumerate(rng.sample(texts, min(HOSTS, len(texts)))):
            place = PLACES[number % len(PLACES)]
            every[place].append(inserted(host, rng.choice(orders), place))
    for name, texts in every.items():
        shown = "  ".join(f"{kind} {share(texts, kind)}" for kind in KINDS)
        print(f"all, {'harmless' if name == 'harmless' else f'order at the {name}'}: {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
