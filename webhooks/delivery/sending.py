"""One request to a webhook: signed, within its time, to nowhere but a vetted address.

`Sender` keeps connections and lives in one event loop; thousands of requests may be in flight.
Redirects are never followed, cookies never kept, proxies of the environment never used. Imported
where something is sent: aiohttp takes a tenth of a second and six megabytes of each process.
"""

from __future__ import annotations

import asyncio
import errno
import math
import re
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from time import perf_counter
from types import TracebackType
from uuid import UUID

import aiohttp
from django import db
from django.conf import settings
from django.utils.translation import gettext_noop
from yarl import URL

from gateway_project.core import clock
from gateway_project.core.storable import cleaned
from gateway_project.core.stores import database, statements
from gateway_project.core.telemetry import tracing
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.upstream import destinations, names
from gateway_project.core.upstream.resolver import GuardedResolver
from webhooks import signing
from webhooks.delivery.attempt import TIMEOUT_SECONDS, Job, Kind, Outcome
from webhooks.receiving import inbox

RESPONSE_BYTES_MAX = 16 << 10
KEEP_SECONDS = 30.0
LOOKED_UP_SECONDS = 10
"""How long a vetted look-up is used again; what it found is still what is dialled."""
ERROR_CHARS_MAX = 300
SECONDS = re.compile(r"[0-9]{1,9}\Z")
# Of a connection: no route at all, no local port, file or memory left. Of IPv6 the first says only
# that this host has none, and the receiver nothing else.
OURS = frozenset((errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
NO_NETWORK = frozenset((errno.ENETUNREACH, errno.ENETDOWN))
log = get_logger("gateway.webhooks")


def _own_headers() -> dict[str, str]:
    return {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"Gateway-Webhooks/{settings.VERSION}",
    }


class Sender:
    """`async with Sender() as sender: await sender.send(job)`; used inside one event loop."""

    def __init__(self) -> None:
        self._usual, self._plain = (self._session(is_plain=plain) for plain in (False, True))
        self._inboxes = ThreadPoolExecutor(1, thread_name_prefix="webhooks-inbox")

    @staticmethod
    def _session(*, is_plain: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=GuardedResolver(is_plain=is_plain),
                limit=0,  # who sends knows how many there may be
                ttl_dns_cache=LOOKED_UP_SECONDS,
                keepalive_timeout=KEEP_SECONDS,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            headers=_own_headers(),
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._usual.close()
        await self._plain.close()
        self._inboxes.shutdown(wait=False)

    async def send(self, job: Job) -> Outcome:
        """Try once. Never raises for what a receiver does."""
        at, started = clock.now(), perf_counter()
        kind: Kind
        http_status, body, retry_after, error = None, "", None, ""
        try:
            http_status, body, retry_after = await self._post(job, int(at.timestamp()))
            kind = "delivered" if 200 <= http_status < 300 else "failed"
        except destinations.Refused as exc:
            kind, error = "refused", str(exc)
        except TimeoutError:
            kind, error = "timeout", f"no answer within {TIMEOUT_SECONDS:g} s"
        except Exception as exc:  # noqa: BLE001 - whatever a receiver causes is its attempt's end
            kind, error = "deferred" if _is_ours(exc) else "error", _in_words(exc)
        return Outcome(
            at=at,
            duration_ms=round((perf_counter() - started) * 1000),
            kind=kind,
            http_status=http_status,
            error=error[:ERROR_CHARS_MAX],
            response_body=body,
            retry_after_seconds=retry_after,
            ended_at=clock.now(),
        )

    async def _post(self, job: Job, timestamp: int) -> tuple[int, str, float | None]:
        if not job.secrets:
            raise MissingSecret
        headers = signing.headers(job.secrets, job.event_id, timestamp, job.body)
        if job.inbox_id is not None:
            return await self._put(job.inbox_id, headers, job.body)
        destination = destinations.read(job.url)
        session = self._plain if destination.is_plain else self._usual
        url = URL(job.url, encoded=True)
        if job.traceparent:
            headers[tracing.HEADER] = job.traceparent
        with (
            names.asked_by(str(job.workspace_id)),
            tracing.calling("webhook POST", headers, **{"gateway.event": str(job.event_id)}),
        ):
            for is_last in (False, True):
                try:
                    async with session.post(
                        url, data=job.body, headers=headers, allow_redirects=False
                    ) as answer:
                        body = await _read(answer)
                        return answer.status, body, _retry_after(answer.headers.get("Retry-After"))
                except aiohttp.ServerDisconnectedError:
                    # Mostly a kept connection that the receiver closed while we reached for it.
                    if is_last:
                        raise
        raise AssertionError("unreachable")

    async def _put(
        self, inbox_id: UUID, headers: dict[str, str], body: bytes
    ) -> tuple[int, str, float | None]:
        """Into the workspace's own inbox, as `POST /inbox/{token}` would, without a socket."""
        shown = {name.lower(): value for name, value in {**_own_headers(), **headers}.items()}

        def put() -> None:
            db.close_old_connections()
            try:
                # One thread for all inboxes: a row that one workspace holds keeps it half a second.
                with statements.bounded(database.BOUNDS):
                    inbox.receive(inbox_id, shown, body)
            finally:
                db.close_old_connections()

        async with asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.get_running_loop().run_in_executor(self._inboxes, put)
        return 202, "Kept in the inbox.", None


class MissingSecret(Exception):
    """None of the webhook's secrets could be decrypted."""


async def _read(answer: aiohttp.ClientResponse) -> str:
    """The beginning of the body. Its status is an answer, also when the body breaks off."""
    parts: list[bytes] = []
    received = 0
    try:
        while received < RESPONSE_BYTES_MAX:
            part = await answer.content.read(RESPONSE_BYTES_MAX - received)
            if not part:
                break
            parts.append(part)
            received += len(part)
    except (TimeoutError, aiohttp.ClientError):
        answer.close()
    if not answer.content.at_eof():
        answer.close()  # the rest is not worth its time, and the connection not without it
    return cleaned(b"".join(parts).decode(errors="replace"))


def _retry_after(value: str | None) -> float | None:
    """Seconds, from either form of the header; None for what is neither."""
    if value is None:
        return None
    value = value.strip()
    if SECONDS.match(value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        seconds = (at - clock.now()).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _is_ours(exc: Exception) -> bool:
    """Whether the trouble lies on our side of the connection."""
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return isinstance(exc.os_error, names.ResolverAway)
    if isinstance(exc, aiohttp.ClientConnectorError):
        number = exc.os_error.errno
        return number in OURS or (number in NO_NETWORK and not _is_ipv6(exc))
    # What neither a library nor the system raises about a connection comes from our own stores.
    return not isinstance(exc, MissingSecret | aiohttp.ClientError | OSError)


def _is_ipv6(exc: aiohttp.ClientConnectorError) -> bool:
    # Connect call failed ('::1', 443, 0, 0)
    return ":" in (exc.os_error.strerror or "").partition("(")[2]


def _in_words(exc: Exception) -> str:
    """For the customer: what happened at the connection, and nothing of our own network."""
    if isinstance(exc, MissingSecret):
        return gettext_noop("its secret could not be decrypted; rotate it")
    if isinstance(exc, aiohttp.ClientConnectorDNSError) and _is_ours(exc):
        return gettext_noop("our name servers did not answer")
    if isinstance(exc, aiohttp.ClientConnectorError) and _is_ours(exc):
        return gettext_noop("our own network could not be used")
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return gettext_noop("the host is unknown")
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return gettext_noop("its certificate was not accepted")
    if isinstance(exc, aiohttp.ClientSSLError):
        return gettext_noop("no TLS connection could be made")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return gettext_noop("no connection could be made")
    if isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return gettext_noop("the connection was closed without an answer")
    if isinstance(exc, aiohttp.ClientError | OSError):
        return gettext_noop("the answer was not HTTP as we understand it")
    log.error("webhook_attempt_failed", error=type(exc).__name__, exc_info=exc)
    return gettext_noop("the attempt failed on our side")


def send_once(job: Job) -> Outcome:
    """Try once, from a thread without an event loop; blocks for at most `TIMEOUT_SECONDS`.

    Not inside a transaction.
    """
    database.let_go()

    async def run() -> Outcome:
        async with Sender() as sender:
            return await sender.send(job)

    return asyncio.run(run())
