"""Pages of lists, by cursor."""

from __future__ import annotations

from typing import TypeVar

from django.db.models import Model, QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

R = TypeVar("R", bound=Model)


PAGING = (
    OpenApiParameter("limit", int, description="1 to 200, default 50."),
    OpenApiParameter("cursor", str, description="From `next`."),
)
"""What `page` reads, for `@endpoint(parameters=…)`."""


def page(
    request: Request, queryset: QuerySet[R], *, ordering: tuple[str, ...]
) -> tuple[list[R], str | None]:
    """One page of `queryset` by cursor, and the absolute URL of the next (None at the end)."""
    pager = CursorPagination()
    pager.ordering = ordering
    pager.page_size = 50
    pager.page_size_query_param = "limit"
    pager.max_page_size = 200
    rows = pager.paginate_queryset(queryset, request) or []
    return list(rows), pager.get_next_link()
