"""Many items at once: behind the request, piece by piece, and what is said of what nobody knows."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count

import pytest
from django.db import connection

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from gateway_project.core import clock
from robin import tasks
from robin.models import QueueJob
from robin.queue import jobs, scan, source

UNKNOWN = "00000000-0000-4000-8000-000000000000"
ACTIONS = "/api/v1/queue/actions"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


def ready(robin, count):
    return [item.uid for item in robin.seed.queue.select(["READY"])[:count]]


def counts(r):
    return tuple(r.json()[name] for name in ("done", "requested", "unknown"))


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


def test_one_that_cannot_be_read_is_ended_and_keeps_no_other_waiting(ada, robin):
    bad, _ = begin(ada, robin, "retry")
    QueueJob.objects.update(uids=b"no zlib", created_at=LONG_AGO)
    good, _ = begin(ada, robin, "retry")

    for _ in "12":
        tasks.work_on_queue()

    ended = ada.get(f"{ACTIONS}/{bad}").json()
    assert (ended["state"], ended["sent"], ended["message"]) == ("partial", 0, jobs.UNREADABLE)
    assert ada.get(f"{ACTIONS}/{good}").json()["state"] == "complete"


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


@contextmanager
def refusing(robin):
    """Robin takes our credentials no more."""
    auth = robin.client.auth
    auth.kind, auth.value = "bearer", "another"
    yield
    auth.kind = "none"


def test_a_robin_that_refuses_is_waited_for_and_nothing_is_unknown(ada, robin):
    job, _ = begin(ada, robin, "delete")
    with refusing(robin):
        for _ in "12":
            tasks.work_on_queue()
        found = ada.get(f"{ACTIONS}/{job}").json()
        assert (found["state"], found["sent"], found["unknown"]) == ("processing", 0, 0)
        assert "credentials" in found["message"]
    tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["done"]) == ("complete", 60)
    assert "message" not in found


@pytest.mark.parametrize("how", ["away", "refusing"])
def test_it_waits_for_ten_minutes_since_robin_did_something(ada, robin, how):
    """However old it is: a long one takes hours, one behind another waits for it."""
    job, _ = begin(ada, robin, "delete")
    QueueJob.objects.update(created_at=LONG_AGO)
    with refusing(robin):
        if how == "away":
            robin.run(robin.client.stop())
        tasks.work_on_queue()
        assert ada.get(f"{ACTIONS}/{job}").json()["state"] == "processing"
        QueueJob.objects.update(waits_since=LONG_AGO)
        tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["sent"], found["unknown"]) == ("partial", 0, 0)
    assert "ten minutes; the rest was not tried" in found["message"]


def test_what_it_waited_counts_anew_when_robin_did_something(ada, robin):
    begin(ada, robin, "delete")
    QueueJob.objects.update(waits_since=LONG_AGO, state="processing", in_flight=25)
    robin.run(robin.client.stop())
    tasks.work_on_queue()
    assert QueueJob.objects.get().state == "processing"


def test_one_that_was_stopped_meanwhile_does_not_say_that_it_waits(ada, robin, monkeypatch):
    job, _ = begin(ada, robin, "delete")
    act = jobs._Worker.act

    async def stopped(self, action, uids):
        await asyncio.to_thread(in_thread, stop, job)
        return await act(self, action, uids)

    monkeypatch.setattr(jobs._Worker, "act", stopped)
    with refusing(robin):
        tasks.work_on_queue()
    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["unknown"]) == ("cancelled", 0)
    assert "message" not in found


@pytest.fixture
def dropping():
    """The address of a host that drops what comes: its backlog is full."""
    with socket.socket() as listener, ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield "http://{}:{}".format(*listener.getsockname())


def test_of_what_was_never_sent_everybody_knows(ada, robin, settings, monkeypatch, dropping):
    for item in robin.seed.queue.select(["CLAIMED"]):  # so that no list of them is asked for first
        item.state = "READY"
    job, _ = begin(ada, robin, "delete")
    well = settings.ROBIN_CLIENT_API_URL
    settings.ROBIN_CLIENT_API_URL = dropping
    monkeypatch.setattr(source, "QUICK_SECONDS", 0.3)
    tasks.work_on_queue()
    assert ada.get(f"{ACTIONS}/{job}").json()["unknown"] == 0
    settings.ROBIN_CLIENT_API_URL = well
    tasks.work_on_queue()

    found = ada.get(f"{ACTIONS}/{job}").json()
    assert (found["state"], found["done"], found["unknown"]) == ("complete", 60, 0)


def test_it_can_be_stopped(ada, robin):
    job, _ = begin(ada, robin, "delete")
    assert ada.request("DELETE", f"{ACTIONS}/{job}").json()["state"] == "cancelled"
    tasks.work_on_queue()
    assert acts(robin) == []
    assert refusal(ada.get(f"{ACTIONS}/{UNKNOWN}")) == (404, "not_found")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(number):
    """The process dies at this statement: nothing of it, and none after it, comes to the store."""
    seen = count()

    def run(execute, *given):
        if next(seen) >= number:
            raise Killed
        return execute(*given)

    with connection.execute_wrapper(run):
        try:
            yield
        except Killed:
            scan.forget()  # with the turn that it held


def stop(job):
    return jobs.cancel(job, trail={"actor": "bob@robin.example"})


class TestEnds:
    """However a job ends: one line says what came of it, and the numbers are those of Robin."""

    def holds(self, job):
        found = QueueJob.objects.get(pk=job)
        results = AuditEvent.objects.filter(action__endswith=".result", target=str(job))
        [details] = [one.details for one in results]
        assert (details["state"], details["done"], details["unknown"]) == (
            (found.state, found.done, found.unknown)
        )
        assert found.done + found.unknown + found.left_out == found.sent <= found.requested
        assert (found.in_flight, found.claimed_until) == (0, None)
        assert found.finished_at is not None
        return found

    @pytest.mark.parametrize("is_stopped", [False, True], ids=["goes on", "is stopped"])
    def test_a_worker_that_is_killed_at_any_statement(self, ada, robin, is_stopped):
        states = set()
        for number in count():
            job, _ = begin(ada, robin, count=30)
            with killed_at(number):
                tasks.work_on_queue()
                break
            if is_stopped:
                stop(job)
            QueueJob.objects.filter(claimed_until__isnull=False).update(claimed_until=LONG_AGO)
            for _ in "123":
                tasks.work_on_queue()
            states.add(self.holds(job).state)

        assert number > 10
        assert {"cancelled"} <= states if is_stopped else states == {"complete", "partial"}

    def test_it_is_stopped_before_anything(self, ada, robin):
        job, _ = begin(ada, robin)
        stop(job)
        tasks.work_on_queue()

        assert self.holds(job).sent == 0
        line = AuditEvent.objects.get(action="robin.queue.action.cancelled")
        assert (line.actor, line.target) == ("bob@robin.example", job)

    @pytest.mark.parametrize("is_last", [False, True], ids=["in a round", "at a round's end"])
    def test_it_is_stopped_while_a_piece_is_under_way(self, ada, robin, monkeypatch, is_last):
        act = jobs._Worker.act

        async def stopped(self, action, uids):
            await asyncio.to_thread(in_thread, stop, job)
            if is_last:
                monkeypatch.setattr(jobs, "monotonic", lambda: time.monotonic() + 60)
            return await act(self, action, uids)

        monkeypatch.setattr(jobs._Worker, "act", stopped)
        job, _ = begin(ada, robin)
        tasks.work_on_queue()

        found = self.holds(job)
        assert (found.state, found.done) == ("cancelled", jobs.PIECE_BEGIN)

    def test_it_is_stopped_after_its_worker_died(self, ada, robin):
        job, _ = begin(ada, robin)
        QueueJob.objects.update(state="processing", in_flight=25, claimed_until=LONG_AGO)
        stop(job)

        found = self.holds(job)
        assert (found.sent, found.unknown) == (25, 25)

    def test_to_stop_what_is_over_or_never_was_is_no_act(self, ada, robin):
        job, _ = begin(ada, robin)
        tasks.work_on_queue()
        r = ada.request("DELETE", f"{ACTIONS}/{job}")
        missing = ada.request("DELETE", f"{ACTIONS}/{UNKNOWN}")

        assert r.json()["state"] == "complete"
        assert refusal(missing) == (404, "not_found")
        assert not AuditEvent.objects.filter(action="robin.queue.action.cancelled").exists()


def in_thread(function, *given):
    try:
        return function(*given)
    finally:
        connection.close()


class TestInDelivery:
    @pytest.mark.parametrize(
        ("method", "what"), [("POST", "/retry"), ("POST", "/bounce"), ("DELETE", "")]
    )
    def test_one_is_409_unless_forced(self, ada, robin, member, method, what):
        item = robin.seed.queue.select(["CLAIMED"])[0]
        r = ada.request(method, f"/api/v1/queue/{item.uid}{what}")
        assert refusal(r) == (409, "conflict")
        assert counts(r) == (0, 1, 0)
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

    @pytest.fixture
    def stale(self, ada, robin, monkeypatch):
        """Lists take long, so that none is read before an action: the last is old."""
        ada.get("/api/v1/queue")
        monkeypatch.setattr(scan, "QUICK_SECONDS", 0.0)
        monkeypatch.setattr(scan, "CLAIMED_SECONDS", 0.0)

    def test_a_refusal_says_of_when_it_is(self, ada, robin, stale):
        item = robin.seed.queue.select(["CLAIMED"])[0]
        r = ada.post(f"/api/v1/queue/{item.uid}/retry", {})
        assert refusal(r) == (409, "conflict")
        assert f"It was being delivered at {clock.now().year}-" in r.json()["message"]
        assert "at this moment" not in r.json()["message"]

    @pytest.mark.parametrize("count", [1, 60])
    def test_what_may_be_in_delivery_unknown_to_anybody_is_reported(self, ada, robin, stale, count):
        uids = ready(robin, count)
        robin.seed.queue.items[uids[0]].state = "CLAIMED"
        r = ada.post(ACTIONS, {"action": "retry", "uids": uids})
        if count > 1:
            assert r.json()["warnings"] == []
            tasks.work_on_queue()
            r = ada.get(f"{ACTIONS}/{r.json()['id']}")
        assert r.json()["warnings"] == ["What Robin is delivering at this moment goes out twice."]
        assert r.json()["done"] == count

    def test_what_is_delivered_since_the_last_piece_is_left_out(self, ada, robin, monkeypatch):
        job, uids = begin(ada, robin)
        act = jobs._Worker.act

        async def act_and_deliver(self, action, chosen):
            robin.seed.queue.items[uids[-1]].state = "CLAIMED"
            monkeypatch.setattr(scan, "CLAIMED_SECONDS", 0.0)  # the last list is an old one
            return await act(self, action, chosen)

        monkeypatch.setattr(jobs._Worker, "act", act_and_deliver)
        tasks.work_on_queue()
        found = ada.get(f"{ACTIONS}/{job}").json()
        assert (found["done"], found["leftOut"]) == (59, 1)


@pytest.mark.parametrize(("action", "expected"), [("retry", True), ("bounce", False)])
def test_the_last_try_of_some_of_many_is_reported(ada, robin, action, expected):
    uids = ready(robin, 30)
    for uid in uids[:2]:
        robin.seed.queue.items[uid].retry = 29
        robin.seed.queue.items[uid].protocol = "ESMTP"
    ada.get("/api/v1/queue/json")
    r = ada.post(ACTIONS, {"action": action, "uids": uids})
    for answer in (r, ada.get(r.headers["location"])):
        assert ["Of these, 2 have no try left" in one for one in answer.json()["warnings"]] == [
            True
        ] * expected


def test_the_last_try_is_reported(ada, robin):
    item = robin.seed.queue.select(["READY"])[0]
    item.protocol, item.retry = "ESMTP", 29
    ada.get("/api/v1/queue/json")
    r = ada.post(f"/api/v1/queue/{item.uid}/retry", {})
    assert "dead at once" in r.json()["warnings"][0]
    proposal = ada.post(ACTIONS, {"action": "retry", "filter": {"search": item.uid}}).json()
    assert proposal["matched"] == 1
