"""Many items at once: a row for each such action, and a worker that does it piece by piece.

A piece takes about a second of Robin's time, and Robin rests after each as after a list. How far it
came is written down before and after each piece; of a piece that was under way when somebody died,
or whose answer never came, nobody knows, and it is not sent again: each retry costs an item a try.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils.translation import gettext_noop
from redis.exceptions import RedisError

from accounts.events import audit
from gateway_project.core import clock, errors
from gateway_project.core.clock import utc_text
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from robin.models import QueueJob, RobinAccess
from robin.permissions import Permission, permissions_of
from robin.queue import services
from robin.queue.alerts import tls
from robin.queue.live import JOBS_CHANNEL
from robin.queue.scan import Claimed, Scanner
from robin.queue.source import PlainSource
from robin.queue.turns import AT_ONCE
from robin.upstream.client import is_undone, may_go_on

KEEP_DAYS = 30
ROUND_SECONDS = 20.0
LEASE = timedelta(seconds=60)
PIECE_SECONDS = 1.0
PIECE_BEGIN, PIECE_MAX = 25, 500
TIMEOUT_SECONDS = 60.0
"""Robin works off a piece whether or not we wait: giving up early would only not know."""
WAIT_SECONDS = 600
"""So long it waits for Robin, since Robin did something of it last."""
MAY_NOT = gettext_noop(
    "Whoever began it may no longer do this; the rest was not tried. Begin it anew as who may."
)
WAITS = gettext_noop("Robin does not answer. The rest is tried when it does, within ten minutes.")
WAS_AWAY = gettext_noop(
    "Robin did not answer for ten minutes; the rest was not tried. Begin it anew when it answers."
)
UNREADABLE = gettext_noop(
    "It is not stored as it was asked for; the rest was not tried. Begin anew."
)
REFUSED = gettext_noop(
    "Robin refused this for ten minutes; the rest was not tried. The gateway's log says why."
)
OPEN = (QueueJob.State.QUEUED, QueueJob.State.PROCESSING)
CANCELLED = QueueJob.State.CANCELLED
RESULT = ("state", "finished_at", "detail", "sent", "unknown", "in_flight", "claimed_until")
log = get_logger("gateway.robin")


def begin(
    action: str,
    uids: Sequence[str],
    *,
    by: UUID,
    is_forced: bool,
    trail: dict[str, Any],
    details: dict[str, Any],
    last_try: int,
) -> QueueJob:
    """Write it down, with its line of the audit trail: neither is there without the other. A worker
    begins within seconds."""
    with transaction.atomic():
        job = QueueJob.objects.create(
            action=action,
            created_by_id=by,
            uids=zlib.compress(b"".join(UUID(uid).bytes for uid in uids)),
            requested=len(uids),
            is_forced=is_forced,
            last_try=last_try,
            audit=trail,
        )
        name, target = f"robin.queue.{action}", f"{len(uids)} items"
        audit(name, target=target, **trail, job=str(job.pk), **details)
    return job


def uids_of(job: QueueJob) -> list[str]:
    raw = zlib.decompress(bytes(job.uids))
    return [str(UUID(bytes=raw[start : start + 16])) for start in range(0, len(raw), 16)]


def find(job_id: UUID) -> QueueJob | None:
    return QueueJob.objects.defer("uids").filter(pk=job_id).first()


def cancel(job_id: UUID, *, trail: Mapping[str, Any], detail: str = "") -> QueueJob | None:
    """What was not begun is left; None where there is no such job, as it is where it is over."""
    with transaction.atomic():
        job = _locked(job_id)
        if job is not None and job.state in OPEN:
            audit("robin.queue.action.cancelled", target=str(job.pk), **trail)
            job.state, job.finished_at, job.detail = CANCELLED, clock.now(), detail
            if job.claimed_until is None or job.claimed_until < job.finished_at:
                _write_result(job)
            else:  # by who works at it, or by the next worker when that one is gone
                job.save(update_fields=["state", "finished_at", "detail"])
            transaction.on_commit(partial(tell, job))
    return job


def _locked(job_id: UUID) -> QueueJob | None:
    locked = QueueJob.objects.select_for_update(no_key=True)
    return locked.defer("uids").filter(pk=job_id).first()


def _write_result(job: QueueJob) -> None:
    """It is over, and nobody works at it any more: once, with the line that says what came of it.

    Joins the caller's transaction, which holds the row. Of what was under way nobody knows.
    """
    job.sent, job.unknown = job.sent + job.in_flight, job.unknown + job.in_flight
    job.in_flight, job.claimed_until = 0, None
    job.save(update_fields=RESULT)
    trail = dict(job.audit)
    audit(
        f"robin.queue.{job.action}.result",
        actor=trail.get("actor", ""),
        target=str(job.pk),
        client_ip=trail.get("client_ip"),
        request_id=trail.get("request_id", ""),
        state=job.state,
        requested=job.requested,
        done=job.done,
        unknown=job.unknown,
        left_out=job.left_out,
    )


def shown(job: QueueJob) -> dict[str, Any]:
    """As the API shows it."""
    answer: dict[str, Any] = {
        "id": str(job.pk),
        "action": job.action,
        "state": job.state,
        "requested": job.requested,
        "sent": job.sent,
        "done": job.done,
        "unknown": job.unknown,
        "leftOut": job.left_out,
        "createdAt": utc_text(job.created_at),
        "warnings": services.warnings(job.action, job.last_try, job.is_in_doubt),
    }
    if job.finished_at is not None:
        answer["finishedAt"] = utc_text(job.finished_at)
    if job.detail:
        answer["message"] = job.detail
    return answer


def tell(job: QueueJob) -> None:
    """Whoever watches the queue sees how far it is."""
    bus.say(JOBS_CHANNEL, orjson.dumps(shown(job)).decode())


def prune() -> int:
    old = QueueJob.objects.filter(finished_at__lt=clock.now() - timedelta(days=KEEP_DAYS))
    return Round().delete(old.order_by("finished_at"))


# -- The worker -----------------------------------------------------------------------------------


def work() -> int:
    """Go on with the oldest open job that nobody works at; how many pieces were done."""
    job = _claim() if settings.ROBIN_CLIENT_API_URL else None
    if job is None:
        return 0
    with asyncio.Runner() as runner:
        pieces = 0
        worker = runner.run(_Worker.open())
        try:
            until = monotonic() + ROUND_SECONDS
            while monotonic() < until and _piece(job, worker, runner, until):
                pieces += 1
        finally:
            runner.run(worker.close())
            _let_go(job.pk)
    return pieces


def _let_go(job_id: UUID) -> None:
    with transaction.atomic():
        job = _locked(job_id)
        if job is None or job.claimed_until is None:
            return
        if job.state in OPEN:
            job.claimed_until = None
            job.save(update_fields=["claimed_until"])
        else:
            _write_result(job)


def _claim() -> QueueJob | None:
    now = clock.now()
    for stopped in QueueJob.objects.filter(state=CANCELLED, claimed_until__lt=now).defer("uids"):
        _let_go(stopped.pk)  # whoever worked at it is gone
    free = Q(claimed_until=None) | Q(claimed_until__lt=now)
    for job in QueueJob.objects.filter(free, state__in=OPEN).order_by("created_at")[:5]:
        same = QueueJob.objects.filter(pk=job.pk, claimed_until=job.claimed_until, state__in=OPEN)
        if same.update(claimed_until=now + LEASE, state=QueueJob.State.PROCESSING):
            job.refresh_from_db()
            if job.in_flight:  # whoever sent that is gone, and with it the answer
                _note(job, sent=job.in_flight, unknown=job.in_flight)
            return job
    return None


def _note(job: QueueJob, *, sent: int, done: int = 0, unknown: int = 0, left_out: int = 0) -> None:
    # Unless somebody has given it up meanwhile, and said that nobody knows.
    QueueJob.objects.filter(pk=job.pk, in_flight__gt=0).update(
        sent=F("sent") + sent,
        done=F("done") + done,
        unknown=F("unknown") + unknown,
        left_out=F("left_out") + left_out,
        in_flight=0,
        waits_since=None,
        detail="",
        claimed_until=clock.now() + LEASE,
    )
    job.refresh_from_db()
    tell(job)


def _piece(job: QueueJob, worker: _Worker, runner: asyncio.Runner, until: float) -> bool:
    """Do a piece of it; False when it is over, or has to wait."""
    if job.state not in OPEN:
        _finish(job)
        return False
    try:
        uids = uids_of(job)[job.sent : job.sent + worker.size]
    except (zlib.error, *UNFIT) as exc:
        log.error("queue_job_unreadable", job=str(job.pk), error=type(exc).__name__, alert=True)
        _finish(job, UNREADABLE)
        return False
    if not uids:
        _finish(job)
        return False
    database.let_go()
    if not runner.run(worker.begin(until)):
        return False
    if not _may_still(job):
        cancel(job.pk, trail={"actor": "gateway"}, detail=MAY_NOT)
    chosen = uids if job.is_forced else [uid for uid in uids if uid not in worker.claimed.uids]
    flying = QueueJob.objects.filter(pk=job.pk, state__in=OPEN)
    flight = {"in_flight": len(uids), "claimed_until": clock.now() + LEASE + LEASE}
    if chosen and not worker.claimed.is_certain:
        flight["is_in_doubt"] = True
    if not flying.update(**flight):
        runner.run(worker.end(0.0))
        job.refresh_from_db()
        return True  # it was cancelled
    database.let_go()
    left_out = len(uids) - len(chosen)
    try:
        done = runner.run(worker.act(job.action, chosen)) if chosen else 0
    except errors.GatewayError as error:
        if is_undone(error):
            _wait(job, error)
            return False
        log.warning("queue_piece_unknown", job=str(job.pk), items=len(chosen), error=error.code)
        _note(job, sent=len(uids), unknown=len(chosen), left_out=left_out)
        return False
    finally:
        if not chosen:
            runner.run(worker.end(0.0))
    _note(job, sent=len(uids), done=done, left_out=left_out)
    return True


def _wait(job: QueueJob, error: errors.GatewayError) -> None:
    """Nothing was done of the piece: it is tried again later, unless that went on for too long."""
    is_away, now = isinstance(error, errors.UpstreamUnavailable), clock.now()
    since = job.waits_since or now
    same = QueueJob.objects.filter(pk=job.pk)
    same.update(in_flight=0)
    detail = WAITS if is_away else str(error.detail)
    same.filter(state__in=OPEN).update(waits_since=since, detail=detail)
    if now - since > timedelta(seconds=WAIT_SECONDS):
        _finish(job, WAS_AWAY if is_away else REFUSED)
    else:
        job.refresh_from_db()
        tell(job)


def _may_still(job: QueueJob) -> bool:
    """Whether who began it may do it now: accounts and roles end in many places, and none has to
    know of what is open here."""
    access = RobinAccess.objects.filter(user=job.created_by_id, user__is_active=True).first()
    needed = {Permission.MANAGE_QUEUE}
    if job.action == "delete" or job.is_forced:
        needed.add(Permission.DELETE_QUEUE_ITEMS)
    return access is not None and needed <= permissions_of(access.role)


def _finish(job: QueueJob, detail: str = "") -> None:
    with transaction.atomic():
        found = _locked(job.pk)
        if found is None or found.claimed_until is None:
            return
        if found.state in OPEN:
            is_whole = found.sent >= found.requested and not found.unknown
            found.state = QueueJob.State.COMPLETE if is_whole else QueueJob.State.PARTIAL
            found.finished_at, found.detail = clock.now(), detail
        _write_result(found)
    tell(found)


class _Worker:
    """What asks Robin for a job; lives in the loop of its runner."""

    def __init__(self, source: PlainSource) -> None:
        self.source = source
        self.scanner = Scanner(source=source)
        self.size = PIECE_BEGIN
        self.claimed = Claimed()

    @classmethod
    async def open(cls) -> _Worker:
        return cls(await PlainSource(tls()).__aenter__())

    async def close(self) -> None:
        await self.scanner.close()
        await self.source.__aexit__(None, None, None)

    async def begin(self, until: float) -> bool:
        """Wait for the turn; False when that would take too long."""
        try:
            if not await self._took_turn(until):
                return False
            # Robin has rested. Who is being delivered is asked only now: it is soon out of date.
            await self.end(0.0)
            self.claimed = await self.scanner.claimed()
            return await self._took_turn(until, owing_seconds=AT_ONCE)
        except (errors.GatewayError, RedisError, OSError):
            return False

    async def _took_turn(self, until: float, *, owing_seconds: float = 0.0) -> bool:
        while True:
            turn = await self.scanner.turns.begin(owing_seconds=owing_seconds)
            if turn.state == "mine":
                return True
            if turn.state == "abandoned":
                await self.scanner.settle(turn)
            if monotonic() > until:
                return False
            await asyncio.sleep(min(1.0, max(0.05, turn.seconds)))

    async def end(self, took: float) -> None:
        await self.scanner.turns.end(took)

    async def act(self, action: str, uids: list[str]) -> int:
        began = monotonic()
        try:
            answer = await self.source.act(action, uids, timeout_seconds=TIMEOUT_SECONDS)
            done = services.counted(action, answer, len(uids))  # type: ignore[arg-type]
        except errors.GatewayError as error:
            if may_go_on(error):
                await self.scanner.turns.leave()
            else:
                await self.end(monotonic() - began)
            raise
        took = monotonic() - began
        await self.end(took)
        await self.scanner.acted(action, uids, done=done, want_again=False)
        fitting = int(len(uids) * PIECE_SECONDS / max(took, 0.001))
        self.size = max(1, min(PIECE_MAX, fitting, 2 * self.size))
        return done
