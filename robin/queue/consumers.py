"""`/ws/queue`: who may open a socket. What is then told is `robin/queue/live.py`'s.

The token comes as a one-time ticket (`?ticket=`), as a subprotocol (`bearer, <token>`; browsers can
send nothing else), as `Authorization: Bearer` (programs), or as `?token=`, which is logged nowhere.
A socket that may not watch is accepted and closed at once: only then does its page learn the code,
4401 (no session), 4403 (no permission, or a foreign origin) or 4429 (too many of one person).
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import parse_qs

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

from accounts.authentication import bearer
from gateway_project.core import clock, errors
from gateway_project.core.api.middleware import send_problem
from gateway_project.core.context import RequestContext
from gateway_project.core.ratelimit import get_limiter, ip_policy, refuse_used_up
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached
from robin.access import tickets
from robin.access.authentication import Member, active_sessions, expiry_of, is_own_origin, member_of
from robin.permissions import Permission
from robin.queue import live

SUBPROTOCOL = "bearer"
SINCE = re.compile(r"[0-9]{1,16}")  # more digits than any number of ours: not resumed
log = get_logger("gateway.live")


class QueueConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels has no types
    """One client. The hub of the process listens to the channel layer, once for all of them."""

    channel_layer_alias = "none of its own"
    client: live.Client | None = None

    async def dispatch(self, message: dict[str, Any]) -> None:
        # Channels' own would hop to a thread each time, for database connections that are not used.
        match message["type"]:
            case "websocket.connect":
                await self.connect()
            case "websocket.disconnect":
                if self.client is not None:
                    live.hub().leave(self.client)
                raise StopConsumer
            # What a client sends is read and means nothing: there is nothing to say here.

    async def connect(self) -> None:
        context: RequestContext = self.scope["gateway"]
        query = parse_qs(self.scope["query_string"].decode("latin-1"))
        try:
            member, valid_until = await self._admit(query, context.client_ip)
        except errors.GatewayError as error:
            await self._refuse(error, context)
            return
        await self.accept(self._chosen_subprotocol())
        if live.hub().sockets_of(member.user_id) >= settings.SOCKETS_PER_USER_MAX:
            bound_reached.labels("sockets").inc()
            context.error_code = errors.RateLimited.code
            await self.close(live.TOO_MANY)
            return
        self.client = live.Client(member, valid_until, self._send_text, self.close)
        since = query.get("since", [""])[0]
        self.client.since = int(since) if SINCE.fullmatch(since) else None
        live.hub().join(self.client)

    async def _send_text(self, text: str) -> None:
        await self.send(text_data=text)

    async def _admit(self, query: dict[str, list[str]], client_ip: str) -> tuple[Member, float]:
        headers = {name: value.decode("latin-1") for name, value in self.scope["headers"]}
        origin = headers.get(b"origin")
        if origin is not None and not is_own_origin(origin, headers.get(b"host", "")):
            raise errors.PermissionDenied(
                "Pages of this origin may not. Who runs the gateway can add it to CORS_ORIGINS."
            )
        if "ticket" in query:
            if settings.RATE_LIMIT_ENABLED:  # a guesser gets no look-up for each guess
                await refuse_used_up(ip_policy(client_ip))
            session_id, valid_until = await asyncio.to_thread(tickets.redeem, query["ticket"][0])
            found = (await active_sessions([session_id]))[session_id]
            if found is None or valid_until <= clock.time():
                raise errors.InvalidToken
            member = found
        else:
            token = self._token(query, headers)
            member, valid_until = await member_of(token, client_ip), expiry_of(token)
        if Permission.VIEW_QUEUE not in member.scopes:
            raise errors.PermissionDenied
        return member, valid_until

    def _token(self, query: dict[str, list[str]], headers: dict[bytes, str]) -> str:
        offered = self.scope["subprotocols"]
        if len(offered) == 2 and offered[0] == SUBPROTOCOL:
            return str(offered[1])
        if token := bearer(headers.get(b"authorization", "")):
            return token
        if "token" in query:
            return query["token"][0]
        raise errors.MissingToken

    def _chosen_subprotocol(self) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in self.scope["subprotocols"] else None

    async def _refuse(self, error: errors.GatewayError, context: RequestContext) -> None:
        context.error_code = error.code
        if settings.RATE_LIMIT_ENABLED:
            decision = await get_limiter().check((ip_policy(context.client_ip),), (1,))
            try:
                decision.raise_if_denied()
            except errors.GatewayError as denied:  # not even accepted, which costs us least
                await send_problem(self.base_send, denied, self.scope)
                return
        await self.accept(self._chosen_subprotocol())
        code = live.FORBIDDEN if error.status_code == 403 else live.EXPIRED
        if isinstance(error, errors.StoreUnavailable):
            code = 1013  # try again later (RFC 6455 §7.4, IANA's registry)
        await self.close(code)
