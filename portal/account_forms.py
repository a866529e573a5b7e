"""allauth's forms, each of which does its work whole: one transaction, and mails behind it.

allauth writes a password, the session that goes on, and what its adapter audits one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from allauth.account.views import EmailView
from allauth.core.exceptions import ImmediateHttpResponse
from django.db import transaction
from django.http import HttpRequest, HttpResponseBase
from django.urls import URLPattern, URLResolver

from accounts.adapter import mails_behind


@contextmanager
def whole(request: HttpRequest) -> Iterator[None]:
    """All that is written and mailed, or nothing of it."""
    with mails_behind(request), transaction.atomic():
        yield


class Whole:
    """Before a view of allauth's. Its form is examined before: a password takes its time."""

    request: HttpRequest

    def form_valid(self, form: Any) -> HttpResponseBase:
        with whole(self.request):
            try:
                return super().form_valid(form)  # type: ignore[misc,no-any-return]
            except ImmediateHttpResponse as exc:  # it is done, and leads elsewhere
                return exc.response  # type: ignore[no-any-return]


class WholePost(Whole):
    """Of a page whose buttons do without a form."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with whole(request):
            return super().post(request, *args, **kwargs)  # type: ignore[misc,no-any-return]


def make_whole(patterns: Iterable[URLPattern | URLResolver]) -> None:
    """All views with a form that stand behind these addresses."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            make_whole(pattern.url_patterns)
            continue
        view = getattr(pattern.callback, "view_class", None)
        if view is not None and hasattr(view, "form_valid"):
            first = WholePost if issubclass(view, EmailView) else Whole
            made: Any = type(view.__name__, (first, view), {"__module__": view.__module__})
            pattern.callback = made.as_view(**pattern.callback.view_initkwargs)  # type: ignore[attr-defined]
