"""Tables as files, in pieces as they are read: CSV that no spreadsheet runs, and lines of JSON.

A page answers with one of its tables or charts instead of itself when its query says so
(`?csv=keys`): the same person, workspace and filters, so that nothing has to be asked twice.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import orjson
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render

from gateway_project.core import cells
from gateway_project.core.api.responses import ndjson, streamed
from gateway_project.core.clock import utc_text

ROWS_A_PIECE = 500
ROWS_MAX = 100_000
"""Of a file that a page streams at once; the log goes further behind (`portal/downloads.py`)."""


NAME = "csv"
"""In the query: the table that is wanted as a file."""
M = TypeVar("M", bound=Model)


class Table(NamedTuple):
    """What stands in a file. Times are UTC, durations milliseconds."""

    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]


def table(columns: Sequence[str] | Mapping[str, str], rows: Iterable[Any]) -> Table:
    """Of what each row has by these names, or by the paths that they stand for
    (`{"plan": "workspace.plan_id"}`)."""
    paths = columns.values() if isinstance(columns, Mapping) else columns
    return Table(tuple(columns), map(attrgetter(*paths), rows))


def page(
    request: HttpRequest,
    template: str,
    facts: Mapping[str, Any],
    files: Mapping[str, Callable[[], Table]],
) -> HttpResponseBase:
    """The page, or that one of its `files` that the query names; `{% csv %}` links to them."""
    wanted = request.GET.get(NAME)
    if wanted is None:
        return as_page(request, template, facts, files)
    if wanted not in files:
        raise Http404
    columns, rows = files[wanted]()
    return csv_file(f"{wanted}.csv", columns, rows)


def as_page(
    request: HttpRequest,
    template: str,
    facts: Mapping[str, Any],
    files: Mapping[str, Callable[[], Table]],
) -> HttpResponse:
    return render(request, template, {**facts, "files": files})


def newest_first(found: QuerySet[M], at: str = "created_at") -> Iterator[M]:
    """All rows by that column, piece by piece, at most `ROWS_MAX`."""
    found, after = found.order_by(f"-{at}", "-pk"), Q()
    for _ in range(ROWS_MAX // ROWS_A_PIECE):
        rows = list(found.filter(after)[:ROWS_A_PIECE])
        yield from rows
        if len(rows) < ROWS_A_PIECE:
            return
        last = rows[-1]
        when = getattr(last, at)
        after = Q(**{f"{at}__lt": when}) | Q(**{at: when, "pk__lt": last.pk})


def csv_file(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> StreamingHttpResponse:
    content = csv_pieces(columns, rows)
    return streamed(content, content_type="text/csv; charset=utf-8", **_as(name))


def json_lines_file(name: str, rows: Iterable[Mapping[str, Any]]) -> StreamingHttpResponse:
    return ndjson(_json(rows), **_as(name))


def _as(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}


def csv_pieces(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = cells.writer(text)
    writer.writerow(columns)
    for number, row in enumerate(rows, start=1):
        writer.writerow([cells.cell(_plain(value)) for value in row])
        if number % ROWS_A_PIECE == 0:
            yield _taken(text)
    yield _taken(text)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return utc_text(value) if isinstance(value, datetime) else value


def _taken(text: io.StringIO) -> bytes:
    content = text.getvalue().encode()
    text.seek(0)
    text.truncate()
    return content


def _json(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    piece: list[bytes] = []
    for row in rows:
        piece.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        if len(piece) == ROWS_A_PIECE:
            yield b"".join(piece)
            piece.clear()
    yield b"".join(piece)
