"""What the worker does for detections: the chunks of jobs, and what beat asks for."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

from celery import current_app, shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django import db
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from detection.feedback import services
from detection.jobs import store, worker
from detection.models import JobChunk
from detection.policies import policy
from gateway_project.core.stores import queues
from gateway_project.core.telemetry.logging import get_logger

TIME_LIMIT = worker.CHUNK_SECONDS_MAX + 30  # for pools of processes; by then ours has failed
UNSENT_MAX = 100
_sender = ThreadPoolExecutor(1, thread_name_prefix="jobs-send")
_sending: set[Future[None]] = set()
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
    return worker.judge_chunk(UUID(chunk_id))


@shared_task(expires=10)
def work() -> int:
    """Send the tasks of chunks again whose message, or whose worker, was lost; returns how many."""
    chunks = store.lost(in_line=lambda: queues.length(queues.DETECTION) > 0)
    send(chunks)
    return len(chunks)


def send_behind(chunks: Sequence[JobChunk]) -> None:
    """`send` in a thread of its own: a broker that hangs keeps no request, and no SQL, waiting.

    While `UNSENT_MAX` wait there already, the sweep is left to send them.
    """
    if len(_sending) < UNSENT_MAX:
        sending = _sender.submit(_send_and_close, chunks)
        _sending.add(sending)
        sending.add_done_callback(_sending.discard)


def _send_and_close(chunks: Sequence[JobChunk]) -> None:
    try:
        send(chunks)
    finally:
        db.connections.close_all()


def send(chunks: Iterable[JobChunk]) -> None:
    """Send the tasks of these chunks. Never raises: what cannot be sent, `work` sends later.

    The first chunk of every job comes before any other's second: nobody waits for a giant.
    """
    unsent = list(chunks)
    try:
        with current_app.producer_or_acquire() as producer:
            while unsent:
                judge_chunk.apply_async(
                    (str(unsent[0].pk),),
                    producer=producer,
                    priority=min(unsent[0].number, queues.PRIORITY_LAST),
                    retry=False,
                )
                del unsent[0]
    except (OperationalError, RedisError, OSError) as exc:
        log.warning("chunks_unsent", chunks=len(unsent), error=type(exc).__name__)
        store.note_unsent(unsent)


@worker_process_shutdown.connect
@worker_shutdown.connect
def _let_chunks_end(**_: Any) -> None:
    worker.background.stop()


@shared_task(expires=60)
def prune_jobs() -> int:
    return store.prune()


@shared_task(expires=60)
def prune() -> int:
    """Forget feedback and old policies past their time."""
    return services.prune() + policy.prune()
