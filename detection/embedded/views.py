"""The same text in several readings, each with a map back to the text as sent.

An attacker writes so that a model understands and a filter does not: look-alike letters, spaced
letters, digits for letters, base64. Each view undoes one such trick; rules then read the views. A
view is only built when a cheap test says that it differs. An encoding is never evidence by itself.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import tomllib
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

BLOBS_MAX = 8
DECODED_CHARS_MAX = 20_000
DEPTH_MAX = 2
WIDE_MAX = 4
FOLDINGS_KEPT = 8192

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0100-\U000e01ef"
    "\u0488\u0489\u20dd-\u20e4\ua670-\ua672]"  # and what encloses a letter
)
TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
# A byte each, invisible behind any character: the first sixteen selectors, then the other 240.
SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
HIDDEN_MIN = 16
HIDDEN = re.compile("[\u00ad\u034f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]{16,}")
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
BACKSPACES = frozenset("\x08\x7f")
# Letters in other dress, by what Unicode calls them.
DRESSED = re.compile(
    r"(?:LATIN LETTER SMALL CAPITAL|NEGATIVE (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER"
    r"|REGIONAL INDICATOR SYMBOL LETTER|MODIFIER LETTER (?:SMALL|CAPITAL)) ([A-Z])$"
)
# Where Unicode keeps Latin letters beyond the first blocks; asking for names elsewhere costs time.
LATIN_OR_DRESSED = re.compile(
    "[\u00aa-\u02ff\u1d00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\U0001f100-\U0001f1ff]"
)
UNKNOWN_LETTER = re.compile(
    "(?![\u0000-\u02ff\u0370-\u052f\u0590-\u06ff\u0750-\u077f\u08a0-\u097f\u0980-\u09ff\u0b80-\u0bff"
    "\u0e00-\u0e7f\u1100-\u11ff\u1d00-\u214f\u2c60-\u2c7f\u2e80-\u318f\u31f0-\u9fff\ua640-\ua69f"
    "\ua720-\ua7ff\ua960-\ua97f\uab30-\uab6f\uac00-\ufdff\ufe70-\uffef"
    "\U0001d400-\U0001d7ff\U0001f100-\U0001f1ff\U00020000-\U0003ffff])[^\\W\\d_]"
    "|[\u2800-\u28ff]{8,}"  # Braille, of which a few in a row draw progress
)
# Of Cyrillic and Arabic: what Russian, Ukrainian and Bulgarian, Arabic and Persian do not have.
STRANGE_LETTER = re.compile(
    "[\u0402\u0403\u0405\u0408-\u040f\u0452\u0453\u0455\u0458-\u045c\u045e-\u0481\u048a-\u048f"
    "\u0492-\u052f\u0620\u063b-\u063f\u066e\u066f\u0672-\u067d\u067f-\u0685\u0687-\u0697"
    "\u0699-\u06a8\u06aa-\u06ae\u06b0-\u06bf\u06c1-\u06cb\u06cd-\u06d3\u06d5\u06ee\u06ef"
    "\u06fa-\u06ff\u0750-\u077f]"
)
LIKE_LATIN = {"ɑ": "a", "ɡ": "g", "ı": "i", "ȷ": "j", "ɩ": "i", "ʋ": "v"}
TURNED_LETTERS = "ɐɔǝɟƃɓɥᴉɾʞʅןɯɹʇʌʍʎ"
TURNED = str.maketrans(f"{TURNED_LETTERS}unbqdp", "acefgghijkllmrtvwynuqbpd")

# Letters that look like Latin ones. Folded only where the word or the text is otherwise Latin:
# else Russian and Greek would be destroyed.
LOOK_ALIKES = str.maketrans(
    "авекмнорстухіјѕԁԛԝєгьһӏαβεικνορτυχγηωϲ",
    "abekmhopctyxijsdqwerbhlabeikvoptuxynwc",
)
LOOK_ALIKE_LETTERS = frozenset(map(chr, LOOK_ALIKES))
CYRILLIC_OR_GREEK = re.compile("[\u0370-\u03ff\u0400-\u052f]")
WORD = re.compile(r"\w+")

# By signs in a line, or by lines.
SPACED = re.compile(
    r"(?<![^\W_])(?:(?:[^\W_][ \t.\-_*|·•/]{1,6}){5,}|(?:[^\W_]\r?\n[\r\n]{0,4}){5,})"
    r"[^\W_](?![^\W_])"
)
# Two of them: asked first, since it is found four times as fast.
SOME_SPACED = re.compile(r"[ \t.\-_*|·•/\r\n][^\W_][ \t.\-_*|·•/\r\n]{1,6}[^\W_][ \t.\-_*|·•/\r\n]")
SEPARATOR = re.compile(r"[\W_]+")
PIECE = re.compile(r"[^\W_]|[\W_]+")
# Blanks that patterns do not expect: runs, tabs, and a line that was only broken to fit a width.
# A line that opens with a speaker ("user:") is not such a line.
# Each alternative goes on from one blank: a pattern that begins so is looked for fastest. A single
# one is left alone at once.
BLANKS = re.compile(
    r"\s(?:(?<! )|(?=\s))(?:(?<=[^\W\d_]\s|,\s)(?:(?<=\n)|(?<!\n)[^\S\n]{0,79}\n)[^\S\n]{0,80}"
    r"(?=[^\W\d_][\w'’-]{0,30}(?:[\s,.;!?]|$))"
    r"|(?<!\n)[^\S\n]+|(?<![\n ]))"
)
# A sign of exclamation after a word is one, and the @ of an address as well.
LEET_TOKEN = re.compile(
    r"(?<![\w@$!|\\])(?=[\w@$!|]{0,40}[a-z])(?=[\w@$!|]{0,40}(?:[013457@$|]|![\w@$|]))"
    r"(?!\w{1,40}@[\w-]{1,40}\.[a-z])[\w@$!|]{3,40}"
)
CODE = re.compile(r"[0-9a-f]{12,}")
# A word in leetspeak has such a sign before or among its letters; 3rd, x11 and utf8 have not, and
# what has a digit that is no letter is a number or a code, as is x4d.
LEET_WORD = re.compile(
    r"(?!\w*[2689]|[^_]{25}|0?x[0-9a-f]{1,6}$)(?:[013457]{1,2}[a-z]{3}|[\w@$!|]*?[a-z][013457@$!]{1,3}[a-z])"
)
LEET_SIGN = re.compile(r"[013457@$!|]")
LEET_RUN = re.compile(r"(?<![\w@$!|\\])[\w@$!|]*?[013457@$!|][\w@$!|]*")
LEET = str.maketrans("013457@$!|", "oieastasil")

BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/_=-])={0,2}[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{16,}){0,200}"
    r"(?:\r?\n[A-Za-z0-9+/_-]{2,15}(?==))?={0,2}(?![A-Za-z0-9+/=])"
)
# Signs in groups, or words that were encoded one by one: each is whole.
_FOURS = "(?:[A-Za-z0-9+/_-]{4}){0,40}[A-Za-z0-9+/_-]{2}(?:[A-Za-z0-9+/_-][A-Za-z0-9+/_=-]|==)"
BASE64_APART = re.compile(rf"(?<!\S){_FOURS}(?:\s{_FOURS}){{3,400}}(?!\S)")
BASE85 = re.compile(r"(?<!\S)(?:<~)?[!-~]{25,}(?!\S)")
# Of its words nearly all have a sign or a digit, and those that have none are capitals.
_ROT47 = r"(?:[^\s2-@]{0,30}[2-@]\S{0,30}|[A-K]{1,4})"
ROT47_RUN = re.compile(rf"(?<!\S){_ROT47}(?:\s{_ROT47}){{4,2000}}")
ROT47 = {code: 33 + (code - 33 + 47) % 94 for code in range(33, 127)}
DOUBLED = re.compile(r"\b(?:(\w)\1)+(?:\W{1,4}(?:(\w)\2)+){3,}\b")
BASE32 = re.compile(r"[A-Z2-7](?<![A-Z2-7=][A-Z2-7])[A-Z2-7]{23,}={0,6}(?![A-Z2-7=])")
_HEX = "[0-9A-Fa-f]"
HEX = re.compile(
    rf"{_HEX}(?<!{_HEX}{_HEX})(?:{_HEX}(?:{_HEX}{{2}}){{7,3999}}"
    rf"|(?:(?<=0)x{_HEX}{{2}}|{_HEX})(?:(?:[ :,]|,? ?0x){_HEX}{{2}}){{7,4000}}(?!{_HEX}))"
)
DIGITS = tuple("0123456789")
DECIMAL = re.compile(r"(?<!\d)\d{2,6}(?:[ ,;]{1,2}\d{1,6}){7,}(?!\d)")
OCTAL = re.compile(r"(?<!\d)[01][0-7]{2}(?: [01][0-7]{2}){7,}(?!\d)")
MORSE_RUN = re.compile(r"(?<!\S)[.-]{1,6}(?:(?: {1,4}| ?[/|\n] ?)[.-]{1,6}){7,}(?!\S)")
MORSE_SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- "
    "-..- -.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
)
MORSE = dict(
    zip(MORSE_SIGNS.split(), "abcdefghijklmnopqrstuvwxyz0123456789", strict=True),
) | {".-.-.-": ".", "--..--": ",", "..--..": "?", "-.-.--": "!", ".----.": "'", "---...": ":"}
BINARY = re.compile(r"(?<![01])[01]{8}(?: ?[01]{8}){3,}(?![01])")
# Of programs, and of style sheets, which have six digits. Octal ones may be short.
ESCAPES = re.compile(
    rf"(?:\\x{_HEX}{{2}}|\\u(?:{_HEX}{{4}}|\{{{_HEX}{{1,6}}\}})|\\00{_HEX}{{4}}|\\[0-7]{{2,3}}){{4,}}"
)
ESCAPE = re.compile(rf"\\(?:[xu]\{{?({_HEX}+)|(00{_HEX}{{4}})|([0-7]{{2,3}}))")
QUOTED_PRINTABLE = re.compile(rf"(?:={_HEX}{{2}}(?:=\r?\n)?){{8,}}")
PERCENT = re.compile(r"\S{9,10000}")
ENTITY = re.compile(rf"(?:&(?:#(?:\d{{1,7}}|[xX]{_HEX}{{1,6}});?|\w{{1,8}};)[ ]?){{4,}}")
# Tags and comments of HTML that a browser does not show inside of a word.
IN_WORD = re.compile(
    r"(?<=[^\W_])(?:</?(?:a|b|big|code|em|font|i|ins|mark|q|s|small|span|strong|sub|sup|u|wbr)"
    r"(?:\s[^<>]{0,80})?/?>|<!--[^<>]{0,80}-->)+(?=[^\W_])",
    re.IGNORECASE,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LATIN_WORD = re.compile(r"[a-z]+")
SAMPLE_CHARS = 500
STRANGE_WORDS_MIN, STRANGE_WORDS_SHARE = 3, 0.1
STRANGE_LETTERS_MIN, STRANGE_LETTERS_SHARE = 3, 0.02
COMMON_SHARE = 0.2
STRANGE_SHARE = 0.1
COMMON = frozenset(
    """
    the and you your for that this with are not all any now from have has was were will can but
    what when where which who how why then than them they their there here out about into over
    after before above previous tell show give make write answer reply say said print please
    instructions rules message text word words first last next user system is it of to in on me
    my we us be do does as at by if or so no yes an code access following everything
    der die das und nicht ist ein eine den dem von zu mit sich auf fur wie ich du sie alle was
    le la les des et est un une que qui dans pour pas sur vous tu ton de du ce
    el los las y es una por con para como su tu lo que del se
    il che di non per sono come con della o os um uma em nao com mais het een van ik niet
    """.split()  # noqa: SIM905 - a hundred quoted words would hide them
)


Letters = tuple[tuple[str, bool, bool], ...]


@dataclass(frozen=True, slots=True)
class View:
    """`text` is lower case. Character i came from `starts[i]` to `ends[i]` of the sent text.

    Without the two, positions are the sent text's own.
    """

    name: str
    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None
    changed: list[int] | None = None
    """Where it differs from the plain view, character by character; None: it is another text."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The sent text's code points behind `text[start:end]`."""
        if self.starts is None or self.ends is None:
            return start, end
        last = max(start, end - 1)
        # In a text that is read backwards, the last letter stands first.
        return min(self.starts[start], self.starts[last]), max(self.ends[start], self.ends[last])


@dataclass(frozen=True, slots=True)
class _Blob:
    """A piece of a source text that decodes to something."""

    name: str
    text: str
    start: int
    end: int


class Limits:
    """What may still be decoded of one text, and what was left undone."""

    def __init__(self) -> None:
        self.blobs = BLOBS_MAX
        self.chars = DECODED_CHARS_MAX
        self.undecoded = 0
        """Characters of the sent text that look encoded and were not decoded."""

    @property
    def is_spent(self) -> bool:
        return self.blobs <= 0 or self.chars <= 0


def views_of(text: str, limits: Limits | None = None) -> Iterator[View]:
    """Every reading of `text` that differs, the plain one first."""
    limits = limits or Limits()
    folded = _folded_letters(text)
    plain = _collapsed(folded)
    yield plain
    if not BACKSPACES.isdisjoint(text):  # what prints over letters, and what only stands among them
        kept = [place for place, character in enumerate(text) if character not in BACKSPACES]
        among = _folded_letters("".join(text[place] for place in kept))
        starts = [kept[among.span(place, place + 1)[0]] for place in range(len(among.text))]
        yield _collapsed(View("clean", among.text, starts, [start + 1 for start in starts]))
    if not text.isascii():
        yield from _invisible(text, limits)
        turned = sum(map(plain.text.count, TURNED_LETTERS))
        if turned > 3 and turned > 0.1 * len(plain.text):
            yield _backwards("turned", plain, plain.text.translate(TURNED))
    squashed = _squashed(folded)
    if squashed is not None:
        yield squashed
    if "<" in plain.text and IN_WORD.search(plain.text):
        yield _untagged(plain)
    leet = _leet(plain)
    if leet is not None:
        yield leet
    yield from _decoded(text, plain, limits)


def folded(text: str) -> str:
    """As every view begins: lower case, accents and disguises of letters undone."""
    return _folded_letters(text).text


def _invisible(text: str, limits: Limits) -> Iterator[View]:
    """What stands in characters that nobody sees. A long row of them that says nothing here may
    say something to whom it is meant for: it counts as not decoded."""
    tags = list(TAGS.finditer(text))
    if tags:
        hidden = "\n".join("".join(chr(ord(c) - 0xE0000) for c in m[0]) for m in tags)
        yield _from_blob(_Blob("tags", hidden, tags[0].start(), tags[-1].end()))
    selectors = list(SELECTORS.finditer(text))
    if selectors:
        raw = bytes(_selected(c) for m in selectors for c in m[0])
        hidden = _bytes_to_text(raw)
        if _is_text(hidden):
            yield _from_blob(_Blob("selectors", hidden, selectors[0].start(), selectors[-1].end()))
        else:
            limits.undecoded += sum(len(m[0]) for m in selectors if len(m[0]) >= HIDDEN_MIN)
    for run in HIDDEN.finditer(text):
        hidden = _hidden_bits(run[0])
        if hidden:
            yield _from_blob(_Blob("zero_width", hidden, run.start(), run.end()))
        else:
            limits.undecoded += len(run[0])


def _hidden_bits(run: str) -> str:
    """Two invisible characters as the bits of a text, whichever of them is one; else nothing."""
    signs = [sign for sign, _ in Counter(run).most_common(2)]
    bits = [sign for sign in run if sign in signs]
    for one in signs if len(signs) > 1 else ():
        digits = "".join("1" if bit == one else "0" for bit in bits[: 8 * DECODED_CHARS_MAX])
        text = _binary(digits)
        if text is not None and _is_text(text):
            return text
    return ""


def _selected(character: str) -> int:
    code = ord(character)
    return code - 0xFE00 if code < 0xE0100 else code - 0xE0100 + 16


def _backwards(name: str, view: View, changed: str) -> View:
    """`changed`, as long as the view's text, read from its end."""
    starts = view.starts if view.starts is not None else list(range(len(view.text)))
    ends = view.ends if view.ends is not None else list(range(1, len(view.text) + 1))
    return View(name, changed[::-1], starts[::-1], ends[::-1])


def _folded_letters(text: str) -> View:
    has_controls = CONTROLS.search(text) is not None
    if text.isascii() and not has_controls:
        return View("raw", text.lower())
    if not has_controls and (whole := _folded_whole(text)) is not None:
        return whole
    letters = {character: _letters(character) for character in set(text)}
    characters: list[str] = []
    starts: list[int] = []
    after_ascii = False
    for position, character in enumerate(text):
        if has_controls and CONTROLS.match(character):
            if character in BACKSPACES and characters:
                characters.pop()
                starts.pop()
            continue
        for piece, is_mark, is_ascii in letters[character]:
            if not is_mark:
                after_ascii = is_ascii
            elif after_ascii:  # an accent; elsewhere marks are part of the letter
                continue
            characters.append(piece)
            starts.append(position)
    folded = _fold_look_alikes("".join(characters))
    if folded == text.lower() and len(folded) == len(text):
        return View("raw", folded)
    return View("clean", folded, starts, [position + 1 for position in starts])


class _Foldings(dict[int, str]):
    """What each character is read as, by its code; those met lately are known."""

    def __missing__(self, code: int) -> str:
        if len(self) >= FOLDINGS_KEPT:
            self.clear()
        found = self[code] = "".join(piece for piece, _, _ in _letters(chr(code)))
        return found


FOLDINGS = _Foldings()


def _folded_whole(text: str) -> View | None:
    """All characters at once, which is ten times faster; None where an accent is to be left out:
    that depends on what stands before it."""
    folded = text.translate(FOLDINGS)
    for mark in filter(unicodedata.combining, set(folded)):
        at = folded.find(mark)
        while at >= 0:
            if at and folded[at - 1].isascii():
                return None
            at = folded.find(mark, at + 1)
    folded = _fold_look_alikes(folded)
    if folded == text.lower() and len(folded) == len(text):
        return View("raw", folded)
    sizes = {character: len(FOLDINGS[ord(character)]) for character in set(text)}
    if {*sizes.values()} == {1}:
        return View("clean", folded)  # no place changes
    starts = [place for place, character in enumerate(text) for _ in range(sizes[character])]
    return View("clean", folded, starts, [place + 1 for place in starts])


@lru_cache(maxsize=FOLDINGS_KEPT)
def _letters(character: str) -> Letters:
    """What one character is read as: each piece, whether it is a mark, whether it is ASCII."""
    pieces = character.lower() if character < "\x80" else _folded(character)
    if len(pieces) > 1 and pieces[0] < "\x80" and pieces[0].isalpha():
        # A Latin letter and its accents.
        pieces = pieces[0] + "".join(p for p in pieces[1:] if not unicodedata.combining(p))
    return tuple((piece, unicodedata.combining(piece) != 0, piece < "\x80") for piece in pieces)


def _folded(character: str) -> str:
    if INVISIBLE.match(character) or "\U000e0000" <= character <= "\U000e007f":
        return ""
    if character in LIKE_LATIN:
        return LIKE_LATIN[character]
    wide = unicodedata.normalize("NFKC", character)
    if len(wide) == 1 and not LATIN_OR_DRESSED.match(character):
        return wide.lower()
    name = unicodedata.name(character, "")
    if dressed := DRESSED.match(name):
        return dressed[1].lower()
    if name.startswith("LATIN") or len(wide) > 1:
        wide = unicodedata.normalize("NFKD", wide)
    # One code point that stands for a whole phrase is no disguised letter, and would bloat views.
    return wide.lower() if len(wide) <= WIDE_MAX else character


def _fold_look_alikes(text: str) -> str:
    if not CYRILLIC_OR_GREEK.search(text):
        return text
    latin = sum(map(text.count, LETTERS))
    foreign = len(CYRILLIC_OR_GREEK.findall(text))
    mostly_latin = latin > 3 * foreign

    def is_disguised(word: str) -> bool:
        if not CYRILLIC_OR_GREEK.search(word):
            return False
        is_mixed = LATIN_WORD.search(word) is not None
        return is_mixed or (mostly_latin and LOOK_ALIKE_LETTERS.issuperset(word))

    disguised = {w for w in WORD.findall(text) if not w.isascii() and is_disguised(w)}
    if not disguised:
        return text
    return WORD.sub(lambda m: m[0].translate(LOOK_ALIKES) if m[0] in disguised else m[0], text)


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
    if not SOME_SPACED.search(plain.text):
        return None
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


def _untagged(plain: View) -> View:
    """Words that tags were put into, as one sees them."""
    places: list[int] = []
    differ: list[int] = []
    done = 0
    for tags in IN_WORD.finditer(plain.text):
        places += range(done, tags.start())
        differ += [len(places) - 1, len(places)]
        done = tags.end()
    places += range(done, len(plain.text))
    spans = [plain.span(place, place + 1) for place in places]
    return View(
        "untagged",
        "".join([plain.text[place] for place in places]),
        [start for start, _ in spans],
        [end for _, end in spans],
        differ,
    )


def _leet(plain: View) -> View | None:
    """Digits and signs for letters, where a word has them; lengths stay the same."""
    text = plain.text
    if not LEET_SIGN.search(text):
        return None
    pieces: list[str] = []
    copied = 0
    has_words = False
    for run in LEET_RUN.finditer(text):
        token = LEET_TOKEN.match(text, run.start())
        if token is None or CODE.fullmatch(token[0]):
            continue
        has_words = has_words or LEET_WORD.match(token[0]) is not None
        pieces += text[copied : token.start()], token[0].translate(LEET)
        copied = token.end()
    if not has_words:
        return None
    changed = "".join((*pieces, text[copied:]))
    differ = [
        at for at, (before, after) in enumerate(zip(text, changed, strict=True)) if before != after
    ]
    return View("leet", changed, plain.starts, plain.ends, differ)


def _decoded(text: str, plain: View, limits: Limits) -> Iterator[View]:
    for blob in _blobs(text, limits):
        yield _from_blob(blob)
        yield from _deeper(blob, limits, DEPTH_MAX - 1)
    yield from _disguised(plain, limits)


def _deeper(blob: _Blob, limits: Limits, depth: int) -> Iterator[View]:
    if depth <= 0:
        if any(True for _ in _blobs(blob.text, Limits())):
            limits.undecoded += blob.end - blob.start  # encoded once more than is undone
        return
    for inner in _blobs(blob.text, limits):
        moved = _Blob(inner.name, inner.text, blob.start, blob.end)
        yield _from_blob(moved)
        yield from _deeper(moved, limits, depth - 1)


def _from_blob(blob: _Blob) -> View:
    # Which byte of an encoding gave which letter helps nobody: the whole blob is the evidence.
    lower = blob.text.lower()
    return View(blob.name, lower, [blob.start] * len(lower), [blob.end] * len(lower))


def _blobs(text: str, limits: Limits) -> Iterator[_Blob]:
    longest = max(map(len, text.split()), default=0)
    for name, pattern, needs, chars, decode in DECODERS:
        if longest < chars or (needs and not any(map(text.__contains__, needs))):
            continue
        for match in pattern.finditer(text):
            if limits.is_spent:
                limits.undecoded += match.end() - match.start()
                continue
            decoded = decode(match[0])
            if decoded is None or decoded == match[0] or not _is_text(decoded):
                continue
            if len(decoded) > limits.chars:
                limits.undecoded += (match.end() - match.start()) // 2
                decoded = decoded[: limits.chars]
            limits.blobs -= 1
            limits.chars -= len(decoded)
            yield _Blob(name, decoded, match.start(), match.end())


UNUSUAL = re.compile(r"[^\w \n\r\t'\".,:;!?()/-]")


def _is_text(decoded: str) -> bool:
    """Whether bytes that were decoded say something, as far as single characters tell."""
    if len(decoded) < 6:
        return False
    start = decoded[:2000]
    good = len(start) - len(UNUSUAL.findall(start)) - start.count("_")
    return good > 0.85 * len(start) and sum(map(str.isalpha, start)) > 0.4 * len(start)


def _bytes_to_text(raw: bytes) -> str:
    if raw.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            raw = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw, DECODED_CHARS_MAX)
    # A blob that is cut, or begins a letter late, still says most of what it says.
    return raw.decode("utf-8", "replace")


def _base64(blob: str) -> str | None:
    body = re.sub(r"\s", "", blob).strip("=").replace("-", "+").replace("_", "/")
    found = _base64_of(body)
    return found if found is None or _is_text(found) else _base64_of(body[::-1])


def _base64_of(body: str) -> str | None:
    if len(body) % 4 == 1:
        body = body[:-1]
    try:
        return _bytes_to_text(base64.b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return None


def _base64_apart(blob: str) -> str | None:
    words = blob.replace("=", "").split()
    whole = _base64_of("".join(words)) if "=" not in blob.rstrip("=") else None
    return whole if whole and _is_text(whole) else " ".join(filter(None, map(_base64_of, words)))


def _base85(blob: str) -> str | None:
    with suppress(ValueError):
        return _bytes_to_text(base64.b85decode(blob))
    with suppress(ValueError):
        return _bytes_to_text(base64.a85decode(blob, adobe=blob.startswith("<~")))
    return None


def _rot47(blob: str) -> str:
    return blob.translate(ROT47)


def _single(blob: str) -> str:
    return re.sub(r"(\w)\1", r"\1", blob)


def _base32(blob: str) -> str | None:
    body = blob.rstrip("=")
    body = body[: len(body) - {1: 1, 3: 1, 6: 1}.get(len(body) % 8, 0)]
    try:
        return _bytes_to_text(base64.b32decode(body + "=" * (-len(body) % 8)))
    except (binascii.Error, ValueError):
        return None


def _hex(blob: str) -> str | None:
    digits = re.sub(r"0x|[ :,]", "", blob)
    return _bytes_to_text(bytes.fromhex(digits[: len(digits) // 2 * 2]))


def _decimal(blob: str) -> str | None:
    numbers = [int(n) for n in re.findall(r"\d+", blob)]
    if all(n < 256 for n in numbers):
        return _bytes_to_text(bytes(numbers))
    good = (9 <= n < 0xD800 or 0xE000 <= n <= 0x10FFFF for n in numbers)
    return "".join(map(chr, numbers)) if all(good) else None


def _binary(blob: str) -> str | None:
    bits = blob.replace(" ", "")
    return _bytes_to_text(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8)))


def _octal(blob: str) -> str | None:
    return _bytes_to_text(bytes(int(n, 8) & 255 for n in re.findall(r"[0-7]{3}", blob)))


def _escapes(blob: str) -> str | None:
    codes = [int(h or css, 16) if h or css else int(o, 8) for h, css, o in ESCAPE.findall(blob)]
    return "".join(map(chr, codes)) if max(codes) <= 0x10FFFF else None


def _quoted_printable(blob: str) -> str | None:
    return _bytes_to_text(bytes.fromhex(re.sub(r"=(?:\r?\n)?", "", blob)))


def _morse(blob: str) -> str | None:
    words = re.split(r" ?[/|\n] ?| {3,}", blob)
    return " ".join("".join(MORSE.get(s, "\ufffd") for s in word.split()) for word in words)


def _percent(blob: str) -> str | None:
    if blob.count("%") < 3:
        return None
    raw = blob.replace("+", " ").encode()
    for _ in range(DEPTH_MAX):  # in one go: what is encoded twice looks like no text in between
        raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes([int(m[1], 16)]), raw)
    return _bytes_to_text(raw)


Decoder = tuple[str, re.Pattern[str], tuple[str, ...], int, Callable[[str], str | None]]
# What one of these signs must be in, and a run without blanks so long: asked before the pattern is.
DECODERS: tuple[Decoder, ...] = (
    ("percent", PERCENT, ("%",), 9, _percent),
    ("entities", ENTITY, ("&",), 3, html.unescape),
    ("escapes", ESCAPES, ("\\x", "\\u", "\\1", "\\00"), 12, _escapes),
    ("quoted_printable", QUOTED_PRINTABLE, ("=",), 24, _quoted_printable),
    ("binary", BINARY, ("01", "10"), 8, _binary),
    ("octal", OCTAL, ("14", "16"), 3, _octal),
    ("decimal", DECIMAL, ("10", "11"), 2, _decimal),
    ("morse", MORSE_RUN, (".- ", "-. ", ".. "), 1, _morse),
    ("hex", HEX, DIGITS, 2, _hex),
    ("base64", BASE64, (), 16, _base64),
    ("base64", BASE64_APART, (), 4, _base64_apart),
    ("base85", BASE85, (), 25, _base85),
    ("rot47", ROT47_RUN, ("E96", "J@F", "2?5", "2==", ":?8", ":@?"), 2, _rot47),
    ("doubled", DOUBLED, ("aa", "ii", "uu", "аа", "ии", "αα", "ιι"), 2, _single),
    ("base32", BASE32, (), 24, _base32),
)


@lru_cache(maxsize=32)
def _rotation(by: int) -> dict[int, int]:
    return str.maketrans(LETTERS, LETTERS[by:] + LETTERS[:by])


def _shifted(text: str, by: int) -> str:
    return text.translate(_rotation(by))


def _backwards_text(text: str) -> str:
    return text[::-1]


def _words_reversed(text: str) -> str:
    return LATIN_WORD.sub(lambda match: match[0][::-1], text)


# Each gives as many characters as it takes. The text itself read backwards is tried beside them.
CIPHERS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("rot13", partial(_shifted, by=13)),
    ("reversed", _words_reversed),
    ("atbash", lambda text: text.translate(str.maketrans(LETTERS, LETTERS[::-1]))),
    *((f"caesar{by}", partial(_shifted, by=by)) for by in range(1, 26) if by != 13),
)


def _ciphered() -> dict[str, tuple[str, ...]]:
    """Common words as each cipher writes them, and the ciphers that give one."""
    found: dict[str, tuple[str, ...]] = {}
    for name, change in CIPHERS:
        # What the change makes of a common word need not be what becomes one: go the other way.
        for word in COMMON:
            hidden = word[::-1] if name == "reversed" else _hidden(word, change)
            found[hidden] = (*found.get(hidden, ()), name)
    return found


def _hidden(word: str, change: Callable[[str], str]) -> str:
    back = str.maketrans(change(LETTERS), LETTERS)
    return word.translate(back)


CIPHERED = _ciphered()
RUNS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("rot13", partial(_shifted, by=13)),
    ("reversed", _backwards_text),
)
"""What runs of words in a text are tried for."""
IN_RUNS = frozenset(
    word
    for word, names in CIPHERED.items()
    if not {name for name, _ in RUNS}.isdisjoint(names) and (len(word) < 2 or word not in COMMON)
)


def _common_share(text: str) -> float:
    """How many of the words are such as every text is full of; 0 when there are hardly any."""
    words = LATIN_WORD.findall(text)
    return _share(sum(map(COMMON.__contains__, words)), words)


def _share(common: int, words: Sequence[str]) -> float:
    return common / len(words) if common >= 2 and _are_long(words) else 0.0


def _are_long(words: Sequence[str]) -> bool:
    # Rotated codes are full of short "words" too.
    return sum(map(len, words)) > 2.8 * len(words)


def _shares(text: str) -> dict[str, float]:
    """By cipher, what `_common_share` says of the text that it undoes: more than none."""
    words = LATIN_WORD.findall(text)
    if not _are_long(words):
        return {}
    counts = Counter(name for word in words for name in CIPHERED.get(word, ()))
    return {name: common / len(words) for name, common in counts.items() if common >= 2}


def _disguised(plain: View, limits: Limits) -> Iterator[View]:
    """Words of no language, that are English when rotated or read backwards.

    What decides is how many words are common ones, before and after; never what they say. First
    the text as a whole, else runs of words in it.
    """
    text = plain.text
    start = text[:SAMPLE_CHARS]
    words = LATIN_WORD.findall(start)
    if len(words) >= 3 and _share(sum(map(COMMON.__contains__, words)), words) < STRANGE_SHARE:
        best, share = None, COMMON_SHARE
        shares = _shares(start)
        for name, change in CIPHERS:
            if shares.get(name, 0.0) > share:
                best, share = View(name, change(text), plain.starts, plain.ends), shares[name]
        if _common_share(text[: -SAMPLE_CHARS - 1 : -1]) > share:
            best = _backwards("reversed", plain, text)
        if best is not None:
            yield best
            return
    if sum(map(IN_RUNS.__contains__, LATIN_WORD.findall(text))) < 2:
        return  # no run of words can be language: most texts end here
    for first, last in _strange_runs(text):
        if limits.blobs <= 0:
            limits.undecoded += last - first
            continue
        run = text[first:last]
        if sum(map(IN_RUNS.__contains__, LATIN_WORD.findall(run))) < 2:
            continue
        shares = _shares(run)
        for name, change in RUNS:
            if shares.get(name, 0.0) >= COMMON_SHARE:
                limits.blobs -= 1
                yield _from_blob(_Blob(name, change(run), *plain.span(first, last)))


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
    for character, count in Counter(text[:2000]).items():
        if character.isalpha():
            script = _script(character)
            counts[script] = counts.get(script, 0) + count
    return max(counts, key=lambda script: counts[script]) if counts else "other"


def unknown_letters(text: str, plain: View) -> int:
    """How many letters are of a script or a language of which neither rules nor lexicon know a
    word. Of scripts each letter counts; of languages all of a text that is full of their own."""
    if _is_strange(plain.text):
        return sum(map(str.isalpha, text))
    return 0 if text.isascii() else sum(map(len, UNKNOWN_LETTER.findall(text)))


def _is_strange(plain: str) -> bool:
    letters = 0 if plain.isascii() else len(STRANGE_LETTER.findall(plain))
    if letters >= max(STRANGE_LETTERS_MIN, STRANGE_LETTERS_SHARE * len(plain)):
        return True
    words = plain.split()  # those before a comma are lost, and a pattern takes ten times as long
    strange = [word for word in words if word in STRANGE_WORDS]
    is_many = len(strange) >= STRANGE_WORDS_SHARE * len(words)
    return is_many and len(set(strange)) >= STRANGE_WORDS_MIN


@lru_cache(maxsize=FOLDINGS_KEPT)
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
    ("BENGALI", "bengali"),
    ("TAMIL", "tamil"),
    ("HALFWIDTH KATAKANA", "cjk"),
)

STRANGE_WORDS = frozenset(
    folded(word)
    for words in tomllib.loads(Path(__file__).with_name("languages.toml").read_text()).values()
    for word in words.split()
)
