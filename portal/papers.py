"""The changelog, and the operator's terms and privacy notice.

Terms and privacy are for who runs the gateway to write: `LEGAL_DIR` names a folder with `terms.md`
and `privacy.md`. Until it does, the pages show the templates of docs/legal and say that they are
templates.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.safestring import mark_safe
from django.utils.translation import gettext

from gateway_project.core.api.methods import require_safe
from portal import markdown

TEMPLATES = settings.BASE_DIR / "docs/legal"
CHANGELOG = settings.BASE_DIR / "CHANGELOG.md"
# Documents of the repository are not on this site: of links to them the words are left.
ELSEWHERE = re.compile(r"\[([^\]]+)\]\((?!/|#|mailto:)[^)]+\)")
PLACEHOLDER = re.compile(r"\[([^\]\n]+)\](?![(\[:])")
FIRST_RELEASE = re.compile(r"^## ", re.MULTILINE)


@require_safe
def changelog(request: HttpRequest) -> HttpResponse:
    """CHANGELOG.md, without what it says of its own form."""
    page = _page(CHANGELOG, CHANGELOG.stat().st_mtime_ns)
    releases = [section for section in page.sections if section.level == 2]
    return _show(request, page, title=gettext("Changelog"), releases=releases)


@require_safe
def terms(request: HttpRequest) -> HttpResponse:
    return _legal(request, "terms")


@require_safe
def privacy(request: HttpRequest) -> HttpResponse:
    return _legal(request, "privacy")


def _legal(request: HttpRequest, name: str) -> HttpResponse:
    own = Path(settings.LEGAL_DIR) / f"{name}.md" if settings.LEGAL_DIR else None
    is_template = own is None or not own.is_file()
    path = TEMPLATES / f"{name}.md" if is_template or own is None else own
    page = _page(path, path.stat().st_mtime_ns)
    # What is to be filled in stands in brackets, which Markdown leaves as they are.
    html = PLACEHOLDER.sub(r"<mark>[\1]</mark>", page.html) if is_template else page.html
    page = replace(page, html=html)
    return _show(request, page, title=page.title, is_template=is_template)


@lru_cache(maxsize=4)
def _page(path: Path, changed_ns: int) -> markdown.Page:
    text = path.read_text(encoding="utf-8")
    if path == CHANGELOG:
        text = text[FIRST_RELEASE.search(text).start() :]  # type: ignore[union-attr]
    return markdown.render(ELSEWHERE.sub(r"\1", text))


def _show(
    request: HttpRequest, page: markdown.Page, *, title: str, **facts: object
) -> HttpResponse:
    html = mark_safe(page.html)  # noqa: S308 - `markdown` lets no HTML of the file through
    return render(request, "portal/paper.html", {"title": title, "html": html, **facts})
