"""What a store takes: one rule for all that comes in, asked before anything is done.

PostgreSQL keeps no NUL in a text, no integer beyond 64 bits in a number and no infinity in JSON;
half of a surrogate pair is no text at all (RFC 3629, §3); and what is nested without end, no JSON
library on the way to a receiver reads. SQLite takes some of it, so that only this rule shows it.

`unstorable` refuses what somebody asks for; `cleaned` mends what is only noted down, such as the
name of a browser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")
NESTING_MAX = 32
"""Levels of lists and objects in a value; readers on the way to a receiver end at 64 or 100."""
INTEGER_BITS = 63
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def unstorable(value: Any) -> str | None:
    """Why no store would take `value`, in words for whoever sent it; None: it is fine.

    Looks into lists and objects, at keys and values. Never repeats what it was sent.
    """
    return _unstorable(value, NESTING_MAX)


def storable(value: T) -> T:
    """`value`, for fields of a schema; raises ValueError when no store would take it."""
    if reason := unstorable(value):
        raise ValueError(reason)
    return value


def _unstorable(value: Any, levels: int) -> str | None:
    if isinstance(value, str):
        return _not_a_text(value)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        is_kept = -(1 << INTEGER_BITS) <= value < 1 << INTEGER_BITS
        return None if is_kept else "must not hold an integer beyond 64 bits; send it as text"
    if isinstance(value, float):
        return (
            None
            if math.isfinite(value)
            else "must not hold an infinite number, or none (NaN); send null"
        )
    if isinstance(value, datetime):
        return _beyond_the_calendar(value)
    if isinstance(value, Mapping):
        return _first(value.keys(), levels) or _first(value.values(), levels)
    if isinstance(value, list | tuple | set | frozenset):
        return _first(value, levels)
    return None


def _first(values: Iterable[Any], levels: int) -> str | None:
    if not levels:
        return f"is nested more than {NESTING_MAX} levels deep; flatten it"
    return next(filter(None, (_unstorable(value, levels - 1) for value in values)), None)


def _not_a_text(value: str) -> str | None:
    if "\x00" in value:
        return "must not hold NUL (U+0000); take it out"
    if value.isascii():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not text; send whole characters"
    return None


def _beyond_the_calendar(value: datetime) -> str | None:
    """In UTC, which is what is kept."""
    try:
        if value.tzinfo is not None:
            value.astimezone(UTC)
    except OverflowError:  # the year 1 or 9999 with an offset
        return "lies beyond the calendar; in UTC it has to be within the years 1 and 9999"
    return None


def cleaned(text: str) -> str:
    """`text` as every store takes it: what it refuses is U+FFFD."""
    return LONE_SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))
