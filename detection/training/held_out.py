"""Judge texts that nothing was learnt from: `python -m detection.training.held_out PATH…`.

Each path is a git directory or a folder of documentation; what lies first in it (a package, a
language of manuals) is a project. Printed: how many harmless texts are taken for attacks, by path
and content type, and how many are found once one of `detection/tests/judged.toml`'s orders is put
into them. Git directories that hold the commit of one of `AGENTS` are judged by what they have of
an agent instead: tools, calls, answers, memories. All of it is harmless. The texts stay where they
are, and the same ones are chosen every time.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detection.embedded import ContentType, analyse
from detection.training import documents
from detection.training.public import Checkout

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


Judged = tuple[ContentType, str]
BFCL = "berkeley-function-call-leaderboard/bfcl_eval/data"


def _turns(row: dict[str, Any]) -> Iterator[str]:
    yield from (message["content"] for turn in row["question"] for message in turn)


def gorilla(repo: Checkout) -> Iterator[Judged]:
    """Of the Berkeley Function Calling Leaderboard: questions, tools, calls, and what people tell
    an assistant that is to remember it."""
    for row in repo.json_lines(f"{BFCL}/BFCL_v4_live_irrelevance.json"):
        yield from (("user_input", text) for text in _turns(row))
        yield from (("tool_definition", json.dumps(tool)) for tool in row["function"])
    for name in ("multiple", "simple_python", "parallel", "live_simple", "live_multiple"):
        for row in repo.json_lines(f"{BFCL}/possible_answer/BFCL_v4_{name}.json"):
            for call in row["ground_truth"]:
                for tool, values in call.items():
                    arguments = {key: several[0] for key, several in values.items() if several}
                    yield "tool_call", json.dumps({"name": tool, "arguments": arguments})
    folder = f"{BFCL}/memory_prereq_conversation"
    for name in repo.names():
        if name.startswith(folder):
            for row in repo.json_lines(name):
                yield from (("memory_write", text) for text in _turns(row))


def github_tools(repo: Checkout) -> Iterator[Judged]:
    for name in repo.names():
        if name.endswith(".snap"):
            yield "tool_definition", repo.read(name)


def arena(repo: Checkout) -> Iterator[Judged]:
    """What people ask assistants, and what one answered."""
    for row in repo.json_lines("data/arena-hard-v0.1/model_answer/gpt-3.5-turbo-0125.jsonl"):
        question, answer = row["messages"][:2]
        yield "user_input", question["content"]
        yield "model_output", answer["content"]["answer"]


def system_prompts(repo: Checkout) -> Iterator[Judged]:
    for name in repo.names():
        if name.endswith(".md") and "/" in name and "jailbreak" not in name.lower():
            yield from (("system", piece) for piece in documents.pieces(repo.read(name)))


AGENTS: dict[str, Callable[[Checkout], Iterator[Judged]]] = {
    "6ea57973c7a6097fd7c5915698c54c17c5b1b6c8": gorilla,
    "64a49f34d076b6f5917dae1424521d43c7bcae84": github_tools,
    "196f6b826783b3da7310e361a805fa36f0be83f3": arena,
    "74964625038011525ab44c3a673fc605b2c765b3": system_prompts,
}
"""By the commit: ShishirPatil/gorilla, github/github-mcp-server, lmarena/arena-hard-auto,
dontriskit/awesome-ai-system-prompts."""
EACH_KIND = 1000


def agents_of(path: Path) -> dict[ContentType, list[str]]:
    """Texts of an agent by content type, at most `EACH_KIND`; empty where the path has none."""
    found: dict[ContentType, dict[str, None]] = {}
    for commit, read in AGENTS.items():
        repo = Checkout(path, commit)
        if repo.is_there():
            for kind, text in read(repo):
                if text.strip() and not documents.ABOUT_ATTACKS.search(text):
                    found.setdefault(kind, {})[text[:10_000]] = None
    return {
        kind: random.Random(SEED).sample([*texts], min(EACH_KIND, len(texts)))
        for kind, texts in found.items()
    }


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
        if agents := agents_of(path):
            for kind, some in agents.items():
                print(f"{path}, harmless: {kind} {share(some, kind)}", flush=True)
            continue
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
