"""Django's hooks of the control plane: route labels, error pages, CSRF refusals, client address."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import DataError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import sync_only_middleware
from django.utils.translation import gettext, gettext_noop
from django_ratelimit.exceptions import Ratelimited

from gateway_project.core import errors
from gateway_project.core.api.handler import route_template
from gateway_project.core.api.responses import (
    HTML,
    gateway_error,
    problem_response,
    wants,
)
from gateway_project.core.context import context_of
from gateway_project.core.ratelimit import get_limiter, network_of, pages_policy
from gateway_project.core.storable import unstorable

API_PREFIXES = ("/v1/", "/auth/", "/webhooks/", "/inbox/", "/api/", "/beta/", "/health", "/metrics")


@sync_only_middleware
def route_label(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Tell metrics and logs the template of the URL that answered."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.resolver_match is not None:
            context_of(request).route = route_template(request.resolver_match)
        elif request.path.startswith("/static/"):
            context_of(request).route = "/static"
        return response

    return middleware


class RefusedData:
    """What a request holds and no store takes, on the pages: read as one encoding, and refused.

    Django would read the query in whatever charset the Content-Type names, `unicode_escape` among
    them, and cookies have escapes of their own (RFC 2109): by either a text can hold what its
    bytes do not.
    """

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.encoding = "utf-8"
        if wrong := next(filter(None, map(unstorable, request.COOKIES.values())), None):
            fields = [{"field": "cookie", "message": wrong}]
            return refuse(request, errors.ValidationFailed(errors=fields))
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, DataError):
            return None
        return refuse(request, gateway_error(exception, request))


class RefusedMethods:
    """What Django answers with an empty body, a page that takes other methods, says so."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        if response.status_code != 405 or (not response.streaming and response.content):
            return response
        allow = {"Allow": response.headers.get("Allow", "")}
        return refuse(request, errors.MethodNotAllowed(headers=allow))


class PageLimit:
    """Before anything of a page is worked out: how many an address may open in a minute.

    Endpoints of the API count by themselves, for their caller.
    """

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if not settings.RATE_LIMIT_ENABLED or hasattr(getattr(view, "cls", None), "declared"):
            return None
        decision = get_limiter().check_sync((pages_policy(client_ip(request)),), (1,))
        try:
            decision.raise_if_denied()
        except errors.RateLimited as limited:
            # Not as a page, which would look up who is signed in.
            return problem_response(request, limited)
        return None


def client_ip(request: HttpRequest) -> str:
    """The address behind our trusted proxies, as it is counted."""
    return network_of(context_of(request).client_ip) or "unknown"


def refuse(request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
    """A page for people, a problem for programs."""
    wants_page = bool(wants(request, HTML))
    if wants_page and not request.path.startswith(API_PREFIXES):
        context = context_of(request)
        context.error_code = error.code
        response = render(
            request,
            "portal/error.html",
            {
                "error": error,
                # Their details are English in the API, whoever asks; a page says it to a person.
                "title": gettext(error.title),
                "detail": error.for_people(),
                "request_id": context.request_id,
                # A form that came too late stands at its own address, or is led to from there.
                "page_of_form": request.path if request.method not in ("GET", "HEAD") else "",
            },
            status=error.status_code,
        )
        for name, value in error.headers.items():
            response[name] = value
        return response
    return problem_response(request, error)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return refuse(request, errors.translate(exception))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, Ratelimited):
        cause = exception.__cause__  # says when to come back, where it was raised by one of ours
        if isinstance(cause, errors.RateLimited):
            return refuse(request, cause)
        return too_many_requests(request)
    return refuse(request, errors.translate(exception))


def too_many_requests(request: HttpRequest) -> HttpResponse:
    """For limits that do not say what is left of their window, five minutes at the longest."""
    return refuse(
        request,
        errors.RateLimited(
            gettext_noop("That was too often. Wait five minutes and try again."),
            headers={"Retry-After": "300"},
        ),
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return refuse(request, errors.NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    """Whatever a page raised, or a middleware around it: mostly a store that is away, or slow."""
    raised = sys.exc_info()[1]
    error = errors.translate(raised) if isinstance(raised, Exception) else errors.InternalError()
    return refuse(request, error)


def csrf_failure(request: HttpRequest, reason: str = "", **_: Any) -> HttpResponse:
    return refuse(request, errors.CSRFFailed())
