"""A mail for people to look at, whatever it holds: headers, text, HTML made harmless, attachments.

Nothing of a mail is trusted. Its HTML is written anew from a list of tags and attributes, without
scripts, forms, frames, and without any address: a picture from elsewhere would tell its sender who
looks, and when. Whoever shows it puts it into a sandbox all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email import policy
from email.header import decode_header, make_header
from email.parser import BytesParser
from html import escape
from html.parser import HTMLParser
from typing import Any

from robin.logs.parsing import escaped

HEADERS_MAX = 200
HEADER_CHARS_MAX = 2_000
PARTS_MAX = 200
TEXT_CHARS_MAX = 500_000
HTML_CHARS_MAX = 1_000_000
DEPTH_MAX = 20
MAIN = ("From", "To", "Cc", "Subject", "Date")


@dataclass(frozen=True, slots=True)
class Attachment:
    """`size` in bytes, of what was read."""

    name: str
    media_type: str
    size: int


@dataclass(slots=True)
class Message:
    """`headers` as they stand, decoded; `text` and `html` are empty where there is none."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    html: str = ""
    attachments: list[Attachment] = field(default_factory=list)

    def main(self) -> list[tuple[str, str]]:
        """Who, to whom, what and when."""
        return [(name, value) for wanted in MAIN for name, value in self.headers if name == wanted]

    def others(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.headers if name not in MAIN]


def read(content: bytes) -> Message:
    """Of any bytes at all; what cannot be read is left out."""
    message = Message()
    try:
        # `compat32` takes what is no mail, and gives headers as they stand.
        parsed = BytesParser(policy=policy.compat32).parsebytes(content)
        for name, value in parsed.items()[:HEADERS_MAX]:
            message.headers.append((_title(escaped(str(name))), _decoded(str(value))))
        for part in _parts(parsed):
            _take(message, part)
    except Exception:  # noqa: BLE001 - the library meets what nobody thought of: parts in parts
        message.text = message.text or _shown(content.decode("latin-1"))[:TEXT_CHARS_MAX]
    return message


def _parts(parsed: Any, depth: int = 0) -> Iterator[Any]:
    """The leaves, and mails within the mail, in their order."""
    inner = parsed.get_payload()
    is_mail = parsed.get_content_maintype() == "message" and depth
    if not isinstance(inner, list) or is_mail or depth >= DEPTH_MAX:
        yield parsed
        return
    for part in inner[:PARTS_MAX]:
        yield from _parts(part, depth + 1)


def _take(message: Message, part: Any) -> None:
    kind = part.get_content_type()
    name = part.get_filename()
    disposition = str(part.get("Content-Disposition", "")).partition(";")[0].strip().lower()
    content = b""
    with suppress(Exception):  # whatever its encoding claims to be
        content = part.get_payload(decode=True) or b""
    is_shown = disposition != "attachment" and not name
    if is_shown and kind == "text/plain" and not message.text:
        message.text = _text(content, part)[:TEXT_CHARS_MAX]
    elif is_shown and kind == "text/html" and not message.html:
        message.html = _text(content, part)[:HTML_CHARS_MAX]
    elif len(message.attachments) < PARTS_MAX:
        filename = _decoded(str(name)) if name else ("a mail" if kind == "message/rfc822" else "")
        message.attachments.append(Attachment(filename, kind, len(content)))


def _text(content: bytes, part: Any) -> str:
    charset = "utf-8"
    with suppress(Exception):
        charset = str(part.get_content_charset() or "utf-8")
    for name in (charset, "utf-8"):
        with suppress(LookupError, UnicodeError, ValueError):
            return _shown(content.decode(name))
    return _shown(content.decode("latin-1"))


def _shown(text: str) -> str:
    """With line ends as they are everywhere, and what is not printable escaped."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ").split("\n")
    return "\n".join(escaped(line) for line in lines)


def _decoded(text: str) -> str:
    flat = " ".join(text.split())
    with suppress(Exception):
        flat = str(make_header(decode_header(flat)))
    return escaped(flat)[:HEADER_CHARS_MAX]


def _title(name: str) -> str:
    return next((main for main in MAIN if main.lower() == name.lower()), name)


# -- HTML -----------------------------------------------------------------------------------------

TAGS = {
    *("a", "abbr", "b", "big", "blockquote", "br", "caption", "center", "cite", "code", "col"),
    *("colgroup", "dd", "del", "div", "dl", "dt", "em", "font", "h1", "h2", "h3", "h4", "h5"),
    *("h6", "hr", "i", "img", "ins", "li", "ol", "p", "pre", "q", "s", "small", "span", "strike"),
    *("strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "tt", "u"),
    "ul",
}
SILENT = {"script", "style", "title", "iframe", "object", "noscript", "template", "svg", "math"}
"""With all that is in them."""
OPEN_MAX = 200
"""Within each other; of more the words are shown."""
ALONE = {"br", "hr", "img", "col"}
ATTRIBUTES = {
    *("align", "valign", "colspan", "rowspan", "width", "height", "dir", "lang", "border"),
    *("bgcolor", "color", "cellpadding", "cellspacing", "face", "size", "start", "style"),
}
SIZES = ("width", "height")
VALUE = re.compile(r"[\w\s#%.,-]{0,100}", re.ASCII)
STYLE = re.compile(r"[\w\s#%.,:;!()'\"-]{0,1000}", re.ASCII)
STYLE_REFUSED = re.compile(r"url|image|import|expression|var|attr|position|behavior", re.IGNORECASE)
PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")


def harmless(html: str) -> str:
    """The same without whatever runs, asks, or leads anywhere; a link says where it led to."""
    writer = _Writer()
    with suppress(Exception):  # what came until then is shown
        writer.feed(html)
        writer.close()
    return writer.written()


class _Writer(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._out: list[str] = []
        self._open: list[str] = []
        self._silent: list[str] = []

    def written(self) -> str:
        ends = "".join(f"</{tag}>" for tag in reversed(self._open))
        return "".join(self._out) + ends

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent or tag in SILENT:
            if tag in SILENT:
                self._silent.append(tag)
            return
        if tag not in TAGS or len(self._open) >= OPEN_MAX:
            return
        given = {name: value or "" for name, value in attrs}
        if tag == "img":
            self._picture(given)
            return
        if tag == "a" and given.get("href"):
            address = escaped(given["href"])[:300]
            self._out.append(f'<a title="{escape(address)}">')
        else:
            self._out.append(f"<{tag}{_attributes(given)}>")
        if tag not in ALONE:
            self._open.append(tag)

    def _picture(self, given: dict[str, str]) -> None:
        source, alt = given.get("src", "").strip(), escape(given.get("alt", "")[:200])
        if PICTURE.fullmatch(source):
            sizes = {name: value for name, value in given.items() if name in SIZES}
            self._out.append(f'<img alt="{alt}" src="{escape(source)}"{_attributes(sizes)}>')
        else:
            self._out.append(f"<i>[picture{': ' + alt if alt else ''}]</i>")

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[-1]:
                self._silent.pop()
            return
        if tag not in self._open:
            return
        while self._open:  # those within it that were never closed
            last = self._open.pop()
            self._out.append(f"</{last}>")
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._out.append(escape(data))


def _attributes(given: dict[str, str]) -> str:
    found = []
    for name, value in given.items():
        if name not in ATTRIBUTES:
            continue
        shape = STYLE if name == "style" else VALUE
        is_refused = name == "style" and STYLE_REFUSED.search(value)
        if shape.fullmatch(value) and not is_refused:
            found.append(f' {name}="{escape(value)}"')
    return "".join(found)
