"""Documents name files that exist, and each decision says whether it still holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs/decisions"
UNTRACKED = {".git", ".venv", ".venv-bench", "var", "node_modules", "__pycache__"}
STATUS = r"accepted|superseded by \d+|withdrawn"


def tracked() -> list[str]:
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in UNTRACKED and name[-6:] != "_cache"]
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in files]
    return found


FILES = tracked()
DOCUMENTS = [path for path in FILES if path.endswith(".md")]
# In backquotes: a file of ours by its ending, or a folder by the stroke at its end.
NAMED = re.compile(r"`((?:[\w.-]+/)*(?:[\w-]+\.(?:py|toml|md|js|css|html|yml|conf|lua)|[\w-]+/))`")


def missing(text: str) -> list[str]:
    """What a text names and is not there; a path may begin at any folder, such as `core/`."""
    return [
        name
        for name in NAMED.findall(text)
        if not name.startswith("var/")  # made at run time
        and not any(f"/{path}/".find(f"/{name.strip('/')}/") >= 0 for path in FILES)
    ]


def title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    assert missing(text) == []
    for target in re.findall(r"\]\((?!\w+:|#|\.\./security/)([^)#\s]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: no {target}"


def headless(text: str) -> list[str]:
    """First rows of what would be a table, and has no head: shown as lines of text."""
    lines = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).split("\n")
    return [
        line
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False)
        if line.startswith("|") and not before.startswith("|")
        if not re.fullmatch(r"\|[\s:|-]+\|\s*", after)
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_table_has_a_head(document: str) -> None:
    assert headless((ROOT / document).read_text()) == []


def test_a_table_that_a_blank_line_broke_is_found() -> None:
    assert headless("| a |\n| --- |\n| b |\n\n| c |\n") == ["| c |"]


def test_a_file_that_moved_is_found() -> None:
    assert missing("`core/upstream/client.py`, `deploy/`, `Makefile`, `asgi.py`") == []
    assert missing("`core/http.py` and `robin/seat/`") == ["core/http.py", "robin/seat/"]


NAMED_TEST = re.compile(r"`([\w/]+\.py)((?:::\w+)*)`")


def test_every_threat_has_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (?!---|may)(.+) \|$", (ROOT / "docs/threats.md").read_text(), re.M)
    assert len(rows) > 20
    for row in rows:
        tests = NAMED_TEST.findall(row.split(" | ")[-1])
        assert tests, f"no test: {row}"
        for file, names in tests:
            text = (ROOT / file).read_text()
            for name in names.split("::")[1:]:
                assert re.search(rf"(class|def) {name}\b", text), f"{file} has no {name}"


def test_every_decision_says_what_when_and_whether_it_holds() -> None:
    rows = []
    for number, path in enumerate(sorted(DECISIONS.glob("[0-9]*.md")), 1):
        assert path.name.startswith(f"{number:04d}-"), f"{path.name}: number {number} is due"
        text = path.read_text()
        head = re.match(
            rf"# {number}\. (.+)\n\n\* Status: ({STATUS})\n\* Date: (\d{{4}}-\d\d-\d\d)\n\n", text
        )
        assert head, f"{path.name}: begin with title, `* Status: accepted`, `* Date: 2026-12-31`"
        rows.append(f"| {number} | [{head[1]}]({path.name}) | {head[2]} | {head[3]} |")
    index = (DECISIONS / "README.md").read_text()
    assert [line for line in index.splitlines() if re.match(r"\| \d", line)] == rows
