"""Which methods a page answers, said where it can be read before anything of the page runs.

Django's own decorators of these names refuse inside of the view: behind the protection of forms,
which takes a PUT for a form without its token, and does not say what would do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators import http

from gateway_project.core import errors
from gateway_project.core.api.error_pages import refuse

View = Callable[..., Any]
OF_PAGES = ("GET", "HEAD", "POST")
"""What a page answers that does not say."""


def require_http_methods(methods: Sequence[str]) -> Callable[[View], View]:
    """Django's; decorators around it have to use `functools.wraps`, as all do."""
    require = http.require_http_methods(methods)

    def decorate(view: View) -> View:
        decorated: Any = require(view)
        decorated.allowed_methods = tuple(methods)
        return decorated  # type: ignore[no-any-return]

    return decorate


require_POST = require_http_methods(["POST"])  # noqa: N816 - its name in Django
require_safe = require_http_methods(["GET", "HEAD"])


class PageMethods:
    """Refuses what would change something and a page does not answer, before the page is asked.

    Behind `PageLimit`: whom a browser sent is answered with a page, which looks up who is signed
    in. Endpoints of the API do so themselves.
    """

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if hasattr(getattr(view, "cls", None), "declared"):
            return None
        allowed = methods_of(view)
        # Who only looks may be led to the sign-in first: that is the view's to say.
        if request.method in allowed or request.method in ("GET", "HEAD"):
            return None
        allow = {"Allow": ", ".join(allowed)}
        return refuse(request, errors.MethodNotAllowed(headers=allow))


def methods_of(view: Any) -> Sequence[str]:
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if kind is None:
        permitted: Sequence[str] = getattr(view, "allowed_methods", OF_PAGES)
        return permitted
    given = getattr(view, "view_initkwargs", None) or getattr(view, "initkwargs", {})
    names = given.get("http_method_names", kind.http_method_names)
    has = {name: hasattr(kind, name) for name in names}
    if "head" in has:
        has["head"] = hasattr(kind, "get")
    return [name.upper() for name, is_there in has.items() if is_there]
