"""Robin's mail store as Robin UI reads it, and paths that stay inside of it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from robin.logs.parsing import escaped

DAY = re.compile(r"(\d{8})\.")
UNREADABLE = "\ufffd"
"""Stands for what is no UTF-8 in a name: nobody can ask for that again."""


def store_parts(path: str) -> list[str]:
    """The names of a path below the store. `ValueError` for what could lead out of it."""
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if not is_openable(part):
            raise ValueError("a name in the path is one that Robin does not open")
    return parts


def is_openable(name: str) -> bool:
    """Robin refuses two dots wherever they stand, and takes a backslash for a slash."""
    return not (".." in name or name == "." or "\\" in name or "\0" in name or UNREADABLE in name)


def shown_name(name: str) -> str:
    """What is not printable in it escaped."""
    return escaped(name)


def is_mail(name: str) -> bool:
    """By its name alone: a directory may have the same."""
    return name.lower().endswith(".eml")


def store_url(parts: list[str]) -> str:
    """Robin decodes twice, and takes a plus for a space the second time."""
    return "/".join(["/store", *(quote(quote(part, safe=""), safe="") for part in parts)])


def store_listing(found: Any, parts: list[str]) -> dict[str, Any]:
    """A directory, as the UI draws it; `modified` is 0 where no name tells a day (`days.py`)."""
    try:
        items = [_entry(item) for item in found["items"] if item["name"] != ".."]
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not a directory") from exc
    crumbs = [{"name": "Storage", "path": "/"}]
    for n, part in enumerate(parts, 1):
        crumbs.append({"name": part, "path": "/" + "/".join(parts[:n])})
    return {"path": "/" + "/".join(parts), "items": items, "breadcrumbs": crumbs}


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    name = str(item["name"])
    day = DAY.match(name)
    modified = 0
    if day is not None:
        try:
            when = datetime.strptime(day[1], "%Y%m%d").replace(tzinfo=UTC)
            modified = int(when.timestamp() * 1000)
        except ValueError:
            modified = 0  # eight digits that are no date
    return {
        "path": "/" + str(item["path"]).removeprefix("/store").strip("/"),
        "name": shown_name(name),
        "type": "directory" if item["type"] == "dir" else "file",
        "size": int(item.get("size", 0)),
        "modified": modified,
        "openable": is_openable(name),
    }


def mail_text(content: bytes, *, is_cut: bool = False) -> str:
    """Every mail can be shown: what is no UTF-8 is read as Latin-1."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, final=not is_cut)
    except UnicodeDecodeError:
        return content.decode("latin-1")
