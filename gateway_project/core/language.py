"""In which language people are written to, and how its numbers and dates look.

Sentences are Django's `gettext`. Programs are answered in English, whatever is spoken on the pages:
outside of a page (`portal/language.py`) and of a mail (`speaking`) nothing is translated. What a
program reads (SVG, CSV, JSON, an input's value) is never written with these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.utils import dateformat, formats, translation

TAGS = frozenset(tag for tag, _ in settings.LANGUAGES)
DATES = {
    "en": {
        "minute": "d M H:i",
        "precise": "d M H:i:s",
        "day": "d M",
        "minute of year": "d M Y H:i",
        "precise of year": "d M Y H:i:s",
        "day of year": "d M Y",
        "short day": "j M",
        "long day": "j F",
        "month": "F Y",
    },
    "de": {
        "minute": "j. N, H:i",
        "precise": "j. N, H:i:s",
        "day": "j. N",
        "minute of year": "j. F Y, H:i",
        "precise of year": "j. F Y, H:i:s",
        "day of year": "j. F Y",
        "short day": "j. N",
        "long day": "j. F",
        "month": "F Y",
    },
}
"""As `django.utils.dateformat` has them."""


def spoken() -> str:
    """The language of the page or mail in hand; English outside of both."""
    return translation.get_language() or settings.LANGUAGE_CODE


def speaking(tag: str) -> AbstractContextManager[Any]:
    """Words and numbers within are of this language; of the installation's, if it is none of ours
    or empty."""
    return translation.override(tag if tag in TAGS else settings.LANGUAGE_CODE)


def number(value: float, form: str = ",") -> str:
    """`1,234.5` as the reader writes it: `1.234,5`. `form` is one of Python's (`,.1f`, `.1%`)."""
    return numbers()(value, form)


def numbers() -> Callable[[float, str], str]:
    """`number` for many of them: how the reader writes is asked once."""
    point = formats.get_format("DECIMAL_SEPARATOR")
    if point == ".":
        return format
    comma = formats.get_format("THOUSAND_SEPARATOR")
    signs = {ord("."): point, ord(","): comma, ord("%"): "\u00a0%"}
    return lambda value, form: format(value, form).translate(signs)


def dated(at: date, form: str = "minute") -> str:
    """`29 Nov 12:29`, `29. Nov., 12:29`: a form of `DATES`, in the zone that `at` has."""
    moment = datetime.combine(at, at.time() if isinstance(at, datetime) else time())
    return _dated(moment, form, spoken())


@lru_cache(4096)
def _dated(at: datetime, form: str, language: str) -> str:
    """In that language, which is in hand. Charts of a week have 168 hours, the same for all."""
    return dateformat.format(at, DATES.get(language, DATES["en"])[form])
