"""What staff may do to chosen rows: each act asks first, on a page that says what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import InterfaceError, OperationalError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_noop, ngettext
from redis.exceptions import RedisError

from accounts.admin.lists import actor_of
from gateway_project.core import errors
from gateway_project.core.language import number
from gateway_project.core.sentences import Sentence

ROWS_MAX = 500
SHOWN_MAX = 50
PARTLY = gettext_noop(
    "A store failed in the middle: done for %(done)s of %(all)s rows. Look at the list before you "
    "do it again for the others."
)


def each(
    modeladmin: Any, request: HttpRequest, rows: list[Any], run: Callable[[Any], object]
) -> int:
    """Do it to one after the other, and say which refused; to how many it was done.

    Each is a transaction of its own, so that no tenant's row is locked for the others' sake. When a
    store fails behind the first, the `StoreUnavailable` says how far it came.
    """
    done = 0
    for before, row in enumerate(rows):
        try:
            done += run(row) is not False
        except errors.GatewayError as exc:
            modeladmin.message_user(request, f"{row}: {exc.for_people()}", messages.ERROR)
        except (OperationalError, InterfaceError, RedisError) as exc:
            if not before:
                raise
            said = Sentence(PARTLY, done=done, all=len(rows))
            raise errors.StoreUnavailable(said) from exc
    return done


def act(
    name: str,
    label: Any,
    *,
    means: Any,
    run: Callable[..., object],
    form: type[forms.Form] | None = None,
    is_grave: bool = False,
    applies: Callable[[Any], bool] = lambda row: True,
) -> Callable[[Any, HttpRequest, QuerySet[Any]], TemplateResponse | None]:
    """An action of a list. `run(row, actor=…, **form's fields)` is called for each row.

    It returns False when there was nothing to do, and raises a `GatewayError` to refuse; the others
    go on. `means` is the sentence that the page of confirmation says; `applies(row)`, whether the
    page of one row offers it.
    """

    @admin.action(description=label, permissions=["change"])
    def action(
        modeladmin: Any, request: HttpRequest, queryset: QuerySet[Any]
    ) -> TemplateResponse | None:
        rows = list(queryset[: ROWS_MAX + 1])
        if len(rows) > ROWS_MAX:
            text = gettext("At most %(most)s rows at once. Narrow the list, or act page by page.")
            text %= {"most": ROWS_MAX}
            modeladmin.message_user(request, text, messages.ERROR)
            return None
        is_sure = "is_sure" in request.POST
        filled = form(request.POST if is_sure else None) if form else None
        if is_sure and (filled is None or filled.is_valid()):
            _run(modeladmin, request, rows, filled.cleaned_data if filled else {})
            return None
        context = {
            **modeladmin.admin_site.each_context(request),
            "title": f"{label}?",
            "opts": modeladmin.opts,
            "media": modeladmin.media,
            "name": name,
            "label": label,
            "means": means,
            "is_grave": is_grave,
            "form": filled,
            "rows": rows,
            "shown": rows[:SHOWN_MAX],
            "not_shown": len(rows) - SHOWN_MAX,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "accounts/admin/confirm.html", context)

    def _run(modeladmin: Any, request: HttpRequest, rows: list[Any], values: Any) -> None:
        actor = actor_of(request)
        done = each(modeladmin, request, rows, lambda row: run(row, actor=actor, **values))
        same = len(rows) - done
        text = gettext("%(label)s: done for %(n)s.") % {"label": label, "n": number(done)}
        if same:
            left = ngettext("One stayed as it was.", "%(n)s stayed as they were.", same)
            text += " " + left % {"n": number(same)}
        modeladmin.message_user(request, text, messages.SUCCESS if done else messages.WARNING)

    action.__name__ = name
    action.applies = applies  # type: ignore[attr-defined]
    return action
