"""The guides: Markdown of `docs/guides`, as pages at /guides/, as files, and listed for programs.

Its `README.md` is the index: which guides there are, in which order, under which headings. The
files name `http://127.0.0.1:8000` and `gw_live_…`; a reader sees the address by which they came
and, when signed in, the beginning of a key of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from accounts.models import User
from gateway_project.core.api.methods import require_safe
from portal import markdown
from portal.members import place_of
from portal.views import base_url

FOLDER = settings.BASE_DIR / "docs" / "guides"
ADDRESS, KEY = "http://127.0.0.1:8000", "gw_live_…"
# What stands for both until a reader comes: words that no highlighting takes apart.
HERE, THEIRS = "gatewayaddress00", "gatewaykey00"
HITS_MAX, WORDS_MAX, QUERY_CHARS_MAX = 20, 8, 200
AROUND_CHARS = 90


class Entry(NamedTuple):
    """Of a guide, what the index says of it."""

    slug: str
    title: str
    summary: str


class Shelf(NamedTuple):
    title: str
    entries: tuple[Entry, ...]


class Index(NamedTuple):
    title: str
    lead: str
    shelves: tuple[Shelf, ...]

    @property
    def entries(self) -> list[Entry]:
        """All guides, in the order in which they are read."""
        return [entry for shelf in self.shelves for entry in shelf.entries]


class Hit(NamedTuple):
    title: str
    section: str
    url: str
    excerpt: SafeString


# -- The files ------------------------------------------------------------------------------------


def index() -> Index:
    path = FOLDER / "README.md"
    return _index(path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _index(changed_ns: int) -> Index:
    source = (FOLDER / "README.md").read_text()
    head, *parts = re.split(r"^## ", source, flags=re.M)
    title, _, lead = head.removeprefix("# ").partition("\n")
    shelves = []
    for part in parts:
        name, _, listed = part.partition("\n")
        found = re.findall(
            r"^- \[([^\]]+)\]\(([\w-]+)\.md\): (.+?)(?=\n- |\n\n|\Z)", listed, re.M | re.S
        )
        entries = (Entry(slug, text, " ".join(about.split())) for text, slug, about in found)
        shelves.append(Shelf(name.strip(), tuple(entries)))
    return Index(title.strip(), " ".join(lead.split()), tuple(shelves))


def source_of(slug: str) -> str:
    return (FOLDER / f"{slug}.md").read_text()


def page_of(slug: str) -> markdown.Page:
    """With `HERE` and `THEIRS` for address and key. Of a guide that the index names."""
    return _page(slug, (FOLDER / f"{slug}.md").stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _page(slug: str, changed_ns: int) -> markdown.Page:
    source = source_of(slug).replace(ADDRESS, HERE).replace(KEY, THEIRS)
    return markdown.render(source, _target)


def _target(href: str) -> str:
    """Another guide is a page here, and what lies at this gateway's address a path."""
    if href.startswith(HERE):
        return href.removeprefix(HERE) or "/"
    path, _, anchor = href.partition("#")
    if re.fullmatch(r"[\w-]+\.md", path):
        slug = path.removesuffix(".md")
        where = (
            reverse("portal-guides") if slug == "README" else reverse("portal-guide", args=[slug])
        )
        return f"{where}#{anchor}" if anchor else where
    return href


# -- The pages ------------------------------------------------------------------------------------


@require_safe
def guides(request: HttpRequest) -> HttpResponse:
    """All of them, or those in which the words of `?q=` stand."""
    query = request.GET.get("q", "").strip()[:QUERY_CHARS_MAX]
    facts: dict[str, Any] = {"index": index(), "query": query}
    if query:
        facts["hits"] = search(query)
    return render(request, "portal/guides.html", facts)


@require_safe
def guide(request: HttpRequest, slug: str) -> HttpResponse:
    entries, at = _found(slug)
    page = page_of(slug)
    html = page.html.replace(HERE, escape(base_url(request)))
    html = html.replace(THEIRS, escape(_key_of(request)))
    facts = {
        "index": index(),
        "slug": slug,
        "page": page,
        "html": mark_safe(html),  # noqa: S308 - of our own files, and what a caller named is escaped
        "headings": [section for section in page.sections if section.level == 2],
        "before": entries[at - 1] if at else None,
        "after": entries[at + 1] if at + 1 < len(entries) else None,
    }
    return render(request, "portal/guide.html", facts)


@require_safe
def guide_source(request: HttpRequest, slug: str) -> HttpResponse:
    """The Markdown, for programs that read; with this gateway's address."""
    _found(slug)
    text = re.sub(r"^<!--.*?-->\n\n?", "", source_of(slug), flags=re.M | re.S)
    text = text.replace(ADDRESS, base_url(request))
    return HttpResponse(text, content_type="text/markdown; charset=utf-8")


@require_safe
def llms(request: HttpRequest) -> HttpResponse:
    """What a language model is to read of this gateway (https://llmstxt.org)."""
    facts = {"index": index(), "base_url": base_url(request)}
    return render(request, "portal/llms.txt", facts, content_type="text/plain; charset=utf-8")


def _found(slug: str) -> tuple[list[Entry], int]:
    entries = index().entries
    for n, entry in enumerate(entries):
        if entry.slug == slug:
            return entries, n
    raise Http404


def _key_of(request: HttpRequest) -> str:
    """How the reader's newest key begins; what the files say, where there is none."""
    if not isinstance(request.user, User):
        return KEY
    member = place_of(request, request.user)
    if member is None:
        return KEY
    keys = member.keys.usable()
    prefix = keys.order_by("-id").values_list("prefix", flat=True).first()
    return f"{prefix}…" if prefix else KEY


# -- Searching ------------------------------------------------------------------------------------


def search(query: str) -> list[Hit]:
    """Sections in which every word of `query` stands; those that have it in a heading first."""
    words = query.casefold().split()[:WORDS_MAX]
    ranked = sorted(_ranked(words), key=lambda one: -one[0])
    return [hit for _, hit in ranked[:HITS_MAX]]


def _ranked(words: list[str]) -> Iterator[tuple[int, Hit]]:
    for entry in index().entries:
        title = f"{entry.title} {entry.summary}".casefold()
        for section in page_of(entry.slug).sections:
            heading = section.title.casefold() if section.anchor else title
            text = section.text.replace(HERE, ADDRESS).replace(THEIRS, KEY)
            folded = text.casefold()
            if not all(word in heading or word in folded for word in words):
                continue
            rank = sum(6 * (word in heading) + 2 * (word in title) + 1 for word in words)
            url = reverse("portal-guide", args=[entry.slug])
            url = f"{url}#{section.anchor}" if section.anchor else url
            name = section.title if section.anchor else ""
            yield rank, Hit(entry.title, name, url, _excerpt(text, words))


def _excerpt(text: str, words: list[str]) -> SafeString:
    """What stands around the first word, with all of them marked."""
    text = " ".join(text.split())
    any_word = re.compile("|".join(map(re.escape, words)), re.I)
    first = any_word.search(text)
    begin = max(0, first.start() - AROUND_CHARS) if first else 0
    begin = text.rfind(" ", 0, begin) + 1
    end = text.find(" ", begin + 2 * AROUND_CHARS)
    piece = text[begin:end] if end > 0 else text[begin:]
    marked, last = "", 0
    for match in any_word.finditer(piece):
        marked += f"{escape(piece[last : match.start()])}<mark>{escape(match[0])}</mark>"
        last = match.end()
    marked += escape(piece[last:])
    before, after = "… " if begin else "", " …" if begin + len(piece) < len(text) else ""
    return mark_safe(f"{before}{marked}{after}")  # noqa: S308 - every piece is escaped
