"""Blocks of Markdown pages, and somebody who does what they say.

Each fenced block names its language. Before a block may stand, as a comment of its own line:

    <!-- not run: why -->        nothing is done with it
    <!-- answer -->              JSON: the last shell block printed this shape (`…`: and more)
    <!-- status: 422 -->         of a shell block: the last call answers this
    <!-- file: path -->          it is that file, of which another test runs more

Shell blocks of a page run one after the other in one shell, those of other languages each as a
program.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from gateway_project.tests.served import ROOT

FENCE = re.compile(
    r"(?:^ *<!-- *(?P<note>[^\n]*?) *-->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)(?: (?P<label>[^\n]+))?\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
EDGE = re.compile(r"^\s*(?:```|~~~)", re.M)
"""What begins or ends a block, in any way that Markdown knows."""
MORE = "…"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    label: str
    note: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self):
        return not self.note.startswith(("not run:", "file:"))

    @property
    def status(self):
        """What the last call answers, where the page says so."""
        found = re.fullmatch(r"status: (\d{3})", self.note)
        return int(found[1]) if found else None


def blocks_of(page):
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, m.start()) + 1,
            m["language"],
            m["label"] or "",
            m["note"] or "",
            dedent(m["text"]),
        )
        for m in FENCE.finditer(text)
    ]


# -- JSON -----------------------------------------------------------------------------------------


def parsed(block):
    """Its JSON; a bare `…` stands for more members or items, and is kept as one."""
    text = re.sub(r",\s*…(?=\s*})", ', "…": "…"', block.text)
    text = re.sub(r",\s*…(?=\s*\])", ', "…"', text)
    return json.loads(text)


def assert_shape(shown, real, at="answer"):
    """Every key that is shown is there and of the same kind, and no other unless `…` is shown."""
    if isinstance(shown, dict):
        assert isinstance(real, dict), f"{at} is {real!r}"
        names = set(shown) - {MORE}
        assert names <= set(real), f"{at}: shown and not there: {sorted(names - set(real))}"
        if MORE not in shown:
            assert names == set(real), f"{at}: there and not shown: {sorted(set(real) - names)}"
        for name in names:
            assert_shape(shown[name], real[name], f"{at}.{name}")
    elif isinstance(shown, list):
        assert isinstance(real, list), f"{at} is {real!r}"
        items = [item for item in shown if item != MORE]
        assert len(items) == len(real) or (MORE in shown and len(items) <= len(real)), at
        for n, item in enumerate(items):
            assert_shape(item, real[n], f"{at}[{n}]")
    else:
        number = (int, float)
        kinds = number if isinstance(shown, number) and not isinstance(shown, bool) else type(shown)
        assert isinstance(real, kinds), f"{at}: {shown!r} is shown, {real!r} came"


# -- What runs ------------------------------------------------------------------------------------

# `set -e` and curl's status of each call: a page must not show a call that fails without saying so.
PRELUDE = """
set -eu
curl() { command curl -w '%{stderr}%{http_code}\\n' "$@" 2>>"$STATUSES"; }
"""
# All programs in one process, since to import what they need takes longer than what they do.
PROGRAMS = """
import json, os, sys, traceback
failed = {}
for name, text in json.load(sys.stdin):
    try:
        exec(compile(text, name, "exec"), {"__name__": "__main__"})
    except BaseException:
        failed[name] = traceback.format_exc()
with open(os.environ["FAILED"], "w") as file:
    json.dump(failed, file)
"""


@dataclass(frozen=True)
class Reader:
    """Somebody who types what a page says, in a folder that looks like a checkout."""

    folder: Path
    url: str
    key: str
    environment: dict[str, str]

    def adapted(self, text):
        text = re.sub(r"http://(?:localhost|127\.0\.0\.1):8000", self.url, text)
        return text.replace("gw_live_…", self.key)

    def run(self, *command, text, seconds=90, folder=None):
        return subprocess.run(
            [*command],
            input=text,
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def shell(self, blocks):
        """Run them in one shell; what each printed, and the statuses of its calls."""
        mark = "@@ next block @@"
        script = PRELUDE + "".join(
            f"{b.text}\necho '{mark}'; echo '{mark}' >>\"$STATUSES\"\n" for b in blocks
        )
        (self.folder / "statuses").write_text("")
        done = self.run("bash", text=self.adapted(script))
        printed = done.stdout.split(f"{mark}\n")
        parts = (self.folder / "statuses").read_text().split(f"{mark}\n")
        reached = len(printed) - 1
        assert done.returncode == 0, (
            f"{blocks[min(reached, len(blocks) - 1)]} ended with {done.returncode}\n"
            f"{printed[-1]}\n{parts[-1]}\n{done.stderr}"
        )
        statuses = [[int(code) for code in re.findall(r"^(\d{3})$", part, re.M)] for part in parts]
        return printed[:reached], statuses[:reached]

    def follow(self, page):
        """Do what the shell blocks of a page say, and hold what comes against what it shows."""
        blocks = [b for b in blocks_of(page) if b.is_run and b.language == "sh"]
        printed, statuses = self.shell(blocks)
        for block, text, codes in zip(blocks, printed, statuses, strict=True):
            if "curl " in block.text:
                assert codes, f"{block} called nobody"
                good = codes[:-1] if block.status else codes
                assert all(code < 400 for code in good), f"{block}: {codes}\n{text}"
                assert block.status in (None, codes[-1]), f"{block}: {codes}\n{text}"
        for answer in (b for b in blocks_of(page) if b.note == "answer"):
            asked = max(n for n, b in enumerate(blocks) if b.line < answer.line)
            last = printed[asked].strip().splitlines()[-1]
            assert_shape(parsed(answer), json.loads(last), str(answer))

    def python(self, blocks: Sequence[Block]) -> list[str]:
        """Run each as a program; what went wrong."""
        programs = [[str(block), self.adapted(block.text)] for block in blocks]
        failed = self.folder / "failed.json"
        failed.unlink(missing_ok=True)
        done = self.run(sys.executable, "-c", PROGRAMS, text=json.dumps(programs), seconds=180)
        assert failed.exists(), done.stderr
        return [f"{name}\n{why}" for name, why in json.loads(failed.read_text()).items()]


def reader_at(served, folder: Path, key: str, **environment: str) -> Reader:
    """In a folder that looks like a checkout in which `make run` runs."""
    (folder / "var").mkdir(parents=True)
    (folder / "var/demo.json").write_text(json.dumps({"base_url": served.url, "api_key": key}))
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "manage.py").symlink_to(ROOT / "manage.py")
    files = {"STATUSES": str(folder / "statuses"), "FAILED": str(folder / "failed.json")}
    return Reader(folder, served.url, key, {**served.environment, **environment, **files})
