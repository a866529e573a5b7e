"""How often an address may send a form. Signing in has a lock-out of its own (`accounts`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.translation import gettext_noop
from django_ratelimit.exceptions import Ratelimited

from gateway_project.core import errors, ratelimit
from gateway_project.core.api.error_pages import client_ip
from gateway_project.core.sentences import Sentence

View = Callable[..., HttpResponseBase]
By = Literal["ip", "user_or_ip"]


def limited(form: str, *, by: By = "ip", per_minute: int | None = None) -> Callable[[View], View]:
    """POSTs to `form`, `LOGIN_RATE_LIMIT_PER_MINUTE` of an address; then a 429 says when."""

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method == "POST" and settings.RATE_LIMIT_ENABLED:
                _count(request, form, by, per_minute or settings.LOGIN_RATE_LIMIT_PER_MINUTE)
            return view(request, *args, **kwargs)

        wrapped.is_limited = True  # type: ignore[attr-defined]  # a test looks for forms without
        return wrapped

    return decorate


def _count(request: HttpRequest, form: str, by: By, limit: int) -> None:
    sender = ratelimit.address_subject(client_ip(request))
    if by == "user_or_ip" and request.user.is_authenticated:
        sender = f"{{user:{request.user.pk}}}"
    policy = ratelimit.per_minute("form", f"{sender}:{form}", limit)
    try:
        ratelimit.get_limiter().check_sync((policy,), (1,)).raise_if_denied()
    except errors.RateLimited as limited:
        wait = limited.headers["Retry-After"]
        # The control plane's handler of refusals shows the cause.
        raise Ratelimited from errors.RateLimited(
            Sentence(
                gettext_noop("You sent this form too often. Try again in %(wait)s seconds."),
                wait=wait,
            ),
            headers=limited.headers,
        )
