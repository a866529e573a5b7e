"""The documents are true: their code runs, their answers have the shape that they show.

`documents.py` says how pages tell of it. All of them are tried against a served gateway with its
worker. There `$KEY` and `gw_live_…` are a key with every scope but `keys:write`, `$ADMIN_KEY` one
that has it; `var/demo.json` and `.venv` are there. Configurations of nginx are tested by nginx
itself.
"""

import os
import re
import shutil
import subprocess

import pytest
from django.core.management import get_commands

from accounts.models import SCOPES
from gateway_project.tests.documents import (
    EDGE,
    FENCE,
    assert_shape,
    blocks_of,
    parsed,
    reader_at,
)
from gateway_project.tests.served import ROOT
from webhooks import catalogue

PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    + [ROOT / "benchmarks/README.md", ROOT / "examples/README.md", *(ROOT / "docs").glob("*.md")]
)
IN_FOLDERS = sorted([*(ROOT / "docs/decisions").glob("*.md"), *(ROOT / "docs/legal").glob("*.md")])
LIBRARIES = sorted([ROOT / "sdks/README.md", *(ROOT / "sdks").glob("*/README.md")])
RUN = ("sh", "python")
LANGUAGES = (*RUN, "json", "nginx", "yaml")  # YAML: what test_litellm_proxy.py configures
LINE_CHARS_MAX = 120
BLOCKS = [block for page in PAGES + IN_FOLDERS for block in blocks_of(page)]


def of(*languages):
    return [b for b in BLOCKS if b.is_run and b.language in languages]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_run_or_says_why_not(block):
    if block.is_run:
        assert block.language in LANGUAGES, "name its language, or say `<!-- not run: why -->`"
    else:
        assert len(block.note.removeprefix("not run:").split()) >= 2, "say why"


@pytest.mark.parametrize("page", PAGES + IN_FOLDERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_seen(page):
    assert len(EDGE.findall(page.read_text())) == 2 * len(blocks_of(page))


# -- JSON -----------------------------------------------------------------------------------------


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
    return reader_at(served, tmp_path / "checkout", key, KEY=key, ADMIN_KEY=admin)


@pytest.mark.slow
@pytest.mark.served
def test_what_the_pages_say_to_type_works_and_prints_what_they_show(reader):
    """All pages beside one gateway: to start one for each would take a minute."""
    wrong = reader.python([b for b in of("python") if "import " in b.text])
    for page in sorted({b.page for b in of("sh")}):
        try:
            reader.follow(page)
        except AssertionError as exc:
            wrong.append(str(exc))

    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_python(block):
    compile(block.text, str(block), "exec")


GUIDE = [b for b in blocks_of(ROOT / "docs/guides/robin-ui.md") if b.language == "nginx"]


@pytest.mark.parametrize("block", of("nginx") + GUIDE, ids=str)
def test_nginx_takes_it(block, tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx: `make test` installs it")
    # What comes first, up to an empty line, may stand outside of a server only.
    outside, _, inside = block.text.rpartition("\n\n" if block.text.startswith("map ") else "\0")
    if "\nserver {" not in f"\n{inside}":
        inside = f"{outside}\nserver {{ listen 8080;\n{inside} }}"
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        # A name is looked up when the configuration is tested.
        f"http {{ access_log off; {re.sub(r'(?<=[/ ])gateway:', '127.0.0.1:', inside)} }}"
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
    pages = {*PAGES, *IN_FOLDERS, *LIBRARIES} - {ROOT / "README.md", ROOT / "docs/README.md"}
    assert not {page for page in pages if not named & {page, page.parent}}
    assert all(path.exists() for path in named)


@pytest.mark.parametrize(
    "page", PAGES + IN_FOLDERS + LIBRARIES, ids=lambda page: str(page.relative_to(ROOT))
)
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


def test_each_event_is_on_the_page_about_webhooks():
    page = (ROOT / "docs/webhooks.md").read_text()

    names = [event.name for event in catalogue.TYPES]
    all_like_it = {name: f"{name.partition('.')[0]}.…" for name in names}
    assert [n for n in names if f"`{n}`" not in page and f"`{all_like_it[n]}`" not in page] == []


def test_our_libraries_are_installed_by_their_path():
    """Until they are published, whoever takes their names in a public index is a stranger."""
    pages = {*PAGES, *(ROOT / "docs/guides").glob("*.md"), *(ROOT / "sdks").glob("*/*.md")}
    by_name = re.compile(r"(?:pip|npm|pnpm|uv|yarn) (?:install|add|i) ['\"]?gateway[-_]guard")

    assert [page.name for page in pages if by_name.search(page.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_written_as_they_run(page):
    """`manage.py x` alone does not run as typed; as a name of the command it stands in prose."""
    lines = [b.text for b in blocks_of(page) if b.language == "sh"]
    typed = re.findall(r"(\S* *)manage\.py (\w+)", "\n".join(lines))

    assert all(before.startswith(".venv/bin/python") for before, _ in typed)
    assert {name for _, name in typed} <= set(get_commands())
