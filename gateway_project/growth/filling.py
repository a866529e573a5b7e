"""Invented rows in every table that grows, in the proportions of a large installation.

At ten million usage rows: a big workspace with 60 keys has ten in eleven of them; the others are
spread over 2,000 small ones with 10,000 keys. A failing workspace has two webhooks with a backlog
that is due. Half a million chunks are queued. Much is past its time, for the tasks that forget.
Other sizes have the same shape, smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from accounts import services
from accounts.models import ApiKey, Membership, User, Workspace
from accounts.services import Actor
from accounts.usage import partitions, rollups
from gateway_project.core import clock
from robin.models import RobinAccess
from webhooks.delivery import callbacks
from webhooks.models import Webhook

FULL = 10_000_000
DAYS = 30
ACTOR = Actor("fill_usage")
EVENTS = ["detection.completed", "detection.flagged", "quota.80"]
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Filled:
    """Whom to ask as: the big and the failing workspace, their owners, and one of staff."""

    big: Workspace
    failing: Workspace
    owner: User
    failing_owner: User
    staff: User
    key_text: str
    failing_key_text: str


# A UUIDv7 of a time, and the time of a row: `n` of `of` between `span` ago and now.
FUNCTIONS = """
CREATE OR REPLACE FUNCTION pg_temp.id_at(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
        || substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid
$$;
CREATE OR REPLACE FUNCTION pg_temp.back(n bigint, rows bigint, span interval)
RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT now() - span * (1 - n::float / rows) $$;
"""

SMALL = """
INSERT INTO accounts_workspace (id, slug, name, plan_id, is_confirmed, is_robin_operator,
    wanted_events, created_at)
SELECT pg_temp.id_at(at), 'small-' || n, 'Small ' || n, 'scale', true, false, '[]', at
FROM generate_series(1, %(small)s) AS n, LATERAL pg_temp.back(n, %(small)s, '300 days') AS at;
INSERT INTO accounts_user (id, password, is_superuser, username, first_name, last_name, is_staff,
    is_active, date_joined, email)
SELECT pg_temp.id_at(at), '!', false, 'p' || n || '@example.com', '', '', false, true, at,
    'p' || n || '@example.com'
FROM generate_series(1, %(people)s) AS n, LATERAL pg_temp.back(n, %(people)s, '300 days') AS at;
ANALYZE accounts_workspace;
ANALYZE accounts_user;
INSERT INTO accounts_membership (user_id, workspace_id, role, created_at)
SELECT person.id, workspace.id, 'owner', now()
FROM (SELECT id, row_number() OVER () AS n FROM accounts_user WHERE email LIKE 'p%%') AS person
JOIN (SELECT id, row_number() OVER () AS n FROM accounts_workspace WHERE slug LIKE 'small-%%')
    AS workspace USING (n);
INSERT INTO accounts_apikey (id, workspace_id, name, prefix, last4, key_hash, pepper_version,
    scopes, allowed_cidrs, rate_limit_per_minute, rate_limit_per_day, detection_policy, is_session,
    created_at, last_used_at, expires_at)
SELECT pg_temp.id_at(at), known.ids[1 + n %% %(small)s], 'Key ' || n,
    'gw_live_' || substr(md5(n::text), 1, 4), substr(md5(n::text), 5, 4),
    md5(n::text) || md5('x' || n), 1, '["detect"]', '[]', 60, 10000,
    '{}', n %% 50 = 0, at, CASE WHEN n %% 3 = 0 THEN at END,
    CASE WHEN n %% 50 = 0 THEN at + interval '15 minutes'
         WHEN n %% 1000 = 1 THEN now() + interval '3 days' END
FROM generate_series(1, %(keys)s) AS n,
    (SELECT array_agg(id) AS ids FROM accounts_workspace WHERE slug LIKE 'small-%%') AS known,
    LATERAL pg_temp.back(n, %(keys)s, '300 days') AS at;
"""

USAGE = """
INSERT INTO accounts_usagelog (
    request_id, api_key_id, workspace_id, endpoint, http_status, error_code, request_size,
    response_time_ms, upstream_ms, status, source, decision, is_malicious, confidence, cached,
    created_at)
SELECT pg_temp.id_at(at), key.id, key.workspace_id, '/v1/detect',
    CASE WHEN of_status < 0.98 THEN 200 WHEN of_status < 0.999 THEN 422 ELSE 503 END,
    CASE WHEN of_status < 0.98 THEN '' WHEN of_status < 0.999 THEN 'validation_error'
         ELSE 'detection_unavailable' END,
    100 + (of_score * 900)::int, exp(2.3 + of_latency), 0,
    CASE WHEN of_status < 0.98 THEN 'complete' ELSE '' END,
    CASE WHEN of_status < 0.98 THEN 'engine' ELSE '' END,
    CASE WHEN of_status >= 0.98 THEN '' WHEN of_score > 0.95 THEN 'flag'
         WHEN of_score > 0.9499 THEN 'review' ELSE 'allow' END,
    CASE WHEN of_status < 0.98 THEN of_score > 0.95 END,
    CASE WHEN of_status < 0.98 THEN of_score END, of_latency < 0.1, at
FROM (
    SELECT n, random() AS of_key, random() AS of_status, random() AS of_score,
        random() + random() - 1 AS of_latency,
        %(day)s::timestamptz + %(span)s * (n::float / %(rows)s) AS at
    FROM generate_series(1, %(rows)s) AS n ORDER BY n
) AS invented
JOIN LATERAL (
    SELECT CASE WHEN n %% 11 > 0 THEN known.big[1 + floor(of_key * of_key * %(bigs)s)::int]
        ELSE known.small[1 + floor(of_key * %(smalls)s)::int] END AS chosen
    FROM pg_temp.known
) AS drawn ON true
JOIN accounts_apikey AS key ON key.id = drawn.chosen
"""

DELIVERIES = """
INSERT INTO accounts_outboxevent (id, workspace_id, type, body, deliver_to, created_at,
    published_at)
SELECT pg_temp.id_at(at), CASE WHEN n %% 10 < 7 THEN %(big)s ELSE %(failing)s END::uuid,
    'detection.completed', %(body)s::jsonb, '', at, at
FROM generate_series(1, %(events)s) AS n,
    LATERAL pg_temp.back(n, %(events)s, '35 days') AS at;
INSERT INTO accounts_outboxevent (id, workspace_id, type, body, deliver_to, created_at)
SELECT pg_temp.id_at(now()), %(big)s, 'detection.completed', %(body)s::jsonb, '', now()
FROM generate_series(1, %(waiting)s);
INSERT INTO webhooks_webhookdelivery (id, webhook_id, event_id, event_type, status, attempts_made,
    step, steps_max, next_attempt_at, is_claimed, lane, is_test, http_status, error, created_at,
    finished_at)
SELECT pg_temp.id_at(made.at), made.webhook, made.event, 'detection.completed', made.status, 1,
    1, 10, CASE WHEN made.status = 'pending' THEN CASE WHEN random() < 0.7
        THEN now() - interval '1 minute' - random() * interval '1 day'
        ELSE now() + random() * interval '1 day' END END,
    false, '', false, CASE made.status WHEN 'delivered' THEN 200 ELSE 500 END, '', made.at,
    CASE WHEN made.status <> 'pending' THEN made.at END
FROM (
    SELECT event.id AS event, event.created_at AS at, webhook.id AS webhook,
        CASE WHEN event.workspace_id = %(failing)s::uuid THEN 'pending'
             WHEN random() < 0.02 THEN 'failed' ELSE 'delivered' END AS status
    FROM accounts_outboxevent AS event
    JOIN webhooks_webhook AS webhook USING (workspace_id)
    WHERE event.published_at IS NOT NULL AND NOT webhook.is_per_request
) AS made;
INSERT INTO webhooks_webhookattempt (delivery_id, at, duration_ms, http_status, error,
    response_body)
SELECT id, created_at, 12, http_status, '', 'ok' FROM webhooks_webhookdelivery;
INSERT INTO webhooks_webhooknotice (webhook_id, kind, facts, created_at, sent_at)
SELECT id, 'failing', '{}', now() - interval '1 day' * n, now()
FROM webhooks_webhook, generate_series(1, %(notices)s) AS n;
"""

JOBS = """
INSERT INTO detection_job (id, kind, workspace_id, api_key_id, status, total, succeeded, failed,
    flagged, webhook_url, request_id, correlation_id, client_ip, created_at, finished_at,
    expires_at)
SELECT pg_temp.id_at(at), CASE WHEN is_over THEN 'async' ELSE 'batch' END,
    CASE WHEN is_over OR turn = 0 THEN %(big)s ELSE others.spaces[turn] END,
    CASE WHEN is_over OR turn = 0 THEN %(key)s ELSE others.keys[turn] END,
    CASE WHEN is_over THEN 'complete' ELSE 'queued' END, CASE WHEN is_over THEN 1 ELSE 1250 END,
    CASE WHEN is_over THEN 1 ELSE 0 END, 0, 0, '', '', '', '', at, CASE WHEN is_over THEN at END,
    at + interval '7 days'
FROM generate_series(1, %(jobs)s) AS n, LATERAL pg_temp.back(n, %(jobs)s, '8 days') AS at,
    -- As many of them as one workspace may have waiting, in each of these.
    (SELECT array_agg(workspace_id) AS spaces, array_agg(id) AS keys FROM (
        SELECT DISTINCT ON (workspace_id) workspace_id, id FROM accounts_apikey
        WHERE workspace_id <> %(big)s LIMIT 499) AS found) AS others,
    LATERAL (SELECT n %% 11 > 0 AS is_over,
        (%(jobs)s - n) / 11 %% (1 + cardinality(spaces)) AS turn) AS state;
INSERT INTO detection_jobchunk (id, job_id, workspace_id, number, first, size, state, items,
    results, attempts)
SELECT pg_temp.id_at(job.created_at), job.id, job.workspace_id, number, number * 50,
    CASE WHEN job.kind = 'async' THEN 1 ELSE 50 END,
    CASE WHEN job.kind = 'async' THEN 'done' ELSE 'queued' END,
    CASE WHEN job.kind = 'async' THEN '' ELSE repeat('x', 400) END,
    CASE WHEN job.kind = 'async' THEN '{"id":"1"}' ELSE '' END, 0
FROM detection_job AS job,
    LATERAL generate_series(0, CASE WHEN job.kind = 'async' THEN 0 ELSE 24 END) AS number;
UPDATE detection_jobchunk SET sent_at = now() - interval '1 minute'
WHERE id IN (SELECT id FROM detection_jobchunk WHERE state = 'queued' LIMIT 16);
INSERT INTO detection_feedback (id, workspace_id, request_id, api_key_id, verdict, note,
    confidence, is_malicious, decision, source, created_at)
SELECT pg_temp.id_at(at), %(big)s, pg_temp.id_at(at), %(key)s, 'correct', '', 0.5, false, 'allow',
    'engine', at
FROM generate_series(1, %(feedback)s) AS n,
    LATERAL pg_temp.back(n, %(feedback)s, '740 days') AS at;
INSERT INTO detection_policyversion (id, subject_id, version, api_key_id, policy, actor,
    created_at)
SELECT pg_temp.id_at(at), %(key)s, n, %(key)s, '{}', 'fill_usage', at
FROM generate_series(1, %(versions)s) AS n,
    LATERAL pg_temp.back(n, %(versions)s, '740 days') AS at;
"""

PEOPLE = """
INSERT INTO accounts_auditevent (id, at, action, actor, workspace_id, target, request_id, details)
SELECT pg_temp.id_at(at), at, 'key.changed', 'p' || n %% 1000 || '@example.com',
    CASE WHEN n %% 20 = 0 THEN %(big)s ELSE known.ids[1 + n %% %(small)s] END,
    pg_temp.id_at(at)::text, '', '{}'
FROM generate_series(1, %(audit)s) AS n,
    (SELECT array_agg(id) AS ids FROM accounts_workspace WHERE slug LIKE 'small-%%') AS known,
    LATERAL pg_temp.back(n, %(audit)s, '740 days') AS at;
INSERT INTO robin_refreshfamily (id, user_id, password_stamp, user_agent, created_at, expires_at,
    revoked_because)
SELECT pg_temp.id_at(at), %(owner)s, 'x', 'Firefox', at, at + interval '7 days', ''
FROM generate_series(1, %(families)s) AS n,
    LATERAL pg_temp.back(n, %(families)s, '12 days') AS at;
INSERT INTO robin_refreshtoken (id, family_id, digest, issued_at, expires_at)
SELECT pg_temp.id_at(created_at + interval '1 hour' * n), id, md5(id::text || n), created_at,
    expires_at
FROM robin_refreshfamily, generate_series(1, 3) AS n;
INSERT INTO django_session (session_key, session_data, expire_date)
SELECT md5('s' || n), '', at + interval '14 days'
FROM generate_series(1, %(sessions)s) AS n,
    LATERAL pg_temp.back(n, %(sessions)s, '20 days') AS at;
INSERT INTO usersessions_usersession (user_id, created_at, ip, last_seen_at, session_key,
    user_agent, data)
SELECT known.ids[1 + n %% %(people)s], at, '127.0.0.1', at, md5('s' || n), 'Firefox', '{}'
FROM generate_series(1, %(sessions)s) AS n,
    (SELECT array_agg(id) AS ids FROM accounts_user WHERE email LIKE 'p%%') AS known,
    LATERAL pg_temp.back(n, %(sessions)s, '20 days') AS at WHERE n %% 100 > 0;
INSERT INTO django_admin_log (action_time, user_id, object_repr, action_flag, change_message)
SELECT at, %(staff)s, 'x', 2, ''
FROM generate_series(1, %(admin_log)s) AS n,
    LATERAL pg_temp.back(n, %(admin_log)s, '740 days') AS at;
INSERT INTO accounts_storedtext (request_id, workspace_id, encrypted, created_at)
SELECT pg_temp.id_at(at), %(big)s, repeat('x', 400), at
FROM generate_series(1, %(texts)s) AS n, LATERAL pg_temp.back(n, %(texts)s, '95 days') AS at;
INSERT INTO accounts_idempotencyrecord (workspace_id, key, fingerprint, status, headers, body,
    created_at)
SELECT %(big)s, 'k' || n, 'x', 200, '{}', '{}', at
FROM generate_series(1, %(records)s) AS n, LATERAL pg_temp.back(n, %(records)s, '2 days') AS at;
INSERT INTO accounts_usagebatch (id, written_at)
SELECT gen_random_uuid(), at
FROM generate_series(1, %(records)s) AS n, LATERAL pg_temp.back(n, %(records)s, '2 days') AS at;
INSERT INTO accounts_quotanotice (subject_id, day, percent)
SELECT gen_random_uuid(), at, 80
FROM generate_series(1, %(records)s) AS n, LATERAL pg_temp.back(n, %(records)s, '95 days') AS at;
INSERT INTO robin_metricsample (at, figures)
SELECT at, '{"queue_size": 1}'
FROM generate_series(1, %(samples)s) AS n, LATERAL pg_temp.back(n, %(samples)s, '40 days') AS at;
INSERT INTO webhooks_inboxrequest (inbox_id, at, headers, body, is_valid, findings)
SELECT id, now(), '{}', '{}', true, '[]' FROM webhooks_inbox, generate_series(1, 50);
"""


def fill(
    rows: int = FULL,
    *,
    keys: int | None = None,
    days: int = DAYS,
    only_usage: bool = False,
    say: Say,
) -> Filled:
    """Fill an empty PostgreSQL database. `rows`: of the usage log; the others in proportion.

    `only_usage`: the log and its sums, and whose it is, so that a worker finds nothing to do.
    """
    share = rows / FULL

    def part(of_full: int, least: int = 1) -> int:
        return max(least, round(of_full * share))

    filled = _people(keys or max(3, min(60, part(600))))
    sizes = {
        "small": part(200_000, 10),
        "people": part(300_000, 20),
        "keys": part(1_000_000, 50),
        "events": part(1_050_000, 100),
        "waiting": part(1_000),
        "notices": part(20_000),
        "jobs": part(220_000, 22),
        "feedback": part(1_000_000),
        "versions": part(20_000),
        "audit": part(5_000_000, 50),
        "families": part(200_000),
        "sessions": part(300_000),
        "admin_log": part(200_000),
        "texts": part(500_000),
        "records": part(100_000),
        "samples": part(525_600),
    }
    values: dict[str, Any] = {
        **sizes,
        "big": filled.big.pk,
        "failing": filled.failing.pk,
        "owner": filled.owner.pk,
        "staff": filled.staff.pk,
        "key": filled.big.keys.values_list("pk", flat=True)[0],
        "body": '{"id": "x", "type": "detection.completed", "timestamp": "2026-01-01T00:00:00Z", '
        '"data": {"result": {"is_malicious": false}, "metadata": {}}}',
    }
    with connection.cursor() as cursor:
        cursor.execute(FUNCTIONS)
        parts = (
            ("workspaces, people and keys", SMALL),
            ("events and deliveries", DELIVERIES),
            ("jobs, feedback, policies", JOBS),
            ("what belongs to people", PEOPLE),
        )
        for name, statements in parts[:1] if only_usage else parts:
            say(name)
            for statement in statements.split(";\n"):
                if statement.strip():
                    cursor.execute(statement, values)
        _usage(cursor, filled.big.pk, rows, days, say)
    say("sums of usage")
    rollups.rebuild_rollups()
    with connection.cursor() as cursor:
        say("VACUUM ANALYZE")
        cursor.execute("VACUUM ANALYZE")
    return filled


def _usage(cursor: Any, big: UUID, rows: int, days: int, say: Say) -> None:
    """In the order of their time, as they come."""
    known = list(ApiKey.objects.filter(workspace=big).values_list("pk", flat=True))
    others = list(ApiKey.objects.exclude(workspace=big).values_list("pk", flat=True)[:10_000])
    cursor.execute("CREATE TEMP TABLE known (big uuid[], small uuid[])")
    cursor.execute("INSERT INTO known VALUES (%s, %s)", [known, others])
    now = clock.now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    left = rows
    for ago in reversed(range(days)):
        share = left // (ago + 1)
        day = midnight - timedelta(days=ago)
        partitions.ensure_partitions([day.date()])
        span = min(timedelta(days=1), now - day) - timedelta(milliseconds=1)
        values = {"rows": share, "day": day, "span": span}
        cursor.execute(USAGE, {**values, "bigs": len(known), "smalls": len(others)})
        left -= share
        say(f"usage of {day:%Y-%m-%d}: {rows - left:,} rows")
    cursor.execute("DROP TABLE known")


def _people(keys: int) -> Filled:
    """The workspaces that are asked about, with people, keys and webhooks of their own."""
    owner, failing_owner = (
        User.objects.create_user(f"{name}@example.com", "a good long password")
        for name in ("owner", "failing")
    )
    staff = User.objects.create_superuser("staff@example.com", "a good long password")
    big, failing = (
        Workspace.objects.create(
            slug=slug, name=slug.title(), plan_id="scale", is_confirmed=True, wanted_events=EVENTS
        )
        for slug in ("invented", "invented-failing")
    )
    Membership.objects.create(user=owner, workspace=big, role="owner")
    Membership.objects.create(user=failing_owner, workspace=failing, role="owner")
    RobinAccess.objects.create(user=owner, role="ROLE_ADMIN")
    scopes = ["detect", "batch", "webhooks", "usage:read", "keys:write"]
    texts = [
        services.issue_key(workspace, actor=ACTOR, scopes=scopes)[1] for workspace in (big, failing)
    ]
    for _ in range(keys - 1):
        services.issue_key(big, actor=ACTOR)
    for workspace, count in ((big, 2), (failing, 2)):
        for number in range(count):
            url = f"https://receiver.example/{number}"
            Webhook.objects.create(workspace=workspace, url=url, events=EVENTS)
        callbacks.of(workspace.pk)
    return Filled(big, failing, owner, failing_owner, staff, *texts)
