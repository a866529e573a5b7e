"""Everything that asks the database, by name: pages, lists, claims, what beat runs.

Each is measured by `manage.py fill_usage` and looked at by the test of plans, which also holds this
list to the addresses and the schedule that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from celery import current_app
from django.conf import settings
from django.contrib import admin
from django.db import transaction
from django.test import Client

from accounts.models import UsageLog
from accounts.usage import log, reading
from accounts.usage.rows import Batch, Row
from detection.jobs import store
from detection.models import Job, JobChunk
from gateway_project.core import clock
from gateway_project.growth.filling import ACTOR, Filled
from gateway_project.staff import actions
from webhooks import services
from webhooks.delivery import callbacks, outbox
from webhooks.models import Webhook, WebhookDelivery

TASK, CLAIM, PAGE, API, ADMIN, DRAIN = "task", "claim", "page", "API", "admin", "drain"
OVERVIEW = "overview"  # the page that people open first
LIMITS_MS = {
    TASK: 5_000.0,
    CLAIM: 20.0,
    DRAIN: 100.0,
    OVERVIEW: 50.0,
    PAGE: 100.0,
    API: 50.0,
    ADMIN: 200.0,
}
"""Of the median of some calls, when everything is warm; of a task, of one round."""
NOT_RUN = {
    "webhooks.tasks.deliver": "sends what is claimed, for as long as there is something",
    "robin.tasks.sample_metrics": "asks Robin",
    "robin.tasks.work_on_queue": "asks Robin",
    "robin.tasks.send_alarms": "sends mails",
    "gateway_project.tasks.send_announcements": "sends mails",
    "webhooks.tasks.send_notices": "sends mails",
}


class Subject(NamedTuple):
    """`ask` answers, or raises; its SQL is all in the calling thread."""

    kind: str
    name: str
    ask: Callable[[], object]


class NotAnswered(Exception):
    """A page or list that was not 200."""


def everything(filled: Filled) -> Iterator[Subject]:
    yield from claims(filled)
    yield from pages(filled)
    yield from lists(filled)
    yield from admin_lists(filled)
    yield from tasks()


# -- Addresses ------------------------------------------------------------------------------------


def _get(kind: str, client: Client, path: str, **headers: str) -> Subject:
    def ask() -> None:
        answer = client.get(path, headers={"Accept": "*/*", **headers})
        is_past_the_last = kind == ADMIN and answer.status_code == 302
        # 286: htmx has nothing more to ask for.
        if answer.status_code not in (200, 204, 286) and not is_past_the_last:
            raise NotAnswered(f"{path}: {answer.status_code}")

    return Subject(kind, path, ask)


def pages(filled: Filled) -> Iterator[Subject]:
    """The portal, as the owners of the big and of the failing workspace see it."""
    owner, failing = Client(), Client()
    owner.force_login(filled.owner)
    failing.force_login(filled.failing_owner)
    key = filled.big.keys.order_by("pk")[0].pk
    webhook = _webhook(filled.big.pk)
    delivery = WebhookDelivery.objects.filter(webhook=webhook).order_by("-created_at")[0]
    jobs = Job.objects.filter(workspace=filled.big).order_by("-created_at")
    row = reading.page(filled.big).rows[0]
    plain = [
        *("/app/keys", f"/app/keys/{key}", f"/app/keys/{key}/policy", f"/app/keys/{key}/calibrate"),
        *("/app/first-steps", "/app/playground", "/app/inbox", "/app/settings", "/app/jobs"),
        *("/app/webhooks", "/app/webhooks/per-request", f"/app/webhooks/{webhook}/edit"),
        f"/app/webhooks/{webhook}/debugger",
        f"/app/deliveries/{delivery.pk}",
        *(f"/app/jobs/{job.pk}" for job in jobs.filter(kind="batch")[:1]),
        *(f"/app/jobs/{job.pk}/download" for job in jobs.filter(kind="async")[:1]),
        f"/app/requests/{row.request_id}?{urlencode({'at': row.created_at.isoformat()})}",
        *("/app/mail-queue", "/guides/quickstart", "/accounts/sessions/"),
        *("/app/mail/items", f"/app/mail/items/{key}", "/app/mail/actions", "/app/mail/alerts"),
        *("/app/mail/charts?range=1h", "/app/mail/charts?range=30d"),
        *("/app/mail/storage", "/app/mail/logs"),
        *("/", "/status", "/docs", "/docs/detection"),
        *("/app/usage", "/app/people", "/app/workspace", "/app/search?q=key"),
        *("/app/audit", "/app/audit?action=key.", "/app/audit?actor=nobody", "/app/audit?target=x"),
        *("/app/keys?q=key&state=all", "/app/keys?sort=used", "/app/keys?state=ended"),
        f"/app/keys/{key}/edit",
        *("/app/policy", "/app/quality", "/app/quality?verdict=correct", "/app/settings/mails"),
        f"/app/keys/{key}/policy?like=workspace",  # what it would have changed
        *("/app/requests?error=rate_limited", "/app/requests?threat=jailbreak"),
    ]
    for path in plain:
        yield _get(PAGE, owner, path)
    for span in ("1h", "24h", "7d", "30d"):
        yield _get(OVERVIEW, owner, f"/app/?range={span}")
    for query in log_filters(filled, key, portal=True):
        yield _get(PAGE, owner, f"/app/requests?{query}")
    for client, workspace in ((owner, filled.big), (failing, filled.failing)):
        for query in delivery_filters():
            yield _get(PAGE, client, f"/app/webhooks/{_webhook(workspace.pk)}?{query}")
    of_failing = ((OVERVIEW, "/app/"), (PAGE, "/app/webhooks"), (PAGE, "/accounts/sessions/"))
    for kind, path in of_failing:
        yield _get(kind, failing, path)._replace(name=f"{path} (failing)")


def _webhook(workspace_id: UUID) -> UUID:
    pk: UUID = Webhook.objects.listed().filter(workspace=workspace_id).order_by("pk")[0].pk
    return pk


def log_filters(filled: Filled, key: UUID, *, portal: bool) -> Iterator[str]:
    """Filters of the log of requests, alone and together; some match nothing."""
    now = clock.now()
    last = UsageLog.objects.filter(workspace_id=filled.big.pk).order_by("-created_at")
    at = last.values_list("created_at", flat=True)[0] - timedelta(days=20)
    statuses = ("", "4", "5") if portal else ("", "2xx", "5xx", "301")
    for status in statuses:
        for decision in ("", "review") if status else ("", "allow", "review", "flag"):
            for key_id in ("", str(key)):
                asked = {"status": status, "decision": decision, "key": key_id}
                yield urlencode({name: value for name, value in asked.items() if value})
    form = "%Y-%m-%dT%H:%M" if portal else "%Y-%m-%dT%H:%M:%SZ"
    since, until = (f"{now - timedelta(days=days):{form}}" for days in (20, 19))
    yield urlencode({"since": since, "until": until})
    yield urlencode({"since": since, "until": until, "decision": "review"})
    yield urlencode({"cursor": reading._cursor_of(at, 0)})


def delivery_filters() -> Iterator[str]:
    since = f"{clock.now() - timedelta(days=3):%Y-%m-%dT%H:%M}"
    for status in ("", *WebhookDelivery.Status.values):
        for event in ("", "batch.failed"):
            asked = {"status": status, "event": event}
            yield urlencode({name: value for name, value in asked.items() if value})
    yield urlencode({"status": "failed", "since": since})


def lists(filled: Filled) -> Iterator[Subject]:
    """Lists of the API, and what else of it reads much."""
    client = Client()
    key = filled.big.keys.order_by("pk")[0].pk
    since = f"{clock.now() - timedelta(days=3):%Y-%m-%dT%H:%M:%SZ}"
    for workspace, text in (
        (filled.big, filled.key_text),
        (filled.failing, filled.failing_key_text),
    ):
        who = {"X-API-Key": text}
        webhook = _webhook(workspace.pk)
        per_request = callbacks.of(workspace.pk).pk
        paths = [
            *("/auth/profile", "/v1/keys", "/v1/keys?limit=200", f"/v1/keys/{key}"),
            *("/webhooks/list", f"/webhooks/{webhook}", "/webhooks/per-request"),
            *("/v1/requests?limit=200", f"/webhooks/{per_request}/deliveries", "/v1/policy"),
            "/v1/engines/costs",
            *(
                f"/webhooks/{webhook}/deliveries?{query}"
                for query in delivery_filters()
                if "since" not in query
            ),
            f"/webhooks/{webhook}/deliveries?status=failed&since={since}",
            *(f"/v1/requests?{query}" for query in log_filters(filled, key, portal=False)),
        ]
        if workspace == filled.failing:
            paths = [path for path in paths if path.startswith("/webhooks")]
        for path in paths:
            yield _get(API, client, path, **who)
    staff = Client()
    staff.force_login(filled.staff)
    for path in (
        *("/admin/users", "/admin/users?limit=200", "/admin/users?ordering=email"),
        *("/admin/users?ordering=-email", "/admin/users?search=p1", "/admin/users?search=nobody"),
        *(f"/admin/usage/{key}", f"/admin/usage/{key}?period=hour", "/admin/stats"),
    ):
        yield _get(API, staff, path)


def admin_lists(filled: Filled) -> Iterator[Subject]:
    """Each list of the admin: its first and last page, its filters, its searches."""
    client = Client()
    client.force_login(filled.staff)
    yield _get(ADMIN, client, "/admin/")
    row = reading.page(filled.big).rows[0]
    for path in staff_pages(filled, row):
        yield _get(ADMIN, client, path)
    for word in ("p1@", "w", "gw_live_", "nobody@example.org", "example.org", str(row.request_id)):
        yield _get(ADMIN, client, f"/admin/desk/?{urlencode({'q': word})}")
    terms = ("invented", "p1@example.com", str(filled.big.pk), "gw_live_", "key.changed")
    for model, model_admin in admin.site._registry.items():
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        yield _get(ADMIN, client, path)
        yield _get(ADMIN, client, f"{path}?p=40")
        for spec in getattr(model_admin, "list_filter", ()):
            options = getattr(spec, "options", {})
            for option in options:
                yield _get(ADMIN, client, f"{path}?{urlencode({spec.parameter_name: option})}")
        for name in getattr(model_admin, "ranges", {}):
            yield _get(ADMIN, client, f"{path}?{urlencode({'range': name})}")
        if model_admin.get_search_fields(None):  # type: ignore[arg-type]
            for term in terms:
                yield _get(ADMIN, client, f"{path}?{urlencode({'q': term})}")


def staff_pages(filled: Filled, row: UsageLog) -> Iterator[str]:
    """The desk, and what else of the staff's site is no list of a table."""
    of_big = f"/admin/desk/{filled.big.pk}"
    yield from ("/admin/desk/", "/admin/desk/board/", "/admin/desk/background/")
    yield from ("/admin/desk/plans/", "/admin/breakers/")
    yield from (f"{of_big}/", f"{of_big}/?request={row.request_id}")
    yield f"/admin/desk/{filled.failing.pk}/"
    yield from (
        f"{of_big}/{name}/" for name in actions.ACTIONS if actions.ACTIONS[name].applies(filled.big)
    )


# -- Claims and tasks -----------------------------------------------------------------------------


def claims(filled: Filled) -> Iterator[Subject]:
    """What a worker takes, with backlogs before it; undone, so that it can be asked again."""
    failing = Webhook.objects.filter(workspace=filled.failing, is_per_request=False)
    full = {(pk, ""): 0 for pk in failing.values_list("pk", flat=True)}
    waits = list(JobChunk.objects.filter(state="queued").values_list("pk", flat=True)[:20])
    turns = outbox.Claims()
    yield Subject(CLAIM, "deliveries", _undone(lambda: turns.take(200, {}, 4)))
    yield Subject(
        CLAIM, "deliveries behind webhooks that are full", _undone(lambda: turns.take(200, full, 4))
    )
    if waits:
        yield Subject(CLAIM, "a chunk of a job", _undone(lambda: _claim_chunk(waits[0])))
    yield Subject(
        CLAIM, "how much is ahead of a job", lambda: store.seconds_ahead(100, filled.big.pk)
    )
    keys = list(filled.big.keys.values_list("pk", flat=True))
    rows: list[Row] = [
        usage_row(keys[n % len(keys)], filled.big.pk, clock.now(), n) for n in range(100)
    ]
    yield Subject(DRAIN, "a second's rows", _undone(lambda: log.write([_batch(rows)])))


def _batch(rows: list[Row]) -> Batch:
    return Batch(clock.new_id(), rows, {}).plain()


def usage_row(key_id: UUID, workspace_id: UUID, at: datetime, n: int) -> list[Any]:
    """One of a hundred rows that differ a little."""
    return [
        *(clock.new_id(), key_id, workspace_id, "/v1/detect", 200, "", 120, 12.5 + n % 7, 9.0),
        *("complete", "engine", "allow", False, n % 97 / 100, False),
        at + timedelta(milliseconds=n % 1000),
    ]


def _claim_chunk(chunk_id: UUID) -> object:
    try:
        return store.claim(chunk_id)
    except Exception:  # noqa: BLE001 - an invented chunk cannot be decrypted; it was claimed
        return None


def _undone(act: Callable[[], object]) -> Callable[[], object]:
    def ask() -> None:
        with transaction.atomic():
            act()
            transaction.set_rollback(True)

    return ask


def tasks() -> Iterator[Subject]:
    """A round of each task that beat sends."""
    current_app.loader.import_default_modules()
    names = sorted({str(entry["task"]) for entry in settings.CELERY_BEAT_SCHEDULE.values()})
    for name in names:
        if name not in NOT_RUN:
            task: Any = current_app.tasks[name]
            yield Subject(TASK, name, task.run)


def deletions(filled: Filled) -> Iterator[Subject]:
    """What people stop and delete; they are gone afterwards, so it is asked once and last."""
    from accounts import services as accounts

    one, other = Webhook.objects.listed().filter(workspace=filled.failing).order_by("pk")[:2]
    yield Subject(
        API, "pause a webhook", lambda: services.update(one, {"is_active": False}, actor=ACTOR)
    )
    yield Subject(API, "delete a webhook", lambda: services.delete(other, actor=ACTOR))
    yield Subject(
        PAGE, "delete an account", lambda: accounts.delete_account(filled.owner, actor=ACTOR)
    )
