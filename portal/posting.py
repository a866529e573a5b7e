"""What every form of the pages keeps to: a POST does its work once and then leads to a page.

What a POST made and may show this once (a key, a secret) waits encrypted in the session until the
page that it leads to takes it out. So reloading a page never repeats anything, and an address that
only takes POSTs answers everybody else with the page of its form.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from secrets import token_urlsafe
from typing import Any, cast
from uuid import UUID

import orjson
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.cache import cache
from django.http import HttpRequest, HttpResponseBase, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop
from redis.exceptions import RedisError

from gateway_project.core import clock, encryption
from gateway_project.core.api.responses import HTML, wants
from gateway_project.core.context import context_of
from gateway_project.core.ratelimit import get_limiter, per_hour

View = Callable[..., HttpResponseBase]
SHOWN_ONCE = "shown_once"
WAITS_SECONDS = 10 * 60
WAITING_MAX = 5
ONCE_SECONDS, UNDER_WAY_SECONDS = 60 * 60, 60
DONE = "done"
KEPT_SECONDS, KEPT_CHARS_MAX, KEPT_AN_HOUR = 15 * 60, 20_000, 20
NEVER_KEPT = {"csrfmiddlewaretoken", "secret", "password"}
SIGNED_OUT = gettext_noop(
    "You were signed out before this was sent, so nothing was done. Sign in and send it again."
)
TWICE = gettext_noop("This form was sent already, and what it makes is made once.")
STARTED = gettext_noop(
    "This form was sent a moment ago. Look whether it is done; if not, send it again in a minute."
)
SAFE = ("GET", "HEAD")


def signed_in(view: View) -> View:
    """For who is signed in; others go by way of the sign-in, and are told what was not done."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.user.is_authenticated:
            return view(request, *args, **kwargs)
        back = request.get_full_path()
        if request.method not in SAFE and wants(request, HTML):
            messages.warning(request, gettext(SIGNED_OUT))
            back = _keep(request) or back
        sign_in: HttpResponseBase = redirect_to_login(back)
        return sign_in

    return wrapped


def _keep(request: HttpRequest) -> str | None:
    """The address of a page that offers the form of a workspace again, after signing in.

    Whoever sends it is a stranger by then, so it is little, encrypted and soon gone; who may see it
    is asked of who opens the page. None: it is not kept.
    """
    fields = {name: values for name, values in request.POST.lists() if name not in NEVER_KEPT}
    kept = orjson.dumps([request.get_full_path(), fields]).decode()
    client = per_hour("unsent", f"{{unsent:{context_of(request).client_ip}}}", KEPT_AN_HOUR)
    if "workspace" not in fields or len(kept) > KEPT_CHARS_MAX:
        return None
    if get_limiter().check_sync((client,), (1,)).denied:
        return None
    token = token_urlsafe(16)
    try:
        cache.set(f"unsent:{token}", encryption.encrypt(kept), KEPT_SECONDS)
    except (RedisError, OSError):
        return None
    return reverse("portal-unsent", args=[token])


def unsent(token: str) -> tuple[str, dict[str, list[str]]] | None:
    """Where the form of that page goes, and its fields."""
    try:
        sealed = cache.get(f"unsent:{token}")
        path, fields = orjson.loads(encryption.decrypt(sealed or ""))
    except (RedisError, OSError, encryption.Undecryptable):
        return None
    return path, fields


def posts_for(page: str, *, bare: bool = False) -> Callable[[View], View]:
    """Only POSTs of a form on `page`, the name of an address; whoever opens it is led there.

    `page` takes the arguments of the view; with `bare` none.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method == "POST":
                return view(request, *args, **kwargs)
            if request.method in SAFE:
                return HttpResponseRedirect(reverse(page, kwargs={} if bare else kwargs))
            return HttpResponseNotAllowed(["POST", *SAFE])

        wrapped.form_is_on = page  # type: ignore[attr-defined]  # a test asks every address
        return wrapped

    return decorate


def is_first(request: HttpRequest) -> bool:
    """Whether the form that `{% once %}` marked comes for the first time; says so if not.

    Ask when the form is valid, right before the work: a form that is sent again mended is new.
    """
    mark = request.POST.get("once", "")
    try:
        UUID(mark)
    except ValueError:
        return True  # not one of our pages
    key = f"once:{request.user.pk}:{mark}"
    request.once_key = key  # type: ignore[attr-defined]
    try:
        if cache.add(key, "", UNDER_WAY_SECONDS):
            return True
        is_done = cache.get(key) == DONE
    except (RedisError, OSError):
        return True  # a key too many is better than none
    request.once_key = None  # type: ignore[attr-defined]
    messages.info(request, gettext(TWICE if is_done else STARTED))
    return False


class SentAgain:
    """A form that failed may be sent again: it did not do its work.

    Where Redis went away in the midst, its mark is still there, for a minute.
    """

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        if (key := getattr(request, "once_key", None)) is not None:
            with suppress(RedisError, OSError):
                if response.status_code < 400:
                    cache.set(key, DONE, ONCE_SECONDS)
                else:
                    cache.delete(key)
        return response


def show_once(request: HttpRequest, where: object, **facts: Any) -> None:
    """Let the page of `where`, an id or a name, show these the next time that it is opened."""
    waiting = _waiting(request)
    sealed = encryption.encrypt(orjson.dumps(facts).decode())
    waiting[str(where)] = [clock.time() + WAITS_SECONDS, sealed]
    request.session[SHOWN_ONCE] = dict(list(waiting.items())[-WAITING_MAX:])


def take_shown(request: HttpRequest, where: object) -> dict[str, Any]:
    """What `show_once` left for this page, this once; mostly nothing."""
    if request.method == "HEAD":
        return {}
    waiting = _waiting(request)
    found = waiting.pop(str(where), None)
    if found is None:
        return {}
    request.session[SHOWN_ONCE] = waiting
    until, sealed = found
    if until < clock.time():
        return {}
    try:
        return cast(dict[str, Any], orjson.loads(encryption.decrypt(sealed)))
    except encryption.Undecryptable:
        return {}


def _waiting(request: HttpRequest) -> dict[str, Any]:
    return dict(request.session.get(SHOWN_ONCE) or {})
