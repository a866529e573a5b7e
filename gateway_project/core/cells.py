"""CSV whose cells stay texts, whatever spreadsheet opens them.

OWASP, "CSV Injection", and beyond: a spreadsheet forgives blanks and marks that nobody sees before
a formula, and takes full-width and small forms for their ASCII twins; people's keyboards make
dashes of a minus. Texts are in quotes, because in half of the world's settings a semicolon begins
the next cell.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol

BEGINS_A_FORMULA = frozenset("=+-@|%")
# Read as a sign, though no compatibility form makes them ASCII.
SIGNS = frozenset("\u00b1\u2043\u2052\u2212\u2213\u2795\u2796\u29fe\u29ff")
DASHES = "Pd"
# What is not seen: controls, formats, marks on nothing, and blanks.
UNSEEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Mn", "Me", "Zs", "Zl", "Zp"))
BEGINS_ANOTHER_CELL = frozenset("\t\r\n")


class Writer(Protocol):
    def writerow(self, row: Iterable[Any], /) -> Any: ...
    def writerows(self, rows: Iterable[Iterable[Any]], /) -> Any: ...


def writer(file: Any, **options: Any) -> Writer:
    """As `csv.writer`, of cells that `cell` made."""
    return csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, **options)


def cell(value: Any) -> Any:
    """`value` as a cell: numbers are numbers, and what could begin a formula has a quote in
    front."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = "" if value is None else str(value)
    return f"'{text}" if _needs_one(text) else text


def uncell(text: str) -> str:
    """The text that `cell` was given, of a file of ours that is read again."""
    return text[1:] if text.startswith("'") and _needs_one(text[1:]) else text


def begins_a_formula(text: str) -> bool:
    """Whether some spreadsheet could compute it."""
    if text[:1].isascii() and text[:1].isalnum():
        return False
    for character in unicodedata.normalize("NFKC", text):
        if character in BEGINS_ANOTHER_CELL:
            return True
        kind = unicodedata.category(character)
        if kind not in UNSEEN:
            return kind == DASHES or character in BEGINS_A_FORMULA or character in SIGNS
    return False


def _needs_one(text: str) -> bool:
    # Also what has quotes in front already: else one of them would be taken for ours.
    return begins_a_formula(text.lstrip("'"))
