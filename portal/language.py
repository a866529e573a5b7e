"""The language of a page: what a person chose, else the browser's cookie, else what it asks for.

The order is: the choice that is stored with the account; the cookie `language`, which the switch at
the foot of the pages sets; `Accept-Language`; English. Programs are answered in English
(docs/decisions/0030-german-on-pages-english-for-programs.md), and so is everything that is read by
one: files, feeds, documents. The data plane runs none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.csrf import csrf_exempt

from gateway_project.core.api.error_pages import API_PREFIXES
from gateway_project.core.api.methods import require_http_methods
from gateway_project.core.language import TAGS, spoken
from portal.exports import NAME as FILE

FOR_PROGRAMS = (*API_PREFIXES, "/static/", "/openapi.json", "/llms.txt", "/status.atom")
VARIES = ("Accept-Language", "Cookie")


class BrowsersLanguage:
    """In front of everything that shows a page, refusals too: the cookie, or what is accepted."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(FOR_PROGRAMS) or FILE in request.GET:
            return self._get_response(request)
        with translation.override(translation.get_language_from_request(request)):
            response = self._get_response(request)
            if response.headers.get("Content-Type", "").startswith("text/html"):
                response.headers["Content-Language"] = spoken()
                patch_vary_headers(response, VARIES)
                _follow(request, response)
        return response


class PersonsLanguage:
    """Behind the limit of pages, since who asks is looked up: what they chose for themselves."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self._get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        if request.path.startswith(FOR_PROGRAMS) or FILE in request.GET:
            return
        user: Any = request.user
        if user.is_authenticated and user.language in TAGS:
            request.own_language = user.language  # type: ignore[attr-defined]
            translation.activate(user.language)


def _follow(request: HttpRequest, response: HttpResponseBase) -> None:
    """Where somebody chose a language once, the page to sign in speaks it the next time."""
    own = getattr(request, "own_language", "")
    name = settings.LANGUAGE_COOKIE_NAME
    if own and own != request.COOKIES.get(name) and name not in response.cookies:
        remember(response, own)


def remember(response: HttpResponseBase, tag: str) -> None:
    """Leave the choice with the browser; an empty one is forgotten."""
    if tag not in TAGS:
        response.delete_cookie(settings.LANGUAGE_COOKIE_NAME)
        return
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        tag,
        max_age=settings.LANGUAGE_COOKIE_AGE,
        secure=settings.LANGUAGE_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def switch(request: HttpRequest) -> HttpResponse:
    """The switch at the foot of the pages, with and without an account.

    It needs no token, so that public pages set no cookie for it: a form of another site comes
    without the session (`SameSite`), and all it reaches is the language of this browser.
    """
    tag = request.POST.get("language", "")
    back = HttpResponseRedirect(_page_before(request))
    if request.method != "POST" or tag not in TAGS:
        return back
    user: Any = request.user
    if user.is_authenticated and user.language != tag:
        user.language = tag
        user.save(update_fields=["language"])
    choose(request, back, tag)
    return back


def choose(request: HttpRequest, response: HttpResponseBase, tag: str) -> None:
    """From here on, what is said to them too; an empty one is what the browser asks for."""
    remember(response, tag)
    request.COOKIES.pop(settings.LANGUAGE_COOKIE_NAME, None)
    request.own_language = tag  # type: ignore[attr-defined]
    translation.activate(tag or translation.get_language_from_request(request))


def _page_before(request: HttpRequest) -> str:
    page = request.POST.get("next", "")
    # Without a host: a path of ours, not the same path elsewhere.
    return page if url_has_allowed_host_and_scheme(page, allowed_hosts=None) else "/"
