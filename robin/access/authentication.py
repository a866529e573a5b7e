"""Who calls `/api/v1`: access tokens, verified once and remembered while they last.

The signature is checked in the process. Whether the session and its user still stand is looked up
in the database, off the event loop, with the role of this moment; both are believed for
`KEY_CACHE_SECONDS`, as API keys are. A message on the bus ends that at once in every worker, and a
worker that is cut off from it believes nothing for longer than `BUS_DISCONNECTED_TTL`: so a revoked
session is refused everywhere within a second. While the database is away, known tokens go on until
they expire; a token that nobody knows is 503 then, never 401.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django.http.request import split_domain_port, validate_host
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework_simplejwt.exceptions import TokenError

from accounts.authentication import ALL, bearer, is_believed
from accounts.models import PEOPLE
from gateway_project.core import clock, errors
from gateway_project.core.api.endpoint import Credential
from gateway_project.core.context import RequestContext, context_of
from gateway_project.core.ratelimit import (
    Policies,
    Policy,
    ip_policy,
    per_minute,
    refuse_used_up,
    refuse_used_up_sync,
)
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.caching import Loader, TTLCache
from gateway_project.core.telemetry.logging import get_logger
from robin.access.tokens import Access, digest
from robin.models import RefreshFamily
from robin.permissions import permissions_of

SESSIONS = "sessions"
TOKEN_CHARS_MAX = 4096
log = get_logger("gateway.robin")
TOKEN = Credential(
    errors.MissingToken,
    errors.PermissionDenied,
    "Your role lacks the permission {}. Ask an administrator.",
    (errors.InvalidToken,),
    {"AccessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
)
"""For `@endpoint(credential=TOKEN, scope=Permission.VIEW_QUEUE)`."""


@dataclass(frozen=True, slots=True)
class Member:
    """A signed-in user as plain data, safe to keep and to share.

    `scopes` are permissions; a member of staff without a role has none.
    """

    user_id: UUID
    session_id: UUID
    username: str
    email: str
    role: str | None
    is_staff: bool
    is_superuser: bool
    scopes: frozenset[str]
    policies: tuple[Policy, ...]

    @property
    def is_authenticated(self) -> bool:
        """It is DRF's `request.user` as well: its permissions ask this, its throttles `pk`."""
        return True

    @property
    def pk(self) -> UUID:
        return self.user_id

    def begin_usage(self, context: RequestContext, request_bytes: int) -> None:
        """Usage is what API keys have."""


@dataclass(frozen=True, slots=True)
class _CachedEntry:
    member: Member
    valid_until: float  # Unix seconds
    at: float

    @property
    def is_fresh(self) -> bool:
        return is_believed(self.at)


class _Memory:
    """What this process knows of tokens, by digest; and whoever wants to hear of an end."""

    def __init__(self) -> None:
        self.known: TTLCache[str, _CachedEntry] = TTLCache(5_000)
        self.generation = 0
        self.on_forget: list[Callable[[str], None]] = []

    def remember(self, key: str, known: _CachedEntry, generation: int) -> None:
        """Keep what a look-up found, unless something was forgotten since it began."""
        if generation == self.generation:
            self.known.put(key, known, seconds=known.valid_until - clock.time())

    def forget(self, word: str) -> None:
        """`word` is the id of a session or of a user, or `ALL`."""
        self.generation += 1
        if word == ALL:
            self.known.clear()
        else:
            self.known.drop_where(
                lambda k: word in (str(k.member.session_id), str(k.member.user_id))
            )
        for listener in self.on_forget:
            listener(word)


_memory = _Memory()
for _channel in (SESSIONS, PEOPLE):
    bus.on(_channel, _memory.forget, partial(_memory.forget, ALL))


def forget(session_id: UUID) -> None:
    """Drop a session from every worker's memory, once the transaction in hand is committed."""
    transaction.on_commit(partial(bus.say, SESSIONS, str(session_id)))


def on_forget(listener: Callable[[str], None]) -> None:
    """Call `listener(word)` whenever a session (or user, or all) may have ended; in any thread."""
    _memory.on_forget.append(listener)


def off_forget(listener: Callable[[str], None]) -> None:
    _memory.on_forget.remove(listener)


class JWTAuthentication(BaseAuthentication):
    """`Authorization: Bearer <access token>`.

    Forged, expired and revoked tokens get one and the same 401.
    """

    async def aauthenticate(self, request: Any) -> Member:
        """The caller of a data-plane request; raises 401, 429 or (database away) 503."""
        return await member_of(read(request.META), context_of(request).client_ip)

    def authenticate(self, request: Request) -> tuple[Member, Member] | None:
        """DRF's hook, for the control plane; None when no token was sent."""
        try:
            text = read(request.META)
        except errors.MissingToken:
            return None
        member = check(text, context_of(request).client_ip)
        return member, member


class StaffJWTAuthentication(JWTAuthentication):
    """The same for `/admin/*`: whoever is not staff finds nothing there (404)."""

    def authenticate(self, request: Request) -> tuple[Member, Member] | None:
        found = super().authenticate(request)
        if found is not None and not found[1].is_staff:
            raise errors.NotFound
        return found


def is_own_origin(origin: str, host: str) -> bool:
    """Whether pages of `origin` may use our cookies and sockets: our own, and those named.

    `host` is what the request says; it counts only when it is one of `ALLOWED_HOSTS`.
    """
    if origin in settings.CORS_ALLOWED_ORIGINS:
        return True
    domain, _ = split_domain_port(host)
    if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
        return False
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # such as half an IPv6 address
        return False


def read(meta: Mapping[str, Any]) -> str:
    """The token's text; raises `MissingToken`."""
    text = bearer(meta.get("HTTP_AUTHORIZATION", ""))
    if not text:
        raise errors.MissingToken
    return text


async def member_of(text: str, client_ip: str) -> Member:
    """Who the access token `text` stands for, from the event loop.

    Raises `InvalidToken`, `RateLimited` (its address has failed too often) or `StoreUnavailable`.
    """
    key = digest(text)
    known = _memory.known.get(key)
    if known is not None and known.valid_until > clock.time() and known.is_fresh:
        return known.member
    token = _verified(text)
    if known is None and settings.RATE_LIMIT_ENABLED:
        await refuse_used_up(ip_policy(client_ip))
    generation = _memory.generation
    try:
        member = await asyncio.shield(_loader.start(UUID(token["sid"])))
    except errors.StoreUnavailable:
        if known is None:
            raise
        return known.member  # until it expires: the signature is good, and it was good before
    return _kept(key, token, member, generation)


def check(text: str, client_ip: str) -> Member:
    """The same for the control plane, in the caller's thread."""
    key = digest(text)
    known = _memory.known.get(key)
    if known is not None and known.valid_until > clock.time() and known.is_fresh:
        return known.member
    token = _verified(text)
    if known is None and settings.RATE_LIMIT_ENABLED:
        refuse_used_up_sync(ip_policy(client_ip))
    generation, session_id = _memory.generation, UUID(token["sid"])
    return _kept(key, token, look_up([session_id]).get(session_id), generation)


def expiry_of(text: str) -> float:
    """When a valid access token ends, in Unix seconds; raises `InvalidToken`."""
    return float(_verified(text)["exp"])


async def active_sessions(session_ids: Iterable[UUID]) -> dict[UUID, Member | None]:
    """What the database says of sessions now, from the event loop; may raise 503."""
    ids = list(session_ids)
    found = await asyncio.gather(*(asyncio.shield(_loader.start(i)) for i in ids))
    return dict(zip(ids, found, strict=True))


def _kept(key: str, token: Access, member: Member | None, generation: int) -> Member:
    if member is None or str(member.user_id) != token["sub"]:
        _memory.known.drop(key)
        raise errors.InvalidToken
    _memory.remember(key, _CachedEntry(member, token["exp"], monotonic()), generation)
    return member


def _verified(text: str) -> Access:
    """The token, when its signature, algorithm, kind and time are right."""
    if len(text) > TOKEN_CHARS_MAX:
        raise errors.InvalidToken
    try:
        token = Access(text)  # type: ignore[arg-type]  # simplejwt's annotation
        UUID(token["sid"]), UUID(token["sub"])
    except (TokenError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise errors.InvalidToken from exc
    return token


async def _fetch(session_ids: Sequence[UUID]) -> dict[UUID, Member]:
    return await database.find(look_up, session_ids)


_loader: Loader[UUID, Member] = Loader(_fetch)


def look_up(session_ids: Sequence[UUID]) -> dict[UUID, Member]:
    """The members of those sessions that still stand: not revoked, user active, same password."""
    try:
        return {
            family.pk: member_of_family(family)
            for family in RefreshFamily.objects.select_related("user__robin_access").filter(
                pk__in=list(session_ids), revoked_at=None, user__is_active=True
            )
            if family.is_of_current_password
        }
    except DatabaseError as exc:
        log.error("session_lookup_failed", error=type(exc).__name__)
        raise


def member_of_family(family: RefreshFamily) -> Member:
    user = family.user
    access = getattr(user, "robin_access", None)
    role = access.role if access is not None else None
    limit = settings.RATE_LIMIT_PER_MINUTE
    # The name 'minute' is what `@endpoint(minute_cost=…)` speaks of.
    policies = Policies((per_minute("minute", f"{{user:{user.pk}}}", limit),))
    return Member(
        user_id=user.pk,
        session_id=family.pk,
        username=user.username,
        email=user.email,
        role=role,
        is_staff=user.is_staff,
        is_superuser=user.is_superuser,
        scopes=frozenset(permissions_of(role)),
        policies=policies if settings.RATE_LIMIT_ENABLED else (),
    )
