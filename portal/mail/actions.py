"""What people do to the queue: their number is shown before, progress and what came of it after.

A few items are done while one waits, more by a worker, piece by piece (`robin/queue/jobs.py`), as
under `/api/v1/queue/actions`; with the same permissions, lines of the audit trail, and the same
refusal of what is being delivered at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.contrib import messages
from django.db import DatabaseError
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop, ngettext

from accounts.events import audit
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_safe
from gateway_project.core.language import number
from gateway_project.core.telemetry.logging import get_logger
from portal import exports
from portal.mail.entry import Operator, mail_page, show, show_or_file
from portal.mail.queue import ITEMS_SHOWN, ItemFilter, Row, row_of
from portal.posting import is_first, posts_for
from robin.models import QueueJob
from robin.permissions import Permission
from robin.queue import jobs, overview, services
from robin.queue.services import MAYBE_IN_DELIVERY, Action, Filter
from robin.upstream.client import from_thread

LISTED = 10
JOBS_SHOWN = 50
STOP_POLLING = 286
log = get_logger("gateway.robin")
MEANINGS: dict[Action, str] = {
    "retry": gettext_noop("Robin tries to deliver now. Each item loses one of its tries."),
    "bounce": gettext_noop("They become dead, and are not tried any more."),
    "delete": gettext_noop("They are gone for good, and nobody is told."),
}


def _named(action: str, count: int) -> str:
    """The act as a heading and a button say it: `Retry 3 items`."""
    texts = {
        "retry": ngettext("Retry %(number)s item", "Retry %(number)s items", count),
        "bounce": ngettext("Bounce %(number)s item", "Bounce %(number)s items", count),
        "delete": ngettext("Delete %(number)s item", "Delete %(number)s items", count),
    }
    return texts[action] % {"number": number(count)}


def _question(action: Action, count: int) -> str:
    texts = {
        "retry": ngettext("Retry %(number)s item?", "Retry %(number)s items?", count),
        "bounce": ngettext("Bounce %(number)s item?", "Bounce %(number)s items?", count),
        "delete": ngettext("Delete %(number)s item?", "Delete %(number)s items?", count),
    }
    return texts[action] % {"number": number(count)}


def _all_the_same(action: Action, claimed: int) -> str:
    """Of what is being delivered at that moment."""
    texts = {
        "retry": ngettext("Retry it all the same", "Retry them all the same", claimed),
        "bounce": ngettext("Bounce it all the same", "Bounce them all the same", claimed),
        "delete": ngettext("Delete it all the same", "Delete them all the same", claimed),
    }
    return texts[action]


def _done(action: str) -> str:
    """What stands behind a number of items that it was done to."""
    texts = {
        "retry": gettext("retried"),
        "bounce": gettext("bounced"),
        "delete": gettext("deleted"),
    }
    return texts[action]


class ActForm(Form):
    """`uids`, or what a filter matched, as its token stands for it."""

    action = forms.ChoiceField(choices=[(name, name) for name in MEANINGS])
    token = forms.CharField(required=False, max_length=100)
    force = forms.BooleanField(required=False)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an act would be done to, as its page shows it."""

    action: Action
    number: int
    claimed: int
    last_try: int
    is_complete: bool
    rows: list[Row]
    uids: list[str]
    token: str
    unknown: int = 0
    """Of the chosen uids, those that are not in the queue any more."""


def _action(request: HttpRequest, operator: Operator) -> Action:
    wanted = request.POST.get("action") or request.GET.get("action", "")
    action = next((name for name in MEANINGS if name == wanted), None)
    if action is None:
        raise Http404
    if action == "delete" and not operator.can_delete:
        raise errors.PermissionDenied(
            gettext_noop("Your role does not delete items. Ask an administrator.")
        )
    return action


@mail_page(Permission.MANAGE_QUEUE)
@require_safe
def act(request: HttpRequest, operator: Operator) -> HttpResponse:
    """What an act would be done to: the chosen (`uid`, several), or all that a filter matches."""
    if "action" not in request.GET:
        return redirect("portal-mail-items")
    action = _action(request, operator)
    form = ItemFilter(request.GET)
    if not form.is_valid():
        raise Http404
    if request.GET.get("all") == "1":
        proposal = _of_filter(action, form.wanted(), operator)
    else:
        proposal = _of_uids(action, request.GET.getlist("uid"))
    facts: dict[str, Any] = {
        "at": "items",
        "proposal": proposal,
        "question": _question(action, proposal.number),
        "button": _named(action, proposal.number),
        "force_label": _all_the_same(action, proposal.claimed),
        "meaning": gettext(MEANINGS[action]),
        "in_delivery": gettext(MAYBE_IN_DELIVERY[action]),
        "more": max(0, proposal.number - len(proposal.rows)),
        "query": urlencode(form.filled()),
        "form_query": form.filled(),
        "is_behind": proposal.number > services.AT_ONCE_MAX,
    }
    return show(request, operator, "act", **facts)


def _of_filter(action: Action, which: Filter, operator: Operator) -> Proposal:
    if which == Filter():
        raise errors.BadRequest(
            gettext_noop("Choose a filter first: without one it would be the whole queue.")
        )
    found = from_thread(services.propose(action, which, by=str(operator.user.pk)))
    return Proposal(
        action,
        found.matched,
        found.claimed,
        found.last_try,
        found.is_complete,
        [row_of(item) for item in from_thread(_first(which))],
        [],
        found.confirm,
    )


async def _first(which: Filter) -> list[Any]:
    look = await overview.look()
    if look.view is None:
        return []
    return (await overview.page(look.view, which, first=0, size=LISTED)).items


def _of_uids(action: Action, given: list[str]) -> Proposal:
    uids = services.unique(given[:ITEMS_SHOWN])
    known = from_thread(_chosen(uids))
    is_last = [item["retryCount"] + 1 >= item["maxRetryCount"] for item in known]
    return Proposal(
        action,
        len(uids),
        sum(item.get("state") == "CLAIMED" for item in known),
        sum(is_last) if action == "retry" else 0,
        True,
        [row_of(item) for item in known[:LISTED]],
        uids,
        "",
        len(uids) - len(known),
    )


async def _chosen(uids: list[str]) -> list[Any]:
    look = await overview.look()
    return await overview.chosen(look.view, uids) if look.view is not None else []


@posts_for("portal-mail-act")
@mail_page(Permission.MANAGE_QUEUE)
def do(request: HttpRequest, operator: Operator) -> HttpResponse:
    action = _action(request, operator)
    form, where = ActForm(request.POST), ItemFilter(request.POST)
    back = reverse("portal-mail-items")
    if where.is_valid() and where.filled():
        back += "?" + urlencode(where.filled())
    if not form.is_valid() or not is_first(request):
        return redirect(back)
    is_forced = form.cleaned_data["force"]
    if is_forced and not operator.can_delete:
        raise errors.PermissionDenied(
            gettext_noop("Your role does not force this. Ask an administrator.")
        )
    details: dict[str, Any] = {"forced": is_forced, "by": "portal"}
    if token := form.cleaned_data["token"]:
        which = where.wanted() if where.is_valid() else Filter()
        by = str(operator.user.pk)
        uids = from_thread(services.confirm(action, which, token, by=by, is_kept=True))
        details["filter"] = where.filled()
    else:
        uids = services.unique(request.POST.getlist("uid")[:ITEMS_SHOWN])
    if not uids:
        messages.warning(request, gettext("Nothing was chosen, so nothing was done."))
        return redirect(back)
    details |= {"requested": len(uids), "uids": uids[: services.UIDS_AUDITED_MAX]}
    if len(uids) > services.AT_ONCE_MAX:
        job = jobs.begin(
            action,
            uids,
            by=operator.user.pk,
            is_forced=is_forced,
            trail=operator.actor(request).fields(),
            details=details,
            last_try=from_thread(services.last_tries(action, uids)),
        )
        return redirect("portal-mail-action", job_id=job.pk)
    _do_at_once(request, operator, action, uids, is_forced=is_forced, details=details)
    return HttpResponseRedirect(back)


def _do_at_once(
    request: HttpRequest,
    operator: Operator,
    action: Action,
    uids: list[str],
    *,
    is_forced: bool,
    details: dict[str, Any],
) -> None:
    """First the line of the trail, then the act, then what came of it, as far as that is known."""
    fields = operator.actor(request).fields()
    target = uids[0] if len(uids) == 1 else f"{len(uids)} items"
    audit(f"robin.queue.{action}", target=target, **fields, **details)
    more: dict[str, Any] = {}
    try:
        found = from_thread(services.act(action, uids, is_forced=is_forced))
    except errors.GatewayError as error:
        more = {"error": error.code, **error.more}
        messages.error(request, f"{error.for_people()} {_half_done(action, error.more)}")
    else:
        more = {"done": found.done, "requested": found.requested}
        more |= {"unknown": found.unknown, "left_out": found.left_out}
        _say(request, action, found)
    try:
        audit(f"robin.queue.{action}.result", target=target, **fields, **more)
    except DatabaseError as exc:  # no reason to say that it was not done
        log.error("audit_failed", action=action, target=target, error=type(exc).__name__)


def _half_done(action: Action, counts: dict[str, Any]) -> str:
    texts = {
        "retry": gettext(
            "Of %(requested)s items %(done)s were retried; of %(unknown)s nobody knows."
        ),
        "bounce": gettext(
            "Of %(requested)s items %(done)s were bounced; of %(unknown)s nobody knows."
        ),
        "delete": gettext(
            "Of %(requested)s items %(done)s were deleted; of %(unknown)s nobody knows."
        ),
    }
    return texts[action] % counts


def _say(request: HttpRequest, action: Action, found: services.Done) -> None:
    gone = found.requested - found.done - found.left_out - found.unknown
    texts = {
        "retry": gettext("%(done)s of %(requested)s retried"),
        "bounce": gettext("%(done)s of %(requested)s bounced"),
        "delete": gettext("%(done)s of %(requested)s deleted"),
    }
    parts = [texts[action] % {"done": found.done, "requested": found.requested}]
    if found.left_out:
        text = gettext("%(number)s left alone, being delivered at that moment")
        parts.append(text % {"number": found.left_out})
    if found.unknown:
        parts.append(gettext("of %(number)s nobody knows") % {"number": found.unknown})
    if gone > 0:
        parts.append(gettext("%(number)s not in the queue any more") % {"number": gone})
    warnings = services.warnings(action, found.last_try, found.is_in_doubt, say=gettext)
    is_whole = found.done == found.requested
    say = messages.success if is_whole else messages.warning
    say(request, "; ".join(parts) + ". " + " ".join(warnings))


# -- What is done behind --------------------------------------------------------------------------


@mail_page(Permission.VIEW_QUEUE)
@require_safe
def actions(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    """The latest: their ids sort by time."""
    found = QueueJob.objects.defer("uids").order_by("-pk")
    rows = list(found[:JOBS_SHOWN])
    files = {"actions": lambda: _table(found[: exports.ROWS_MAX].iterator(exports.ROWS_A_PIECE))}
    return show_or_file(request, operator, "actions", files, at="actions", rows=rows)


def _table(rows: Iterable[QueueJob]) -> exports.Table:
    columns = (
        *("id", "at", "action", "forced", "state", "requested", "sent", "done", "not_known"),
        *("left_alone", "finished_at", "by"),
    )
    return exports.Table(
        columns,
        (
            [
                *(row.pk, row.created_at, row.action, row.is_forced, row.state),
                *(row.requested, row.sent, row.done, row.unknown, row.left_out),
                *(row.finished_at, row.by),
            ]
            for row in rows
        ),
    )


@mail_page(Permission.VIEW_QUEUE)
@require_safe
def action(request: HttpRequest, operator: Operator, job_id: UUID) -> HttpResponse:
    """How far it is; asked for again every two seconds while it runs."""
    found = _job(job_id)
    is_over = found.state not in jobs.OPEN
    facts: dict[str, Any] = {
        "at": "actions",
        "job": found,
        "is_over": is_over,
        "word": _done(found.action),
        "detail": gettext(found.detail) if found.detail else "",
        "warnings": services.warnings(found.action, found.last_try, found.is_in_doubt, say=gettext),
        "title": _named(found.action, found.requested),
    }
    if request.headers.get("HX-Request"):
        status = STOP_POLLING if is_over else 200
        return show(request, operator, "action_state", status=status, **facts)
    return show(request, operator, "action", **facts)


@posts_for("portal-mail-action")
@mail_page(Permission.MANAGE_QUEUE)
def cancel(request: HttpRequest, operator: Operator, job_id: UUID) -> HttpResponse:
    found = jobs.cancel(job_id, trail=operator.actor(request).fields())
    if found is None:
        raise Http404
    if found.state == QueueJob.State.CANCELLED:
        text = gettext("Stopped. What was done stays done; the rest is not begun.")
        messages.success(request, text)
    return redirect("portal-mail-action", job_id=found.pk)


def _job(job_id: UUID) -> QueueJob:
    found = jobs.find(job_id)
    if found is None:
        raise Http404
    return found
