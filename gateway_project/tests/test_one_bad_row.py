"""What periodic tasks do with a row that cannot be worked on: all others have their turn."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import DataError, OperationalError

from accounts import audit, idempotency, retention, services, tasks
from accounts.models import AuditEvent, OutboxEvent, Parked, UsageRollup, User, Workspace
from accounts.services import Actor
from accounts.usage import exports, quotas
from accounts.usage.rollups import SUMS
from detection.evaluation import budget
from detection.models import FalseAlarmBudget
from detection.tasks import prune as prune_detection
from gateway_project.core import clock
from gateway_project.core.stores import deletion
from gateway_project.core.stores.refused import each_alone
from gateway_project.staff import actions
from portal.models import StaffAct
from robin.tasks import prune as prune_robin

pytestmark = pytest.mark.hostile
ACTOR = Actor("test")
ALONE, HALVED, CLAIMED, NONE = (
    "each_alone: the others have their turn, and the round fails",
    "write_all_but: what is refused is parked",
    "each is marked before it is worked on, so another is next",
    "it reads no row's contents",
)
TASKS = {
    "accounts.tasks.announce_expiring_keys": HALVED,
    "accounts.tasks.carry_out_deletions": ALONE,
    "accounts.tasks.drain_usage": HALVED,
    "accounts.tasks.erase_deleted": ALONE,
    "accounts.tasks.prune": ALONE,
    "accounts.tasks.record_heartbeat": NONE,
    "accounts.tasks.remind_of_graces": CLAIMED,
    "accounts.tasks.seal_audit": HALVED,
    "accounts.tasks.send_digests": CLAIMED,
    "accounts.tasks.tell_of_quotas": ALONE,
    "accounts.tasks.tend_usage_log": NONE,
    "accounts.tasks.write_exports": ALONE,
    "detection.tasks.prune": ALONE,
    "detection.tasks.prune_jobs": NONE,
    "detection.tasks.watch_budgets": ALONE,
    "detection.tasks.work": NONE,
    "gateway_project.tasks.sample_status": NONE,
    "gateway_project.tasks.send_announcements": CLAIMED,
    "gateway_project.tasks.undo_acts": ALONE,
    "robin.tasks.prune": ALONE,
    "robin.tasks.sample_metrics": HALVED,
    "robin.tasks.send_alarms": CLAIMED,
    "robin.tasks.work_on_queue": "a job that cannot be read is ended",
    "webhooks.tasks.close_pending": NONE,
    "webhooks.tasks.deliver": HALVED,
    "webhooks.tasks.measure": NONE,
    "webhooks.tasks.prune": NONE,
    "webhooks.tasks.send_notices": CLAIMED,
}


def test_each_task_of_beats_says_what_it_does_with_one():
    sent = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}

    assert sent | {tasks.drain_usage.name} == set(TASKS)


def refusing(bad, error):
    def act(row):
        if row == bad:
            raise error
        return row

    return act


@pytest.mark.parametrize(
    "error", [DataError(), ValueError(), OperationalError("it is locked")], ids=repr
)
def test_the_others_have_their_turn_and_the_round_fails(error):
    done = []

    with pytest.raises(type(error)):
        each_alone([1, 2, 3], lambda row: done.append(refusing(1, error)(row)))

    assert done == [2, 3]


@pytest.mark.parametrize("error", [OperationalError("gone"), RuntimeError("a bug")], ids=repr)
def test_a_store_that_is_away_or_a_bug_ends_it(error):
    done = []

    with pytest.raises(type(error)):
        each_alone([1, 2, 3], lambda row: done.append(refusing(2, error)(row)))

    assert done == [1]


def two_users():
    for name in ("a", "b"):
        user = User.objects.create_user(f"{name}@x.example", "x")
        User.objects.filter(pk=user.pk).update(deletes_at=clock.now())


def two_actions(*places):
    for place in places:
        StaffAct.objects.create(
            workspace=place, act="limits", reason="x", done_at=clock.now(), until=clock.now()
        )


def two_budgets(*places):
    for place in places:
        FalseAlarmBudget.objects.create(
            workspace=place, subject_id=place.pk, api_key_id=place.pk, content_type="user_input",
            budget=0.02, threshold=0.6, baseline=[0] * 100, harmless=200, alarms=2, basis="traffic",
        )  # fmt: skip


def two_exports(*places):
    for place in places:
        exports.ask(place, {}, "https://x.example/", by="dana@acme.example", actor=ACTOR)


def two_deleted(*places):
    Workspace.objects.filter(pk__in=[place.pk for place in places]).update(deleted_at=clock.now())


def two_used_up(*places):
    day = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    for place in places:
        Workspace.objects.filter(pk=place.pk).update(rate_limit_per_day=1, is_confirmed=True)
        UsageRollup.objects.create(
            period="day", bucket=day, subject_id=place.pk, endpoint="/v1/detect", http_status=200,
            **dict.fromkeys(SUMS, 0) | {"requests": 9},
        )  # fmt: skip


ROUNDS = {
    "quotas": (two_used_up, quotas, "_note", "tell"),
    "deletions": (lambda *_: two_users(), services, "_carry_out_deletion", "carry_out_deletions"),
    "acts": (two_actions, actions, "_undo", "undo_due"),
    "budgets": (two_budgets, budget, "_look_at", "check"),
    "exports": (two_exports, exports, "_write_part", "work"),
    "erasing": (two_deleted, deletion, "_erase", "erase"),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_the_first_row_keeps_no_other_waiting(name, acme, globex, monkeypatch):
    make, module, act, work = ROUNDS[name]
    make(acme, globex)
    seen = []

    def broken_once(*args):
        seen.append(args)
        if len(seen) == 1:
            raise DataError
        return None if name == "exports" else 1

    monkeypatch.setattr(module, act, broken_once)
    with pytest.raises(DataError):
        getattr(module, work)()

    assert len(seen) == 2


def test_what_is_forgotten_first_keeps_nothing_else(gateway, monkeypatch):
    old = Parked.objects.create(kind="usage.row", origin="x", error="x")
    Parked.objects.filter(pk=old.pk).update(created_at=clock.now() - timedelta(days=60))

    def broken(size):
        raise DataError

    monkeypatch.setattr(idempotency, "erase_secrets", broken)
    with pytest.raises(DataError):
        retention.prune()

    assert not Parked.objects.exists()


@pytest.mark.parametrize(
    ("prune", "first", "last"),
    [
        (prune_robin, "robin.access.sessions", "robin.queue.alarms"),
        (prune_detection, "detection.feedback.services", "detection.comparisons"),
    ],
    ids=["robin", "detection"],
)
def test_nor_does_one_kind_of_another_app(gateway, monkeypatch, prune, first, last):
    done = []

    def broken():
        raise DataError

    monkeypatch.setattr(f"{first}.prune", broken)
    monkeypatch.setattr(f"{last}.prune", lambda: done.append(1) or 1)
    with pytest.raises(DataError):
        prune()

    assert done


class TestTheTrail:
    """Rows that nothing of ours writes: by hand, of a backup, of another release."""

    def put(self, workspace, details):
        AuditEvent.objects.create(
            action="key.created", actor="x", workspace_id=workspace.pk, details=details
        )

    def test_numbers_that_are_too_large_are_sealed_with_the_others(self, gateway, acme, globex):
        self.put(acme, {"n": 2**64}), self.put(globex, {})

        assert audit.seal() >= 2
        for place in (acme, globex):
            assert audit.verify(place.pk).wrong is None

    @pytest.mark.parametrize("details", [{"n": 2**64}, [1]], ids=["large", "list"])
    def test_an_event_that_cannot_be_sent_is_parked_and_the_others_are_sent(
        self, gateway, acme, globex, details
    ):
        audit.seal()
        Workspace.objects.update(wanted_events=[audit.RECORDED])
        self.put(acme, details), self.put(globex, {})

        assert audit.seal() == 2
        assert Parked.objects.get().kind == audit.UNSENT
        assert OutboxEvent.objects.get(type=audit.RECORDED).workspace_id == globex.pk
