"""Who calls: API keys, verified once and remembered for a moment.

The look-up in the database happens off the event loop, once for equal keys at once. What it found
is believed for `KEY_CACHE_SECONDS`, "no such key" for `UNKNOWN_SECONDS`. `forget` drops a key here
and, over the bus, in every worker; a worker that is cut off from the bus believes nothing for
longer than `BUS_DISCONNECTED_TTL`. So a revoked key is refused everywhere within a second. While
the database is away known keys go on for `OUTAGE_SECONDS`; a key that nobody knows is 503 then,
never 401.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys
from accounts.models import ApiKey, effective_limits
from accounts.networks import Network, is_inside, kept_network_of
from accounts.usage.buffer import Record
from gateway_project.core import clock, errors
from gateway_project.core.context import RequestContext, context_of
from gateway_project.core.ratelimit import (
    Policies,
    Policy,
    ip_policy,
    per_day,
    per_minute,
    refuse_used_up,
    refuse_used_up_sync,
)
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.caching import Loader, TTLCache
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import cache_bytes, key_cache_total

UNKNOWN_SECONDS = 10.0
BUS_DISCONNECTED_TTL = 0.5
OUTAGE_SECONDS = 15 * 60.0
CALLER_BYTES, NETWORK_BYTES = 4_200, 250
CHANNEL = "keys"
ALL = "*"
log = get_logger("gateway.accounts")


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified key as plain data, safe to keep and to share. Times are Unix seconds."""

    key_id: UUID
    key_prefix: str
    workspace_id: UUID
    workspace: str
    scopes: frozenset[str]
    networks: tuple[Network, ...]
    valid_until: float | None
    policies: tuple[Policy, ...]
    is_suspended: bool = False
    detection_policy: str = ""
    """JSON of what the key's detections mean when they do not say, without the notes that are for
    people; empty: the default."""
    wants_detections: bool = False
    """Whether a webhook of its workspace wants to be told of its detections."""

    @property
    def is_authenticated(self) -> bool:
        """It is DRF's `request.user` as well: its permissions ask this, its throttles `pk`."""
        return True

    @property
    def pk(self) -> UUID:
        return self.key_id

    @property
    def memory_bytes(self) -> int:
        """About what remembering it takes."""
        return CALLER_BYTES + NETWORK_BYTES * len(self.networks) + len(self.detection_policy)

    def admit(self, context: RequestContext) -> None:
        """Check what can change between two requests; raise 401 or 403."""
        if self.valid_until is not None and self.valid_until <= clock.time():
            raise errors.InvalidAPIKey
        if self.networks and not is_inside(context.client_ip, self.networks):
            raise errors.IPNotAllowed
        if self.is_suspended:
            raise errors.WorkspaceSuspended
        context.workspace = self.workspace
        context.key_prefix = self.key_prefix

    def begin_usage(self, context: RequestContext, request_bytes: int) -> None:
        """From here on the request is one row of the usage log, whatever its end."""
        context.usage = Record(self.key_id, self.workspace_id, request_bytes)


def is_believed(at: float) -> bool:
    """Whether what was looked up at `at` (of `monotonic`) needs no new look."""
    seconds = settings.KEY_CACHE_SECONDS if bus.is_listening else BUS_DISCONNECTED_TTL
    return monotonic() - at < seconds


@dataclass(frozen=True, slots=True)
class _CachedEntry:
    caller: Caller
    at: float

    @property
    def is_fresh(self) -> bool:
        return is_believed(self.at)


class _Memory:
    """What this process knows of keys, by digest."""

    def __init__(self) -> None:
        self.known: TTLCache[str, _CachedEntry] = TTLCache(
            settings.KEY_CACHE_BYTES_MAX, size_of=lambda known: known.caller.memory_bytes
        )
        # Apart, so that a flood of made-up keys pushes no real one out.
        self.unknown: TTLCache[str, bool] = TTLCache(5_000)
        self.generation = 0

    def remember(self, digest: str, caller: Caller | None, generation: int) -> None:
        """Keep what a look-up found, unless something was forgotten since it began."""
        if generation != self.generation:
            return
        if caller is None:
            self.known.drop(digest)
            self.unknown.put(digest, True, seconds=UNKNOWN_SECONDS)
        else:
            before = self.known.get(digest)
            if before is not None and before.caller == caller:
                caller = before.caller  # the limiter remembers its policies already
            self.known.put(digest, _CachedEntry(caller, monotonic()), seconds=OUTAGE_SECONDS)
        cache_bytes.labels("keys").set(self.known.size)

    def forget(self, word: str) -> None:
        self.generation += 1
        if word == ALL:
            self.known.clear()
            self.unknown.clear()
        else:
            wanted = UUID(word)
            self.known.drop_where(
                lambda known: wanted in (known.caller.key_id, known.caller.workspace_id)
            )


_memory = _Memory()
_hits, _stale, _misses = (key_cache_total.labels(r) for r in ("hit", "stale", "miss"))
bus.on(CHANNEL, _memory.forget, partial(_memory.forget, ALL))


def forget(key_id: UUID) -> None:
    """Drop one key from every worker's memory, once the transaction in hand is committed."""
    transaction.on_commit(partial(bus.say, CHANNEL, str(key_id)))


def forget_workspace(workspace_id: UUID) -> None:
    """The same for all of a workspace's keys."""
    transaction.on_commit(partial(bus.say, CHANNEL, str(workspace_id)))


def forget_all() -> None:
    transaction.on_commit(partial(bus.say, CHANNEL, ALL))


class APIKeyAuthentication(BaseAuthentication):
    """`X-API-Key: gw_…` or `Authorization: Bearer gw_…`.

    Malformed, unknown, revoked and expired keys get one and the same 401.
    """

    async def aauthenticate(self, request: Any) -> Caller:
        """The caller of a data-plane request; raises 401, 403, 429 or (database away) 503."""
        context = context_of(request)
        text, digest, known = _read(request.META)
        if known is not None and known.is_fresh:
            _hits.inc()
            caller: Caller | None = known.caller
        else:
            caller = await self._ask(text, digest, known, context)
        return self._admit(caller, context)

    async def _ask(
        self, text: str, digest: str, known: _CachedEntry | None, context: RequestContext
    ) -> Caller | None:
        if known is None:
            if _memory.unknown.get(digest):
                _hits.inc()
                return None
            if settings.RATE_LIMIT_ENABLED:  # a guesser gets no look-up for each guess
                await refuse_used_up(ip_policy(context.client_ip))
        flight = _loader.start(text)
        if known is None:
            _misses.inc()
            return await asyncio.shield(flight)
        if database.trouble_since is None:
            try:
                return await asyncio.shield(flight)
            except errors.StoreUnavailable:
                pass
        # The flight goes on behind: the first that succeeds ends the trouble.
        _stale.inc()
        return known.caller

    def authenticate(self, request: Request) -> tuple[Caller, Caller] | None:
        """DRF's hook, for the control plane; None when no key was sent."""
        if not _has_key(request.META):
            return None
        text, digest, known = _read(request.META)
        if known is not None and known.is_fresh:
            caller: Caller | None = known.caller
        elif _memory.unknown.get(digest):
            caller = None
        else:
            if known is None and settings.RATE_LIMIT_ENABLED:
                refuse_used_up_sync(ip_policy(context_of(request).client_ip))
            generation = _memory.generation
            caller = _look_up([text]).get(text)
            _memory.remember(digest, caller, generation)
        caller = self._admit(caller, context_of(request))
        return caller, caller

    @staticmethod
    def _admit(caller: Caller | None, context: RequestContext) -> Caller:
        if caller is None:
            raise errors.InvalidAPIKey
        caller.admit(context)
        return caller


def ended_caller(request: Any) -> Caller | None:
    """The caller of a key that was valid once and no longer is; else None. SQL.

    It may do nothing. What it did itself under an `Idempotency-Key` it may be told again.
    """
    try:
        text, _, _ = _read(request.META)
    except errors.GatewayError:
        return None
    key = (
        ApiKey.objects.select_related("workspace__plan")
        .filter(key_hash__in=settings.KEY_PEPPERS.digests(text), workspace__deleted_at=None)
        .first()
    )
    if key is None:
        return None
    caller = replace(caller_of(key), valid_until=None)
    try:
        caller.admit(context_of(request))
    except errors.GatewayError:
        return None
    return caller


def bearer(authorization: str) -> str:
    """The token of an `Authorization` header (RFC 6750 §2.1); empty when it has none."""
    kind, _, text = authorization.partition(" ")
    return text.strip() if kind.lower() == "bearer" else ""


def _has_key(meta: Mapping[str, Any]) -> bool:
    return bool(meta.get("HTTP_X_API_KEY") or meta.get("HTTP_AUTHORIZATION"))


def _read(meta: Mapping[str, Any]) -> tuple[str, str, _CachedEntry | None]:
    """The key's text, its digest and what is remembered of it.

    Raises 401 when it is missing or not a key by its checksum.
    """
    text: str = meta.get("HTTP_X_API_KEY", "")
    if not text:
        text = bearer(meta.get("HTTP_AUTHORIZATION", ""))
        if not text:
            raise errors.MissingAPIKey
    digest: str = settings.KEY_PEPPERS.digest(text)
    # A remembered key was well-formed when it was looked up.
    known = _memory.known.get(digest)
    if known is None and not keys.is_well_formed(text):
        raise errors.InvalidAPIKey
    return text, digest, known


async def _fetch(texts: Sequence[str]) -> dict[str, Caller]:
    generation = _memory.generation
    callers = await database.find(_look_up, texts)
    for text in texts:
        digest = settings.KEY_PEPPERS.digest(text)
        _memory.remember(digest, callers.get(text), generation)
    return callers


_loader: Loader[str, Caller] = Loader(_fetch)


def _look_up(texts: Sequence[str]) -> dict[str, Caller]:
    """The callers of those `texts` that are usable keys."""
    by_digest = {d: text for text in texts for d in settings.KEY_PEPPERS.digests(text)}
    try:
        found = list(
            ApiKey.objects.usable()
            .select_related("workspace__plan")
            .filter(key_hash__in=list(by_digest), workspace__deleted_at=None)
        )
    except DatabaseError as exc:
        log.error("key_lookup_failed", error=type(exc).__name__)
        raise
    callers = {}
    for key in found:
        try:
            callers[by_digest[key.key_hash]] = caller_of(key)
        except UNFIT as exc:
            # Written past our checks. It is refused, and takes no other key with it.
            log.error("key_unreadable", key_prefix=key.prefix, error=type(exc).__name__)
    return callers


def caller_of(key: ApiKey) -> Caller:
    """The plain data of a usable key."""
    ends = [t.timestamp() for t in (key.expires_at, key.grace_until) if t is not None]
    return Caller(
        key_id=key.pk,
        key_prefix=key.prefix,
        workspace_id=key.workspace_id,
        workspace=key.workspace.slug,
        scopes=frozenset(key.scopes),
        networks=tuple(map(kept_network_of, key.allowed_cidrs)),
        valid_until=min(ends, default=None),
        policies=policies_of(key),
        is_suspended=key.workspace.suspended_at is not None,
        detection_policy=_without_notes(key.policy_in_force),
        wants_detections=key.workspace.wants_detections,
    )


def _without_notes(policy: Mapping[str, Any]) -> str:
    if not policy:
        return ""
    kept = dict(policy)
    for name, entries in policy.items():
        if isinstance(entries, list):
            kept[name] = [
                {k: v for k, v in entry.items() if k != "note"}
                if isinstance(entry, dict)
                else entry
                for entry in entries
            ]
    return json.dumps(kept, separators=(",", ":"))


def policies_of(key: ApiKey) -> tuple[Policy, ...]:
    if not settings.RATE_LIMIT_ENABLED:
        return ()
    limits = effective_limits(key)
    tenant = f"{{{key.workspace_id}}}"
    if key.is_test:
        tenant += ":test"  # counters of their own: the workspace's are not touched
    # A successor goes on in its predecessor's counters: rotating buys nothing.
    subject = f"{tenant}:{key.limit_subject or key.pk}"
    failure = settings.RATE_LIMIT_FAILURE_POLICY
    return Policies(
        (
            per_minute("minute", subject, limits.minute, failure),
            per_day("day", subject, limits.day, failure),
            per_day("workspace_day", tenant, limits.workspace_day, failure),
            per_minute("workspace_minute", tenant, limits.workspace_minute, failure),
        )
    )
