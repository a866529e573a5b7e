"""Labelled texts of public projects: `python -m detection.training.public OUT DIR…`.

Each `DIR` is a git directory (bare or not) of one of the projects below; what it gives is written
as `OUT/<name>.jsonl`, one `{"text", "label", "source"}` a line, for `python -m detection.training`.
So are harmless texts of the packages that are installed here: Django's translations, and what
packages say of themselves. Licences are in NOTICE; nothing of these projects is part of the
repository.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from email import message_from_string
from importlib import metadata
from pathlib import Path
from typing import Any

import django

from detection.training import documents

Row = tuple[str, int, str]
SEED = 20261129
SPIKEE = "spikee/data/workspace/datasets"
SPIKEE_SEEDS = ("seeds-cybersec-2026-01", "seeds-llm-mailbox", "seeds-sysmsg-extraction-2025-04")
LANGUAGES = (
    *("ar", "bn", "cs", "de", "el", "es", "fa", "fr", "he", "hi", "hu", "id", "it", "ja", "ko"),
    *("nl", "pl", "pt_BR", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh_Hans"),
)
MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ("(?:.|\n(?="))*)', re.MULTILINE)
ANSWERS_MAX = 500
ATTACKS = re.compile(r"prompt injection|jailbreak|ignore (?:all|any|previous)", re.IGNORECASE)
PLACE = re.compile(r"\{\{\{?([^{}]*)\}?\}\}")
FREE = re.compile(r"\b(?:MIT|BSD|Apache)\b")


class Checkout(documents.Checkout):
    """The same, of whose files some are lines of JSON."""

    def json_lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read(name).splitlines() if line.strip()]


def spikee(repo: Checkout) -> Iterator[Row]:
    """Seeds of 2025 and later (Apache-2.0): documents with an order spliced in, and without."""
    rng = random.Random(SEED)
    for seeds in SPIKEE_SEEDS:
        folder = f"{SPIKEE}/{seeds}"
        documents = [row["document"] for row in repo.json_lines(f"{folder}/base_user_inputs.jsonl")]
        documents = [text for text in documents if len(text) > 80]
        orders = repo.json_lines(f"{folder}/instructions.jsonl")
        frames = repo.json_lines(f"{folder}/jailbreaks.jsonl")
        for document in documents:
            yield document, 0, f"spikee/{seeds}/document"
        for frame in frames:
            fitting = [o for o in orders if o.get("lang", "en") == frame.get("lang", "en")]
            for order in rng.sample(fitting, min(4, len(fitting))):
                text = frame["text"].replace("<INSTRUCTION>", order["instruction"])
                source = f"spikee/{seeds}/{frame['jailbreak_type']}"
                if documents and rng.random() < 0.4:
                    document = rng.choice(documents)
                    cut = document.find(". ", rng.randrange(len(document))) + 1
                    text = f"{document[:cut]} {text} {document[cut:]}"
                yield text, 1, source
        if f"{folder}/standalone_user_inputs.jsonl" in repo.names():
            for row in repo.json_lines(f"{folder}/standalone_user_inputs.jsonl"):
                yield row["text"], 1, f"spikee/{seeds}/standalone"
    for row in repo.json_lines(f"{SPIKEE}/seeds-investment-advice-fp/standalone_user_inputs.jsonl"):
        yield row["text"], 0, "spikee/investment-advice-fp"


def llmail(repo: Checkout) -> Iterator[Row]:
    """Harmless mails of the LLMail-Inject analysis (MIT)."""
    for text in json.loads(repo.read("defense_eval/emails_data/fp_tests.json"))["emails"]:
        yield text, 0, "llmail-inject/fp_tests"
    yield from _mails(repo)


def _mails(repo: Checkout) -> Iterator[Row]:
    """What their scenarios have in the inbox before the attack."""
    for level in range(1, 5):
        name = f"defense_eval/emails_data/level{level}.json"
        for text in json.loads(repo.read(name))["emails"]:
            yield text, 0, f"llmail-inject/level{level}"


def postmark(repo: Checkout) -> Iterator[Row]:
    """Mails that services send: resets of passwords, receipts, invitations, warnings (MIT)."""
    for name in repo.names():
        if name.startswith("templates/") and name.endswith("content.txt"):
            text = PLACE.sub(lambda match: _filled(match[1]), repo.read(name))
            yield text[:3000], 0, "postmark/mail"


def _filled(place: str) -> str:
    """Something for a placeholder of a template: its last word, or an address."""
    name = place.strip("{}#/^ ").split(".")[-1]
    if "url" in name:
        return f"https://app.example/{name.removesuffix('_url')}"
    return name.replace("_", " ") if place[:1] not in "#/^" else ""


def talon(repo: Checkout) -> Iterator[Row]:
    """Mails and answers to them, as people write them (Apache-2.0)."""
    for name in repo.names():
        parts = name.split("/")
        if parts[:2] == ["tests", "fixtures"] and len(parts) > 3 and "html" not in name:
            text = repo.read(name)
            if len(text) > 60 and "\ufffd" not in text:
                yield text[:3000], 0, "talon/mail"


def octokit(repo: Checkout) -> Iterator[Row]:
    """What GitHub tells of issues, comments and releases, as JSON (MIT)."""
    chosen = [
        name
        for name in repo.names()
        if name.endswith(".payload.json")
        and re.search(r"/(issue|pull|discussion|release|commit|security|repository)", name)
    ]
    for name in random.Random(SEED).sample(sorted(chosen), min(150, len(chosen))):
        text = re.sub(r"\n\s*", " ", repo.read(name))
        at = max(0, text.find('"body"') - 600)
        yield text[at : at + 2000], 0, "octokit/payload"


def injecagent(repo: Checkout) -> Iterator[Row]:
    """InjecAgent's tool answers (MIT), with an order and without; from xInjectAgent's copy."""
    harmless = (
        "Arrived on time and works as described. Would buy again.",
        "The staff was friendly and the rooms were clean.",
        "Looking forward to the meeting on Thursday.",
        "Thanks for the update, I will have a look at the weekend.",
    )
    orders = [
        *(("dh", row) for row in repo.json_lines("data/attacker_cases_dh.jsonl")),
        *(("ds", row) for row in repo.json_lines("data/attacker_cases_ds.jsonl")),
    ]
    rng = random.Random(SEED)
    for case in repo.json_lines("data/user_cases.jsonl"):
        template = case["Tool Response Template"]
        for text in rng.sample(harmless, 2):
            yield template.replace("<Attacker Instruction>", text), 0, "injecagent/answer"
        for kind, row in rng.sample(orders, 20):
            order = row["Attacker Instruction"]
            yield template.replace("<Attacker Instruction>", order), 1, f"injecagent/{kind}"
    answers = json.loads(repo.read("data/attacker_simulated_responses.json"))
    texts = list(answers.values() if isinstance(answers, dict) else answers)
    for text in rng.sample(texts, min(len(texts), ANSWERS_MAX)):
        found = text if isinstance(text, str) else json.dumps(text)
        yield found[:3000], 0, "injecagent/simulated"
    for tool in json.loads(repo.read("data/tools.json")):
        yield json.dumps(tool)[:4000], 0, "injecagent/tools"


def mcp_servers(repo: Checkout) -> Iterator[Row]:
    """Documentation and tool definitions of public MCP servers (MIT and Apache-2.0)."""
    for name in repo.names():
        if name.startswith("src/") and name.endswith((".md", "index.ts", "server.py")):
            text = repo.read(name)
            for at in range(0, min(len(text), 24_000), 4000):
                yield text[at : at + 4000], 0, f"mcp-servers/{Path(name).suffix[1:]}"


def clinc(repo: Checkout) -> Iterator[Row]:
    """What people ask an assistant, 150 kinds of it (CC-BY-3.0)."""
    found = json.loads(repo.read("data/data_small.json"))
    rows = [text for name in sorted(found) for text, _ in found[name]]
    for text in random.Random(SEED).sample(rows, 1500):
        yield text, 0, "clinc150/utterance"


def banking(repo: Checkout) -> Iterator[Row]:
    """What customers write to a bank: cards, PINs, codes, passwords (CC-BY-4.0)."""
    rows = list(csv.DictReader(io.StringIO(repo.read("banking_data/train.csv"))))
    for row in random.Random(SEED).sample(rows, 900):
        yield row["text"].strip(), 0, "banking77/query"


def gpteacher(repo: Checkout) -> Iterator[Row]:
    """Roles to play and programs to write, all of them harmless (MIT); and the answers to them:
    prose about what such requests are about."""
    rng = random.Random(SEED)
    for name, count, answers in (
        ("Roleplay/roleplay-simple-deduped-roleplay-instruct.json", 500, 1400),
        ("Codegen/codegen-instruct.json", 350, 300),
    ):
        rows = json.loads(repo.read(name))
        kind = name.split("/")[0].lower()
        for row in rng.sample(rows, min(count, len(rows))):
            text = f"{row['instruction']}\n{row['input']}".strip()
            yield text[:2000], 0, f"gpteacher/{kind}"
        for row in rng.sample(rows, min(answers, len(rows))):
            if len(row["response"]) > 80:
                yield row["response"][:2000], 0, f"gpteacher/answer/{kind}"


def fastchat(repo: Checkout) -> Iterator[Row]:
    """Questions of MT-Bench and Vicuna-Bench (Apache-2.0)."""
    for bench in ("mt_bench", "vicuna_bench"):
        for row in repo.json_lines(f"fastchat/llm_judge/data/{bench}/question.jsonl"):
            for text in row["turns"]:
                yield text, 0, f"fastchat/{bench}"


def fabric(repo: Checkout) -> Iterator[Row]:
    """Prompts that people write for assistants of their own (MIT)."""
    names = [n for n in repo.names() if n.startswith("data/patterns/") and n.endswith("system.md")]
    for name in random.Random(SEED).sample(names, min(160, len(names))):
        text = repo.read(name)
        if not ATTACKS.search(text):
            yield text[:2500], 0, "fabric/pattern"


def tau_bench(repo: Checkout) -> Iterator[Row]:
    """Answers of a shop's and an airline's tools, and their policies (MIT)."""
    rng = random.Random(SEED)
    for domain, name in (
        ("retail", "orders"),
        ("retail", "users"),
        ("retail", "products"),
        ("airline", "reservations"),
        ("airline", "users"),
    ):
        rows = list(json.loads(repo.read(f"tau_bench/envs/{domain}/data/{name}.json")).values())
        for row in rng.sample(rows, min(40, len(rows))):
            yield json.dumps(row)[:3000], 0, f"tau-bench/{name}"
    for domain in ("retail", "airline"):
        for part in repo.read(f"tau_bench/envs/{domain}/wiki.md").split("\n## "):
            yield part, 0, "tau-bench/policy"


def tldr(repo: Checkout) -> Iterator[Row]:
    """Pages that say what commands do, in many languages: imperatives to a reader (CC-BY-4.0)."""
    rng = random.Random(SEED)
    folders: dict[str, list[str]] = {}
    for name in repo.names():
        if found := re.match(r"pages(?:\.(\w+))?/common/[a-z].*\.md$", name):
            of = found[1] or "en"
            if of in (*LANGUAGES, "en", "zh"):
                folders.setdefault(of, []).append(name)
    for language, names in sorted(folders.items()):
        for name in rng.sample(names, min(120 if language == "en" else 30, len(names))):
            yield repo.read(name), 0, f"tldr/{language}"


def mails(repo: Checkout) -> Iterator[Row]:
    """Mails to lists and newsletters of SpamAssassin's corpus, no spam, with the headers that a
    reader sees (CC0-1.0, in the copy of stdlib)."""
    rng = random.Random(SEED)
    for group, count in (("easy-ham-1", 350), ("easy-ham-2", 250), ("hard-ham-1", 200)):
        names = [
            name
            for name in repo.names()
            if name.startswith(f"data/{group}/") and name.endswith(".json")
        ]
        for name in rng.sample(names, min(count, len(names))):
            text = _mail(json.loads(repo.read(name))["text"])
            for piece in documents.pieces(text)[:1]:
                yield piece, 0, f"spamassassin/{group}"


def _mail(raw: str) -> str:
    """From, To, Date and Subject, and the first part of the body that is text."""
    mail = message_from_string(raw)
    seen = [f"{name}: {mail[name]}" for name in ("From", "To", "Date", "Subject") if mail[name]]
    for part in mail.walk():
        if part.get_content_maintype() == "text":
            body = part.get_payload(decode=True)
            if isinstance(body, bytes):
                return "\n".join([*seen, "", body.decode("utf-8", "replace").replace("\r", "")])
    return "\n".join(seen)


def tau2(repo: Checkout) -> Iterator[Row]:
    """What a bank's staff and agents read: procedures, products, policies (MIT)."""
    folder = "data/tau2/domains"
    names = [n for n in repo.names() if n.startswith(f"{folder}/banking_knowledge/documents/")]
    for name in random.Random(SEED).sample(sorted(names), min(300, len(names))):
        found = json.loads(repo.read(name))
        for piece in documents.pieces(f"{found['title']}\n{found['content']}")[:1]:
            yield piece, 0, "docs-tau2/knowledge"


def guides(
    project: str, pattern: str, most: int, each: int = 3
) -> Callable[[Checkout], Iterator[Row]]:
    """Parts of the files of a project whose names match the pattern, some of each."""

    def read(repo: Checkout) -> Iterator[Row]:
        names = [name for name in repo.names() if re.match(pattern, name)]
        for text in documents.texts(repo, names, most, each):
            yield text, 0, f"docs-{project}/page"

    return read


def translations() -> Iterator[Row]:
    """What Django says to its users (BSD-3-Clause), in the languages of attacks."""
    root = Path(django.__file__).parent
    for language in LANGUAGES:
        texts: list[str] = []
        for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/django.po")):
            for match in MESSAGE.finditer(path.read_text()):
                text = "".join(re.findall(r'"((?:[^"\\\\]|\\\\.)*)"', match[1])).replace(
                    "\\n", "\n"
                )
                if len(text) > 20:
                    texts.append(text)
        texts = list(dict.fromkeys(texts))
        # Long enough to be windows of their own, as the paragraphs of a page are.
        for at in range(0, len(texts), 3):
            yield "\n".join(texts[at : at + 3]), 0, f"django/{language}"


def packages() -> Iterator[Row]:
    """What the installed packages say of themselves, where their licence is a free one."""
    for found in sorted(metadata.distributions(), key=lambda one: str(one.metadata["Name"])):
        about = found.metadata
        licence = " ".join(
            str(value)
            for field in ("License", "License-Expression", "Classifier")
            for value in about.get_all(field) or ()
            if field != "Classifier" or "License" in value
        )
        text = str(found.read_text("METADATA") or "").partition("\n\n")[2]
        if not FREE.search(licence) or len(text) < 400:
            continue
        for at in range(0, min(len(text), 12_000), 3000):
            yield text[at : at + 3000], 0, f"packages/{about['Name']}"


PROJECTS: dict[str, tuple[str, Callable[[Checkout], Iterator[Row]]]] = {
    "spikee": (f"{SPIKEE}/{SPIKEE_SEEDS[0]}/instructions.jsonl", spikee),
    "llmail": ("defense_eval/emails_data/fp_tests.json", llmail),
    "injecagent": ("data/attacker_simulated_responses.json", injecagent),
    "mcp_servers": ("src/filesystem/README.md", mcp_servers),
    "clinc": ("data/data_small.json", clinc),
    "banking": ("banking_data/train.csv", banking),
    "gpteacher": ("Codegen/codegen-instruct.json", gpteacher),
    "fastchat": ("fastchat/llm_judge/data/mt_bench/question.jsonl", fastchat),
    "fabric": ("data/patterns/summarize/system.md", fabric),
    "tau_bench": ("tau_bench/envs/retail/wiki.md", tau_bench),
    "tldr": ("pages/common/git.md", tldr),
    "postmark": ("templates/plain/password-reset/content.txt", postmark),
    "talon": ("talon/quotations.py", talon),
    "octokit": ("payload-examples/api.github.com/issues/opened.payload.json", octokit),
    "mails": ("data/hard-ham-1/00001.7c7d6921e671bbe18ebb5f893cd9bb35.json", mails),
    "tau2": ("data/tau2/domains/retail/policy.md", tau2),
    # Guides, of which many are orders to their readers.
    "fastapi": (
        "docs/en/docs/deployment/docker.md",
        guides("fastapi", r"docs/.*\.md$|docs_src/.*\.py$", 500),
    ),
    "opensource": (
        "_articles/how-to-contribute.md",
        guides("opensource", r"_articles/.*\.md$|_data/.*\.yml$", 400),
    ),
    "recipes": ("content/aglio-e-olio.md", guides("recipes", r"content/.*\.md$", 250)),
    "handbook": ("pages/tools/google-drive.md", guides("handbook", r"pages/.*\.md$", 350)),
    "prometheus": (
        "docs/introduction/first_steps.md",
        guides("prometheus", r"(?:docs|blog)/.*\.md$", 200),
    ),
    "react": ("src/content/learn/index.md", guides("react", r"src/content/.*\.md$", 300)),
    "slack": (
        "web-api/slack_web_openapi_v2.json",
        guides("slack", r"(?:web|events)-api/\w+_v\d\.json$", 60, 30),
    ),
    # What commands print, and the same as JSON.
    "jc": (
        "tests/fixtures/generic/acpi-V.out",
        guides("jc", r"tests/fixtures/.*\.(?:out|json)$|docs/parsers/.*\.md$", 500),
    ),
    "govuk": ("source/accessibility.html.md", guides("govuk", r"source/.*\.md(?:\.erb)?$", 250)),
}


def write(out: Path, name: str, found: Iterable[Row]) -> None:
    rows = dict.fromkeys(row for row in found if row[0].strip())
    lines = [
        json.dumps({"text": text.strip(), "label": label, "source": source})
        for text, label, source in rows
    ]
    (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{name}: {len(lines)} rows")


def main(arguments: list[str]) -> None:
    if not arguments:
        raise SystemExit(__doc__)
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    write(out, "translations", translations())
    write(out, "packages", packages())
    for path in map(Path, arguments[1:]):
        repo = Checkout(path)
        names = set(repo.names())
        for name, (mark, read) in PROJECTS.items():
            if mark in names:
                write(out, name, read(repo))


if __name__ == "__main__":
    main(sys.argv[1:])
