"""The log of requests and a page for each, with its text where a policy keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext, gettext_noop

from accounts.models import ApiKey, UsageLog
from accounts.usage import exports as log_exports
from accounts.usage import log, reading, reports
from detection.models import Job
from detection.policies import policy as policies
from gateway_project.core import clock, errors
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.api.middleware import CORRELATION_ID
from gateway_project.core.api.responses import streamed
from gateway_project.core.clock import utc_text
from gateway_project.core.sentences import Sentence
from portal import exports, feedback, palette, plots
from portal.clocks import in_query
from portal.forms import RequestFilter
from portal.members import Member, workspace_page
from portal.posting import is_first

SHOWN = 50
PAGES_READ_MAX = 10
"""Items of a batch stand as one row: so many pages of the log are read for one of ours."""
LOOKS_MAX = 2
"""So many of them may be cut short, by a filter that few rows match."""
PRESETS = (
    (gettext_noop("15 min"), timedelta(minutes=15)),
    (gettext_noop("1 h"), timedelta(hours=1)),
    (gettext_noop("24 h"), timedelta(hours=24)),
    (gettext_noop("7 d"), timedelta(days=7)),
)
COLUMNS = (
    *("request_id", "created_at", "key", "endpoint", "http_status", "error_code", "decision"),
    *("confidence", "threats", "reason", "threshold", "policy_version", "source", "status"),
    *("cached", "request_bytes", "total_ms", "engine_ms", "client_ip", "agent", "batch"),
    "correlation_id",
)


SUMMED = ("key", "since", "until")
"""Filters that the sums can tell apart."""


class Line(NamedTuple):
    """A row of the list; of a batch its first, with how many of it follow each other."""

    row: UsageLog
    key: ApiKey | None
    items: int
    flagged: int


@require_safe
@workspace_page
def requests(request: HttpRequest, member: Member) -> HttpResponseBase:
    """Newest first. With wrong filters nothing is shown but what is wrong."""
    keys = {key.pk: key for key in member.keys.without_policies()}
    form = RequestFilter(keys.values(), request.GET)
    lines: list[Line] = []
    older = None
    if form.is_valid():
        try:
            lines, older = _lines(member, form, keys, request.GET.get("cursor", ""))
        except ValueError:
            raise Http404 from None
    is_live = request.GET.get("live") == "1"
    facts = {
        "member": member,
        "form": form,
        "rows": [(line.row, line.key) for line in lines],
        "lines": lines,
        "older": _link(request, older),
        "newest": _link(request, ""),
        "is_filtered": any(request.GET.get(name) for name in form.fields),
        "has_cursor": "cursor" in request.GET,
        "is_live": is_live,
        "live_link": _with(request, live=None if is_live else "1", cursor=None),
        "presets": _presets(request),
        "export_query": _with(request, live=None, cursor=None).removeprefix("?"),
    }
    if request.headers.get("HX-Request"):
        return render(request, "portal/pages/requests_list.html", facts)
    plot = _histogram(request, member, form) if form.is_valid() else None
    facts["plot"] = plot
    facts["is_narrower"] = any(request.GET.get(name) for name in form.fields if name not in SUMMED)
    files = plots.files(*filter(None, [plot]))
    return exports.page(request, "portal/pages/requests.html", facts, files)


def _lines(
    member: Member, form: RequestFilter, keys: dict[UUID, ApiKey], cursor: str
) -> tuple[list[Line], str | None]:
    """A page of lines and the cursor of the next. A batch that goes on is one line again there."""
    lines: list[Line] = []
    wanted = form.conditions()
    together = not wanted.get("batch")
    looks = 0
    for _ in range(PAGES_READ_MAX):
        found = reading.page(member.workspace, **wanted, cursor=cursor, size=SHOWN)
        for row in found.rows:
            batch = row.why.get("batch") if together else None
            last = lines[-1] if lines else None
            if batch and last is not None and last.row.why.get("batch") == batch:
                flagged = last.flagged + (row.decision == "flag")
                lines[-1] = last._replace(items=last.items + 1, flagged=flagged)
            elif len(lines) == SHOWN:
                return lines, cursor
            else:
                items = 1 if batch else 0
                lines.append(
                    Line(row, keys.get(row.api_key_id), items, int(row.decision == "flag"))
                )
            cursor = reading.cursor_of(row)
        if found.older is None:
            return lines, None
        cursor = found.older
        looks += len(found.rows) < SHOWN
        if len(lines) == SHOWN or not found.rows or looks == LOOKS_MAX:
            break
    return lines, cursor


def _histogram(request: HttpRequest, member: Member, form: RequestFilter) -> plots.Plot | None:
    """What came in the time of the filter (a day), from the sums: not told apart any further."""
    wanted = form.cleaned_data
    now, earliest = clock.now(), reading.earliest(member.workspace)
    until = min(wanted["until"] or now, now)
    if until <= earliest:  # the year 1 has no day before it
        return None
    since = max(wanted["since"] or until - timedelta(hours=24), earliest)
    length = until - since
    if length <= timedelta(0):
        return None
    period = (
        "minute"
        if length <= timedelta(hours=2)
        else "hour"
        if length <= timedelta(days=4)
        else "day"
    )
    first = reports.floor(since, period)
    rows = reports.timeline(wanted["key"] or member.workspace.pk, first, period)
    series = {row["at"]: row for row in rows if row["at"] < until}
    times = [at for at in plots.buckets(first, until, period) if at < until]

    def link(begin: datetime, end: datetime) -> str:
        return _with(request, **_times(begin, end), cursor=None, live=None)

    return plots.requests_plot(times, series, period, link)


def _times(begin: datetime, end: datetime | None = None) -> dict[str, str | None]:
    return {"since": in_query(begin), "until": in_query(end) if end else None}


def _presets(request: HttpRequest) -> list[tuple[str, str]]:
    now = clock.now()
    return [
        (gettext(label), _with(request, **_times(now - length), cursor=None))
        for label, length in PRESETS
    ]


def _with(request: HttpRequest, **changes: str | None) -> str:
    """This page's query with other values; None takes one out."""
    query = request.GET.copy()
    for name, value in changes.items():
        query.pop(name, None)
        if value is not None:
            query[name] = value
    return "?" + query.urlencode()


def _link(request: HttpRequest, cursor: str | None) -> str | None:
    """This page's filters from another place on; an empty cursor is the newest."""
    return None if cursor is None else _with(request, cursor=cursor or None)


@require_safe
@workspace_page
def export(request: HttpRequest, member: Member) -> HttpResponseBase:
    """What the filters leave, as `?format=csv` or `ndjson`: the newest `exports.ROWS_MAX`."""
    keys = {key.pk: key for key in member.keys.without_policies()}
    form = RequestFilter(keys.values(), request.GET)
    if not form.is_valid():
        raise Http404
    rows = _all(member, form)
    if request.GET.get("format") == "ndjson":
        documents = (dict(zip(COLUMNS, _cells(row, keys), strict=True)) for row in rows)
        return exports.json_lines_file("requests.ndjson", documents)
    return exports.csv_file("requests.csv", COLUMNS, (_cells(row, keys) for row in rows))


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def files(request: HttpRequest, member: Member) -> HttpResponse:
    """Files that are written behind; a POST asks for one, of what the filters leave."""
    if request.method == "POST":
        keys = {key.pk: key for key in member.keys.without_policies()}
        form = RequestFilter(keys.values(), request.GET)
        if not form.is_valid():
            raise Http404
        if not is_first(request):
            return redirect("portal-requests-files")
        base = request.build_absolute_uri(reverse("portal-requests-files") + "/")
        try:
            log_exports.ask(
                member.workspace,
                form.conditions(),
                base,
                by=member.user.email,
                actor=member.actor(request),
            )
        except errors.GatewayError as exc:
            messages.error(request, exc.for_people())
        else:
            text = gettext("It is being written. %(email)s gets a mail.")
            messages.success(request, text % {"email": member.user.email})
        return redirect("portal-requests-files")
    facts = {"member": member, "files": member.workspace.exports.all()}
    return render(request, "portal/pages/requests_files.html", facts)


@require_safe
@workspace_page
def file(request: HttpRequest, member: Member, export_id: UUID) -> HttpResponseBase:
    found = member.workspace.exports.filter(pk=export_id, finished_at__isnull=False).first()
    if found is None:
        raise Http404
    name = f"requests-{found.created_at:%Y-%m-%d}.ndjson.gz"
    return streamed(
        log_exports.pieces(found),
        content_type="application/gzip",
        **{"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _all(member: Member, form: RequestFilter) -> Iterator[UsageLog]:
    cursor, wanted = "", form.conditions()
    for _ in range(exports.ROWS_MAX // exports.ROWS_A_PIECE):
        found = reading.page(member.workspace, **wanted, cursor=cursor, size=exports.ROWS_A_PIECE)
        yield from found.rows
        if found.older is None:
            return
        cursor = found.older


def _cells(row: UsageLog, keys: dict[UUID, ApiKey]) -> list[Any]:
    key, why = keys.get(row.api_key_id), row.why
    return [
        *(row.request_id, utc_text(row.created_at), key.name if key else "Playground"),
        *(row.endpoint, row.http_status, row.error_code, row.decision, row.confidence),
        *(", ".join(why.get("threats", ())), why.get("reason"), why.get("threshold")),
        *(why.get("policy"), row.source, row.status, row.cached, row.request_size),
        *(round(row.response_time_ms, 2), round(row.upstream_ms, 2), why.get("ip")),
        *(why.get("agent"), why.get("batch"), why.get("correlation")),
    ]


@require_safe
@workspace_page
def one(request: HttpRequest, member: Member, request_id: UUID) -> HttpResponse:
    """`?at=` (ISO 8601) spares the search where the id does not tell the time."""
    row = reading.find(member.workspace, request_id, moment(request.GET.get("at", "")))
    if row is None:
        days = member.workspace.plan.log_days
        text = gettext_noop(
            "This workspace has no such request. The log keeps them for %(days)s days; a request "
            "of another workspace is not shown here."
        )
        return refuse(request, errors.NotFound(Sentence(text, days=days)))
    key = member.keys.filter(pk=row.api_key_id).first()
    similar = {"key": str(key.pk)} if key else {}
    if row.error_code:
        similar["error"] = row.error_code
    elif threats := row.why.get("threats"):
        similar["threat"] = threats[0]
    elif row.decision:
        similar["decision"] = row.decision
    facts = {
        "member": member,
        "row": row,
        "key": key,
        "why": row.why,
        "sdk": _sdk(row.why.get("agent", "")),
        "timing": _split(row),
        "text": log.text_of(row.request_id, member.workspace.pk),
        "job": _job(member, row.why.get("batch", "")),
        "policy_now": policies.version_of(key) if key and not key.is_ended else None,
        "similar": f"{reverse('portal-requests')}?{urlencode(similar)}",
        **feedback.facts(member, row),
    }
    return render(request, "portal/pages/request.html", facts)


def _job(member: Member, batch: str) -> Job | None:
    try:
        batch_id = UUID(batch)
    except ValueError:
        return None
    return Job.objects.filter(workspace=member.workspace, pk=batch_id).first()


def _sdk(agent: str) -> str:
    """The program's name and version in front: `python-httpx/0.28.1`."""
    first = agent.split(" ", 1)[0]
    return "" if first.startswith("Mozilla/") else first


@require_safe
@workspace_page
def find(request: HttpRequest, member: Member) -> HttpResponse:
    """Whatever has this id: ours, which every answer carries, or what the caller sent as its own
    (`X-Request-ID`)."""
    text = request.GET.get("id", "").strip()
    try:
        wanted = UUID(text)
    except ValueError:
        if CORRELATION_ID.match(text):
            return _where(correlation=text)
        message = gettext(
            "This is no id. One of ours looks like 01a206fe-78a1-766d-…, one that you send as "
            "X-Request-ID has 8 to 128 letters, digits and . _ : -"
        )
        messages.error(request, message)
        return redirect("portal-requests")
    if known := next(palette.by_id(member, wanted), None):
        return redirect(known.url)
    if reading.page(member.workspace, batch=str(wanted), size=1).rows:
        return _where(batch=str(wanted))
    if reading.page(member.workspace, correlation=text, size=1).rows:
        return _where(correlation=text)
    return redirect("portal-request", request_id=wanted)  # it may be on its way into the log


def _where(**conditions: str) -> HttpResponse:
    return redirect(f"{reverse('portal-requests')}?{urlencode(conditions)}")


def moment(text: str) -> datetime | None:
    try:
        found = parse_datetime(text)
    except ValueError:  # well-formed, but no such day
        return None
    if found is None or timezone.is_aware(found):
        return found
    return timezone.make_aware(found)


def _split(row: UsageLog) -> list[dict[str, Any]]:
    """Who took how long, as parts of a bar that is 100 wide."""
    upstream = min(row.upstream_ms, row.response_time_ms)
    ours = row.response_time_ms - upstream
    whole = row.response_time_ms or 1
    return [
        {"name": gettext("Gateway"), "ms": ours, "x": 0, "width": 100 * ours / whole},
        {
            "name": gettext("Engine"),
            "ms": upstream,
            "x": 100 * ours / whole,
            "width": 100 * upstream / whole,
        },
    ]
