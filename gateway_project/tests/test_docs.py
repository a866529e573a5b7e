"""The documents are true: their code runs, their answers have the shape that they show.

Each fenced block names its language. Before a block may stand, as a comment of its own line:

    <!-- not run: why -->        nothing is done with it
    <!-- answer -->              JSON: the last shell block printed this shape (`…`: and more)
    <!-- status: 422 -->         of a shell block: the last call answers this

Shell blocks of a page run one after the other in one shell, Python blocks each as a program,
against a served gateway with its worker. There `$KEY` and `gw_live_…` are a key with every scope
but `keys:write`, `$ADMIN_KEY` one that has it; `var/demo.json` and `.venv` are there.
Configurations of nginx are tested by nginx itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.core.management import get_commands

from accounts.models import SCOPES
from gateway_project.tests.served import ROOT

PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    + [ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
)
FENCE = re.compile(
    r"(?:^<!-- *(?P<note>[^\n]*?) *-->\n\n?)?"
    r"^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
RUN = ("sh", "python")
LANGUAGES = (*RUN, "json", "nginx", "yaml")  # YAML: what test_litellm_proxy.py configures
LINE_CHARS_MAX = 120


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    note: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self):
        return not self.note.startswith("not run:")

    @property
    def status(self):
        """What the last call answers, where the page says so."""
        found = re.fullmatch(r"status: (\d{3})", self.note)
        return int(found[1]) if found else None


def blocks_of(page):
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["language"], m["note"] or "", m["text"])
        for m in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages):
    return [b for b in BLOCKS if b.is_run and b.language in languages]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_run_or_says_why_not(block):
    if block.is_run:
        assert block.language in LANGUAGES, "name its language, or say `<!-- not run: why -->`"
    else:
        assert len(block.note.removeprefix("not run:").split()) >= 2, "say why"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_seen(page):
    assert page.read_text().count("\n```") == 2 * len(blocks_of(page))


# -- JSON -----------------------------------------------------------------------------------------

MORE = "…"


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


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_json(block):
    parsed(block)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1}, {"a": "1"}),
        ({"a": {"b": 1}}, {"a": {}}),
        ([{"a": 1}], [{"a": 1}, {"a": 1}]),
    ],
)
def test_another_shape_is_noticed(shown, real):
    with pytest.raises(AssertionError):
        assert_shape(shown, real)


# -- What runs ------------------------------------------------------------------------------------

# `set -e` and curl's status of each call: a page must not show a call that fails without saying so.
PRELUDE = """
set -eu
curl() { command curl -w '%{stderr}%{http_code}\\n' "$@" 2>>"$STATUSES"; }
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

    def run(self, *command, text):
        return subprocess.run(
            [*command],
            input=self.adapted(text),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def shell(self, blocks):
        """Run them in one shell; what each printed, and the statuses of its calls."""
        mark = "@@ next block @@"
        script = PRELUDE + "".join(
            f"{b.text}\necho '{mark}'; echo '{mark}' >>\"$STATUSES\"\n" for b in blocks
        )
        (self.folder / "statuses").write_text("")
        done = self.run("bash", text=script)
        printed = done.stdout.split(f"{mark}\n")
        said = (self.folder / "statuses").read_text().split(f"{mark}\n")
        reached = len(printed) - 1
        assert done.returncode == 0, (
            f"{blocks[min(reached, len(blocks) - 1)]} ended with {done.returncode}\n"
            f"{printed[-1]}\n{done.stderr}"
        )
        statuses = [[int(code) for code in re.findall(r"^(\d{3})$", part, re.M)] for part in said]
        return printed[:reached], statuses[:reached]


@pytest.fixture
def reader(serve, own_redis, make_key, tmp_path):
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("needs bash and curl")
    served = serve(
        WORKERS="1", EMBEDDED_WORKER="true", REDIS_URL=own_redis.url, ALLOWED_HOSTS="127.0.0.1"
    )
    limits = {"rate_limit_per_minute": 6000, "rate_limit_per_day": 100_000}
    key = make_key(name="reader", scopes=SCOPES[:4], **limits)
    admin = make_key(name="admin", scopes=SCOPES, **limits)
    folder = tmp_path / "checkout"
    (folder / "var").mkdir(parents=True)
    (folder / "var/demo.json").write_text(json.dumps({"base_url": served.url, "api_key": key}))
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "manage.py").symlink_to(ROOT / "manage.py")
    environment = {
        **served.environment,
        "KEY": key,
        "ADMIN_KEY": admin,
        "STATUSES": str(folder / "statuses"),
    }
    return Reader(folder, served.url, key, environment)


@pytest.mark.served
def test_what_the_pages_say_to_type_works_and_prints_what_they_show(reader):
    """All pages beside one gateway: to start one for each would take a minute."""
    wrong = []
    for page in sorted({b.page for b in of(*RUN)}):
        try:
            follow(reader, page)
        except AssertionError as exc:
            wrong.append(str(exc))

    assert not wrong, "\n\n".join(wrong)


def follow(reader, page):
    blocks = [b for b in blocks_of(page) if b.is_run and b.language == "sh"]
    printed, statuses = reader.shell(blocks)
    for block, text, codes in zip(blocks, printed, statuses, strict=True):
        if "curl " in block.text:
            assert codes, f"{block} called nobody"
            good = codes[:-1] if block.status else codes
            assert all(code < 400 for code in good), f"{block}: {codes}\n{text}"
            assert block.status in (None, codes[-1]), f"{block}: {codes}\n{text}"
    for answer in (b for b in blocks_of(page) if b.note == "answer"):
        asked = max(n for n, b in enumerate(blocks) if b.line < answer.line)
        assert_shape(parsed(answer), json.loads(printed[asked]), str(answer))
    for block in (b for b in of("python") if b.page == page and "import " in b.text):
        done = reader.run(sys.executable, "-", text=block.text)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_python(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", of("nginx"), ids=str)
def test_nginx_takes_it(block, tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx: `make test` installs it")
    inside = block.text if "server {" in block.text else f"server {{ listen 8080;\n{block.text} }}"
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        # A name is looked up when the configuration is tested.
        f"http {{ access_log off; {inside.replace('http://gateway:', 'http://127.0.0.1:')} }}"
    )
    done = subprocess.run(
        [nginx, "-t", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"{block}\n{done.stderr}"


# -- Pages ----------------------------------------------------------------------------------------


def test_the_index_names_every_page_and_each_one_once():
    links = re.findall(r"^\| \[[^]]*\]\(([^)]+)\)", (ROOT / "docs/README.md").read_text(), re.M)

    assert len(links) == len(set(links))
    named = {(ROOT / "docs" / link).resolve() for link in links}
    pages = {page for page in PAGES if page not in (ROOT / "README.md", ROOT / "docs/README.md")}
    assert pages <= named
    assert all(path.exists() for path in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_can_be_read_in_an_editor(page):
    text = FENCE.sub("", page.read_text())
    wide = [
        line
        for line in text.splitlines()
        if len(line) > LINE_CHARS_MAX and not line.startswith(("|", "!["))
    ]

    assert not wide


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_written_as_they_run(page):
    """`manage.py x` alone does not run as typed; as a name of the command it stands in prose."""
    lines = [b.text for b in blocks_of(page) if b.language == "sh"]
    typed = re.findall(r"(\S* *)manage\.py (\w+)", "\n".join(lines))

    assert all(before.startswith(".venv/bin/python") for before, _ in typed)
    assert {name for _, name in typed} <= set(get_commands())
