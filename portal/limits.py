"""How often an address may send a form. Signing in has a lock-out of its own (`accounts`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.translation import gettext_noop
from django_ratelimit.core import get_usage
from django_ratelimit.exceptions import Ratelimited

from gateway_project.core import errors
from gateway_project.core.sentences import Sentence

View = Callable[..., HttpResponseBase]


def limited(form: str, *, by: str = "ip", per_minute: int | None = None) -> Callable[[View], View]:
    """POSTs to `form`, `LOGIN_RATE_LIMIT_PER_MINUTE` of an address; then a 429 says when.

    `by` is a key of django-ratelimit's: `ip`, `user`, `user_or_ip`.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method == "POST" and settings.RATE_LIMIT_ENABLED:
                rate = per_minute or settings.LOGIN_RATE_LIMIT_PER_MINUTE
                _count(request, form, by, f"{rate}/m")
            return view(request, *args, **kwargs)

        wrapped.is_limited = True  # type: ignore[attr-defined]  # a test looks for forms without
        return wrapped

    return decorate


def _count(request: HttpRequest, form: str, by: str, rate: str) -> None:
    usage = get_usage(request, group=f"form:{form}", key=by, rate=rate, increment=True)
    if usage and usage["should_limit"]:
        wait = max(1, usage["time_left"])
        # The control plane's handler of refusals shows the cause.
        raise Ratelimited from errors.RateLimited(
            Sentence(
                gettext_noop("You sent this form too often. Try again in %(wait)s seconds."),
                wait=wait,
            ),
            headers={"Retry-After": str(wait)},
        )
