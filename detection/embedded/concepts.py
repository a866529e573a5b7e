"""Which ideas the words of a text stand for, in many languages (`lexicon.toml`)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detection.embedded import views

FILE = Path(__file__).with_name("lexicon.toml")
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
"""Scripts whose words are not set apart: Thai, Japanese, Chinese."""
STEM_CHARS_MAX = 14
STEM_CHARS_MIN = 2
WORDS_KEPT = 8192
# What Arabic and Hebrew write together with the word that follows: the, and, with, to, so, that.
PREFIXES = (
    *("وال", "بال", "فال", "كال", "لل", "ال", "و", "ب", "ف", "ل", "س"),
    *("וה", "שה", "מה", "לה", "בה", "ה", "ו", "ב", "ל", "מ", "ש", "כ"),
)
SEMITIC = re.compile("[\u0590-\u06ff]")


@dataclass(slots=True)
class Lexicon:
    """`names[i]` is the idea that number i stands for; `categories[i]` what it speaks for."""

    names: tuple[str, ...]
    categories: tuple[str, ...]
    stems: dict[str, tuple[int, ...]] = field(default_factory=dict)
    words: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    pair_stems: set[str] = field(default_factory=set)
    anywhere: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)
    first: re.Pattern[str] = re.compile("(?!)")
    """What words of scripts without spaces begin with."""
    by_first: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, word: str) -> tuple[int, ...]:
        """The ideas of one word, in lower case, without accents. Words met lately are known."""
        found = self.known.get(word)
        if found is None:
            found = self._of(word)
            if len(self.known) >= WORDS_KEPT:
                self.known.clear()
            self.known[word] = found
        return found

    def _of(self, word: str) -> tuple[int, ...]:
        found = self._plain(word)
        if not found and SEMITIC.match(word):
            for prefix in PREFIXES:
                if len(word) - len(prefix) > 2 and word.startswith(prefix):
                    found = self._plain(word[len(prefix) :])
                    if found:
                        break
        return found

    def _plain(self, word: str) -> tuple[int, ...]:
        found = self.words.get(word, ())
        stems = self.stems
        for length in range(min(len(word), STEM_CHARS_MAX), STEM_CHARS_MIN - 1, -1):
            more = stems.get(word[:length])
            if more is not None:
                return (*found, *(number for number in more if number not in found))
        return found

    def in_unspaced(self, text: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Words of scripts without spaces, the longest first, and the ideas of each."""
        search, at = self.first.search, 0
        while match := search(text, at):
            at = match.start()
            for entry in self.by_first[match[0]]:
                if text.startswith(entry, at):
                    yield at, self.anywhere[entry]
                    at += len(entry)
                    break
            else:
                at += 1

    def of_pair(self, first: str, second: str) -> tuple[int, ...]:
        """The ideas of two words that only mean something together."""
        for length in range(len(second), STEM_CHARS_MIN - 1, -1):
            found = self.pairs.get((first, second[:length]))
            if found is not None:
                return found
        return ()


def load(path: Path = FILE) -> Lexicon:
    """Read the lexicon. Raises `KeyError` or `ValueError` for a table that is not of its form."""
    tables: dict[str, dict[str, str]] = tomllib.loads(path.read_text())
    names = tuple(tables)
    lexicon = Lexicon(
        names,
        tuple(tables[name]["category"] for name in names),
    )
    in_unspaced = re.compile(f"[{UNSPACED}]")
    for number, name in enumerate(names):
        for language, text in tables[name].items():
            if language == "category":
                continue
            for entry in text.split():
                _add(
                    lexicon,
                    views.folded(entry),
                    number,
                    is_unspaced=bool(in_unspaced.search(entry)),
                )
    for entry in sorted(lexicon.anywhere, key=len, reverse=True):
        lexicon.by_first[entry[0]] = (*lexicon.by_first.get(entry[0], ()), entry)
    lexicon.first = re.compile(f"[{re.escape(''.join(lexicon.by_first))}]")
    return lexicon


def _add(lexicon: Lexicon, entry: str, number: int, *, is_unspaced: bool) -> None:
    first, plus, second = entry.partition("+")
    if is_unspaced:
        _append(lexicon.anywhere, entry, number)
    elif plus:
        known = lexicon.pairs.get((first, second), ())
        lexicon.pairs[first, second.removesuffix("_")] = (*known, number)
        lexicon.pair_stems.add(first)
    elif entry.endswith("_"):
        _append(lexicon.words, entry[:-1], number)
    else:
        _append(lexicon.stems, entry, number)


def _append(table: dict[str, tuple[int, ...]], entry: str, number: int) -> None:
    known = table.get(entry, ())
    if number not in known:
        table[entry] = (*known, number)
