"""Documentation of others, by path: guides, manual pages, changelogs, licences, listings, data.

All of it is harmless, and much of it is orders to its reader. Nothing of it is part of the
repository: NOTICE names what was learnt from.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

SEED = 20261130
PIECE_CHARS = 3000
PIECE_CHARS_MIN = 200
FILE_CHARS_MAX = 400_000
ABOUT_ATTACKS = re.compile(
    r"prompt.injection|jailbreak|ignore (?:all|any|previous|prior)\b.{0,30}(?:instruction|rule)",
    re.IGNORECASE | re.DOTALL,
)
"""What quotes attacks is no harmless document: it is left out, by this sign alone."""
MANUAL = re.compile(r"\.[1-9][a-z]*(?:\.gz)?$")
_ROFF_REQUEST = re.compile(r"^[.'](?:\\\".*|[A-Za-z]{1,4}[ \t]*)", re.MULTILINE)
_ROFF_ESCAPE = re.compile(r"\\(?:f(?:\w|\(\w\w|\[\w*\])|[&|^%/,]|s[-+]?\d|\*\(\w\w|\(\w\w|[-e ])")


class Source(Protocol):
    """Where files are: names within it, and the text of one."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> str: ...


class Checkout:
    """Files of a commit of a git directory, bare or not; where none is named, of the newest."""

    def __init__(self, path: Path, commit: str = "HEAD") -> None:
        self.path = path
        self.commit = commit

    def _git(self, *arguments: str) -> str:
        found = subprocess.run(
            ["git", "-C", str(self.path), *arguments], capture_output=True, check=True
        )
        return found.stdout.decode("utf-8", "replace")

    def is_there(self) -> bool:
        """Whether the path is a git directory that holds the commit."""
        try:
            self._git("cat-file", "-e", f"{self.commit}^{{commit}}")
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def names(self) -> list[str]:
        return self._git("ls-tree", "-rz", "--name-only", self.commit).split("\0")[:-1]

    def read(self, name: str) -> str:
        return self._git("show", f"{self.commit}:{name}")


class Folder:
    """Files below a folder; those that are packed (.gz) are unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(
            str(file.relative_to(self.path))
            for file in self.path.rglob("*")
            if file.is_file() and not file.is_symlink()
        )

    def read(self, name: str) -> str:
        raw = (self.path / name).read_bytes()
        if name.endswith(".gz"):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8", "replace")


def source_of(path: Path) -> Source:
    is_git = (path / ".git").exists() or (path / "HEAD").is_file()
    return Checkout(path) if is_git else Folder(path)


def pieces(text: str, size: int = PIECE_CHARS) -> list[str]:
    """A text in parts of at most so many characters, cut between paragraphs, else lines. Parts that
    hold next to nothing, and those about attacks, are left out."""
    found: list[str] = []
    at = 0
    text = text[:FILE_CHARS_MAX]
    while at < len(text):
        end = min(len(text), at + size)
        if end < len(text):
            cut = max(text.rfind("\n\n", at + size // 3, end), text.rfind("\n", end - 300, end))
            end = cut if cut > at else end
        piece = text[at:end].strip()
        if len(piece) >= PIECE_CHARS_MIN and not ABOUT_ATTACKS.search(piece):
            found.append(piece)
        at = end
    return found


def plain_manual(text: str) -> str:
    """A manual page without the requests and escapes of its typesetting."""
    return _ROFF_ESCAPE.sub(
        lambda match: "-" if match[0] == r"\-" else "", _ROFF_REQUEST.sub("", text)
    )


def texts(source: Source, names: Iterable[str], most: int, each: int = 3) -> Iterator[str]:
    """At most `most` pieces of the named files, at most `each` of one; the same every time."""
    chosen = sorted(names, key=lambda name: zlib.crc32(f"{SEED} {name}".encode()))
    count = 0
    for name in chosen:
        if count >= most:
            return
        try:
            text = source.read(name)
        except (OSError, subprocess.CalledProcessError):
            continue  # a partial copy: it lists files that it does not have
        if "\0" in text or text.count("\ufffd") > len(text) // 200:
            continue
        if MANUAL.search(name):
            text = plain_manual(text)
        parts = pieces(text)
        rng = random.Random(f"{SEED} {name}")
        for part in rng.sample(parts, min(each, len(parts), most - count)):
            yield part
            count += 1
