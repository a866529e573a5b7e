"""A workspace that has something on every page, and the addresses of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from asgiref.sync import async_to_sync
from django.urls import reverse
from django.utils import timezone

from accounts import people, services
from accounts.models import ApiKey, UsageLog, Workspace, new_id
from accounts.services import Actor
from accounts.tests.shapes import logged
from detection.evaluation import budget
from detection.evaluation.budget import Fitted
from detection.feedback import services as feedback
from detection.jobs import store
from detection.jobs.judging import Item
from detection.models import Job
from detection.policies import policy as policies
from portal.urls import urlpatterns
from webhooks import services as webhooks

ACTOR = Actor("test")
HEBREW = "מפתח של החנות, גרסה 2 (EU) של הצוות"
LONG = "a-name-without-any-blank-" * 4
STRANGERS_PAGES = [
    "/",
    "/accounts/login/",
    "/accounts/signup/",
    "/accounts/confirm-email/",
    "/accounts/confirm-email/no-key/",
    "/accounts/password/reset/",
    "/accounts/password/reset/done/",
    "/accounts/password/reset/key/1-no-key/",
    "/accounts/password/reset/key/done/",
    "/accounts/inactive/",
    "/problems/rate_limited",
    "/docs",
    "/docs/detection",
    "/docs/errors",
    "/docs/search?q=threshold",
    "/redoc",
    "/status",
    "/changelog",
    "/terms",
    "/privacy",
]
"""What the portal has for who is not signed in, but guides."""
NO_PAGES = re.compile(
    r"app/mail|export|download|files/<|archive|ticket|find|search|join|first-steps|unsent"
)
"""Addresses of files, of JSON, of parts of pages, of what leads on; and Robin's, whose tests have a
mail server."""
OTHERS = ("portal-invitation-accept", "portal-workspace-switch")
"""Of people who are not in yet, or who are in several."""


class Furnished(NamedTuple):
    """Ids, by the names that addresses have for them."""

    key_id: UUID
    request_id: UUID
    job_id: UUID
    webhook_id: UUID
    delivery_id: UUID


def furnish(workspace: Workspace, name: str = "Production", url: str = "") -> Furnished:
    """`name` is what all that has a name is called; `url` of a receiver that resolves."""
    key, _ = services.issue_key(workspace, actor=ACTOR, name=name[:100], tags=["shop", name[:40]])
    rows = [_row(workspace, key, hours) for hours in range(3)]
    refused = _row(workspace, key, 1, http_status=422, decision="", is_malicious=None,
                   confidence=None, error_code="validation_error")  # fmt: skip
    feedback.give(workspace, rows[0], "false_positive", name, actor=ACTOR)
    hook, _ = webhooks.register(
        workspace.pk, url or "https://198.41.0.4/hook", ["webhook.test", "detection.flagged"],
        description=name[:200], actor=ACTOR,
    )  # fmt: skip
    sent = webhooks.test(hook, "webhook.test")
    order = store.Order(Job.Kind.BATCH, workspace.pk, key.pk, str(new_id()))
    items = [Item(name[:64], None, {"code": "x", "message": name})]
    job, _ = store.create(order, items)
    for threshold in (0.7, 0.8):
        policies.save(key, {"threshold": {"engine": threshold}}, actor=ACTOR)
    policies.save(workspace, {"mode": "monitor"}, actor=ACTOR)
    budget.keep(key, "user_input", Fitted(0.01, 0.8, 1, 200, 9, 10), "uploaded")
    owner = workspace.memberships.filter(role="owner").first()
    if owner is not None:
        people.invite(workspace, "someone@initech.example", "viewer", by=owner, actor=ACTOR)
    assert refused.pk
    return Furnished(key.pk, rows[0].request_id, job.pk, hook.pk, sent.pk)


def many_keys(workspace: Workspace, count: int) -> None:
    """Of long names, of names that read from the right, and of plain ones."""
    for number in range(count):
        name = (f"{LONG}{number}"[:100], f"{HEBREW} {number}", f"Key {number}")[number % 3]
        services.issue_key(workspace, actor=ACTOR, name=name, owner="someone@initech.example")


def _row(workspace: Workspace, key: ApiKey, hours: int, **changes: Any) -> UsageLog:
    values = {
        "request_id": new_id(),
        "api_key_id": key.pk,
        "workspace_id": workspace.pk,
        "endpoint": "/v1/detect",
        "http_status": 200,
        "request_size": 120,
        "response_time_ms": 12.0,
        "upstream_ms": 8.0,
        "status": "complete",
        "source": "engine",
        "decision": "flag",
        "is_malicious": True,
        "confidence": 0.92,
        "why": {"threats": ["jailbreak"], "threshold": 0.6, "threshold_from": "default"},
        "created_at": timezone.now() - timedelta(hours=hours),
    }
    return logged(values | changes)


def bytes_of(answer: Any) -> bytes:
    """All of an answer that is streamed."""

    async def read() -> bytes:
        return b"".join([piece async for piece in answer.streaming_content])

    return async_to_sync(read)()


def pages(of: Furnished) -> Iterator[str]:
    """Every page of the portal that is behind the sign-in."""
    for pattern in urlpatterns:
        route, name = str(pattern.pattern), getattr(pattern, "name", "")
        if not route.startswith("app/") or NO_PAGES.search(route) or name in OTHERS:
            continue
        if hasattr(pattern.callback, "form_is_on"):
            continue
        wanted = re.findall(r"<\w+:(\w+)>", route)
        yield reverse(name, kwargs={one: getattr(of, one) for one in wanted})
