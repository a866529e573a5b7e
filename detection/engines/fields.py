"""The strings of a JSON text, and where in it each stands. Pure.

A model reads what the strings say, not how they were escaped: engines are shown the strings, one a
line, in the order of the text. So is a JSON text inside a string. Of objects that name a member
twice all are read: parsers differ in which of them they keep.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

DEPTH_MAX = 32
INSIDE_MAX = 3
"""JSON in a string in JSON: so many times."""
NESTED = "nested_too_deep"
PATH_CHARS_MAX = 200
_MEMBER = re.compile(r"[A-Za-z_$][\w$-]{0,23}\Z", re.ASCII)


class _Members(list[tuple[str, Any]]):
    """Of an object, in order and with repetitions."""


@dataclass(frozen=True, slots=True)
class Field:
    """`path` is as in JSONPath, with a member whose name is no plain word by its place: `$.a.{2}`.

    So it never repeats the text.
    """

    path: str
    text: str
    is_string: bool = True
    """False for JSON as it was sent, since it is nested too deep to be taken apart."""


@dataclass(frozen=True, slots=True)
class Document:
    """`text` is all fields, one a line. `unread_chars` of the text as sent are nested too deep.
    `names` are those of members, as one sentence: each says little, all of a schema's may tell one.
    """

    fields: tuple[Field, ...]
    text: str
    unread_chars: int
    names: str = ""

    @property
    def unseen(self) -> tuple[str, ...]:
        return (NESTED,) if self.unread_chars else ()

    @property
    def with_names(self) -> str:
        return f"{self.text}\n{self.names}" if self.names else self.text

    def between(self, start: int, end: int) -> list[Field]:
        """The fields that stand, in part at least, between two characters of `text`."""
        starts = [0]
        for field in self.fields:
            starts.append(starts[-1] + len(field.text) + 1)
        first = max(0, bisect_right(starts, start) - 1)
        return [
            field
            for field, at in zip(self.fields[first:], starts[first:], strict=False)
            if at < end
        ]


def read(text: str) -> Document | None:
    """None for what is no JSON object or array, or holds no strings."""
    if not _may_be_json(text):
        return None
    names: dict[str, None] = {}
    try:
        found = list(_walk(_loaded(text), "$", 0, 0, names))
    except RecursionError:
        found = [Field("$", text, is_string=False)]
    except ValueError:
        return None
    if not found:
        return None
    unread = sum(len(field.text) for field in found if not field.is_string)
    whole = "\n".join(field.text for field in found)
    return Document(tuple(found), whole, min(unread, len(text)), " ".join(names))


def common_path(fields: list[Field]) -> str:
    """What the paths of several fields begin with."""
    first, last = min(f.path for f in fields), max(f.path for f in fields)
    if first == last:
        return first
    steps = []
    for one, other in zip(_steps(first), _steps(last), strict=False):
        if one != other:
            break
        steps.append(one)
    return "".join(steps) or "$"


def _steps(path: str) -> list[str]:
    return re.findall(r"\$|\.[^.\[]+|\[\d+\]", path)


def _may_be_json(text: str) -> bool:
    begin = text[:1]
    if begin.isspace() or begin == "\ufeff":
        begin = text.lstrip(" \t\r\n\ufeff")[:1]
    return begin in ("{", "[")


def _loaded(text: str) -> Any:
    # An integer of any length is none of our business, and Python refuses those of 4,300 digits.
    return json.loads(
        text.strip(" \t\r\n\ufeff"), object_pairs_hook=_Members, parse_int=lambda _: 0
    )


def _walk(
    value: Any, path: str, depth: int, inside: int, names: dict[str, None]
) -> Iterator[Field]:
    """`names` gets those that are a plain word."""
    if isinstance(value, str):
        yield from _string(value, path, depth, inside, names)
    elif isinstance(value, list):
        if depth >= DEPTH_MAX:
            with suppress(RecursionError):
                yield Field(path, json.dumps(value, ensure_ascii=False), is_string=False)
            return
        for number, item in enumerate(value):
            if isinstance(value, _Members):
                name, item = item
                is_plain = _MEMBER.match(name) is not None
                here = f"{path}.{name}" if is_plain else f"{path}.{{{number}}}"
                if is_plain:
                    names[name] = None
                elif name.strip():
                    yield Field(here[:PATH_CHARS_MAX], _storable(name))
            else:
                here = f"{path}[{number}]"
            yield from _walk(item, here[:PATH_CHARS_MAX], depth + 1, inside, names)


def _string(
    text: str, path: str, depth: int, inside: int, names: dict[str, None]
) -> Iterator[Field]:
    if not text.strip():
        return
    found: list[Field] = []
    if inside < INSIDE_MAX and _may_be_json(text):
        with suppress(ValueError, RecursionError):
            found = list(_walk(_loaded(text), path, depth + 1, inside + 1, names))
    yield from found or [Field(path, _storable(text))]


def _storable(text: str) -> str:
    """Half of a surrogate pair can be escaped in JSON, and is no character."""
    return text if text.isascii() else text.encode(errors="replace").decode()
