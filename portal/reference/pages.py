"""Pages of `/docs`: how to call, a page for each group, all of them on one, and the search."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.responses import JSON, wants
from portal import problems
from portal.members import place_of
from portal.reference import samples, searching
from portal.reference.document import reference
from portal.views import base_url

WORD_CHARS_MAX = 100
# Each error is linked on the pages by subject; on one page they would be a thousand links.
PROBLEM_LINK = re.compile(r'<a href="/problems/\w+">(.*?)</a>')


@require_safe
def overview(request: HttpRequest) -> HttpResponse:
    """How to call, and where what stands."""
    return _page(request, "portal/reference/overview.html")


@require_safe
def group(request: HttpRequest, slug: str) -> HttpResponse:
    """The operations of one tag."""
    found = reference().group(slug)
    if found is None:
        raise Http404
    body = _for_reader(request, _operations(slug))
    return _page(request, "portal/reference/group.html", group=found, operations=body)


@require_safe
def whole(request: HttpRequest) -> HttpResponse:
    """All operations on one page: to print, or to look for a word in."""
    parts = [
        (one, _for_reader(request, PROBLEM_LINK.sub(r"\1", _operations(one.slug))))
        for one in reference().groups
    ]
    return _page(request, "portal/reference/whole.html", parts=parts)


@require_safe
def problem_list(request: HttpRequest) -> HttpResponse:
    return _page(request, "portal/reference/problems.html", kinds=problems.everything())


@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """`{results: [{title, hint, url}]}` for the page's script, and a page for who has none."""
    word = request.GET.get("q", "").strip()[:WORD_CHARS_MAX]
    found = searching.find(word)
    if wants(request, JSON):
        return JsonResponse({"results": [one._asdict() for one in found]})
    return _page(request, "portal/reference/search.html", word=word, results=found)


def _page(request: HttpRequest, template: str, **facts: Any) -> HttpResponse:
    everything = {
        **facts,
        "base_url": base_url(request),
        "key": key_of(request),
        "reference": reference(),
    }
    return render(request, template, everything)


def key_of(request: HttpRequest) -> str:
    """How samples name the reader's newest key: by what lists show of it; else a variable.

    Never a whole key: the page has it only while it is made.
    """
    user: Any = request.user
    member = place_of(request, user) if user.is_authenticated else None
    if member is not None:
        keys = member.keys.usable().order_by("-id")
        if prefix := keys.values_list("prefix", flat=True).first():
            return f"{prefix}…"
    return "$GATEWAY_KEY"


@lru_cache(maxsize=64)
def _operations(slug: str) -> str:
    """The operations of a group as HTML, the same for everybody but for two names."""
    [found] = [group for group in reference().groups if group.slug == slug]
    operations = [(one, list(samples.samples_of(one))) for one in found.operations]
    return render_to_string("portal/reference/operations.html", {"operations": operations})


def _for_reader(request: HttpRequest, text: str) -> SafeString:
    names = {samples.BASE: base_url(request), samples.KEY: key_of(request)}
    for name, value in names.items():
        text = text.replace(name, escape(value))
    return mark_safe(text)  # noqa: S308 - a template's, with two escaped names
