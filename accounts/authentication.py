"""Who calls: API keys, verified once and remembered for a moment.

The look-up in the database happens off the event loop, once for equal keys at once, and its result
(also "no such key") is kept in a bounded map of this process. `forget` drops a key here at once;
other workers notice within `KEY_CACHE_SECONDS`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import Error as DatabaseError
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys, usage
from accounts.models import ApiKey, User
from gateway_project.core import database, errors
from gateway_project.core.caching import SingleFlight, TTLCache
from gateway_project.core.middleware import RequestContext, context_of
from gateway_project.core.observability import get_logger, key_cache_total
from gateway_project.core.ratelimit import Policy, per_day, per_minute

log = get_logger("gateway.accounts")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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

    @property
    def is_authenticated(self) -> bool:
        return True

    def admit(self, context: RequestContext) -> None:
        """Check what can change between two requests; raise 401 or 403."""
        if self.valid_until is not None and self.valid_until <= time():
            raise errors.InvalidAPIKey
        if self.networks and not _is_inside(context.client_ip, self.networks):
            raise errors.IPNotAllowed
        context.workspace = self.workspace
        context.key_prefix = self.key_prefix

    def begin_usage(self, context: RequestContext, request_bytes: int) -> None:
        """From here on the request is one row of the usage log, whatever its end."""
        context.usage = usage.Record(self.key_id, self.workspace_id, request_bytes)


@dataclass(frozen=True, slots=True)
class _NoSuchKey:
    """A look-up that found nothing usable, remembered so that a flood of it costs no SQL."""


Found = Caller | _NoSuchKey
_cache: TTLCache[str, Found] = TTLCache(10_000)
_flights: SingleFlight[str, Found] = SingleFlight()
_hits = key_cache_total.labels("hit")
_misses = key_cache_total.labels("miss")


def forget(key_id: UUID) -> None:
    """Drop one key from this process' cache."""
    _cache.drop_where(lambda found: isinstance(found, Caller) and found.key_id == key_id)


def forget_all() -> None:
    _cache.clear()


class APIKeyAuthentication(BaseAuthentication):
    """`X-API-Key: gw_…` or `Authorization: Bearer gw_…`.

    Malformed, unknown, revoked and expired keys get one and the same 401.
    """

    async def aauthenticate(self, request: Any) -> Caller:
        """The caller of a data-plane request; raises 401, 403 or (database away) 503."""
        text, digest = _read(request.META)
        found = _cache.get(digest)
        if found is None:
            _misses.inc()
            found = await _flights.do(digest, lambda: _fetch(text, digest))
        else:
            _hits.inc()
        return self._admit(found, context_of(request))

    def authenticate(self, request: Request) -> tuple[User | None, Caller] | None:
        """DRF's hook, for the control plane; None when no key was sent."""
        if not _has_key(request.META):
            return None
        text, digest = _read(request.META)
        found = _cache.get(digest)
        if found is None:
            found = _remember(digest, _look_up(text))
        return None, self._admit(found, context_of(request))

    def authenticate_header(self, request: Request) -> str:
        return 'ApiKey realm="gateway"'

    @staticmethod
    def _admit(found: Found, context: RequestContext) -> Caller:
        if isinstance(found, _NoSuchKey):
            raise errors.InvalidAPIKey
        found.admit(context)
        return found


def _has_key(meta: Mapping[str, Any]) -> bool:
    return bool(meta.get("HTTP_X_API_KEY") or meta.get("HTTP_AUTHORIZATION"))


def _read(meta: Mapping[str, Any]) -> tuple[str, str]:
    """The key's text and its digest; raises 401 when missing or not a key by its checksum."""
    text: str = meta.get("HTTP_X_API_KEY", "")
    if not text:
        kind, _, text = meta.get("HTTP_AUTHORIZATION", "").partition(" ")
        text = text.strip()
        if kind.lower() != "bearer" or not text:
            raise errors.MissingAPIKey
    digest: str = settings.KEY_PEPPERS.digest(text)
    # A remembered key was well-formed when it was looked up.
    if _cache.get(digest) is None and not keys.is_well_formed(text):
        raise errors.InvalidAPIKey
    return text, digest


async def _fetch(text: str, digest: str) -> Found:
    return _remember(digest, await database.run(_look_up, text))


def _remember(digest: str, found: Found) -> Found:
    _cache.put(digest, found, seconds=settings.KEY_CACHE_SECONDS)
    return found


def _look_up(text: str) -> Found:
    try:
        key = (
            ApiKey.objects.usable()
            .select_related("workspace__plan")
            .filter(key_hash__in=settings.KEY_PEPPERS.digests(text), workspace__isnull=False)
            .first()
        )
    except DatabaseError as exc:
        log.error("key_lookup_failed", error=type(exc).__name__)
        raise errors.StoreUnavailable from exc
    return _NoSuchKey() if key is None else caller_of(key)


def caller_of(key: ApiKey) -> Caller:
    """The plain data of a usable key."""
    ends = [t.timestamp() for t in (key.expires_at, key.grace_until) if t is not None]
    return Caller(
        key_id=key.pk,
        key_prefix=key.prefix,
        workspace_id=key.workspace_id,
        workspace=key.workspace.slug,
        scopes=frozenset(key.scopes),
        networks=tuple(ipaddress.ip_network(cidr) for cidr in key.allowed_cidrs),
        valid_until=min(ends, default=None),
        policies=policies_of(key),
    )


def effective_limits(key: ApiKey) -> tuple[int, int]:
    """(per minute, per day) as enforced: a workspace without a confirmed e-mail is on trial."""
    per_min, per_d = key.rate_limit_per_minute, key.rate_limit_per_day
    if not key.workspace.is_confirmed:
        per_min = min(per_min, settings.TRIAL_RATE_LIMIT_PER_MINUTE)
        per_d = min(per_d, settings.TRIAL_RATE_LIMIT_PER_DAY)
    return per_min, per_d


def policies_of(key: ApiKey) -> tuple[Policy, ...]:
    if not settings.RATE_LIMIT_ENABLED:
        return ()
    per_min, per_d = effective_limits(key)
    tenant = f"{{{key.workspace_id}}}"
    subject = f"{tenant}:{key.pk}"
    failure = settings.RATE_LIMIT_FAILURE_POLICY
    return (
        per_minute("minute", subject, per_min, failure),
        per_day("day", subject, per_d, failure),
        per_day("workspace_day", tenant, key.workspace.day_quota, failure),
    )


def _is_inside(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks)
