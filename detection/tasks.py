"""What the worker does for detections: the chunks of jobs, and what beat asks for."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

from celery import current_app, shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django import db
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from detection import comparisons
from detection.evaluation import budget
from detection.feedback import services
from detection.jobs import store, turns, worker
from detection.jobs.turns import Message
from detection.policies import policy
from gateway_project.core import mails
from gateway_project.core.stores import database, queues
from gateway_project.core.stores.refused import each_alone
from gateway_project.core.telemetry import tracing
from gateway_project.core.telemetry.logging import get_logger

TIME_LIMIT = worker.CHUNK_SECONDS_MAX + 30  # for pools of processes; by then ours has failed
ROUNDS_MAX = 2  # one under way, and one that sees what it did not
_sender = ThreadPoolExecutor(1, thread_name_prefix="jobs-send")
_rounds: set[Future[None]] = set()
log = get_logger("gateway.jobs")


@shared_task(
    autoretry_for=(Exception,),
    retry_backoff=True,
    retry_backoff_max=60,
    max_retries=store.ATTEMPTS_MAX,
    soft_time_limit=TIME_LIMIT,
    time_limit=TIME_LIMIT + 30,
)
def judge_chunk(chunk_id: str) -> bool:
    """Judge one chunk of a job; False when there is nothing to do: a message may come twice."""
    try:
        return worker.judge_chunk(UUID(chunk_id))
    finally:
        _take_turns()


@shared_task(expires=10)
def work() -> int:
    """Send the tasks of chunks whose turn has come, and those again whose message, or whose worker,
    was lost; returns how many."""
    chunks = store.lost(in_line=_are_in_line)
    send(Message(chunk.pk, turns.priority_of(chunk), chunk.job.traceparent) for chunk in chunks)
    return len(chunks) + take_turns()


def _are_in_line() -> bool:
    database.let_go()
    return queues.length(queues.DETECTION) > 0


def take_turns() -> int:
    """Send the tasks of the chunks whose turn it is; returns how many."""
    messages = turns.take()
    send(messages)
    return len(messages)


def take_turns_behind() -> None:
    """The same in a thread of its own: a broker that hangs keeps no request, and no SQL, waiting.

    One round is for all who ask before it begins.
    """
    if len(_rounds) < ROUNDS_MAX:
        coming = _sender.submit(_take_turns_and_close)
        _rounds.add(coming)
        coming.add_done_callback(_rounds.discard)


def _take_turns_and_close() -> None:
    try:
        _take_turns()
    finally:
        db.connections.close_all()


def _take_turns() -> None:
    """Whoever ends leaves a place free. A store that is away leaves it to the sweep."""
    try:
        take_turns()
    except db.Error as exc:
        log.warning("turns_not_taken", error=type(exc).__name__)


def send(messages: Iterable[Message]) -> None:
    """Send these tasks. Never raises: what cannot be sent waits for another turn."""
    unsent = list(messages)
    if not unsent:
        return
    database.let_go()
    try:
        with current_app.producer_or_acquire() as producer:
            while unsent:
                chunk_id, priority, traceparent = unsent[0]
                judge_chunk.apply_async(
                    (str(chunk_id),),
                    producer=producer,
                    priority=priority,
                    headers={tracing.HEADER: traceparent} if traceparent else {},
                    retry=False,
                )
                del unsent[0]
    except (OperationalError, RedisError, OSError) as exc:
        log.warning("chunks_unsent", chunks=len(unsent), error=type(exc).__name__)
        store.note_unsent(message.chunk_id for message in unsent)


@worker_process_shutdown.connect
@worker_shutdown.connect
def _let_chunks_end(**_: Any) -> None:
    worker.background.stop()


@shared_task(expires=60)
def prune_jobs() -> int:
    return store.prune()


@shared_task(expires=60)
def prune() -> int:
    """Forget feedback, old policies and figures of engines past their time."""
    return sum(each_alone((services, policy, comparisons), lambda kind: kind.prune()))


@shared_task(expires=60)
@mails.in_turn
def watch_budgets() -> int:
    """Look whether keys' traffic is still what their thresholds were fitted on."""
    return budget.check()
