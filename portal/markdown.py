"""Markdown files of ours as parts of pages: CommonMark with tables, and examples in tabs.

Fences of programs (`LABELS`) that follow each other with nothing between them are one example in
several languages. The words after a fence's language are the name of its tab (`python FastAPI`);
without any it has the language's. The tabs are radio buttons, which work without a script.

No HTML of a file reaches a page: comments are dropped, and all else is shown as it stands. Links
lead to http, https, mail, or a path; pictures are not shown. There is no inline style or script.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String
from pygments.util import ClassNotFound

LABELS = {"sh": "Shell", "python": "Python", "ts": "TypeScript", "go": "Go", "js": "JavaScript"}
# What the stylesheet of the guides colours; the first that fits.
COLOURED = (
    (Comment, "c"),
    (String, "s"),
    (Keyword, "k"),
    (Number, "n"),
    (Name.Variable, "n"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Tag, "f"),
)
Link = Callable[[str], str]


class Section(NamedTuple):
    """What stands below a heading, as plain text; the first, of the page, has no anchor."""

    level: int
    anchor: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """`html` is of all but the title."""

    title: str
    html: str
    sections: tuple[Section, ...]


def render(source: str, link: Link = str) -> Page:
    """`link` says where an address that the file names leads to."""
    tokens = _PARSER.parse(source)
    title, tokens = _title(tokens)
    sections = tuple(_sections(title, tokens))  # gives the headings their anchors
    html: str = _PARSER.renderer.render(
        _with_examples(tokens), _PARSER.options, {"link": link, "examples": 0, "fences": 0}
    )
    return Page(title, html, sections)


def highlighted(code: str, language: str) -> str:
    """As HTML: what is coloured stands in `<span class="…">`, a letter of `COLOURED` each."""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return escape(code)
    coloured = ((_colour(kind), text) for kind, text in lexer.get_tokens(code))
    pieces = []
    for colour, run in groupby(coloured, key=lambda one: one[0]):
        text = escape("".join(text for _, text in run))
        pieces.append(f'<span class="{colour}">{text}</span>' if colour else text)
    return "".join(pieces)


def _colour(kind: tuple[str, ...]) -> str:
    return next((name for known, name in COLOURED if kind in known), "")


def _title(tokens: Sequence[Token]) -> tuple[str, list[Token]]:
    """The first heading, and everything else."""
    for n, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            return _plain(tokens[n + 1]), [*tokens[:n], *tokens[n + 3 :]]
    return "", list(tokens)


def _plain(inline: Token) -> str:
    kinds = {"softbreak": " ", "hardbreak": " "}
    return "".join(kinds.get(one.type, one.content) for one in inline.children or ())


def _sections(title: str, tokens: Sequence[Token]) -> Iterator[Section]:
    level, anchor, heading, words = 1, "", title, list[str]()
    seen: set[str] = set()
    for n, token in enumerate(tokens):
        if token.type == "heading_open":
            yield Section(level, anchor, heading, " ".join(words))
            level, heading, words = int(token.tag[1]), _plain(tokens[n + 1]), []
            anchor = _anchor(heading, seen)
            token.attrSet("id", anchor)
        elif token.type == "fence":
            words.append(token.content)
        elif token.type == "inline" and tokens[n - 1].type != "heading_open":
            words.append(_plain(token))
    yield Section(level, anchor, heading, " ".join(words))


def _anchor(heading: str, seen: set[str]) -> str:
    """As GitHub makes it, so that a link leads there in both."""
    base = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") or "section"
    anchor, n = base, 1
    while anchor in seen:
        anchor, n = f"{base}-{n}", n + 1
    seen.add(anchor)
    return anchor


def _with_examples(tokens: Sequence[Token]) -> list[Token]:
    """Programs that follow each other become one token; comments do not stand between them."""
    found: list[Token] = []
    for token in tokens:
        if token.type == "html_block" and _is_comment(token.content):
            continue
        if token.type != "fence":
            found.append(token)
        elif _is_program(token) and found and found[-1].type == "example":
            found[-1].meta["fences"].append(token)
        else:
            name = "example" if _is_program(token) else "listing"
            found.append(Token(name, "", 0, meta={"fences": [token]}))
    return found


def _is_program(fence: Token) -> bool:
    return fence.info.strip().partition(" ")[0] in LABELS


def _is_comment(html: str) -> bool:
    return html.startswith("<!--")


# -- How single things are written ----------------------------------------------------------------


def _example(_: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    fences: list[Token] = tokens[n].meta["fences"]
    blocks = [_block(fence, env) for fence in fences]
    if len(blocks) == 1:
        return blocks[0]
    env["examples"] += 1
    name = f"e{env['examples']}"
    tabs = []
    for number, fence in enumerate(fences):
        tab, label = f"{name}-{number}", escape(label_of(fence))
        checked = "" if number else " checked"
        tabs.append(
            f'<input type="radio" name="{name}" id="{tab}" value="{label}"{checked}>'
            f'<label for="{tab}">{label}</label>'
        )
    return (
        '<fieldset class="example"><legend class="sr">Language of this example</legend>'
        f"{''.join(tabs)}{''.join(blocks)}</fieldset>\n"
    )


def label_of(fence: Token) -> str:
    language, _, label = fence.info.strip().partition(" ")
    if language == "sh" and not label and "curl " in fence.content:
        return "curl"
    return label.strip() or LABELS.get(language, language)


def _block(fence: Token, env: Any) -> str:
    env["fences"] += 1
    at = f"c{env['fences']}"
    language = fence.info.strip().partition(" ")[0]
    code = highlighted(fence.content, language).removesuffix("\n")
    return (
        f'<div class="code"><pre><code id="{at}">{code}</code></pre>'
        f'<button class="button quiet small" type="button" data-copy="#{at}">Copy</button></div>\n'
    )


def _html(_: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    content = tokens[n].content
    return "" if _is_comment(content) and content.count("-->") == 1 else escape(content)


def _link(renderer: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    token = tokens[n]
    token.attrSet("href", env["link"](str(token.attrGet("href") or "")))
    opened: str = renderer.renderToken(tokens, n, options, env)
    return opened


def _table(_: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    return '<div class="table"><table>\n' if tokens[n].nesting > 0 else "</table></div>\n"


def _cell(renderer: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    """Columns to the right hold numbers; the style that says so would be an inline one."""
    token = tokens[n]
    if token.attrs.pop("style", "") == "text-align:right":
        token.attrSet("class", "number")
    cell: str = renderer.renderToken(tokens, n, options, env)
    return cell


def _quote(_: Any, tokens: Sequence[Token], n: int, options: Any, env: Any) -> str:
    return '<div class="notice">\n' if tokens[n].nesting > 0 else "</div>\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": True}).enable("table").disable("image")
    rules = {
        "example": _example,
        "listing": _example,
        "html_block": _html,
        "html_inline": _html,
        "link_open": _link,
        "table_open": _table,
        "table_close": _table,
        "th_open": _cell,
        "td_open": _cell,
        "blockquote_open": _quote,
        "blockquote_close": _quote,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser()
