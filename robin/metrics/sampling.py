"""Robin's figures: as they are now, and as series of samples, since Robin keeps no history.

A sample is a dict of plain numbers: `queue_size, dead, connections, cpu_percent, memory_percent` as
they were, `accepted` (mails), `opened` (connections) and `died` (items given up, less what was
deleted of them) as counters that begin at 0 when Robin starts. Robin does not count what it
delivers: that is what was accepted and is not there any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max, Min, QuerySet
from prometheus_client.parser import text_string_to_metric_families

from accounts import parking
from gateway_project.core import clock, errors
from gateway_project.core.clock import utc_text
from gateway_project.core.stores.refused import UNFIT, write_all_but
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from robin.models import MetricSample
from robin.queue import alarms, alerts
from robin.queue.alerts import client

KEEP_DAYS = 30
POINTS_MAX = 500
SECONDS_MAX = 5.0
# The UI's name → (unit, figure, whether it is a counter)
SERIES = {
    "QUEUE_SIZE": ("items", "queue_size", False),
    "MESSAGES_RECEIVED": ("messages", "accepted", True),
    "MESSAGES_SENT": ("messages", "delivered", True),
    "CONNECTIONS": ("connections", "connections", False),
    "CPU_USAGE": ("percent", "cpu_percent", False),
    "MEMORY_USAGE": ("percent", "memory_percent", False),
}
PLAIN = {"MESSAGES_RECEIVED": "ACCEPTED", "MESSAGES_SENT": "DELIVERED"}
"""What the series are; Robin UI takes no name but its own."""
RENAMED = {"accepted": "sent", "opened": "received"}
"""As samples of earlier versions have them."""
THROUGHPUT_SPAN = timedelta(minutes=10)
UPTIME = re.compile(r"(?:(\d+)d )?(?:(\d+)h )?(?:(\d+)m )?(\d+)s\Z")
ACCEPTED, OPENED = "robin_email_receipt_success_total", "robin_email_receipt_start_total"
Values = dict[str, list[tuple[dict[str, str], float]]]
log = get_logger("gateway.robin")


def prometheus(content: bytes) -> Values:
    """Name → (labels, value) of every sample; `ValueError` when it is no exposition."""
    found: Values = {}
    for family in text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            if not math.isfinite(sample.value):  # NaN is how Java says "not known"
                continue
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    if not found:
        raise ValueError("no metrics")
    return found


def _one(values: Values, name: str) -> float | None:
    rows = values.get(name)
    return rows[0][1] if rows else None


def _heap(values: Values, name: str) -> float:
    """The sum over the heap's pools; -1 stands for a pool without a limit."""
    rows = values.get(name, [])
    return sum(max(0.0, value) for labels, value in rows if labels.get("area") == "heap")


def _memory(values: Values) -> tuple[float, float]:
    """Bytes of the heap in use, and of the whole heap: never less, and never 0."""
    used = _heap(values, "jvm_memory_used_bytes")
    return used, max(used, _heap(values, "jvm_memory_max_bytes"), 1.0)


def uptime_ms(text: Any) -> int:
    """`4d 2h 7m 5s` in milliseconds; 0 when it is none."""
    match = UPTIME.match(text) if isinstance(text, str) else None
    days, hours, minutes, seconds = (
        (int(part or 0) for part in match.groups()) if match else [0] * 4
    )
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000


def _connections(health: Mapping[str, Any]) -> int:
    listeners = health.get("listeners")
    pools = [one.get("threadPool") or {} for one in listeners or [] if isinstance(one, dict)]
    return sum(pool.get("active", 0) for pool in pools)


# -- Now ------------------------------------------------------------------------------------------


def system_stats(values: Values, health: Any, *, now: datetime) -> dict[str, Any]:
    """The UI's SystemStats. Robin tells nothing of its disk, so that is left out."""
    used, total = _memory(values)
    cpu: dict[str, Any] = {}
    if (usage := _one(values, "system_cpu_usage")) is not None:
        cpu["usage"] = _percent(usage)
    cores, load = _one(values, "system_cpu_count"), _one(values, "system_load_average_1m")
    if cores:
        cpu["cores"] = int(cores)
    if load is not None and load >= 0:
        cpu["loadAverage"] = [load]
    return {
        "timestamp": utc_text(now),
        "cpu": cpu,
        "memory": {
            "total": int(total),
            "used": int(used),
            "free": int(total - used),
            "usagePercent": _percent(used / total),
        },
        "uptime": uptime_ms(health.get("uptime") if isinstance(health, dict) else None),
    }


def queue_stats(
    values: Values, totals: Mapping[str, int], *, now: datetime, per_minute: float | None = None
) -> dict[str, Any]:
    """The UI's QueueStats, and the same by better names; of these, what is not known is left out.

    Robin counts since it started. What waited by then is among those that wait or have left, and
    not among those that it accepted: then nobody knows how many were delivered.
    """
    accepted, connections = _one(values, ACCEPTED), _one(values, OPENED)
    size = totals["ready"] + totals["claimed"]
    left = -1.0 if accepted is None else accepted - size - totals["dead"]
    delivered = left if left >= 0 else None
    counted = {"accepted": accepted, "delivered": delivered, "connections": connections}
    return {
        "timestamp": utc_text(now),
        "queueSize": size,
        "processing": totals["claimed"],
        "failed": totals["dead"],
        "completed": int(delivered or 0),
        **{name: int(number) for name, number in counted.items() if number is not None},
        **({} if per_minute is None else {"throughput": per_minute}),
    }


def throughput() -> float | None:
    """Mails that Robin accepted in a minute, of the last ten; None: no samples tell."""
    now = clock.now()
    rows = series(between(now - THROUGHPUT_SPAN, now))
    points = next(one["dataPoints"] for one in rows if one["metric"] == "MESSAGES_RECEIVED")
    return round(sum(point["value"] for point in points) / len(points), 2) if points else None


def _percent(share: float) -> float:
    return round(min(100.0, max(0.0, share * 100)), 2)


# -- History --------------------------------------------------------------------------------------


def figures(values: Values, health: Mapping[str, Any]) -> dict[str, float]:
    """One sample; what is not known is left out."""
    used, total = _memory(values)
    usage = _one(values, "system_cpu_usage")
    queue = health.get("queue") or {}
    found: dict[str, float | None] = {
        "queue_size": queue.get("size"),
        "died": queue.get("dead"),
        "connections": _connections(health) if health.get("listeners") is not None else None,
        "cpu_percent": None if usage is None else _percent(usage),
        "memory_percent": _percent(used / total) if used else None,
        "opened": _one(values, OPENED),
        "accepted": _one(values, ACCEPTED),
    }
    return {name: value for name, value in found.items() if value is not None}


def sample() -> bool:
    """Ask Robin and keep what it says. Called by the worker."""
    if not settings.ROBIN_SERVICE_API_URL:
        return False
    try:
        with client(settings.ROBIN_SERVICE_API_URL, settings.ROBIN_SERVICE_API_TOKEN) as http:
            health = http.get("/health").raise_for_status().json()
            text = http.get("/metrics/prometheus").raise_for_status()
        if not text.headers["content-type"].startswith("text/plain"):
            raise ValueError("another media type")
        found = figures(prometheus(text.content), health)
        looked = alarms.look()
    except (errors.GatewayError, httpx.HTTPError, *UNFIT) as exc:
        log.warning("robin_sample_failed", error=type(exc).__name__)
        return False
    dead = looked.dead_items
    with transaction.atomic():
        write_all_but([found], lambda _: alerts.tell(found, dead), _park("robin.alerts"))
        write_all_but([found], lambda _: _keep(found | looked.figures()), _park("robin.sample"))
        write_all_but([found], lambda _: _judge(looked), _park("robin.alerts"))
    return True


def _keep(found: dict[str, float]) -> None:
    MetricSample.objects.create(figures=found)


def _judge(looked: alarms.Looked) -> None:
    """What the alarms look at; None, and it is left out, for what is not known."""
    kinds = alarms.on()
    if not kinds:
        return
    now = clock.now()
    rows = list(
        MetricSample.objects.filter(at__gte=now - alarms.SHARE_SPAN).order_by("at")
        .values_list("at", "figures")
    )  # fmt: skip
    sizes = points(rows, "queue_size")
    before = [value for at, value in sizes if at <= now - alarms.GROWTH_SPAN]
    values = {
        "oldest": looked.oldest_minutes,
        "growth": max(0.0, sizes[-1][1] - before[-1]) if sizes and before else None,
        "dead": looked.dead,
        "bounce": alarms.share(*left(rows)),
    }
    alarms.judge({kind: value for kind, value in values.items() if value is not None})


def left(rows: Iterable[tuple[datetime, Mapping[str, float]]]) -> tuple[float, float]:
    """Of these samples: how many items died, and how many left otherwise."""
    rows = list(rows)
    died = sum(value for _, value in points(rows, "died", is_counter=True))
    gone = sum(value for _, value in points(with_delivered(rows), "delivered", is_counter=True))
    return died, gone


def _park(kind: str) -> Callable[[object, Exception], object]:
    """What Robin says may be anything; the next minute's sample is tried all the same."""
    return lambda _, error: parking.park(kind, "", error)


def prune() -> int:
    """Forget samples that are older than `KEEP_DAYS`; returns how many."""
    old = MetricSample.objects.filter(at__lt=clock.now() - timedelta(days=KEEP_DAYS))
    return Round().delete(old.order_by("at"))


def between(start: datetime, end: datetime) -> list[tuple[datetime, dict[str, float]]]:
    """At most `POINTS_MAX` samples, evenly chosen; the last is always among them."""
    # The times alone first: a month has 43,200 of them, and few are shown.
    asked = MetricSample.objects.filter(at__gte=start, at__lte=end)
    times = list(asked.order_by("-at").values_list("at", flat=True)[: POINTS_MAX + 1])
    if len(times) > POINTS_MAX:
        times = _spread(asked)
    chosen = MetricSample.objects.filter(at__in=times).order_by("at")
    return list(chosen.values_list("at", "figures"))


SPREAD = """
SELECT newest.at FROM generate_series(1, %(points)s) AS part
CROSS JOIN LATERAL (
    SELECT max(at) AS at FROM robin_metricsample
    WHERE at > %(last)s - make_interval(secs => part * %(step)s)
        AND at <= %(last)s - make_interval(secs => (part - 1) * %(step)s)
) AS newest
WHERE newest.at IS NOT NULL
"""
"""The last of each part, by a look into the index for each: a month has tens of thousands."""


def _spread(asked: QuerySet[MetricSample]) -> list[datetime]:
    """The times of `POINTS_MAX` of them or fewer."""
    if connection.vendor != "postgresql":
        times = list(asked.order_by("-at").values_list("at", flat=True))
        return times[:: -(-len(times) // POINTS_MAX)]
    ends = asked.aggregate(first=Min("at"), last=Max("at"))
    # Counted back from the last; the first begins no part of its own.
    step = (ends["last"] - ends["first"]).total_seconds() / POINTS_MAX * (1 + 1e-9)
    with connection.cursor() as cursor:
        cursor.execute(SPREAD, {"last": ends["last"], "step": step, "points": POINTS_MAX})
        return [row[0] for row in cursor.fetchall()]


def series(
    samples: Iterable[tuple[datetime, Mapping[str, float]]], *, is_plain: bool = False
) -> list[dict[str, Any]]:
    """By the UI's names, or by `PLAIN` ones. Of a counter each point shows how much came since the
    point before."""
    rows = with_delivered(samples)
    answer = []
    for metric, (unit, name, is_counter) in SERIES.items():
        known = points(rows, name, is_counter=is_counter)
        shown = [{"timestamp": utc_text(at), "value": value} for at, value in known]
        metric = PLAIN.get(metric, metric) if is_plain else metric
        answer.append({"metric": metric, "unit": unit, "dataPoints": shown})
    return answer


def points(
    rows: Iterable[tuple[datetime, Mapping[str, float]]], name: str, *, is_counter: bool = False
) -> list[tuple[datetime, float]]:
    """One figure over time; of a counter how much came since the point before."""
    known = [(at, row[name]) for at, row in rows if name in row]
    if not is_counter:
        return known
    # Less than before: Robin was started anew, and all of it came since.
    return [
        (at, value - before if value >= before else value)
        for (_, before), (at, value) in pairwise(known)
    ]


def with_delivered(
    samples: Iterable[tuple[datetime, Mapping[str, float]]],
) -> list[tuple[datetime, Mapping[str, float]]]:
    """With `delivered`, a counter: of what was accepted, and of what waited, what has left."""
    found: list[tuple[datetime, Mapping[str, float]]] = []
    delivered = 0.0
    before: Mapping[str, float] | None = None
    for at, figures in samples:
        row = {name: figures[old] for name, old in RENAMED.items() if old in figures} | {**figures}
        if "accepted" in row and "queue_size" in row:
            if before is not None:
                came = row["accepted"] - before["accepted"]
                came = came if came >= 0 else row["accepted"]  # Robin was started anew
                stays = row["queue_size"] - before["queue_size"] + _died(before, row)
                delivered += max(0.0, came - stays)
            before = row
            row["delivered"] = delivered
        found.append((at, row))
    return found


def _died(before: Mapping[str, float], row: Mapping[str, float]) -> float:
    """How many more are dead than before, by their list or by Robin's own count."""
    if "dead" in before and "dead" in row:
        return row["dead"] - before["dead"]
    return max(0.0, row.get("died", 0.0) - before.get("died", row.get("died", 0.0)))


def as_csv(found: Iterable[Mapping[str, Any]]) -> str:
    lines = ["metric,unit,timestamp,value"]
    for one in found:
        lines += [
            f"{one['metric']},{one['unit']},{point['timestamp']},{point['value']}"
            for point in one["dataPoints"]
        ]
    return "\n".join(lines) + "\n"
