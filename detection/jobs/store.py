"""Jobs at rest: made, claimed, finished, read, cancelled.

A job lies in chunks of 200 items, and each chunk is a task (`detection.tasks.judge_chunk`), which
is sent when its turn has come (`turns`). The row is the truth, and the message only says that there
is something to do: a claim holds a chunk under a lease, and results, rows of the usage log, counts
and events are one transaction. A chunk whose worker died is claimed again when its lease has ended,
a message that comes twice finds nothing to do, and `lost` names those whose message never came.
Texts are encrypted, and erased in the transaction that makes them needless.

Locks are taken in one order everywhere: chunks by their id, jobs, then the log's sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum
from django.utils.translation import gettext_noop

from accounts import parking
from accounts.events import audit, publish
from accounts.models import ApiKey, Plan, new_id
from accounts.services import Actor
from accounts.usage import log as usage_log
from accounts.usage import rows as usage_rows
from accounts.usage.partitions import ensure_partitions
from detection import callbacks
from detection.jobs import judging, turns
from detection.jobs.judging import Item, Judged, Origin, counts_of
from detection.models import UNFINISHED, Job, JobChunk
from detection.policies import policy
from detection.schemas import DetectConfig
from gateway_project.core import clock, encryption, errors
from gateway_project.core.context import current
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import advisory
from gateway_project.core.stores.refused import write_all_but
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached

LEASE = timedelta(seconds=8)
ATTEMPTS_MAX = 5
"""A chunk that so many workers died over is not tried again."""
VERSION = 1
"""Of the items that wait in a chunk."""
LEFT_TO_OTHERS = timedelta(seconds=5)
"""How soon the task of a chunk is sent again that this process cannot read."""
ITEMS_PER_SECOND = 500  # what is promised; measured are more (`make bench-batches`)
RETRY_SECONDS_MAX = 300
PRUNED_AT_ONCE = 500
SENT_AT_ONCE = 500
CLAIMED = (
    "size",
    "items",
    "attempts",
    "job__kind",
    "job__status",
    "job__api_key_id",
    "job__workspace_id",
    "job__client_ip",
    "job__correlation_id",
    "job__traceparent",
    "job__workspace__wanted_events",
)
SENT_OF = ("pk", "number", "size", "job__traceparent", "job__workspace__suspended_at")
JOBS_COUNTED_MAX = 50_000
TRUST_IN_LINE = timedelta(minutes=10)
"""The same while others wait in line before it. One that was not lost finds nothing to do."""
State = JobChunk.State
Status = Job.Status
log = get_logger("gateway.jobs")


# -- Making ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks for, beside its items."""

    kind: Job.Kind
    workspace_id: UUID
    api_key_id: UUID
    request_id: str
    webhook_url: str = ""
    metadata: dict[str, Any] | None = None
    correlation_id: str = ""
    traceparent: str = ""
    client_ip: str = ""
    job_id: UUID | None = None


def create(order: Order, items: Sequence[Item]) -> tuple[Job, list[JobChunk]]:
    """Store a job. SQL; joins the caller's transaction, after which it takes its turn
    (`tasks.take_turns_behind`).

    Raises 429 when more would wait of the workspace than its plan gives.
    """
    now = clock.now()
    job = Job(
        kind=order.kind,
        workspace_id=order.workspace_id,
        api_key_id=order.api_key_id,
        total=len(items),
        webhook_url=order.webhook_url,
        metadata=order.metadata,
        request_id=order.request_id,
        correlation_id=order.correlation_id,
        traceparent=order.traceparent,
        client_ip=order.client_ip,
        created_at=now,
        expires_at=now + timedelta(days=settings.JOB_RETENTION_DAYS),
    )
    if order.job_id is not None:
        job.id = order.job_id
    chunks = [
        JobChunk(
            job=job,
            number=number,
            first=first,
            size=len(part),
            items=encryption.encrypt(orjson.dumps([*map(_packed, part)]).decode()),
            workspace_id=order.workspace_id,
            turn=now + number * turns.TURN,
        )
        for number, (first, part) in enumerate(_parts(items))
    ]
    for chunk in chunks:
        chunk.items_bytes = len(chunk.items)
    with transaction.atomic():
        _require_room(order.workspace_id, chunks)
        job.save(force_insert=True)
        JobChunk.objects.bulk_create(chunks)
    return job, chunks


def _require_room(workspace_id: UUID, chunks: Sequence[JobChunk]) -> None:
    """Raise 429 when these would be more than the workspace's plan lets wait."""
    advisory.hold(f"jobs of {workspace_id}")  # of two at once, both would take the last place
    plan = Plan.objects.get(workspace=workspace_id)
    waiting = _waiting(workspace_id)
    for name, most, has, more in (
        ("waiting_items", plan.waiting_items_max, waiting["items"], sum(c.size for c in chunks)),
        (
            *("waiting_bytes", plan.waiting_bytes_max, waiting["bytes"]),
            sum(chunk.items_bytes for chunk in chunks),
        ),
    ):
        if has + more > most:
            bound_reached.labels(name).inc()
            wait = min(_seconds(waiting["items"]), RETRY_SECONDS_MAX)
            raise errors.RateLimited(
                f"The limit '{name}' of {most} for this workspace's jobs that are not finished is "
                f"reached: {has} wait, and these would be {more} more. Try again in {wait} "
                "seconds, or send less at a time.",
                headers={"Retry-After": str(wait)},
            )


def _waiting(workspace_id: UUID) -> dict[str, int]:
    """`items` and `bytes` of the workspace's chunks that are not finished."""
    unfinished = JobChunk.objects.filter(UNFINISHED, workspace_id=workspace_id)
    return unfinished.aggregate(items=Sum("size", default=0), bytes=Sum("items_bytes", default=0))


def _parts(items: Sequence[Item]) -> Iterator[tuple[int, Sequence[Item]]]:
    for first in range(0, len(items), turns.CHUNK_ITEMS):
        yield first, items[first : first + turns.CHUNK_ITEMS]


def _packed(item: Item) -> dict[str, Any]:
    if item.request is None:
        return {"v": VERSION, "id": item.id, "error": item.error}
    request = item.request
    return {
        "v": VERSION,
        "id": item.id,
        "text": request.text,
        "config": request.config.model_dump(exclude_defaults=True),
        "metadata": request.metadata,
        "request_id": item.request_id,
    }


def _unpacked(packed: dict[str, Any]) -> Item:
    if packed.get("v", VERSION) != VERSION:
        raise _NotForUs("its items are of a later version")
    if "error" in packed:
        return Item(packed["id"], None, packed["error"])
    request_id = UUID(packed["request_id"]) if packed["request_id"] else None
    config = DetectConfig(**packed["config"])
    return Item.of(packed["id"], packed["text"], config, packed["metadata"], request_id=request_id)


def seconds_ahead(items: int, workspace_id: UUID) -> int:
    """About how long `items` more of a workspace will take, behind its own that wait.

    What others wait for is not counted: they take turns with it, and it is nobody's to know.
    """
    return _seconds(_waiting(workspace_id)["items"] + items)


def _seconds(items: int) -> int:
    return 1 + math.ceil(items / ITEMS_PER_SECOND)


# -- Working --------------------------------------------------------------------------------------


class Work(NamedTuple):
    """A claimed chunk. Whoever claims it next has another `run`. Exhausted: tried often enough."""

    chunk_id: UUID
    job_id: UUID
    run: UUID
    items: list[Item]
    origin: Origin
    is_exhausted: bool


def claim(chunk_id: UUID) -> Work | None:
    """Take the chunk if it waits, or if who had it has died. None: there is nothing to do.

    That is so when it is done, cancelled or another's, while its workspace is suspended, and when
    this process has not its key or does not know its version: then it is left as it was, to others.
    """
    now, run = clock.now(), new_id()
    with transaction.atomic():
        chunk = (
            JobChunk.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
            .select_related("job__workspace")
            .only(*CLAIMED)
            .filter(_is_free(now), pk=chunk_id, job__workspace__suspended_at=None)
            .first()
        )
        if chunk is None:
            return None
        JobChunk.objects.filter(pk=chunk_id).update(
            state=State.PROCESSING,
            worker=run,
            leased_until=now + LEASE,
            attempts=F("attempts") + 1,
        )
    try:
        key = (
            ApiKey.objects.filter(pk=chunk.job.api_key_id)
            .select_related("workspace")
            .only("detection_policy", "workspace__detection_policy")
            .first()
        )
        work = _work(chunk, run, key)
    except _NotForUs as exc:
        log.warning("chunk_left_to_others", chunk=str(chunk_id), reason=str(exc))
        _leave(chunk_id, run)
        return None
    except Exception:
        release(chunk_id, run)
        raise
    if chunk.job.status == Status.QUEUED:
        Job.objects.filter(pk=chunk.job_id, status=Status.QUEUED).update(
            status=Status.PROCESSING, started_at=now
        )
    return work


class _NotForUs(Exception):
    """A chunk that only a process with other keys, or of a later version, can read."""


def _leave(chunk_id: UUID, run: UUID) -> None:
    """As if nobody had claimed it; its task is sent again soon, to whoever takes it."""
    with transaction.atomic():
        JobChunk.objects.filter(pk__in=_held({chunk_id: run})).update(
            state=State.QUEUED,
            worker=None,
            leased_until=None,
            attempts=F("attempts") - 1,
            sent_at=clock.now() - TRUST_IN_LINE + LEFT_TO_OTHERS,
        )


def _is_free(now: datetime) -> Q:
    return Q(state=State.QUEUED) | Q(state=State.PROCESSING, leased_until__lt=now)


def _work(chunk: JobChunk, run: UUID, key: ApiKey | None) -> Work:
    job = chunk.job
    is_exhausted = chunk.attempts >= ATTEMPTS_MAX
    if is_exhausted:
        key = None  # its policy may be what is wrong
    try:
        items = [_unpacked(packed) for packed in orjson.loads(encryption.decrypt(chunk.items))]
    except Exception as exc:
        if isinstance(exc, _NotForUs | encryption.Undecryptable) and not is_exhausted:
            raise _NotForUs(str(exc) or "no key of FIELD_ENCRYPTION_KEYS decrypts it") from None
        log.error("chunk_unreadable", chunk=str(chunk.pk), error=type(exc).__name__)
        if not is_exhausted:
            raise
        items = [Item("", None)] * chunk.size  # not even the ids are known
    return Work(
        chunk.pk,
        job.pk,
        run,
        items,
        Origin(
            api_key_id=job.api_key_id,
            workspace_id=job.workspace_id,
            endpoint=path_of(job.kind),
            policy=policy.of_key(key) if key is not None else policy.DEFAULT,
            wants_detections=not is_exhausted and job.workspace.wants_detections,
            client_ip=job.client_ip,
            correlation_id=job.correlation_id or None,
            traceparent=_traceparent(job),
            batch_id=str(job.pk) if job.kind == Job.Kind.BATCH else "",
        ),
        is_exhausted,
    )


def _traceparent(job: Job) -> str | None:
    """Of the task in hand, which is below the job's request; without traces the job's itself."""
    task = current.get()
    return (task and task.traceparent) or job.traceparent or None


def path_of(kind: str) -> str:
    return f"/v1/detect/{kind}"


def renew(works: Iterable[Work]) -> set[UUID]:
    """Keep these chunks; returns the runs that still hold theirs (others were cancelled)."""
    with transaction.atomic():
        held = _held({work.chunk_id: work.run for work in works})
        JobChunk.objects.filter(pk__in=held).update(leased_until=clock.now() + LEASE)
    return set(held.values())


def _held(runs: Mapping[UUID, UUID]) -> dict[UUID, UUID]:
    """Chunks that are held by just these runs, locked."""
    mine = JobChunk.objects.filter(pk__in=runs, worker__in=runs.values(), state=State.PROCESSING)
    rows = mine.select_for_update(no_key=True).order_by("pk").values_list("pk", "worker")
    return {pk: run for pk, run in rows if runs[pk] == run}


def release(chunk_id: UUID, run: UUID) -> None:
    """Give the chunk back untouched; whoever does that sends its task again."""
    with transaction.atomic():
        JobChunk.objects.filter(pk__in=_held({chunk_id: run})).update(
            state=State.QUEUED, worker=None, leased_until=None, sent_at=clock.now()
        )


def finish(work: Work, judged: Sequence[Judged]) -> bool:
    """Write what became of the chunk, all or nothing.

    False, and nothing is written, when this run holds it no more (cancelled, or its lease ended).
    Raises what the database refuses: see `fail`.
    """
    usage = _usage(work, judged)
    # Before the transaction: its end without a commit would take the partition along.
    ensure_partitions({date.fromisoformat(row[-1][:10]) for row in usage.rows})
    with transaction.atomic():
        if not _held({work.chunk_id: work.run}):
            return False
        JobChunk.objects.filter(pk=work.chunk_id).update(
            state=State.DONE,
            items="",
            results="\n".join(one.line.decode() for one in judged),
            worker=None,
            leased_until=None,
        )
        _add(work.job_id, judged)
        # Last: its sums are shared with everybody's calls, and held until the commit.
        usage_log.write([usage])
    return True


def fail(work: Work, error: Exception) -> bool:
    """End a chunk whose results the database refuses: all its items fail, and the rest goes on."""
    failed = [judging.failed(item, errors.InternalError()) for item in work.items]
    with transaction.atomic():
        parking.park("jobs.chunk", work.chunk_id, error, workspace_id=work.origin.workspace_id)
        return finish(work, failed)


def lost(*, in_line: Callable[[], bool]) -> list[JobChunk]:
    """Chunks whose task has to be sent again, noted as sent now; at most `SENT_AT_ONCE`.

    Those are the ones that a dead worker held, and that wait although theirs was sent `turns.TRUST`
    ago, or `TRUST_IN_LINE` while messages are still `in_line`, which is asked only when it matters.
    Those whose task was sent first come first; what is found of a suspended workspace is noted as
    well, so that it hides nobody else's.
    """
    now = clock.now()
    # One query for each state, because one for both has no index that gives its order.
    dead = JobChunk.objects.filter(state=State.PROCESSING, leased_until__lt=now)
    late = JobChunk.objects.filter(state=State.QUEUED, sent_at__lt=now - turns.TRUST)
    if not (dead.exists() or late.exists()):
        return []  # without a transaction: SQLite's would keep writers out
    if in_line():
        late = late.filter(sent_at__lt=now - TRUST_IN_LINE)
    dead = dead.filter(Q(sent_at=None) | Q(sent_at__lt=now - turns.TRUST)).order_by("leased_until")
    found: list[JobChunk] = []
    for chunks in (dead, late.order_by("sent_at")):
        some = chunks.select_related("job__workspace").only(*SENT_OF)
        found += some[: SENT_AT_ONCE - len(found)]
    _note_sent([chunk.pk for chunk in found], now)
    return [chunk for chunk in found if chunk.job.workspace.suspended_at is None]


def note_unsent(chunk_ids: Iterable[UUID]) -> None:
    """Their turn comes again."""
    _note_sent(chunk_ids, None)


def _note_sent(chunk_ids: Iterable[UUID], at: datetime | None) -> None:
    with transaction.atomic():
        rows = JobChunk.objects.filter(pk__in=list(chunk_ids))
        locked = rows.select_for_update(no_key=True, skip_locked=True).order_by("pk")
        JobChunk.objects.filter(pk__in=list(locked.values_list("pk", flat=True))).update(sent_at=at)


def _usage(work: Work, judged: Sequence[Judged]) -> usage_rows.Batch:
    rows = [one.row for one in judged if one.row is not None]
    extras = {one.row[0]: one.extra for one in judged if one.row is not None and one.extra}
    addresses = {work.origin.api_key_id: work.origin.client_ip}
    return usage_rows.Batch(work.chunk_id, rows, addresses, extras).plain()


def _add(job_id: UUID, judged: Sequence[Judged]) -> None:
    counts = counts_of(judged)
    Job.objects.filter(pk=job_id).update(
        succeeded=F("succeeded") + counts.succeeded,
        failed=F("failed") + counts.failed,
        flagged=F("flagged") + counts.flagged,
    )
    done = F("succeeded") + F("failed")
    job = Job.objects.select_related("workspace").filter(pk=job_id, total__lte=done).first()
    if job is None:
        return
    job.status = status_of(job.succeeded, job.failed)
    job.finished_at = clock.now()
    job.save(update_fields=["status", "finished_at"])
    # What the event repeats of the request must not cost the results.
    write_all_but([job], lambda _: _tell(job, judged), _park_event)


def _park_event(job: Job, error: Exception) -> None:
    parking.park("jobs.event", job.pk, error, workspace_id=job.workspace_id)


def status_of(succeeded: int, failed: int) -> Job.Status:
    """Of a job all of whose items are done."""
    if not failed:
        return Status.COMPLETE
    return Status.PARTIAL if succeeded else Status.FAILED


def _tell(job: Job, judged: Sequence[Judged]) -> None:
    """In the transaction of the fact: the address that the request named, and who subscribed.

    Of single texts subscribers hear from the usage log.
    """
    if job.kind == Job.Kind.ASYNC:
        name, result = _outcome(judged[-1])
        listeners = []
    else:
        name, result = _summary(job, judged)
        listeners = [""] if name in job.workspace.wanted_events else []
    if job.webhook_url:
        listeners.append(job.webhook_url)
    for deliver_to in listeners:
        publish(
            job.workspace,
            name,
            result=result,
            metadata=job.metadata,
            request_id=job.request_id,
            api_key_id=job.api_key_id,
            deliver_to=deliver_to,
            traceparent=_traceparent(job) or "",
        )


def _outcome(judged: Judged) -> tuple[str, dict[str, Any]]:
    endpoint = path_of(Job.Kind.ASYNC)
    verdict = judged.verdict
    if verdict is None:
        code = (judged.error or {}).get("code", "internal_error")
        status = errors.registered().get(code, errors.InternalError).status_code
        failure = {"code": code, "http_status": status, "endpoint": endpoint}
        return "detection.failed", failure
    return "detection.completed", callbacks.result_of(verdict, endpoint)


def _summary(job: Job, judged: Sequence[Judged]) -> tuple[str, dict[str, Any]]:
    known = {"batch_id": str(job.pk), "total": job.total, "status_url": status_url(job)}
    if job.status == Status.FAILED:
        return "batch.failed", {**known, "code": (judged[-1].error or {}).get("code", "")}
    counts = {"succeeded": job.succeeded, "failed": job.failed, "flagged": job.flagged}
    return "batch.completed", {**known, **counts, "status": str(job.status)}


# -- Reading and ending ---------------------------------------------------------------------------


def status_url(job: Job) -> str:
    return f"{path_of(job.kind)}/{job.pk}"


def of_workspace(workspace_id: UUID) -> QuerySet[Job]:
    return Job.objects.filter(workspace_id=workspace_id, expires_at__gt=clock.now())


def results(job: Job, first: int = 0, limit: int = 50) -> tuple[list[str], int | None]:
    """Up to `limit` lines of JSON from position `first` on, and where the next page begins.

    In order, and while the job runs only as far as there is no gap. What was cancelled has no
    results and is passed over, so that the pages of a cancelled job end. None: no more now.
    """
    lines: list[str] = []
    at = first
    chunks_max = limit // turns.CHUNK_ITEMS + 1
    chunks = list(
        job.chunks.filter(first__gt=first - F("size"))
        .exclude(state=State.CANCELLED)
        .order_by("first")
        .only("first", "state", "results")[: chunks_max + 1]
    )
    for chunk in chunks[:chunks_max]:
        if chunk.state != State.DONE:
            return lines, None
        for position, line in enumerate(chunk.results.split("\n"), chunk.first):
            if position < first:
                continue
            if len(lines) == limit:
                return lines, at
            lines.append(line)
            at = position + 1
    return lines, at if len(chunks) > chunks_max else None


def all_results(job: Job) -> Iterator[bytes]:
    """The lines of all chunks that are done, a chunk at a time."""
    done = job.chunks.filter(state=State.DONE)
    for number in list(done.order_by("number").values_list("number", flat=True)):
        yield f"{done.values_list('results', flat=True).get(number=number)}\n".encode()


def cancel(job: Job, *, actor: Actor) -> Job:
    """End it; what is judged stays, the texts are erased. Raises 409 when it is over already.

    Workers notice within `worker.RENEW_SECONDS`.
    """
    now = clock.now()
    with transaction.atomic():
        running = job.chunks.filter(state__in=[State.QUEUED, State.PROCESSING])
        ids = list(
            running.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True)
        )
        JobChunk.objects.filter(pk__in=ids).update(
            state=State.CANCELLED, items="", worker=None, leased_until=None
        )
        if not Job.objects.filter(pk=job.pk, finished_at=None).update(
            status=Status.CANCELLED, finished_at=now
        ):
            job.refresh_from_db()
            raise errors.Conflict(
                Sentence(
                    gettext_noop(
                        "The %(kind)s is %(status)s already: nothing is left to cancel. Read "
                        "its results at %(url)s."
                    ),
                    kind=Sentence(job.kind),
                    status=Sentence(job.status),
                    url=status_url(job),
                )
            )
        audit("job.cancelled", workspace=job.workspace, target=job.pk, **actor.fields())
    job.refresh_from_db()
    return job


def prune() -> int:
    """Drop jobs whose results can be read no longer, texts that still waited included."""
    old = Job.objects.filter(expires_at__lt=clock.now()).order_by("expires_at")
    return Round(rows=PRUNED_AT_ONCE).erase(old)


class Backlog(NamedTuple):
    """Jobs of the installation at this moment, without those of suspended workspaces.

    Of either kind `JOBS_COUNTED_MAX` are counted at most.
    """

    queued: int
    processing: int
    oldest_queued_seconds: float | None
    chunks_in_flight: int


def backlog() -> Backlog:
    waiting = Job.objects.filter(finished_at=None, workspace__suspended_at=None)
    queued = waiting.filter(status=Status.QUEUED)
    oldest = queued.order_by("created_at").values_list("created_at", flat=True).first()
    age = None if oldest is None else round((clock.now() - oldest).total_seconds(), 1)
    processing = waiting.filter(status=Status.PROCESSING)
    return Backlog(
        queued.order_by()[:JOBS_COUNTED_MAX].count(),
        processing.order_by()[:JOBS_COUNTED_MAX].count(),
        age,
        turns.in_flight(),
    )
