"""The queue: as it changes, by destination, item by item, and one item with its history.

What is shown is the scan that all watchers share, with its age. `static/portal/mail_queue.js` draws
what `/ws/queue` says, and has the table of destinations asked for again when something changed. A
session here stands for one of Robin's (`robin/access/sessions.py`), so that its socket ends like
those: with the role, the password, or by staff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.translation import gettext_lazy
from redis.exceptions import RedisError

from accounts.events import audit
from accounts.models import AuditEvent
from gateway_project.core import clock, errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.responses import SECRET_HEADERS
from gateway_project.core.storable import cleaned
from portal.exports import ROWS_MAX, Table
from portal.mail.entry import Files, Operator, mail_page, show, show_or_file, tried
from portal.posting import posts_for
from robin.access import sessions, tickets
from robin.logs import deliveries
from robin.logs.deliveries import Failure
from robin.logs.parsing import Entry
from robin.metrics import sampling
from robin.permissions import Permission
from robin.queue import overview, scan
from robin.queue.overview import Destination, Look
from robin.queue.scan import View
from robin.queue.services import Filter
from robin.queue.translate import Item
from robin.upstream.client import from_thread

SESSION_KEY = "robin_session"
SOCKET_SECONDS = 30 * 60
HISTORY = timedelta(hours=1)
DESTINATIONS_SHOWN = 25
ITEMS_SHOWN = 50
ACTS_SHOWN = 20
FAILURES, READING = "robin:failures", "robin:failures:reading"
FAILURES_SECONDS, FAILURES_KEPT = 60, 600
"""So often the log is read for them, for all who look, in all processes; and how long they show."""
READING_SECONDS = 15
STATES = (
    *(
        ("", gettext_lazy("Any state")),
        ("WAITING", gettext_lazy("Waiting")),
        ("READY", gettext_lazy("Ready")),
    ),
    *(("CLAIMED", gettext_lazy("In delivery")), ("DEAD", gettext_lazy("Dead"))),
)


@dataclass(frozen=True, slots=True)
class Row:
    """An item, with its times."""

    item: Item
    since: datetime | None
    last: datetime | None
    next: datetime | None
    is_due: bool

    @property
    def age_seconds(self) -> float:
        return (clock.now() - self.since).total_seconds() if self.since else 0.0


def row_of(item: Item) -> Row:
    due = overview.next_try_ms(item)
    return Row(
        item,
        _moment(item.get("firstSeenTime")),
        _moment(item.get("lastRetryTime")),
        _moment(due),
        due == 0,
    )


def _moment(ms: int | None) -> datetime | None:
    return _at(ms) if ms else None


def _at(ms: float) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


# -- Now, and by destination ----------------------------------------------------------------------


@mail_page(Permission.VIEW_QUEUE)
@require_safe
def queue(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    now = clock.now()
    samples = sampling.between(now - HISTORY, now)
    # [[milliseconds, items in the queue], …], one a minute
    history = [
        [round(at.timestamp() * 1000), figures["queue_size"]]
        for at, figures in samples
        if "queue_size" in figures
    ]
    facts = _destinations(request, operator)
    files = _files_of(facts, history)
    if request.headers.get("HX-Request"):
        return show(request, operator, "destinations", files=files, **facts)
    facts |= {"at": "queue", "history": history, "no_id": UUID(int=0)}
    return show_or_file(request, operator, "queue", files, **facts)


def _files_of(facts: dict[str, Any], history: list[list[float]]) -> Files:
    return {
        "destinations": lambda: _table_of_destinations(facts),
        "items": lambda: table_of_items(facts["look"], Filter()),
        "queue-size": lambda: Table(("at", "items"), ((_at(ms), size) for ms, size in history)),
    }


def _table_of_destinations(facts: dict[str, Any]) -> Table:
    """All that match, on whatever page of them one is."""
    view_of(facts["look"])
    columns = ["destination", "ready", "in_delivery", "dead", "not_known", "oldest_at", "next_at"]
    if facts["may_read_log"]:
        columns += ["last_error_at", "last_error"]
    return Table(columns, (_cells_of(line, facts["may_read_log"]) for line in facts["matching"]()))


def _cells_of(line: Line, may_read_log: bool) -> list[Any]:
    one, failure = line.where, line.failure
    cells = [one.name, one.ready, one.claimed, one.dead, one.unknown, line.oldest]
    cells.append("now" if one.next_ms == 0 else line.next)
    if may_read_log:
        cells += [failure.at, failure.text] if failure else [None, None]
    return cells


def view_of(look: Look) -> View:
    """Raises why nothing is known of the queue: a file of nothing would say that it is empty."""
    if look.view is None:
        raise look.error or scan.Reading("Nothing is known of the queue yet.", seconds=5.0)
    return look.view


def table_of_items(look: Look, which: Filter) -> Table:
    """All that match of what is known, in the order of the queue, as they are read."""
    columns = (
        *("id", "state", "recipients", "recipients_total", "tries", "tries_max", "protocol"),
        *("first_seen_at", "last_try_at", "next_try_at", "session"),
    )
    return Table(columns, (_cells(row_of(item)) for item in _matching(view_of(look), which)))


def _matching(view: View, which: Filter) -> Iterator[Item]:
    seen: set[str] = set()
    for number in range(overview.parts(view)):
        for item in from_thread(overview.part(view, number)):
            if item["uid"] in seen or not which.matches(item):
                continue
            seen.add(item["uid"])
            yield item
            if len(seen) >= ROWS_MAX:
                return


def _cells(row: Row) -> list[Any]:
    item = row.item
    return [
        *(item["uid"], item.get("state"), ", ".join(item["recipients"]), item["recipientsTotal"]),
        *(item["retryCount"], item["maxRetryCount"], item["protocol"], row.since),
        *(row.last, "now" if row.is_due else row.next, item.get("sessionUid")),
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """A destination, with links to its items."""

    where: Destination
    oldest: datetime | None
    next: datetime | None
    failure: Failure | None

    @property
    def age_seconds(self) -> float:
        return (clock.now() - self.oldest).total_seconds() if self.oldest else 0.0


def _destinations(request: HttpRequest, operator: Operator) -> dict[str, Any]:
    word = request.GET.get("to", "").strip().lower()[:200]
    number = page_number(request.GET.get("page", "1"))
    look, error = tried(overview.look())
    if look is None:
        return {"look": Look(None, error), "to": word, "may_read_log": operator.can_read_log}
    found: list[Destination] | None = []
    if look.view is not None:
        found, _ = tried(overview.destinations(look.view))
    matching = [one for one in found or [] if word in one.name]
    first = (number - 1) * DESTINATIONS_SHOWN
    failures = _known_failures()

    def lines_of(some: list[Destination]) -> Iterator[Line]:
        for one in some:
            failure = (failures or {}).get(one.name)
            yield Line(one, _moment(one.oldest_ms), _moment(one.next_ms), failure)

    return {
        "may_read_log": operator.can_read_log,
        "matching": lambda: lines_of(matching),
        "look": look,
        "to": word,
        "lines": list(lines_of(matching[first : first + DESTINATIONS_SHOWN])),
        "has_failures": failures is not None,
        "count": len(matching),
        "count_all": len(found or []),
        **_paged(request, number, DESTINATIONS_SHOWN, len(matching)),
    }


def _known_failures() -> dict[str, Failure] | None:
    """By destination; None where nobody has read the log of late."""
    known = _kept_failures()
    return known[1] if known is not None else None


def _kept_failures() -> tuple[float, dict[str, Failure]] | None:
    try:
        kept: tuple[float, dict[str, Failure]] | None = cache.get(FAILURES)
    except (RedisError, OSError):
        return None
    return kept


@mail_page(Permission.VIEW_LOGS)
@require_safe
def failures(request: HttpRequest, operator: Operator) -> HttpResponse:
    """The table of destinations with what failed last: for it the log is read once a minute."""
    error, known = None, _kept_failures()
    if known is None or clock.time() - known[0] > FAILURES_SECONDS:
        try:
            is_mine = cache.add(READING, 1, READING_SECONDS)
            if is_mine:
                found, error = tried(_read_failures())
                if found is not None:
                    cache.set(FAILURES, (clock.time(), found), FAILURES_KEPT)
                cache.delete(READING)
        except (RedisError, OSError):
            pass  # then the column stays empty
    facts = _destinations(request, operator)
    files = _files_of(facts, [])
    return show(request, operator, "destinations", log_error=error, files=files, **facts)


async def _read_failures() -> dict[str, Failure]:
    """What the log says failed last, by destination of what is still in the queue."""
    by_session = await deliveries.last_failures()
    look = await overview.look()
    where: dict[str, frozenset[str]] = {}
    if look.view is not None:
        where = await overview.destinations_of_sessions(look.view, by_session.keys())
    found: dict[str, Failure] = {}
    for session, failure in sorted(by_session.items(), key=lambda pair: pair[1].at):
        found |= dict.fromkeys(where.get(session, ()), failure)
    return found


@posts_for("portal-mail-queue")
@mail_page(Permission.VIEW_QUEUE)
def ticket(request: HttpRequest, operator: Operator) -> HttpResponse:
    """`{ticket}` for one socket of half an hour; the page then asks for another."""
    known = request.session.get(SESSION_KEY)
    session_id = sessions.of_page(
        operator.user,
        UUID(known) if known else None,
        actor=operator.actor(request),
        user_agent=cleaned(request.headers.get("user-agent", "")),
    )
    request.session[SESSION_KEY] = str(session_id)
    text = tickets.issue(session_id, clock.time() + SOCKET_SECONDS)
    return JsonResponse({"ticket": text}, status=201, headers=SECRET_HEADERS)


# -- Items ----------------------------------------------------------------------------------------


class ItemFilter(Form):
    """Of the list of items, and of an act on all that match."""

    search = forms.CharField(
        required=False, max_length=200, label=gettext_lazy("Address or id"), help_text=""
    )
    destination = forms.CharField(required=False, max_length=253, label=gettext_lazy("Destination"))
    state = forms.ChoiceField(required=False, choices=STATES, label=gettext_lazy("State"))
    protocol = forms.CharField(required=False, max_length=40, label=gettext_lazy("Protocol"))
    tries = forms.IntegerField(
        required=False, min_value=0, max_value=1000, label=gettext_lazy("Tried at least")
    )

    def wanted(self) -> Filter:
        given = self.cleaned_data
        state = given["state"]
        waiting = ("READY", "CLAIMED") if state == "WAITING" else (state,)
        states = tuple(one for one in scan.STATES if one in waiting)
        return Filter(
            states,
            given["protocol"].strip(),
            given["search"].strip(),
            given["tries"],
            None,
            given["destination"].strip().lower(),
        )

    def filled(self) -> dict[str, str]:
        """As an address has it, without what is empty."""
        given: dict[str, Any] = self.cleaned_data
        return {name: str(given[name]) for name in given if given[name] not in (None, "")}


@mail_page(Permission.VIEW_QUEUE)
@require_safe
def items(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    form = ItemFilter(request.GET)
    number = page_number(request.GET.get("page", "1"))
    facts: dict[str, Any] = {"at": "items", "form": form, "look": Look(None)}
    if form.is_valid():
        look, error = tried(overview.look())
        facts["look"] = look if look is not None else Look(None, error)
        found = overview.Page([], 0)
        if look is not None and look.view is not None:
            first = (number - 1) * ITEMS_SHOWN
            page, trouble = tried(
                overview.page(look.view, form.wanted(), first=first, size=ITEMS_SHOWN)
            )
            found = page or found
            facts["trouble"] = trouble
        facts |= {
            "rows": [row_of(item) for item in found.items],
            "total": found.total,
            "is_filtered": form.wanted() != Filter(),
            "query": urlencode(form.filled()),
            **_paged(request, number, ITEMS_SHOWN, found.total),
        }
    which = form.wanted() if form.is_valid() else Filter()
    files = {"items": lambda: table_of_items(facts["look"], which)} if form.is_valid() else {}
    return show_or_file(request, operator, "items", files, **facts)


@mail_page(Permission.VIEW_QUEUE)
@require_safe
def item(request: HttpRequest, operator: Operator, uid: str) -> HttpResponseBase:
    """One item; `?log=1` reads what the log says of it, for which the page asks by itself."""
    files: dict[str, Callable[[], Table]] = {}
    wants_log = operator.can_read_log and request.GET.get("log") == "1"
    found, error = tried(overview.one(uid))
    if isinstance(error, errors.NotFound):
        raise error
    look, known = found if found is not None else (Look(None, error), None)
    session = known.get("sessionUid", "") if known else _session(request)
    facts: dict[str, Any] = {
        "at": "items",
        "uid": uid,
        "look": look,
        "row": row_of(known) if known else None,
        "session": session,
        "acts": _acts_on(uid),
    }
    if wants_log:
        history, facts["log_error"] = tried(deliveries.history(session, uid))
        facts["log"] = history
        files["log"] = lambda: _exported(request, operator, uid, history)
        if request.headers.get("HX-Request"):
            return show(request, operator, "item_log", files=files, **facts)
    return show_or_file(request, operator, "item", files, **facts)


def _exported(
    request: HttpRequest, operator: Operator, uid: str, history: deliveries.History | None
) -> Table:
    entries = history.entries if history else []
    fields = operator.actor(request).fields()
    audit("robin.log_exported", target=uid, lines=len(entries), **fields)
    return table_of_lines(entries)


def table_of_lines(entries: Iterable[Entry]) -> Table:
    """Of Robin's log, as the page shows them: without credentials."""
    columns = ("at", "level", "logger", "thread", "message")
    return Table(columns, ([e.at, e.level, e.logger, e.thread, e.message] for e in entries))


def _session(request: HttpRequest) -> str:
    """What the page knew of an item that is gone by now."""
    text = request.GET.get("session", "")
    return text if deliveries.UUID.fullmatch(text) else ""


def _acts_on(uid: str) -> list[AuditEvent]:
    """What people did to it, and what became of it; of acts on many the trail names the first."""
    mine = AuditEvent.objects.filter(target=uid, action__startswith="robin.queue.")
    return list(mine.order_by("-at")[:ACTS_SHOWN])


def page_number(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) <= 6 else 1


def _paged(request: HttpRequest, number: int, size: int, total: int) -> dict[str, Any]:
    """Links to the pages beside this one."""
    query = request.GET.copy()
    query.pop("page", None)

    def link(page: int) -> str:
        return "?" + urlencode([*query.items(), ("page", page)])

    return {
        "first": (number - 1) * size + 1 if total else 0,
        "last": min(number * size, total),
        "previous": link(number - 1) if number > 1 else "",
        "following": link(number + 1) if number * size < total else "",
    }
