"""Every table and chart can be taken away, and no spreadsheet runs what is in it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from accounts.tests.shapes import refusal
from portal.tests import furnished
from portal.tests.furnished import bytes_of, furnish

ROOT = Path(__file__).resolve().parents[2] / "templates"
PLACES = (
    *("portal/*.html", "portal/pages/*.html", "portal/mail/*.html"),
    *("usersessions/*.html", "mfa/**/*.html", "staff/*.html"),
)
TEMPLATES = sorted(path for place in PLACES for path in ROOT.glob(place))
NO_FILE = {
    "requests_files.html": "the files themselves",
    "usersession_list.html": "in the archive of the account",
    "authenticator_list.html": "in the archive of the account",
    "act.html": "the first of those that an act is for: the items' page has all of its filter",
    "message.html": "the attachments of one mail, in its download",
    "sparkline.html": "all of a list are one file: webhooks.html",
    "costs.html": "its pages have the link, where they say of what time: usage.html, engines.html",
    "breakers.html": "the state of this moment, with the acts on it",
    "index.html": "the first page of Django's admin",
}
"""Templates with a table or a chart that no file is made of, and why."""
ELSEWHERE = {
    "requests_list.html": "requests.html",
    "job_state.html": "job.html",
    "log_lines.html": "logs.html",
}
"""Where the links of what several pages share stand."""
DRAWN = re.compile(r"<table|<figure class=\"plot")
LINK = re.compile(r"{% csv |-export' %}\?{{ (?:export_)?query }}(?!&amp;format=(?:js|nd))")
FORMULA = '=HYPERLINK("https://evil.example","x")\nsecond line'


def links(path: Path) -> int:
    text = path.read_text()
    if path.name in ELSEWHERE:
        text += path.with_name(ELSEWHERE[path.name]).read_text()
    return len(LINK.findall(text))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_each_table_and_chart_has_a_file(path):
    if path.name in NO_FILE:
        return
    drawn = len(DRAWN.findall(path.read_text()))

    assert links(path) >= drawn, f"{path.name}: {drawn} tables and charts, {links(path)} files"


def test_the_look_sees_one_without(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<div class="table"><table></table></div><figure class="plot"></figure>')

    assert len(DRAWN.findall(page.read_text())) == 2
    assert links(page) == 0


def test_nothing_is_left_out_that_is_not_there():
    known = {path.name for path in TEMPLATES}

    assert set(ELSEWHERE) <= known
    assert set(NO_FILE) <= known


@pytest.fixture
def pages(acme, acme_key, name_server) -> list[str]:
    """Of a workspace that has something in each table, with names that are formulas."""
    name_server.resolves("receiver.example", "93.184.216.34")
    found = furnish(acme, FORMULA, "https://receiver.example/")
    return list(furnished.pages(found))


def files_of(page) -> list[str]:
    """Links of a page to itself as a file."""
    return re.findall(r'href="(\?[^"]*csv=[\w-]+)"', page.content.decode().replace("&amp;", "&"))


def content(answer) -> str:
    return bytes_of(answer).decode()


@pytest.mark.slow
def test_each_link_gives_a_table(owner, pages):
    seen = set()
    for path in pages:
        for link in files_of(owner.get(path)):
            answer = owner.get(path + link)
            header, *rows = csv.reader(io.StringIO(content(answer)))

            assert answer["Content-Type"].startswith("text/csv"), link
            assert "attachment" in answer["Content-Disposition"]
            assert len(header) >= 2
            assert all(len(cells) == len(header) for cells in rows)
            seen.add(link.rpartition("=")[2])

    assert seen >= {
        *("requests", "latency-p95", "keys", "jobs", "results", "log", "webhooks", "by-hour"),
        *("members", "versions", "scores", "budgets", "feedback", "rates", "judges"),
    }


@pytest.mark.slow
def test_none_of_them_holds_a_formula_or_breaks_its_lines(owner, pages):
    guarded = 0
    for path in pages:
        for link in files_of(owner.get(path)):
            for cells in csv.reader(io.StringIO(content(owner.get(path + link)))):
                assert not any(cell.startswith(("=", "+", "@")) for cell in cells), cells
                guarded += any("HYPERLINK" in cell for cell in cells)

    assert guarded >= 4


def test_a_name_that_no_table_has_is_not_found(owner):
    assert refusal(owner.get("/app/?csv=secrets")) == (404, "not_found")


def test_filters_count_for_the_file_too(owner, pages):
    everything = content(owner.get("/app/quality?csv=feedback"))
    others = content(owner.get("/app/quality?csv=feedback&verdict=correct"))

    assert "false_positive" in everything
    assert "false_positive" not in others


def test_a_stranger_gets_no_file(stranger, acme, acme_key, pages):
    for path in (f"/app/keys/{acme_key.row.pk}", f"/app/keys/{acme_key.row.pk}/calibrate"):
        for name in ("requests", "scores"):
            assert stranger.get(f"{path}?csv={name}").status_code == 404
    assert FORMULA[1:10] not in content(stranger.get("/app/quality?csv=feedback"))


def test_a_file_shows_no_secret_and_takes_none(owner):
    """The text of a new key is shown by its page, not by a file of it."""
    made = owner.post("/app/keys", {"name": "Shop", "scopes": ["detect"]})["Location"]

    assert "gw_live_" not in content(owner.get(f"{made}?csv=requests"))
    assert re.search(r"gw_live_\w{22,}", owner.get(made).content.decode())
