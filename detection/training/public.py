"""Labelled texts of public projects: `python -m detection.training.public OUT DIR…`.

Each `DIR` is a git directory (bare or not) that holds the commit of one of the `PROJECTS`, or a
folder into which the release of a package was unpacked; what it gives is written as
`OUT/<name>.jsonl`, one `{"text", "label", "source"}` a line, for `python -m detection.training`.
The same commits give the same files, whatever came after them. Licences are in NOTICE; nothing of
these projects is part of the repository.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import Any

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


class Checkout(documents.Checkout):
    """The same, of whose files some are lines of JSON."""

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

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
    for text in repo.json("defense_eval/emails_data/fp_tests.json")["emails"]:
        yield text, 0, "llmail-inject/fp_tests"
    yield from _mails(repo)


def _mails(repo: Checkout) -> Iterator[Row]:
    """What their scenarios have in the inbox before the attack."""
    for level in range(1, 5):
        name = f"defense_eval/emails_data/level{level}.json"
        for text in repo.json(name)["emails"]:
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
    answers = repo.json("data/attacker_simulated_responses.json")
    texts = list(answers.values() if isinstance(answers, dict) else answers)
    for text in rng.sample(texts, min(len(texts), ANSWERS_MAX)):
        found = text if isinstance(text, str) else json.dumps(text)
        yield found[:3000], 0, "injecagent/simulated"
    for tool in repo.json("data/tools.json"):
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
    found = repo.json("data/data_small.json")
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
        rows = repo.json(name)
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
        rows = list(repo.json(f"tau_bench/envs/{domain}/data/{name}.json").values())
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
            text = _mail(repo.json(name)["text"])
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
        found = repo.json(name)
        for piece in documents.pieces(f"{found['title']}\n{found['content']}")[:1]:
            yield piece, 0, "docs-tau2/knowledge"


def tau2_agents(repo: Checkout) -> Iterator[Row]:
    """What agents call their tools with, and what is known of those whom they serve (MIT)."""
    folder = "data/tau2/domains"
    tasks = [
        *(
            task
            for name in ("airline", "retail")
            for task in repo.json(f"{folder}/{name}/tasks.json")
        ),
        *(
            repo.json(name)
            for name in sorted(repo.names())
            if name.startswith(f"{folder}/banking_knowledge/tasks/task_")
        ),
    ]
    calls: dict[str, None] = {}
    facts: dict[str, None] = {}
    for task in tasks:
        for action in (task.get("evaluation_criteria") or {}).get("actions") or ():
            call = {"name": action["name"], "arguments": action["arguments"]}
            calls[json.dumps(call)] = None
        instructions = task["user_scenario"]["instructions"]
        if isinstance(instructions, dict) and instructions.get("known_info"):
            facts[instructions["known_info"]] = None
    rng = random.Random(SEED)
    for kind, texts in (("call", calls), ("fact", facts)):
        for text in rng.sample([*texts], min(300, len(texts))):
            yield text[:3000], 0, f"tau2-{kind}"


def guides(
    project: str, pattern: str, most: int, each: int = 3
) -> Callable[[Checkout], Iterator[Row]]:
    """Parts of the files of a project whose names match the pattern, some of each."""

    def read(repo: Checkout) -> Iterator[Row]:
        names = [name for name in repo.names() if re.match(pattern, name)]
        for text in documents.texts(repo, names, most, each):
            yield text, 0, f"docs-{project}/page"

    return read


def translations(release: documents.Folder) -> Iterator[Row]:
    """What Django says to its users (BSD-3-Clause), in the languages of attacks."""
    for language in LANGUAGES:
        texts: list[str] = []
        for name in release.names():
            if not name.endswith(f"/locale/{language}/LC_MESSAGES/django.po"):
                continue
            for match in MESSAGE.finditer(release.read(name)):
                text = "".join(re.findall(r'"((?:[^"\\\\]|\\\\.)*)"', match[1])).replace(
                    "\\n", "\n"
                )
                if len(text) > 20:
                    texts.append(text)
        texts = list(dict.fromkeys(texts))
        # Long enough to be windows of their own, as the paragraphs of a page are.
        for at in range(0, len(texts), 3):
            yield "\n".join(texts[at : at + 3]), 0, f"django/{language}"


@dataclass(frozen=True, slots=True)
class Project:
    origin: str
    """Whose it is, and at which commit (or release) it was read."""
    read: Callable[[Checkout], Iterator[Row]]

    @property
    def commit(self) -> str:
        return self.origin.partition("@")[2]


DJANGO = "django-5.2.19"
PROJECTS = {
    name: Project(origin, read)
    for name, origin, read in (
        ("spikee", "ReversecLabs/spikee@454f7a0c21db2dd8779c23408f24700430c71d8b", spikee),
        (
            "llmail",
            "microsoft/llmail-inject-challenge-analysis@f9a059442c13a2825bf5bb2266820947bc6d822d",
            llmail,
        ),
        (
            "injecagent",
            "enkryptai/xInjectAgent@21af27703ad4e591b8fc686ab9d79249d299a0e8",
            injecagent,
        ),
        (
            "mcp_servers",
            "modelcontextprotocol/servers@76d64c822f5125032f89eb71dbdb94e42b434821",
            mcp_servers,
        ),
        ("clinc", "clinc/oos-eval@828f8093932c8fe6ca7936c3d2e52903b1c523de", clinc),
        (
            "banking",
            "PolyAI-LDN/task-specific-datasets@57ec275d8078af65b7731c2a98be812d844a6d6b",
            banking,
        ),
        ("gpteacher", "teknium1/GPTeacher@481075123c29854bddb82655badeef6a438f2436", gpteacher),
        ("fastchat", "lm-sys/FastChat@0e6d3e4beaab66f4d3f93db72541a4abab8af28d", fastchat),
        ("fabric", "danielmiessler/fabric@272f04dd3278f99bee49e94a7747b54708745a5d", fabric),
        (
            "tau_bench",
            "sierra-research/tau-bench@59a200c6d575d595120f1cb70fea53cef0632f6b",
            tau_bench,
        ),
        ("tldr", "tldr-pages/tldr@08e345f42639f67d99282813247ac670dc6e87cb", tldr),
        (
            "postmark",
            "ActiveCampaign/postmark-templates@fa73527acb4eb59cf673a54572d213e908f1515c",
            postmark,
        ),
        ("talon", "mailgun/talon@71d9b6eb78e985bcdfbf99b69c20c001b4b818c4", talon),
        ("octokit", "octokit/webhooks@3a58428aa5c399cf5aa12c8663aea1fb1f515254", octokit),
        (
            "mails",
            "stdlib-js/datasets-spam-assassin@1b84d49ab4b28092ead009b3ceeb67ae525289d1",
            mails,
        ),
        ("tau2", "sierra-research/tau2-bench@a2c024725189473d2d7cea3a5cfdbcc67478e41f", tau2),
        (
            "tau2_agents",
            "sierra-research/tau2-bench@a2c024725189473d2d7cea3a5cfdbcc67478e41f",
            tau2_agents,
        ),
        # Guides, of which many are orders to their readers.
        (
            "fastapi",
            "fastapi/fastapi@c3f316b7e814667e8ee81e03a7330d00ee61e45c",
            guides("fastapi", r"docs/.*\.md$|docs_src/.*\.py$", 500),
        ),
        (
            "opensource",
            "github/opensource.guide@ebc9678e39b55ff5e5c8801d1960904692188e90",
            guides("opensource", r"_articles/.*\.md$|_data/.*\.yml$", 400),
        ),
        (
            "recipes",
            "ronaldl29/public-domain-recipes@61b488ee25afd3abacc7aec408752f3987a9f8b3",
            guides("recipes", r"content/.*\.md$", 250),
        ),
        (
            "handbook",
            "18F/handbook@1e4955634d0369f17e5bbc0ebbf8f62e2a3dfe4b",
            guides("handbook", r"pages/.*\.md$", 350),
        ),
        (
            "prometheus",
            "prometheus/docs@c105550aad07161f62d02e305ed09799ec6025fa",
            guides("prometheus", r"(?:docs|blog)/.*\.md$", 200),
        ),
        (
            "react",
            "reactjs/react.dev@12d692da47e77cdc558b928fcfbaf4e71c6d0cec",
            guides("react", r"src/content/.*\.md$", 300),
        ),
        (
            "slack",
            "slackapi/slack-api-specs@bc08db49625630e3585bf2f1322128ea04f2a7f3",
            guides("slack", r"(?:web|events)-api/\w+_v\d\.json$", 60, 30),
        ),
        # What commands print, and the same as JSON.
        (
            "jc",
            "kellyjonbrazil/jc@ac8120e1fed9bb13b854b1333aef9c2dbce44f54",
            guides("jc", r"tests/fixtures/.*\.(?:out|json)$|docs/parsers/.*\.md$", 500),
        ),
        (
            "govuk",
            "alphagov/govuk-developer-docs@972d1b4410ffd165f2f3e889eda30bcf7d1cc6b3",
            guides("govuk", r"source/.*\.md(?:\.erb)?$", 250),
        ),
        (
            "nodejs",
            "nodejs/nodejs.org@6f94c8a6ab643beeee7038eba3fb521207d4b345",
            guides(
                "nodejs", r"apps/site/pages/(?!en/blog).*\.mdx?$|apps/site/pages/en/blog/\w*/", 400
            ),
        ),
        (
            "helm",
            "helm/helm-www@227f41447a683545325e87aedf10c67096d11004",
            guides("helm", r"(?:docs|i18n/\w+/.*/current)/.*\.mdx?$", 500),
        ),
        (
            "opentelemetry",
            "open-telemetry/opentelemetry.io@dd5997c8b9fafbf72ea6b8059ade242d88b8f118",
            guides("opentelemetry", r"content/.*\.md$", 600),
        ),
        (
            "brew",
            "Homebrew/brew@aad366ffaf6a8c94c66d35e4b990d42ac4195305",
            guides("brew", r"docs/.*\.md$|manpages/.*\.1$", 200, 5),
        ),
        (
            "laravel",
            "laravel/docs@86077535bbfdc2ab29cd9f202ee1ab3e7e6e18e6",
            guides("laravel", r"\w+\.md$", 250),
        ),
        # Rules for people and programs, in many languages.
        (
            "covenant",
            "EthicalSource/contributor_covenant@c104cdff077e33e62320f47fb98958e15fd15f1b",
            guides("covenant", r"content/version/(?:1/4|2/[01])/code.of.conduct\.[\w-]+\.md$", 250),
        ),
        (
            "changelogs",
            "olivierlacan/keep-a-changelog@e7c7c23e369d8936b7042d91a5c0d046f6ae03fd",
            guides("changelogs", r"source/.*\.haml$", 250),
        ),
        (
            "semver",
            "semver/semver.org@7b7a97965fecbe00d193ae0ad542f5583298abc9",
            guides("semver", r"lang/.*\.md$", 250),
        ),
        (
            "twelve",
            "heroku/12factor@468c7ac0336cf1ab76ed3dad612928e2ef2d8799",
            guides("twelve", r"content/.*\.md$", 350),
        ),
        # What changed, what to write into a report, and settings with passwords in them.
        (
            "sinatra",
            "sinatra/sinatra@cb22afd7902b566b6eaba6c4ea89739494a65d12",
            guides("sinatra", r"(?:CHANGELOG|README|rack-protection/README)\.md$", 120, 50),
        ),
        (
            "templates",
            "stevemao/github-issue-templates@82f42891e1298c2c3cdf34de9fc8da50831cc6a5",
            guides("templates", r".*\.(?:md|yml)$", 100),
        ),
        (
            "compose",
            "docker/awesome-compose@18f59bdb09ecf520dd5758fbf90dec314baec545",
            guides("compose", r"[\w-]+/(?:README\.md|compose\.ya?ml|[\w-]+/Dockerfile)$", 150),
        ),
    )
}
"""By the name of the file that is made of it."""


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
    missing = {
        **{name: project.origin for name, project in PROJECTS.items()},
        "translations": DJANGO,
    }
    for path in map(Path, arguments[1:]):
        if (path / f"{DJANGO}.dist-info").is_dir():
            write(out, "translations", translations(documents.Folder(path)))
            del missing["translations"]
        for name, project in PROJECTS.items():
            checkout = Checkout(path, project.commit)
            if checkout.is_there():
                write(out, name, project.read(checkout))
                del missing[name]
    if missing:
        raise SystemExit("\n".join(["Not found:", *sorted(missing.values())]))


if __name__ == "__main__":
    main(sys.argv[1:])
