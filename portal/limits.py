"""How often an address may send a form. Signing in has a lock-out of its own (`accounts`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django_ratelimit.core import get_usage
from django_ratelimit.exceptions import Ratelimited

from gateway_project.core import errors

View = Callable[..., HttpResponse]


def limited(form: str) -> Callable[[View], View]:
    """`LOGIN_RATE_LIMIT_PER_MINUTE` POSTs of an address to `form`; then a page of 429 says when."""

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.method == "POST" and settings.RATE_LIMIT_ENABLED:
                _count(request, form)
            return view(request, *args, **kwargs)

        return wrapped

    return decorate


def _count(request: HttpRequest, form: str) -> None:
    rate = f"{settings.LOGIN_RATE_LIMIT_PER_MINUTE}/m"
    usage = get_usage(request, group=f"form:{form}", key="ip", rate=rate, increment=True)
    if usage and usage["should_limit"]:
        wait = max(1, usage["time_left"])
        # The control plane's handler of refusals shows the cause.
        raise Ratelimited from errors.RateLimited(
            f"You sent this form too often. Try again in {wait} seconds.",
            headers={"Retry-After": str(wait)},
        )
