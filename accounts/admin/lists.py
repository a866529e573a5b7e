"""How the admin lists ten million rows: it never counts them, and never asks without an index.

* Pages end at `COUNT_MAX` rows: whoever needs more narrows the search, or goes on from the last row
  by its place in the order (`from`), which is a look into an index. No `COUNT(*)`.
* One order, the index' own (ids are UUIDv7: by id is by time). Columns cannot be sorted by.
* Searching is finding: by id, address, slug or the beginning of a key, each with its index.
* Filters are those declared, not any look-up that an address may spell (`?key_hash__startswith=`).
* What the log is asked for has a beginning and an end (`TimeRange`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import JSONField, Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from accounts.models import ApiKey, Workspace
from accounts.services import Actor
from gateway_project.core import clock
from gateway_project.core.api.forms import JSONField as JSONFormField
from gateway_project.core.context import context_of
from gateway_project.core.storable import unstorable

COUNT_MAX = 2_000
FROM = "from"
# What `TimeRange` counts from or to, with room on both sides.
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
KEY_PREFIX = "gw_"
HALVES = (_("date"), _("time, UTC"))
RANGES = (
    *(gettext_noop("any time"), gettext_noop("last hour"), gettext_noop("last 15 minutes")),
    *(gettext_noop("last 6 hours"), gettext_noop("last 24 hours"), gettext_noop("last 7 days")),
    *(gettext_noop("last 30 days"), gettext_noop("last 90 days"), gettext_noop("last 365 days")),
)
"""Names that `TimeRange.ranges` may have; addresses have them in English."""


def actor_of(request: HttpRequest) -> Actor:
    return Actor.of(getattr(request.user, "email", "staff"), context_of(request))


def link_to(row: Model, text: object = None) -> SafeString:
    meta = row._meta
    url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, row if text is None else text)


def as_uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


class BoundedPaginator(Paginator):
    """Counts to `COUNT_MAX` and no further; `is_cut` when there is more."""

    @cached_property
    def _found(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: COUNT_MAX + 1].count())

    @cached_property
    def count(self) -> int:
        return min(self._found, COUNT_MAX)

    @property
    def is_cut(self) -> bool:
        return self._found > COUNT_MAX


class _Listed(ChangeList):
    model_admin: Any

    def get_filters_params(self, params: Any = None) -> Any:
        found = super().get_filters_params(params)
        found.pop(FROM, None)
        return found

    def get_query_string(self, new_params: Any = None, remove: Any = None) -> str:
        """Whoever filters anew begins at the beginning."""
        if set(new_params or ()) - {PAGE_VAR}:
            remove = [*(remove or ()), FROM]
        return super().get_query_string(new_params, remove)

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        found = super().get_queryset(request, exclude_parameters)
        name, way = self._first_column(request)
        field: Any = self.opts.pk if name == "pk" else self.opts.get_field(name)
        try:
            place = field.to_python(self.params.get(FROM))
        except ValidationError:
            return found
        is_time = isinstance(place, datetime)
        if place is None or unstorable(place) or (is_time and place.tzinfo is None):
            return found
        return found.filter(**{f"{name}__{way}": place})

    def _first_column(self, request: HttpRequest) -> tuple[str, str]:
        spec = self.model_admin.get_ordering(request)[0]
        return spec.removeprefix("-"), "lte" if spec.startswith("-") else "gte"

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        whole: Any = self
        ordering: list[Any] = whole._get_deterministic_ordering(
            self.model_admin.get_ordering(request)
        )
        return ordering

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        self.model_admin.adorn(rows)
        self.result_list = rows
        self.goes_on = self._from(request, rows[-1]) if rows else ""

    def _from(self, request: HttpRequest, row: Any) -> str:
        """The list from its last row on, when more rows follow than are counted."""
        if not self.paginator.is_cut or self.page_num < self.paginator.num_pages:
            return ""
        name, _ = self._first_column(request)
        place = getattr(row, name)
        text = place.isoformat() if isinstance(place, datetime) else str(place)
        # The same place again: so many rows are of one hour.
        return "" if text == self.params.get(FROM) else self.get_query_string({FROM: text})


class Listing(admin.ModelAdmin):
    """The base of every list; see the module's paragraph.

    `adorn(rows)` hangs on the rows of one page what their columns show, a query for all of them;
    `find(queryset, term)` narrows it to what `term` names, or to nothing.
    """

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    ordering = ["-id"]
    change_form_template = "accounts/admin/change_form.html"
    formfield_overrides = {
        JSONField: {
            "form_class": JSONFormField,
            "widget": forms.Textarea(attrs={"rows": 3, "cols": 60}),
        }
    }
    search_fields = ["pk"]  # shows the field; what is searched is up to `find`

    class Media:
        css = {"all": ["accounts/admin.css"]}

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """With a name for each half of a time, which Django labels together."""
        found = super().formfield_for_dbfield(db_field, request, **kwargs)
        widget = getattr(found, "widget", None)
        if isinstance(widget, AdminSplitDateTime):
            for half, label in zip(widget.widgets, HALVES, strict=True):
                half.attrs["aria-label"] = f"{db_field.verbose_name}: {label}"
        return found

    def adorn(self, rows: list[Any]) -> None:
        pass

    def window_of(self, term: str) -> tuple[datetime, datetime] | None:
        """From when to when rows that `term` names can be, whatever `TimeRange` says."""
        return None

    def find(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        raise NotImplementedError

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _Listed

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (self.find(queryset, term) if term else queryset), False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        names = {name for spec in self.list_filter for name in parameters_of(spec)}
        return lookup in names

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """With the acts of the list as buttons on the page of one row."""
        row = self.get_object(request, unquote(object_id)) if object_id else None
        acts: Any = self.get_actions(request).values() if row is not None else ()
        context = {
            **(extra_context or {}),
            "acts": [(name, text) for run, name, text in acts if run.applies(row)],
        }
        return super().changeform_view(request, object_id, form_url, context)


def parameters_of(spec: Any) -> tuple[str, ...]:
    return getattr(spec, "names", None) or (spec.parameter_name,)


def is_superuser(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))


class SuperusersAct(Listing):
    """Others of staff see what their view permissions say, and change nothing.

    A right to change users or keys would be a way to every other right.
    """

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # what belongs to a customer is suspended; only its owners delete it


class ReadOnly(Listing):
    """Rows that only the gateway writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class TimeRange(admin.ListFilter):
    """From when to when, always: one of `ranges` of the list's admin, or `since` and `until`.

    `ranges` are `{name: length or None (any time)}`, the first is the default; `range_field` is
    the column. Times are UTC. A length counts back from now.
    """

    title = _("time")
    template = "accounts/admin/time_range.html"
    names = ("range", "since", "until")

    def __init__(
        self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        given = {name: params.pop(name)[-1] for name in self.names if name in params}
        self.used_parameters = given
        self.field: str = model_admin.range_field
        self.ranges: dict[str, timedelta | None] = model_admin.ranges
        self.since, self.until = _moment(given.get("since")), _moment(given.get("until"))
        default = next(iter(self.ranges))
        asked = given.get("range", default)
        self.chosen = "" if self.since or self.until else asked
        if self.chosen not in ("", *self.ranges):
            self.chosen = default
        if self.until and not self.since:
            self.since = self.until - (self.ranges[default] or timedelta(days=30))
        self.window = model_admin.window_of(request.GET.get("q", "").strip())

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return list(self.names)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        since, until = self.since, self.until
        if self.window is not None:
            since, until = self.window
        elif self.chosen:
            length = self.ranges[self.chosen]
            since = None if length is None else clock.now() - length
        bounds = {f"{self.field}__gte": since, f"{self.field}__lt": until}
        return queryset.filter(**{name: at for name, at in bounds.items() if at is not None})

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        for name in self.ranges:
            yield {
                "selected": name == self.chosen,
                "query_string": changelist.get_query_string(
                    {"range": name}, ["since", "until", "p"]
                ),
                "display": gettext(name),
            }
        others = {
            name: value
            for name, value in changelist.params.items()
            if name not in (*self.names, "p", FROM)
        }
        yield {
            "is_form": True,
            "others": others,
            "since": "" if self.since is None else f"{self.since:%Y-%m-%dT%H:%M}",
            "until": "" if self.until is None else f"{self.until:%Y-%m-%dT%H:%M}",
        }


def _moment(text: str | None) -> datetime | None:
    """What the form or a person wrote, UTC unless it says otherwise; None if it is no time."""
    try:
        at = parse_datetime(text or "")
        if at is None:
            return None
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):  # well-formed, but no such day, or beyond the calendar
        return None
    return at if FIRST <= at <= LAST else None


class Choice(admin.SimpleListFilter):
    """A filter of fixed choices; `options` are `{name: (label, conditions)}`."""

    options: ClassVar[dict[str, tuple[Any, dict[str, Any]]]] = {}
    default: ClassVar[dict[str, Any]] = {}
    """Conditions while nothing is chosen."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, label) for name, (label, _) in self.options.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        _, conditions = self.options.get(self.value() or "", ("", self.default))
        return queryset.filter(**conditions)


def subjects(term: str) -> dict[str, Any]:
    """What `term` names, as conditions on a row of the log: a key or a workspace.

    An id of either, a slug, or a key as lists show it. Empty when it names neither.
    """
    wanted = as_uuid(term)
    if wanted is not None:
        if ApiKey.objects.filter(pk=wanted).exists():
            return {"api_key_id": wanted}
        return {"workspace_id": wanted} if Workspace.objects.filter(pk=wanted).exists() else {}
    if term.startswith(KEY_PREFIX):
        return {"api_key_id__in": list(keys_like(term).values_list("pk", flat=True)[:100])}
    workspace = Workspace.objects.filter(slug=term.lower()).values_list("pk", flat=True).first()
    return {"workspace_id": workspace} if workspace else {}


def of_subject(queryset: QuerySet[Any], term: str, id_column: str) -> QuerySet[Any]:
    """Rows of the key or workspace that `term` names, else the one of that id, or none."""
    if conditions := subjects(term):
        return queryset.filter(**conditions)
    wanted = as_uuid(term)
    return queryset.filter(**{id_column: wanted}) if wanted else queryset.none()


@admin.display(description=_("at (UTC)"))
def at(row: Any) -> str:
    """A column for `list_display`: when the row was made."""
    return f"{row.created_at:%Y-%m-%d %H:%M:%S}"


def keys_like(term: str) -> QuerySet[ApiKey]:
    """Keys by how lists show them: `gw_live_Ab12`, or with an end, `gw_live_Ab12…9xYz`."""
    found = ApiKey.objects.filter(prefix=term[:12])
    return found.filter(last4=term[-4:]) if len(term) > 12 else found
