"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a retry that repeats nothing.

The answer is stored in the transaction of the effect, so that neither is there without the other.
For `KEPT` the same request of the workspace is given the same answer, marked with
`Idempotency-Replayed: true`; another request under the same key is 422, one that comes while the
first is being served 409. A refusal (4xx, 5xx) is not remembered: nothing has happened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter

from accounts.models import IdempotencyRecord
from gateway_project.core import clock, errors
from gateway_project.core.ratelimit import Policy, get_limiter, per_day
from gateway_project.core.stores import advisory, database

KEPT = timedelta(hours=24)
KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
REPLAYED = "Idempotency-Replayed"
HEADER = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description=(
        "At most 255 visible ASCII characters, best a UUID. The same request with it again, "
        "within 24 hours, is given the same answer and has no second effect."
    ),
)
PROBLEMS = (errors.IdempotencyInProgress, errors.IdempotencyMismatch)


def key_of(request: HttpRequest) -> str | None:
    """The key that was sent; raises 422 for one that cannot be."""
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    key = key.strip('"')  # the draft has it as a quoted string, nearly all clients without quotes
    if not KEY.match(key):
        message = "1 to 255 visible ASCII characters, best a UUID"
        raise errors.ValidationFailed(errors=[{"field": "Idempotency-Key", "message": message}])
    return key


def answered(workspace_id: UUID, request: HttpRequest, key: str) -> HttpResponse | None:
    """What this very request was answered before; raises 422 when the key is another's."""
    record = IdempotencyRecord.objects.filter(workspace_id=workspace_id, key=key).first()
    if record is None or record.created_at < clock.now() - KEPT:
        return None
    if record.fingerprint not in _fingerprints(request):
        raise errors.IdempotencyMismatch
    headers = {**record.headers, REPLAYED: "true"}
    return HttpResponse(record.body, status=record.status, headers=headers)


def once(
    workspace_id: UUID, request: HttpRequest, effect: Callable[[], HttpResponse]
) -> HttpResponse:
    """`effect`'s answer, or the one it gave to the same request before. SQL; owns a transaction.

    Whatever `effect` raises undoes it and is remembered by nobody.
    """
    if (daily := _daily(workspace_id, request)) is not None:
        get_limiter().check_sync((daily,), (1,)).raise_if_denied()
    with transaction.atomic():
        return _once(workspace_id, request, effect)


def _daily(workspace_id: UUID, request: HttpRequest) -> Policy | None:
    """Each is a row for a day, and those of a call that costs nothing of the day are too."""
    if key_of(request) is None or not settings.RATE_LIMIT_ENABLED:
        return None
    return per_day("idempotency", f"{{{workspace_id}}}", settings.IDEMPOTENCY_PER_DAY)


def _once(
    workspace_id: UUID, request: HttpRequest, effect: Callable[[], HttpResponse]
) -> HttpResponse:
    key = key_of(request)
    if key is None:
        return effect()
    _begin(workspace_id, key)
    before = answered(workspace_id, request, key)
    if before is not None:
        return before
    answer = effect()
    IdempotencyRecord.objects.update_or_create(
        workspace_id=workspace_id,
        key=key,
        defaults={
            "fingerprint": _fingerprints(request)[0],
            "status": answer.status_code,
            "headers": dict(answer.items()),
            "body": answer.content.decode(),
            "created_at": clock.now(),
        },
    )
    return answer


async def aanswered(workspace_id: UUID, request: HttpRequest) -> HttpResponse | None:
    """`answered` for the data plane; without a key no SQL."""
    key = key_of(request)
    return None if key is None else await database.read(answered, workspace_id, request, key)


async def aonce(
    workspace_id: UUID, request: HttpRequest, effect: Callable[[], HttpResponse]
) -> HttpResponse:
    """`once` for the data plane; `effect` may use the ORM."""
    if (daily := _daily(workspace_id, request)) is not None:
        (await get_limiter().check((daily,), (1,))).raise_if_denied()
    return await database.run(_once, workspace_id, request, effect)


def _begin(workspace_id: UUID, key: str) -> None:
    """Refuse to run beside the first."""
    if not advisory.try_to_hold(f"{workspace_id} {key}"):
        raise errors.IdempotencyInProgress


def _fingerprints(request: HttpRequest) -> list[str]:
    """By each pepper, the one in front first: whoever answered may have another one there."""
    # Keyed: the body may hold a text that could be guessed from a plain digest.
    digests: list[str] = settings.KEY_PEPPERS.digests(
        f"{request.method} {request.path}\n{request.body.decode('latin-1')}"
    )
    return digests
