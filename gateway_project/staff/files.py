"""The tables of the desk as files, with what its pages show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from gateway_project.staff.customers import Found
from portal.exports import Table, table
from portal.models import PlanProposal

Files = Mapping[str, Callable[[], Table]]
WORKSPACE = {
    "workspace_id": "workspace.pk",
    "workspace": "workspace.name",
    "plan": "workspace.plan_id",
}
FOUND = {**WORKSPACE, "slug": "workspace.slug", "found_by": "what"}
LINE = {**WORKSPACE, "why": "why"}
PERSON = {
    "email": "place.user.email",
    "role": "place.role",
    "confirmed_at": "place.user.email_confirmed_at",
    "is_active": "place.user.is_active",
    "second_factors": "factors",
}
KEY = (
    *("id", "name", "prefix", "last4", "status", "is_test", "rate_limit_per_minute"),
    *("rate_limit_per_day", "last_used_at", "last_used_ip"),
)
ERROR = ("created_at", "request_id", "http_status", "error_code", "endpoint")
ACT = ("at", "actor", "action", "target", "client_ip", "request_id")
PROPOSAL = ("proposed_at", "plan", "changes", "reason", "outcome", "proposed_by", "decided_by")


def of_search(found: Iterable[Found]) -> Files:
    return {"customers": lambda: table(FOUND, found)}


def of_customer(facts: Mapping[str, Any]) -> Files:
    return {
        "people": lambda: table(PERSON, facts["people"]),
        "keys": lambda: table(KEY, (key for key, _ in facts["keys"])),
        "errors": lambda: table(ERROR, facts["errors"]),
        "work": lambda: Table(("what", "id", "name", "state", "since"), _work(facts)),
        "trail": lambda: table(ACT, (row for row, _ in facts["trail"])),
    }


def _work(facts: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for hook in facts["webhooks"]:
        state = "failing" if hook.failing_since else "active"
        state = state if hook.is_active else "off"
        yield "webhook", hook.pk, hook.url, state, hook.failing_since or hook.created_at
    for one in facts["deliveries"]:
        yield "delivery", one.pk, one.event_type, one.status, one.created_at
    for job in facts["jobs"]:
        yield "job", job.pk, job.kind, job.status, job.created_at


def of_board(board: Mapping[str, Any]) -> Files:
    return {
        "sign-ups": lambda: Table(("day", "workspaces"), board["days"]),
        "waiting": lambda: Table(("what", "state", "seconds", "count"), _waiting(board)),
        **{name: partial(table, LINE, board[name]) for name in ("review", "near", "failing")},
    }


def _waiting(board: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, report in board["breakers"].items():
        yield f"breaker: {name}", report["state"], None, None
    for one in board["waiting"]:
        yield one.what, None, one.seconds, one.count


def of_plans(latest: Iterable[PlanProposal]) -> Files:
    rows = (
        (one.proposed_at, one.plan_id, _changes(one), one.reason, one.outcome,
         one.proposed_by, one.decided_by)
        for one in latest
    )  # fmt: skip
    return {"changes": lambda: Table(PROPOSAL, rows)}


def _changes(one: PlanProposal) -> str:
    return "; ".join(f"{name}: {one.before.get(name)} → {to}" for name, to in one.changes.items())
