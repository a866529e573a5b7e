"""Many items at once: behind the request, piece by piece, and what is said of what nobody knows."""

from __future__ import annotations

import pytest

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from robin import tasks
from robin.models import QueueJob
from robin.queue import jobs

UNKNOWN = "00000000-0000-4000-8000-000000000000"
ACTIONS = "/api/v1/queue/actions"


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


def ready(robin, count):
    return [item.uid for item in robin.seed.queue.select(["READY"])[:count]]


def acts(robin):
    return [path for method, path in robin.client.asked if method == "POST"]


def begin(ada, robin, action="retry", count=60, **more):
    uids = ready(robin, count)
    r = ada.post(ACTIONS, {"action": action, "uids": uids, **more})
    assert r.status_code == 202, r.text
    assert r.headers["location"] == f"{ACTIONS}/{r.json()['id']}"
    return r.json()["id"], uids


@pytest.mark.parametrize("action", ["retry", "bounce", "delete"])
def test_it_is_done_in_pieces_and_audited(ada, robin, action):
    job, uids = begin(ada, robin, action)
    assert AuditEvent.objects.get(action=f"robin.queue.{action}").details["requested"] == 60
    assert acts(robin) == []

    tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["done"], found["sent"]) == ("complete", 60, 60)
    assert (found["unknown"], found["leftOut"]) == (0, 0)
    assert len(acts(robin)) >= 2
    result = AuditEvent.objects.get(action=f"robin.queue.{action}.result")
    assert (result.details["done"], result.actor) == (60, ada.user.email)
    if action == "delete":
        assert not set(uids) & set(robin.seed.queue.items)


def test_a_piece_whose_answer_never_came_is_not_sent_again(ada, robin):
    job, _ = begin(ada, robin, "retry")
    faults = robin.client.faults
    faults.answer, faults.times, faults.prefix = "half", 1, "/client/queue/retry"

    for _ in "123":
        tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["requested"]) == ("partial", 60)
    assert found["unknown"] == jobs.PIECE_BEGIN
    assert found["done"] + found["unknown"] == 60


def test_a_worker_that_died_in_the_middle(ada, robin):
    job, _ = begin(ada, robin, "retry")
    QueueJob.objects.update(in_flight=25)  # it was sent, and nobody noted what came of it

    tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["unknown"], found["done"]) == ("partial", 25, 35)


def test_robin_away_is_waited_for_and_nothing_is_unknown(ada, robin):
    job, _ = begin(ada, robin, "delete")
    robin.run(robin.client.stop())
    tasks.work_on_queue()
    assert ada.get(f"{ACTIONS}/{job}").json()["unknown"] == 0
    robin.run(robin.client.start())

    tasks.work_on_queue()

    assert ada.get(f"{ACTIONS}/{job}").json()["done"] == 60


def test_it_can_be_stopped(ada, robin):
    job, _ = begin(ada, robin, "delete")
    assert ada.request("DELETE", f"{ACTIONS}/{job}").json()["state"] == "cancelled"
    tasks.work_on_queue()
    assert acts(robin) == []
    assert refusal(ada.get(f"{ACTIONS}/{UNKNOWN}")) == (404, "not_found")


class TestInDelivery:
    @pytest.mark.parametrize(
        ("method", "what"), [("POST", "/retry"), ("POST", "/bounce"), ("DELETE", "")]
    )
    def test_one_is_409_unless_forced(self, ada, robin, member, method, what):
        item = robin.seed.queue.select(["CLAIMED"])[0]
        r = ada.request(method, f"/api/v1/queue/{item.uid}{what}")
        assert refusal(r) == (409, "conflict")
        assert "being delivered" in r.json()["message"]
        assert acts(robin) == []
        assert item.state == "CLAIMED"

        assert ada.request(method, f"/api/v1/queue/{item.uid}{what}?force=true").is_success

    def test_of_many_they_are_left_out(self, ada, robin):
        claimed = [item.uid for item in robin.seed.queue.select(["CLAIMED"])]
        uids = [*claimed, *ready(robin, 60)]
        r = ada.post(ACTIONS, {"action": "delete", "uids": uids})
        tasks.work_on_queue()
        found = ada.get(f"{ACTIONS}/{r.json()['id']}").json()
        assert (found["done"], found["leftOut"]) == (60, len(claimed))
        assert set(claimed) <= set(robin.seed.queue.items)


def test_the_last_try_is_said(ada, robin):
    item = robin.seed.queue.select(["READY"])[0]
    item.protocol, item.retry = "ESMTP", 29
    ada.get("/api/v1/queue/json")
    r = ada.post(f"/api/v1/queue/{item.uid}/retry", {})
    assert "dead at once" in r.json()["warnings"][0]
    proposal = ada.post(ACTIONS, {"action": "retry", "filter": {"search": item.uid}}).json()
    assert proposal["matched"] == 1
