"""The same text in several readings, each with a map back to the text as sent.

An attacker writes so that a model understands and a filter does not: look-alike letters, spaced
letters, digits for letters, base64. Each view undoes one such trick; rules then read the views. A
view is only built when a cheap test says that it differs. An encoding is never evidence by itself.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

BLOBS_MAX = 8
DECODED_CHARS_MAX = 20_000
DEPTH_MAX = 2
WIDE_MAX = 4

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0100-\U000e01ef]"
)
TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")

# Letters that look like Latin ones. Folded only where the word or the text is otherwise Latin:
# else Russian and Greek would be destroyed.
LOOK_ALIKES = str.maketrans(
    "авекмнорстухіјѕԁԛԝєгьһӏαβεικνορτυχγηωϲ",
    "abekmhopctyxijsdqwerbhlabeikvoptuxynwc",
)
LOOK_ALIKE_LETTERS = frozenset(map(chr, LOOK_ALIKES))
CYRILLIC_OR_GREEK = re.compile("[\u0370-\u03ff\u0400-\u052f]")
WORD = re.compile(r"\w+")

SPACED = re.compile(r"(?<![^\W_])(?:[^\W_][ \t.\-_*|·•/]{1,6}){5,}[^\W_](?![^\W_])")
SEPARATOR = re.compile(r"[\W_]+")
PIECE = re.compile(r"[^\W_]|[\W_]+")
# Blanks that patterns do not expect: runs, tabs, and a line that was only broken to fit a width.
# A line that opens with a speaker ("user:") is not such a line.
BLANKS = re.compile(
    r"(?<=[^\W\d_]|,)[^\S\n]{0,80}\n[^\S\n]{0,80}(?=[^\W\d_][\w'’-]{0,30}(?:[\s,.;!?]|$))"
    r"|[^\S\n]{2,}|[^\S\n ]"
)
LEET_TOKEN = re.compile(
    r"(?<![\w@$!|])(?=[\w@$!|]{0,40}[a-z])(?=[\w@$!|]{0,40}[013457@$!|])[\w@$!|]{3,40}"
)
LEET = str.maketrans("013457@$!|", "oieastasil")

BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{16,}){0,200}"
    r"(?:\r?\n[A-Za-z0-9+/_-]{2,15}(?==))?={0,2}(?![A-Za-z0-9+/=])"
)
BASE32 = re.compile(r"(?<![A-Z2-7=])[A-Z2-7]{24,}={0,6}(?![A-Z2-7=])")
HEX = re.compile(
    r"(?<![0-9A-Fa-f])(?:(?:[0-9A-Fa-f]{2}){8,4000}"
    r"|(?:0x)?[0-9A-Fa-f]{2}(?:(?:[ :,]|,? ?0x)[0-9A-Fa-f]{2}){7,4000})"
)
DECIMAL = re.compile(r"(?<!\d)\d{2,3}(?:[ ,;]{1,2}\d{2,3}){7,}(?!\d)")
BINARY = re.compile(r"(?<![01])[01]{8}(?: ?[01]{8}){3,}(?![01])")
ESCAPES = re.compile(r"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}){4,}")
PERCENT = re.compile(r"\S{9,2000}")
ENTITY = re.compile(r"(?:&#?\w{1,8};[ ]?){4,}")

COMMON = frozenset(
    """
    the and you your for that this with are not all any now from have has was were will can but
    what when where which who how why then than them they their there here out about into over
    after before above previous tell show give make write answer reply say said print please
    instructions rules message text word words first last next user system is it of to in on me
    my we us be do does as at by if or so no yes an code access following everything
    """.split()  # noqa: SIM905 - a hundred quoted words would hide them
)


@dataclass(frozen=True, slots=True)
class View:
    """`text` is lower case. Character i came from `starts[i]` to `ends[i]` of the sent text.

    Without the two, positions are the sent text's own.
    """

    name: str
    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The sent text's code points behind `text[start:end]`."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[max(start, end - 1)]


@dataclass(frozen=True, slots=True)
class _Blob:
    """A piece of a source text that decodes to something."""

    name: str
    text: str
    start: int
    end: int


def views_of(text: str) -> Iterator[View]:
    """Every reading of `text` that differs, the plain one first."""
    folded = _folded_letters(text)
    plain = _collapsed(folded)
    yield plain
    for match in TAGS.finditer(text):
        hidden = "".join(chr(ord(character) - 0xE0000) for character in match[0])
        yield _from_blob(_Blob("tags", hidden, match.start(), match.end()))
    squashed = _squashed(folded)
    if squashed is not None:
        yield squashed
    leet = _leet(plain)
    if leet is not None:
        yield leet
    yield from _decoded(text, plain)


def _folded_letters(text: str) -> View:
    if text.isascii():
        return View("raw", text.lower())
    characters: list[str] = []
    starts: list[int] = []
    after_latin = False
    for position, character in enumerate(text):
        if character < "\x80":
            characters.append(character.lower())
            starts.append(position)
            after_latin = character.isalpha()
            continue
        for piece in _folded(character):
            if piece > "\x7f" and unicodedata.combining(piece):
                if after_latin:  # an accent; elsewhere marks are part of the letter
                    continue
            else:
                after_latin = piece < "\x80" and piece.isalpha()
            characters.append(piece)
            starts.append(position)
    folded = _fold_look_alikes("".join(characters))
    if folded == text.lower() and len(folded) == len(text):
        return View("raw", folded)
    return View("clean", folded, starts, [position + 1 for position in starts])


@lru_cache(maxsize=8192)
def _folded(character: str) -> str:
    if INVISIBLE.match(character) or "\U000e0000" <= character <= "\U000e007f":
        return ""
    wide = unicodedata.normalize("NFKC", character)
    name = unicodedata.name(character, "")
    if name.startswith("LATIN") or len(wide) > 1:
        wide = unicodedata.normalize("NFKD", wide)
    # One code point that stands for a whole phrase is no disguised letter, and would bloat views.
    return wide.lower() if len(wide) <= WIDE_MAX else character


def _fold_look_alikes(text: str) -> str:
    if not CYRILLIC_OR_GREEK.search(text):
        return text
    latin = sum("a" <= c <= "z" for c in text)
    foreign = len(CYRILLIC_OR_GREEK.findall(text))
    mostly_latin = latin > 3 * foreign

    def fold(match: re.Match[str]) -> str:
        word = match[0]
        if not CYRILLIC_OR_GREEK.search(word):
            return word
        is_mixed = any("a" <= c <= "z" for c in word)
        is_disguised = mostly_latin and all(c in LOOK_ALIKE_LETTERS for c in word)
        return word.translate(LOOK_ALIKES) if is_mixed or is_disguised else word

    return WORD.sub(fold, text)


def _collapsed(folded: View) -> View:
    """One blank where several, or a tab, or a broken line stood; ends of paragraphs stay."""
    text = folded.text
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0

    def keep(first: int, last: int) -> None:
        pieces.append(text[first:last])
        starts.extend(range(first, last) if folded.starts is None else folded.starts[first:last])
        ends.extend(range(first + 1, last + 1) if folded.ends is None else folded.ends[first:last])

    for match in BLANKS.finditer(text):
        opening = text[text.rfind("\n", 0, match.start()) + 1]
        if "\n" in match[0] and not (opening.isalnum() or opening in "\"'(“‘"):
            continue  # a heading or a marker ends with its line
        keep(done, match.start())
        begin, end = folded.span(match.start(), match.end())
        pieces.append(" ")
        starts.append(begin)
        ends.append(end)
        done = match.end()
    if not done:
        return folded
    keep(done, len(text))
    return View("clean", "".join(pieces), starts, ends)


def _squashed(plain: View) -> View | None:
    """`i g n o r e  a l l` as `ignore all`: gaps between words are wider than between letters."""
    characters: list[str] = []
    positions: list[int] = []
    for match in SPACED.finditer(plain.text):
        usual = min(map(len, SEPARATOR.findall(match[0])))
        position = match.start()
        for piece in PIECE.findall(match[0]):
            if piece.isalnum() or len(piece) > usual:
                characters.append(piece if piece.isalnum() else " ")
                positions.append(position)
            position += len(piece)
        characters.append(" ")
        positions.append(match.end() - 1)
    if not characters:
        return None
    spans = [plain.span(position, position + 1) for position in positions]
    return View(
        "squashed", "".join(characters), [start for start, _ in spans], [end for _, end in spans]
    )


def _leet(plain: View) -> View | None:
    """Digits and signs for letters, where they stand inside words; lengths stay the same."""
    changed = LEET_TOKEN.sub(lambda match: match[0].translate(LEET), plain.text)
    if changed == plain.text:
        return None
    return View("leet", changed, plain.starts, plain.ends)


def _decoded(text: str, plain: View) -> Iterator[View]:
    budget = [BLOBS_MAX, DECODED_CHARS_MAX]
    for blob in _blobs(text, budget):
        yield _from_blob(blob)
        yield from _deeper(blob, budget, DEPTH_MAX - 1)
    for blob in _disguised(plain, budget):
        yield _from_blob(blob)


def _deeper(blob: _Blob, budget: list[int], depth: int) -> Iterator[View]:
    if depth <= 0:
        return
    for inner in _blobs(blob.text, budget):
        moved = _Blob(inner.name, inner.text, blob.start, blob.end)
        yield _from_blob(moved)
        yield from _deeper(moved, budget, depth - 1)


def _from_blob(blob: _Blob) -> View:
    # Which byte of an encoding gave which letter helps nobody: the whole blob is the evidence.
    lower = blob.text.lower()
    return View(blob.name, lower, [blob.start] * len(lower), [blob.end] * len(lower))


def _blobs(text: str, budget: list[int]) -> Iterator[_Blob]:
    for name, pattern, needs, decode in DECODERS:
        if needs and not any(sign in text for sign in needs):
            continue
        for match in pattern.finditer(text):
            if budget[0] <= 0 or budget[1] <= 0:
                return
            decoded = decode(match[0])
            if decoded is None or decoded == match[0] or not _is_text(decoded):
                continue
            decoded = decoded[: budget[1]]
            budget[0] -= 1
            budget[1] -= len(decoded)
            yield _Blob(name, decoded, match.start(), match.end())


def _is_text(decoded: str) -> bool:
    if len(decoded) < 6:
        return False
    good = sum(c.isalpha() or c in " \n'.,:;!?-" for c in decoded)
    return good > 0.8 * len(decoded)


def _bytes_to_text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _base64(blob: str) -> str | None:
    body = re.sub(r"\s", "", blob).rstrip("=").replace("-", "+").replace("_", "/")
    if len(body) % 4 == 1:
        body = body[:-1]
    try:
        return _bytes_to_text(base64.b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return None


def _base32(blob: str) -> str | None:
    body = blob.rstrip("=")
    try:
        return _bytes_to_text(base64.b32decode(body + "=" * (-len(body) % 8)))
    except (binascii.Error, ValueError):
        return None


def _hex(blob: str) -> str | None:
    digits = re.sub(r"0x|[ :,]", "", blob)
    return _bytes_to_text(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _decimal(blob: str) -> str | None:
    numbers = [int(n) for n in re.findall(r"\d+", blob)]
    return "".join(map(chr, numbers)) if all(9 <= n <= 126 for n in numbers) else None


def _binary(blob: str) -> str | None:
    bits = blob.replace(" ", "")
    return _bytes_to_text(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8)))


def _escapes(blob: str) -> str | None:
    return "".join(chr(int(code, 16)) for code in re.findall(r"\\[xu]([0-9A-Fa-f]+)", blob))


def _percent(blob: str) -> str | None:
    if blob.count("%") < 3:
        return None
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})",
        lambda m: bytes([int(m[1], 16)]),
        blob.replace("+", " ").encode(),
    )
    return _bytes_to_text(raw)


Decoder = tuple[str, re.Pattern[str], tuple[str, ...], Callable[[str], str | None]]
DECODERS: tuple[Decoder, ...] = (
    ("percent", PERCENT, ("%",), _percent),
    ("entities", ENTITY, ("&",), html.unescape),
    ("escapes", ESCAPES, ("\\x", "\\u"), _escapes),
    ("binary", BINARY, ("01", "10"), _binary),
    ("decimal", DECIMAL, ("10", "11"), _decimal),
    ("hex", HEX, (), _hex),
    ("base64", BASE64, (), _base64),
    ("base32", BASE32, (), _base32),
)


def _disguised(plain: View, budget: list[int]) -> Iterator[_Blob]:
    """Runs of words of no language, that are English when rotated by 13 or read backwards.

    What decides is how many words are common ones, before and after; never what they say.
    """
    for start, end in _strange_runs(plain.text):
        if budget[0] <= 0:
            return
        run = plain.text[start:end]
        for name, candidate in (("rot13", codecs.encode(run, "rot13")), ("reversed", run[::-1])):
            words = re.findall(r"[a-z]+", candidate)
            common = sum(word in COMMON for word in words)
            if common >= 2 and common >= 0.2 * len(words):
                budget[0] -= 1
                raw_start, raw_end = plain.span(start, end)
                yield _Blob(name, candidate, raw_start, raw_end)


def _strange_runs(text: str) -> Iterator[tuple[int, int]]:
    """Spans of three words or more in a row of which none is common. Latin letters only."""
    count, start, end = 0, 0, 0
    for match in re.finditer(r"[a-z]{2,}", text):
        if match[0] in COMMON:
            if count >= 3:
                yield start, end
            count = 0
        else:
            if not count:
                start = match.start()
            count, end = count + 1, match.end()
    if count >= 3:
        yield start, end


def language_of(text: str) -> str:
    """The script that most letters belong to: a class, not a language."""
    if text.isascii():
        return "latin"
    counts: dict[str, int] = {}
    for character in text[:2000]:
        if character.isalpha():
            script = _script(character)
            counts[script] = counts.get(script, 0) + 1
    return max(counts, key=lambda script: counts[script]) if counts else "other"


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    name = unicodedata.name(character, "")
    for prefix, script in SCRIPTS:
        if name.startswith(prefix):
            return script
    return "other"


SCRIPTS = (
    ("LATIN", "latin"),
    ("FULLWIDTH LATIN", "latin"),
    ("MATHEMATICAL", "latin"),
    ("CYRILLIC", "cyrillic"),
    ("GREEK", "greek"),
    ("CJK", "cjk"),
    ("HIRAGANA", "cjk"),
    ("KATAKANA", "cjk"),
    ("HANGUL", "hangul"),
    ("ARABIC", "arabic"),
    ("HEBREW", "hebrew"),
    ("DEVANAGARI", "devanagari"),
    ("THAI", "thai"),
)
