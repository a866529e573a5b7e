"""Signing in by a provider of OpenID Connect, which may be away, slow, or answer nonsense."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.socialaccount.providers.openid_connect import views
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import render
from requests.exceptions import RequestException

from gateway_project.core.telemetry.logging import get_logger

log = get_logger("gateway.portal")
View = Callable[..., HttpResponseBase]
NONSENSE = (ValueError, LookupError, TypeError, AttributeError)
"""What allauth meets where JSON is none, or another one than the standard has."""


def _with_error_page(view: View) -> View:
    """What the provider does wrong is a page that says so, where allauth would fail."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except (RequestException, *NONSENSE) as exc:
            is_away = isinstance(exc, RequestException)
            log.warning(
                "single_sign_on_away", error=type(exc).__name__, exc_info=None if is_away else exc
            )
            return render(request, "socialaccount/authentication_error.html", status=502)

    return wrapped


login = _with_error_page(views.login)
callback = _with_error_page(views.callback)
