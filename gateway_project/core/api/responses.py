"""Answers: JSON, NDJSON and problems."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.db import DataError, close_old_connections
from django.http import HttpResponse, StreamingHttpResponse
from pydantic import BaseModel

from gateway_project.core import errors
from gateway_project.core.context import context_of
from gateway_project.core.telemetry.logging import get_logger

JSON = "application/json"
# For answers that hold a secret: kept nowhere, and never compressed beside what a caller can choose
# (BREACH), neither by us (`core/api/middleware.py`) nor by a proxy.
SECRET_HEADERS = {"Cache-Control": "no-store, no-transform"}
log = get_logger("gateway.views")


def holds_secret(headers: Mapping[str, str]) -> bool:
    return headers.get("Cache-Control") == SECRET_HEADERS["Cache-Control"]


def reply(
    answer: BaseModel | Mapping[str, Any] | None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    exclude_none: bool = False,
) -> HttpResponse:
    """An answer as JSON; None gives an empty one (for 204)."""
    if answer is None:
        content = b""
    elif isinstance(answer, BaseModel):
        content = answer.__pydantic_serializer__.to_json(answer, exclude_none=exclude_none)
    else:
        content = orjson.dumps(answer, option=orjson.OPT_UTC_Z)
    return HttpResponse(content, content_type=JSON, status=status, headers=headers)


def problem_response(request: Any, error: errors.GatewayError) -> HttpResponse:
    context = context_of(request)
    context.error_code = error.code
    context.wrong = str(error.detail), error.errors
    if error.status_code == 401:  # RFC 9110 §11.6.1
        error.headers.setdefault("WWW-Authenticate", 'Bearer realm="gateway"')
    body = errors.problem(error, instance=request.path, request_id=context.request_id)
    return HttpResponse(
        body, content_type=errors.CONTENT_TYPE, status=error.status_code, headers=error.headers
    )


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """DRF's hook: whatever was raised leaves as a problem."""
    return problem_response(context["request"], gateway_error(exc, context["request"]))


def gateway_error(exc: Exception, request: Any) -> errors.GatewayError:
    error = errors.translate(exc)
    # The store should have been the last to notice: `core/storable.py` missed a way in.
    if isinstance(error, errors.InternalError) or isinstance(exc, DataError):
        known = context_of(request)
        log.error(
            "unhandled_exception",
            request_id=known.request_id,
            correlation_id=known.correlation_id,
            error=type(exc).__name__,
            exc_info=exc,
        )
    return error


NDJSON = "application/x-ndjson"
HTML = "text/html"
QUALITY = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def wants(request: Any, media_type: str) -> float:
    """How much `Accept` wants what it names so: 0 to 1 (RFC 9110 §12.5.1); 0 where it does not."""
    for one in request.headers.get("accept", "").split(","):
        name, _, parameters = one.partition(";")
        if name.strip().lower() == media_type:
            quality = QUALITY.search(parameters)
            return float(quality[1]) if quality else 1.0
    return 0.0


def ndjson(pieces: Iterator[bytes], **headers: str) -> StreamingHttpResponse:
    """Lines of JSON as they come."""
    return streamed(pieces, content_type=NDJSON, **headers)


def streamed(
    pieces: Iterator[bytes], *, content_type: str, **headers: str
) -> StreamingHttpResponse:
    """Pieces as they come; each is fetched in a thread that may use the ORM.

    Between two pieces no connection is held: the next one waits until the client has read this one.
    """

    def following() -> bytes | None:
        try:
            return next(pieces, None)
        finally:
            close_old_connections()

    async def fetched() -> AsyncIterator[bytes]:
        while (piece := await sync_to_async(following)()) is not None:
            yield piece

    return StreamingHttpResponse(fetched(), content_type=content_type, headers=headers)
