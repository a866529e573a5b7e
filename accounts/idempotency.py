"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a retry that repeats nothing.

The same request of the same key is given the same answer again, marked `Idempotency-Replayed:
true`; another request under the same `Idempotency-Key` is 422, one that comes while the first is
being served 409. A refusal (4xx, 5xx) is not remembered: nothing has happened.

What makes or changes something has its answer stored in the transaction of the effect (`once`), so
that neither is there without the other, for `KEPT`. An answer that holds a secret is encrypted,
and erased after `SECRET_KEPT`; from then on a repeat is 409.

On the data plane the request is claimed in the trip that takes its limits (`Repeat`), so that of
many at once one is served and pays. There the answer lies in Redis, encrypted, for `ANSWER_KEPT`;
of what makes nothing, such as a verdict, it lies nowhere else. People of Robin have no workspace,
and theirs lie there on both planes (`once_behind`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from redis.exceptions import RedisError

from accounts.models import IdempotencyRecord
from gateway_project.core import clock, encryption, errors
from gateway_project.core.api.responses import holds_secret
from gateway_project.core.ratelimit import Claim, Policy, State, get_limiter, per_day, per_hour
from gateway_project.core.stores import advisory, database
from gateway_project.core.stores.sweeps import some_of
from gateway_project.core.telemetry.metrics import bound_reached

KEPT = timedelta(hours=24)
SECRET_KEPT = timedelta(hours=1)
ANSWER_KEPT = timedelta(hours=1)
SERVED_SECONDS_MAX = 90
"""Longer than any request takes (`timeout_seconds` is 60 at most)."""
ANSWER_BYTES_PER_HOUR = 16 << 20
"""Of one workspace in Redis; what is more is not remembered."""
METHODS = ("POST", "PUT", "PATCH", "DELETE")
KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
REPLAYED = "Idempotency-Replayed"
HEADER = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description=(
        "At most 255 visible ASCII characters, best a UUID. The same request with it again, "
        "within 24 hours, is given the same answer and has no second effect. An answer that holds "
        "a secret, or that makes nothing, such as a verdict, is kept for an hour."
    ),
)
PROBLEMS = (
    errors.IdempotencyInProgress,
    errors.IdempotencyMismatch,
    errors.IdempotencyExpired,
)


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


def is_unguessable(request: HttpRequest) -> bool:
    """As long as a UUID without its strokes, and not one character again and again."""
    key = key_of(request) or ""
    return len(key) >= 32 and len(set(key)) >= 8


class Sender:
    """Whose request it is: `caller` is the id of the API key, or whatever else stands for it.

    Another key of the workspace is another sender: it must not be given the first one's secrets.
    `owner` is the workspace's id; of people of Robin `user:…`, as in the subjects of their limits.
    """

    def __init__(
        self,
        owner: UUID | str,
        caller: object,
        request: HttpRequest,
        *,
        content: bytes | None = None,
    ) -> None:
        self.owner = owner
        self.key = key_of(request)
        self._caller = caller
        self._request = request
        self._content: bytes = request.body if content is None else content

    @property
    def name(self) -> str:
        return f"{self.owner} {self.key}"

    def fingerprints(self) -> list[str]:
        """By each pepper, the one in front first: whoever answered may have another one there."""
        # Keyed: the body may hold a text that could be guessed from a plain digest.
        request = self._request
        digests: list[str] = settings.KEY_PEPPERS.digests(
            f"{self._caller} {request.method} {request.get_full_path()}\n"
            f"{self._content.decode('latin-1')}"
        )
        return digests

    def fingerprints_of_before(self) -> list[str]:
        """As the version before wrote them, without the caller: it remembered no secrets."""
        request = self._request
        before: list[str] = settings.KEY_PEPPERS.digests(
            f"{request.method} {request.path}\n{request.body.decode('latin-1')}"
        )
        return before


# -- In the transaction of the effect ------------------------------------------------------------


def answered(sender: Sender) -> HttpResponse | None:
    """What this very request was answered before; raises 409 and 422. SQL."""
    found = IdempotencyRecord.objects.filter(workspace_id=sender.owner, key=sender.key)
    record = found.first()
    if record is None or record.created_at < clock.now() - KEPT:
        return None
    if record.fingerprint not in (*sender.fingerprints(), *sender.fingerprints_of_before()):
        raise errors.IdempotencyMismatch
    body = record.body
    if record.holds_secret:
        if not body or record.created_at < clock.now() - SECRET_KEPT:
            raise errors.IdempotencyExpired
        try:
            body = encryption.decrypt(body)
        except encryption.Undecryptable as exc:
            raise errors.IdempotencyExpired from exc
    headers = {**record.headers, REPLAYED: "true"}
    return HttpResponse(body, status=record.status, headers=headers)


def once(
    sender: Sender,
    effect: Callable[[], HttpResponse],
    *,
    prepare: Callable[[], None] = lambda: None,
) -> HttpResponse:
    """`effect`'s answer, or the one it gave to the same request before. SQL; with a key it owns a
    transaction.

    Whatever `effect` raises undoes it and is remembered by nobody. `prepare` is what takes its time
    before, such as asking somebody else: outside of the transaction, and not for a repeat.
    """
    if sender.key is None:
        prepare()
        return effect()
    before = answered(sender)
    if before is not None:
        return before
    _count(sender)
    prepare()
    with transaction.atomic():
        return _once(sender, effect)


def _count(sender: Sender) -> None:
    """Raises the 429 of a day that is used up; a repeat is not counted."""
    if settings.RATE_LIMIT_ENABLED:
        get_limiter().check_sync((daily(sender.owner),), (1,)).raise_if_denied()


def daily(owner: UUID | str) -> Policy:
    """Each is a row for a day, and those of a call that costs nothing of the day are too."""
    return per_day("idempotency", f"{{{owner}}}", settings.IDEMPOTENCY_PER_DAY)


def _once(sender: Sender, effect: Callable[[], HttpResponse]) -> HttpResponse:
    if sender.key is None:
        return effect()
    if not advisory.try_to_hold(sender.name):
        raise errors.IdempotencyInProgress
    before = answered(sender)
    if before is not None:
        return before
    answer = effect()
    remember(sender, answer)
    return answer


def remember(sender: Sender, answer: HttpResponse) -> None:
    """Joins the caller's transaction."""
    headers = dict(answer.items())
    body = answer.content.decode()
    is_secret = holds_secret(headers)
    IdempotencyRecord.objects.update_or_create(
        workspace_id=sender.owner,
        key=sender.key,
        defaults={
            "fingerprint": sender.fingerprints()[0],
            "status": answer.status_code,
            "headers": headers,
            "body": encryption.encrypt(body) if is_secret else body,
            "holds_secret": is_secret,
            "created_at": clock.now(),
        },
    )


def erase_secrets(size: int) -> int:
    """Of at most `size` answers that are past their time; returns of how many."""
    past = IdempotencyRecord.objects.filter(
        ~Q(body=""), holds_secret=True, created_at__lt=clock.now() - SECRET_KEPT
    ).order_by("created_at")
    return IdempotencyRecord.objects.filter(pk__in=some_of(past, size)).update(body="")


async def aanswered(sender: Sender) -> HttpResponse | None:
    """`answered` for the data plane; without a key no SQL."""
    return None if sender.key is None else await database.read(answered, sender)


async def aonce(sender: Sender, effect: Callable[[], HttpResponse]) -> HttpResponse:
    """`once` for the data plane, where the claim has asked the limits; `effect` may use SQL."""
    return await database.run(_once, sender, effect)


# -- On the data plane ---------------------------------------------------------------------------


class Repeat:
    """A request of the data plane that may come again. See `core/api/viewsets.py`."""

    def __init__(self, sender: Sender) -> None:
        tenant = f"{{{sender.owner}}}"
        self.room = per_hour("repeats", tenant, ANSWER_BYTES_PER_HOUR)
        self.policies: tuple[Policy, ...] = (self.room,)
        self.costs: tuple[int, ...] = (0,)  # how large the answer is, is known only behind it
        self.states: tuple[State, ...] = ()
        if settings.RATE_LIMIT_ENABLED:
            self.policies += (daily(sender.owner),)
            self.costs += (1,)
        self._fingerprints = [one.encode() for one in sender.fingerprints()]
        self.claim = Claim(
            f"once:{tenant}:{settings.KEY_PEPPERS.digests(sender.name)[-1]}",
            self._fingerprints[0],
            SERVED_SECONDS_MAX,
        )

    def answer(self, before: bytes) -> HttpResponse:
        """What lay there; raises 409 while the first is being served, 422 for another request."""
        fingerprint, _, answer = before.partition(b" ")
        if fingerprint not in self._fingerprints:
            raise errors.IdempotencyMismatch
        if not answer:
            raise errors.IdempotencyInProgress
        try:
            status, headers, body = orjson.loads(encryption.decrypt_bytes(answer.decode()))
        except encryption.Undecryptable as exc:
            raise errors.IdempotencyExpired from exc
        return HttpResponse(body, status=status, headers={**headers, REPLAYED: "true"})

    def kept(self, answer: HttpResponse) -> bytes | None:
        """The answer as it is laid down; None for a refusal: nothing has happened."""
        if answer.status_code >= 400:
            return None
        row = [answer.status_code, dict(answer.items()), answer.content.decode()]
        value = encryption.encrypt_bytes(orjson.dumps(row)).encode()
        return self._fingerprints[0] + b" " + value

    def keep(self, answer: HttpResponse) -> None:
        """For whoever sends it again. Nobody waits for it."""
        kept = self.kept(answer)
        size = len(kept or b"")
        room = self.states[0].remaining if self.states else 0
        if kept is None or size > room:
            bound_reached.labels("repeats").inc(size > room)
            self.forget()
            return
        limiter = get_limiter()
        limiter.put(self.claim.key, kept, int(ANSWER_KEPT.total_seconds()))
        counted = asyncio.ensure_future(limiter.check((self.room,), (size,)))
        _counting.add(counted)
        counted.add_done_callback(_counting.discard)

    def forget(self) -> None:
        """It was refused: nothing has happened, and it may come again as if for the first time."""
        get_limiter().put(self.claim.key, None, 0)


def once_behind(sender: Sender, effect: Callable[[], HttpResponse]) -> HttpResponse:
    """`effect`'s answer, or the one it gave to the same request within `ANSWER_KEPT`; in a thread.

    What was answered lies in the cache, not in the transaction of the effect: when that is away, or
    the process dies in between, a repeat does it again.
    """
    if sender.key is None:
        return effect()
    repeat = Repeat(sender)
    name, claimed, seconds = repeat.claim
    try:
        before = None if cache.add(name, claimed, seconds) else cache.get(name)
    except (RedisError, OSError):
        _count(sender)
        return effect()
    if before is not None:
        return repeat.answer(before)
    kept = None
    try:
        _count(sender)
        answer = effect()
        kept = repeat.kept(answer)
        if kept is not None and get_limiter().check_sync((repeat.room,), (len(kept),)).denied:
            bound_reached.labels("repeats").inc()
            kept = None
    finally:
        with suppress(RedisError, OSError):
            if kept is None:
                cache.delete(name)
            else:
                cache.set(name, kept, ANSWER_KEPT.total_seconds())
    return answer


_counting: set[asyncio.Future[Any]] = set()
"""Else they could be collected before they have run."""
