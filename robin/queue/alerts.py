"""What Robin's queue does that its operators want to hear of: `queue.spike`, `queue.item_dead`.

Told to workspaces that staff mark as operators of Robin, each thing once: a spike when the queue
grows beyond `ROBIN_QUEUE_SPIKE_ITEMS`, and again only after it was below; a dead item for as long
as it is there. The events are written in the transaction of the sample that shows them.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import httpx
from django.conf import settings

from accounts.events import event, publish_all
from accounts.models import Workspace
from gateway_project.core.storable import unstorable
from gateway_project.core.stores import database
from robin.models import DeadItem, MetricSample
from robin.queue.scan_store import Part
from robin.queue.translate import Item

SPIKE, DEAD = "queue.spike", "queue.item_dead"
UID_CHARS_MAX: int = DeadItem._meta.get_field("uid").max_length or 0
"""Robin's are UUIDs; what else stands there is passed over, and the others are told of."""
DEAD_ITEMS_MAX = 1000  # a page of Robin's: of more, the oldest
SECONDS_MAX = 5.0


def client(url: str, token: str) -> httpx.Client:
    """For the worker, which asks Robin once a minute; not inside a transaction."""
    database.let_go()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(
        base_url=url, headers=headers, timeout=SECONDS_MAX, trust_env=False, verify=tls()
    )


@cache
def tls() -> ssl.SSLContext:
    """Made once: its certificates are two thirds of a megabyte outside of Python's heap.

    Clients end in a cycle, and the collector, which counts objects and not bytes, comes for it
    hours later (`core.memory`).
    """
    return httpx.create_ssl_context(trust_env=False)


def listeners(event_type: str) -> list[Workspace]:
    marked = Workspace.objects.filter(is_robin_operator=True)
    return [
        one
        for one in marked
        if isinstance(one.wanted_events, list) and event_type in one.wanted_events
    ]


def of_dead(part: Part) -> list[Item]:
    """Those of the items that Robin gave up that can be told of."""
    items = part.items[:DEAD_ITEMS_MAX]
    return [item for item in items if len(item["uid"]) <= UID_CHARS_MAX and not unstorable(item)]


def tell(figures: dict[str, Any], dead: list[Item] | None) -> None:
    """Queue the events of a new sample, before it is stored; it notes how many `dead` it saw."""
    last = MetricSample.objects.order_by("-at").first()
    before: dict[str, Any] = last.figures if last is not None else {}
    outgoing = []
    threshold, size = settings.ROBIN_QUEUE_SPIKE_ITEMS, figures.get("queue_size")
    if size is not None and before.get("queue_size", size) < threshold <= size:
        result = {"total": size, "threshold": threshold}
        outgoing += [event(one.pk, SPIKE, result=result) for one in listeners(SPIKE)]
    if dead is not None:
        figures["dead"] = len(dead)
        fresh = _newly(dead)
        # The first look finds what has been dead for long: that is no news.
        if "dead" in before:
            outgoing += [
                event(one.pk, DEAD, result={"uid": item["uid"], "retry_count": item["retryCount"]})
                for one in listeners(DEAD)
                for item in fresh
            ]
    publish_all(outgoing)


def _newly(dead: list[Item]) -> list[Item]:
    """Those not seen before; the others are remembered no longer than they are there."""
    uids = {item["uid"] for item in dead}
    DeadItem.objects.exclude(uid__in=uids).delete()
    known = set(DeadItem.objects.filter(uid__in=uids).values_list("uid", flat=True))
    fresh = [item for item in dead if item["uid"] not in known]
    DeadItem.objects.bulk_create([DeadItem(uid=item["uid"]) for item in fresh])
    return fresh
