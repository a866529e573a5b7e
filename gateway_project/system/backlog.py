"""What waits, looked up at the scrape: right also when every worker is dead.

A store that is away takes its own series with it (`absent()` in an alert), not the whole page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from django import db
from django.conf import settings
from kombu.exceptions import OperationalError
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from accounts import parking
from accounts.usage import stream
from detection.jobs import store
from gateway_project.backups import trail as backups
from gateway_project.core.stores import database, queues
from gateway_project.core.telemetry import loops
from gateway_project.core.telemetry.logging import get_logger

log = get_logger("gateway.metrics")


class BacklogCollector(Collector):
    def collect(self) -> Iterator[Metric]:
        try:
            yield from _jobs()
            yield _parked()
            yield from _backup()
        except db.Error as exc:
            log.warning("jobs_not_counted", error=type(exc).__name__)
        try:
            yield _queues()
            yield _loops()
            yield from _usage()
        except (OperationalError, RedisError, OSError) as exc:
            log.warning("queues_not_counted", error=type(exc).__name__)


def _jobs() -> Iterator[Metric]:
    found = store.backlog()
    yield GaugeMetricFamily(
        "gateway_jobs_queued", "Jobs of which nothing is judged yet.", value=found.queued
    )
    yield GaugeMetricFamily(
        "gateway_jobs_oldest_queued_seconds",
        "How long the oldest of them has been waiting; 0 when none is.",
        value=found.oldest_queued_seconds or 0.0,
    )
    yield GaugeMetricFamily(
        "gateway_job_chunks_in_flight",
        "Chunks of jobs that are with the workers or on their way to them.",
        value=found.chunks_in_flight,
    )


def _usage() -> Iterator[Metric]:
    if settings.REDIS_URL:
        entries, size = stream.size()
        yield GaugeMetricFamily(
            "gateway_usage_stream_entries", "Batches of usage that wait in Redis.", value=entries
        )
        yield GaugeMetricFamily("gateway_usage_stream_bytes", "Their bytes.", value=size)


def _parked() -> Metric:
    text = "What a store refused and lies put aside."
    return _by_label("gateway_parked", text, "kind", parking.counts())


def _backup() -> Iterator[Metric]:
    """Absent: none was ever made."""
    if (at := backups.last_at()) is not None:
        yield GaugeMetricFamily(
            "gateway_backup_last_timestamp_seconds",
            "When the last backup was made, or noted (Unix time).",
            value=at.timestamp(),
        )


def _loops() -> Metric:
    text = "Rounds in a row that a loop behind the requests failed; absent: none."
    return _by_label("gateway_loop_failed_rounds", text, "loop", loops.failed_rounds())


def _queues() -> Metric:
    text = "Messages that wait in a queue of Celery."
    database.let_go()
    return _by_label("gateway_celery_queue_length", text, "queue", queues.lengths())


def _by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family
