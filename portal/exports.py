"""Tables as files, in pieces as they are read: CSV that no spreadsheet runs, and lines of JSON."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from django.http import StreamingHttpResponse

from gateway_project.core import cells
from gateway_project.core.api.responses import ndjson, streamed

ROWS_A_PIECE = 500
ROWS_MAX = 100_000
"""Of a file that a page streams at once; the log goes further behind (`portal/downloads.py`)."""


def csv_file(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> StreamingHttpResponse:
    return streamed(_lines(columns, rows), content_type="text/csv; charset=utf-8", **_as(name))


def json_lines_file(name: str, rows: Iterable[Mapping[str, Any]]) -> StreamingHttpResponse:
    return ndjson(_json(rows), **_as(name))


def _as(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}


def _lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = cells.writer(text)
    writer.writerow(columns)
    for number, row in enumerate(rows, start=1):
        writer.writerow([cells.cell(value) for value in row])
        if number % ROWS_A_PIECE == 0:
            yield _taken(text)
    yield _taken(text)


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
