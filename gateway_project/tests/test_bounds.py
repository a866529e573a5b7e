"""Whatever grows is bounded, and whatever costs comes after its limit: looked for in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.urls import get_resolver

from accounts.models import SCOPES
from accounts.tests.shapes import refusal
from gateway_project.core import ratelimit
from gateway_project.core.telemetry import metrics
from gateway_project.tests.test_permissions import ALL, BODIES
from portal import urls as portal_urls

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).resolve().parents[2]
APPS = ("accounts", "detection", "webhooks", "robin", "gateway_project", "portal")
MAKERS = {
    *("lru_cache", "cache", "TTLCache", "LRUCache", "TLRUCache", "SingleFlight", "Loader"),
    *("deque", "OrderedDict"),
}
REQUESTS = "as long as the requests that wait for it"
# What is remembered or queued in a process, and what bounds it.
KEPT = {
    "accounts/authentication.py": "bytes: KEY_CACHE_BYTES_MAX; 5,000 unknown digests; requests",
    "accounts/usage/buffer.py": "bytes: USAGE_BUFFER_BYTES_MAX, shared",
    "accounts/usage/log.py": "50,000 ids and times",
    "accounts/usage/rollups.py": "64 statements of ours",
    "detection/embedded/detector.py": "the rules, once",
    "detection/embedded/views.py": "8,192 single characters",
    "detection/engines/batching.py": "WAITING_MAX texts",
    "detection/engines/registry.py": REQUESTS,
    "detection/ledger.py": "SUMS_MAX sums, DISAGREEMENTS_MAX disagreements",
    "detection/jobs/turns.py": "JOB_CHUNKS_IN_FLIGHT_MAX ids of each of as many workspaces",
    "detection/policies/policy.py": "bytes: POLICY_CACHE_BYTES_MAX; 1,024 references",
    "detection/services.py": REQUESTS,
    "detection/training/corpus.py": "our own texts, in a training alone",
    "gateway_project/core/api/slots.py": "10,000 digests and the ids of workspaces",
    "gateway_project/core/api/openapi.py": "one document of ours",
    "gateway_project/core/encryption.py": "4,096 secrets of webhooks, 300 bytes each",
    "gateway_project/core/language.py": "4,096 dates as pages write them",
    "gateway_project/core/ratelimit.py": (
        "20,000 refusals, MEMORY_SUBJECTS_MAX windows: 2 kB each at most"
    ),
    "gateway_project/core/sharing.py": REQUESTS,
    "gateway_project/core/stores/addresses.py": "our clients' classes of connections, twice",
    "gateway_project/core/stores/counted/cursors.py": "our own classes",
    "gateway_project/core/stores/migrations.py": "one list of ours",
    "gateway_project/core/stores/queues.py": "4 clients",
    "gateway_project/core/stores/redis.py": "bytes: WAITING_BYTES_MAX",
    "gateway_project/core/telemetry/access_log.py": "routes of ours",
    "gateway_project/core/upstream/client.py": "connections: in_flight_max",
    "gateway_project/core/upstream/destinations.py": "1,024 addresses of 2 kB at most",
    "gateway_project/core/upstream/names.py": "one channel",
    "gateway_project/rotation.py": "8 sets of keys of the settings",
    "gateway_project/server/hosts.py": "256 names",
    "portal/guides.py": "64 pages of ours, and their index",
    "portal/papers.py": "4 files of ours",
    "portal/problems.py": "one list of ours",
    "portal/reference/document.py": "one document of ours",
    "portal/reference/pages.py": "the groups of one document of ours",
    "portal/reference/searching.py": "one index of ours",
    "robin/access/authentication.py": "5,000 sessions; requests",
    "robin/access/tokens.py": "keys of the settings",
    "robin/config/settings_page.py": REQUESTS,
    "robin/health/views.py": "one answer",
    "robin/logs/search.py": "bytes: ROBIN_LOG_CACHE_BYTES_MAX",
    "robin/queue/alerts.py": "one TLS context",
    "robin/queue/leader.py": "120 messages of MESSAGE_BYTES_MAX",
    "robin/queue/live.py": "120 messages of MESSAGE_BYTES_MAX",
    "robin/queue/scan.py": "REMEMBERED_PARTS of 1,000 items, VIEWS_KEPT of two",
    "robin/queue/scan_store.py": REQUESTS,
    "robin/upstream/client.py": "16 paths of ours",
    "webhooks/views.py": "one list of ours",
}
# Tables that customers make grow, and what bounds them.
ROWS = {
    "ApiKey": "Plan.keys_max in use",
    "AuditChain": "one for each workspace",
    "AuditEvent": "one for each act, which costs one of the minute",
    "IdempotencyRecord": "IDEMPOTENCY_PER_DAY, for a day",
    "Invitation": "people.INVITATIONS_MAX open for each workspace",
    "Job": "Plan.waiting_items_max, then the day's quota for JOB_RETENTION_DAYS",
    "JobChunk": "Plan.waiting_items_max and Plan.waiting_bytes_max, then as Job",
    "Disagreement": "DISAGREEMENTS_MAX of each process in FLUSH_SECONDS, for 30 days",
    "EngineDay": "one for each key, day and pair of engines",
    "FalseAlarmBudget": "one for each key and type of text",
    "Feedback": "one for each request of the log",
    "Inbox": "one for each workspace",
    "InboxRequest": "50 of 64 KiB for each inbox",
    "LogExport": "exports.KEPT_MAX for each workspace, for seven days",
    "LogExportPart": "exports.ROWS_MAX lines for each file",
    "Membership": "people.MEMBERS_MAX for each workspace",
    "OutboxEvent": "one for each fact, for the retention of the log",
    "PolicyVersion": "POLICY_VERSIONS_MAX of POLICY_BYTES_MAX for each key and its successors",
    "QuotaNotice": "two a day for each key and workspace",
    "RefreshFamily": "SESSIONS_PER_USER_MAX",
    "RefreshToken": "one for each refresh, which costs one of the minute, until its family ends",
    "ScoreRollup": "100 bins for each key, type of its texts and period",
    "StoredText": "one for each row of the log",
    "UnsummedUsage": "rows of the log of the last seconds",
    "UsageBatch": "one for each batch of rows, for a day",
    "UsageLog": "the day's quota, for the days of the plan",
    "UsageRollup": "paths and statuses for each key and period",
    "User": "REGISTRATIONS_PER_HOUR of an address",
    "Webhook": "Plan.webhooks_max",
    "WebhookAttempt": "ATTEMPTS_KEPT for each delivery",
    "WebhookDelivery": "one for each event and webhook",
    "WebhookNotice": "two for each webhook that fails",
    "WebhookSecret": "ten for each webhook",
    "Workspace": "one for each registration, and people.WORKSPACES_MAX of an owner",
    "WorkspaceDomain": "people.DOMAINS_MAX for each workspace",
}
STAFFS = {
    *("Plan", "RobinAccess", "BlocklistEntry", "DeadItem", "Document", "MetricSample"),
    *("ComponentDay", "Incident", "IncidentUpdate", "StaffAct", "StaffNote", "Announcement"),
    *("Mailing", "PlanProposal"),
    *("Parked", "LoopFailure", "SecretInUse", "QueueJob", "SeenItem"),
    *("QueueAlarm", "AlarmRecipient", "AlarmNotice"),
}
# Forms that cost nothing worth a limit of their own: a few rows of the workspace's own.
CHEAP_FORMS = {
    *("portal-keys", "portal-key-rotate", "portal-key-revoke", "portal-key-policy"),
    *("portal-key-engines", "portal-key-edit", "portal-workspace"),
    *("portal-key-use-threshold", "portal-request-feedback", "portal-job-cancel"),
    *("portal-webhook-rotate", "portal-webhook-recover", "portal-webhook-delete"),
    *("portal-delivery-resend", "portal-inbox-webhook", "portal-inbox-clear"),
    *("portal-policy", "portal-preferences"),
    *("portal-delete-account", "portal-end-session", "portal-settings"),
}
# Closing what is open never waits for a limit but its own.
FREE = {
    ("DELETE", "/auth/revoke"),
    ("DELETE", "/v1/keys/{id}"),
    ("DELETE", "/webhooks/{id}"),
    ("DELETE", "/v1/detect/batch/{id}"),
    ("GET", "/v1/limits"),
}


def keepers():
    """The files that make something which remembers or queues."""
    found = set()
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            if "tests" in path.parts or "standin" in str(path):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.func] if isinstance(node, ast.Call) else []
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    names += node.decorator_list
                called = {ast.unparse(name).removeprefix("functools.") for name in names}
                if called & MAKERS:
                    found.add(str(path.relative_to(ROOT)))
    return found


def test_whatever_remembers_says_what_bounds_it():
    found = keepers()

    assert found - set(KEPT) == set(), "say in KEPT what bounds what is remembered there"
    assert set(KEPT) - found == set()


def test_no_cache_is_without_an_end():
    """`@cache` and `lru_cache(maxsize=None)` keep whatever they are asked for."""
    endless = re.compile(r"lru_cache\((?:maxsize=)?None|@(?:functools\.)?cache$", re.MULTILINE)
    found = {
        str(path.relative_to(ROOT))
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        if "tests" not in path.parts and endless.search(path.read_text())
    }

    assert found <= {  # of no arguments, or of our own classes
        "detection/embedded/detector.py",
        "detection/training/corpus.py",
        "gateway_project/core/api/openapi.py",
        "gateway_project/core/stores/counted/cursors.py",
        "robin/queue/alerts.py",
        "webhooks/views.py",
    }


def test_every_table_says_what_bounds_it():
    models = {m.__name__ for app in APPS for m in apps.get_app_config(app).get_models()}

    assert models - set(ROWS) - STAFFS == set(), "say in ROWS what bounds it"


def test_every_bound_is_counted():
    """What is refused or dropped for a bound shows in `gateway_bound_reached_total`."""
    used = set()
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            used |= set(re.findall(r'bound_reached\.labels\("(\w+)"\)', path.read_text()))

    assert used >= {
        *("usage_buffer", "usage_stream", "redis_command", "redis_waiting", "score", "policy"),
        *("keys", "session_keys", "sessions", "sockets", "webhooks", "mails"),
        "parked",
    }
    assert metrics.bound_reached._labelnames == ("bound",)


def keyed():
    for method, template, view in ALL:
        cls = getattr(view, "cls", None)
        if cls is None or not hasattr(cls, "declared") or template.startswith(("/api/", "/admin")):
            continue
        declared = cls.declared(view.actions[method.lower()])
        if not declared.public:
            yield method, template, declared


def test_every_endpoint_refuses_before_it_asks_anything(
    gateway, engine, make_key, counted, monkeypatch
):
    """A key whose minute is used up costs no SQL and no thread, whatever it calls."""
    key = make_key(rate_limit_per_minute=1, scopes=[*SCOPES])
    assert gateway.detect("hello", key=key).status_code == 200
    counted.sql = 0
    asked = 0
    for method, template, _ in keyed():
        if (method, template) in FREE:
            continue
        path = re.sub(r"\{\w+\}", "01a20000-0000-7000-8000-000000000000", template)
        body = BODIES.get((method, template), {})

        r = gateway.request(method, path, key=key, json=body)

        # A 429 would be a fault of ours to LiteLLM, and not a guardrail that is away.
        is_litellm = "litellm" in template
        expected = (503, "guardrail_unavailable") if is_litellm else (429, "rate_limited")
        assert refusal(r) == expected, (method, template, r.text)
        assert counted.sql == 0, (method, template)
        asked += 1
    assert asked > 25


def test_what_costs_nothing_has_a_limit_of_its_own(gateway, make_key, counted, monkeypatch):
    monkeypatch.setattr(ratelimit, "FREE_CALLS_PER_MINUTE", 3)
    key = make_key(scopes=["keys:write"])
    path = "/v1/keys/01a20000-0000-7000-8000-000000000000"
    answers = [gateway.delete(path, key=key).status_code for _ in range(4)]
    counted.sql = 0

    assert answers == [404] * 3 + [429]
    assert gateway.delete(path, key=key).status_code == 429
    assert counted.sql == 0
    assert gateway.get("/v1/keys", key=key).status_code == 200  # and takes nothing of the others
    free = {(m, t) for m, t, declared in keyed() if not declared.minute_cost}
    assert free == FREE


def test_every_form_of_the_portal_that_costs_is_limited():
    """`limited` marks a view; a new form is limited or is said to be cheap."""
    unlimited = set()
    for pattern in portal_urls.urlpatterns:
        view = getattr(pattern, "callback", None)
        if view is None or not pattern.name:
            continue
        if not getattr(view, "is_limited", False) and takes_posts(view):
            unlimited.add(pattern.name)

    assert unlimited - CHEAP_FORMS == set(), "wrap it in `limited(…)`, or say in CHEAP_FORMS"


def takes_posts(view):
    """As far as its decorators say: `require_safe` and `require_http_methods` hold the methods."""
    while view is not None:
        closure = getattr(view, "__closure__", None) or ()
        for cell in closure:
            value = cell.cell_contents
            if isinstance(value, list | tuple) and value and set(value) <= {"GET", "HEAD", "POST"}:
                return "POST" in value
        view = getattr(view, "__wrapped__", None)
    return False


def test_pages_are_limited_first():
    """Before sessions, users and anything else that asks the database."""
    limit = "gateway_project.core.api.error_pages.PageLimit"
    order = settings.MIDDLEWARE

    assert order.index(limit) < order.index("gateway_project.core.stores.sessions.Sessions")
    assert get_resolver().url_patterns
