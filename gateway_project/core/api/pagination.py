"""Pages of lists, by cursor."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from pydantic import Field
from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request

from gateway_project.core import errors
from gateway_project.core.api.endpoint import Asked, asked
from gateway_project.core.storable import unstorable

R = TypeVar("R", bound=Model)
LOOKED_AT_MAX = 10_000

PAGE_MAX = 200
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX, description="Of one page.")]
Position = Annotated[str, Field(description="From `next`; none: the first page.")]


class Paging(Asked):
    """What `page` reads of the query, for `@endpoint(query=…)`."""

    limit: Limit = 50
    cursor: Position = ""


NOT_A_CURSOR = (
    "This cursor is none of ours. Take it from 'next', or leave it out for the first page."
)


class _Pages(CursorPagination):
    """A cursor is somebody's words: what it names as a place must be one of the first column."""

    def __init__(self, model: type[Model], ordering: tuple[str, ...], size: int) -> None:
        self.ordering = ordering
        self.page_size = size
        self.place: Any = model._meta.get_field(ordering[0].removeprefix("-"))

    def decode_cursor(self, request: Request) -> Any:
        try:
            found = super().decode_cursor(request)
        except NotFound:
            raise errors.NotFound(NOT_A_CURSOR) from None
        if found is not None and found.position is not None:
            try:
                at = self.place.to_python(found.position)
            except ValidationError:
                raise errors.NotFound(NOT_A_CURSOR) from None
            is_time = isinstance(at, datetime)
            if unstorable(at) or (is_time and at.tzinfo is None):
                raise errors.NotFound(NOT_A_CURSOR)
        return found

    def link_from(self, position: object) -> str:
        """To the page that begins after `position`, a value of the first column of the order."""
        cursor: Any = Cursor(offset=0, reverse=False, position=str(position))  # type: ignore[arg-type]  # its annotation
        return str(self.encode_cursor(cursor))


def page(
    request: Request,
    queryset: QuerySet[R],
    *,
    ordering: tuple[str, ...],
    among: QuerySet[Any] | None = None,
) -> tuple[list[R], str | None]:
    """One page of `queryset` by cursor, and the absolute URL of the next (None at the end).

    Raises the 422 of a `limit` that cannot be, the 404 of a cursor that is none of ours.

    `among`: the rows that `queryset` filters, in the same order and by an index. Then
    `LOOKED_AT_MAX` of them are looked at and no more: where few match, a page may have few rows,
    or none, and a next one that goes on from there.
    """
    pager = _Pages(queryset.model, ordering, asked(request._request, Paging).limit)
    stopped_at = None
    if among is not None:
        column = ordering[0].removeprefix("-")
        cursor = pager.decode_cursor(request)
        if cursor is not None and cursor.position is not None:
            among = among.filter(**{f"{column}__lte": cursor.position})
        times = among.order_by(ordering[0]).values_list(column, flat=True)
        stopped_at = next(iter(times[LOOKED_AT_MAX : LOOKED_AT_MAX + 1]), None)
        if stopped_at is not None:
            queryset = queryset.filter(**{f"{column}__gte": stopped_at})
    rows = list(pager.paginate_queryset(queryset, request) or [])
    following: str | None = pager.get_next_link()
    if following is None and stopped_at is not None:
        following = pager.link_from(stopped_at)
    return rows, following
