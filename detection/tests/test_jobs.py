"""Batches behind their request, single texts judged later, and Idempotency-Key"""

from __future__ import annotations

import json
import socket
import threading
from datetime import timedelta
from itertools import product
from uuid import UUID, uuid4

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from accounts import idempotency, retention
from accounts.idempotency import Sender
from accounts.models import AuditEvent, IdempotencyRecord, OutboxEvent, UsageLog, Workspace
from accounts.services import Actor
from accounts.usage import stream
from conftest import forget_limits
from detection import tasks
from detection.jobs import judging, store, turns, worker
from detection.models import Job, JobChunk
from detection.tests.test_batch import items, remaining
from detection.tests.test_detect import ATTACK, HARMLESS, field, problem
from detection.tests.working import broker_at, free_chunks, in_line, wait_until_sent, work_all
from gateway_project.core import encryption
from gateway_project.core.stores import database, queues, redis
from webhooks.delivery.engine import deliver_all

BATCH, ASYNC = "/v1/detect/batch", "/v1/detect/async"
COUNT = turns.CHUNK_ITEMS + 5
LATER = {"Prefer": "respond-async"}


@pytest.fixture
def submit(gateway, engine, acme_key):
    """Hand in a batch of these texts; the answer to it."""

    def submit(*texts, headers=LATER, key=acme_key, **more):
        body = {"requests": items(*texts), **more}
        r = gateway.post(BATCH, body, key=key, headers=headers)
        wait_until_sent()
        return r

    submit.key = acme_key
    return submit


@pytest.fixture
def silent():
    """The URL of a Redis that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def different(count, text=HARMLESS):
    return [f"{text} ({n})" for n in range(count)]


def pages(gateway, key, path):
    """All results, by following `next`."""
    found = []
    while path is not None:
        body = gateway.get(path, key=key).json()
        found += body["results"]
        path = body["next"] and body["next"].removeprefix("http://testserver")
    return found


class TestABatchBehindItsRequest:
    @pytest.mark.parametrize(
        ("count", "more", "headers"),
        [(101, {}, {}), (1, {}, LATER), (1, {"webhook_url": "https://192.0.2.1.example"}, {})],
        ids=["many", "asked for", "webhook_url"],
    )
    def test_it_is_accepted(self, gateway, submit, acme_key, count, more, headers):
        r = submit(*[HARMLESS] * count, headers=headers, **more)
        body = r.json()

        assert r.status_code == 202, r.text
        assert set(body) == {
            *("batch_id", "status", "total", "status_url", "estimated_completion_seconds")
        }
        assert (body["status"], body["total"]) == ("queued", count)
        assert r.headers["location"] == body["status_url"] == f"{BATCH}/{body['batch_id']}"
        shown = gateway.get(body["status_url"], key=acme_key).json()
        assert (shown["status"], shown["results"], shown["next"]) == ("queued", [], None)

    def test_it_is_worked_on_and_read_in_pages(self, gateway, engine, submit, acme_key):
        texts = different(110)
        texts[7] = ATTACK
        r = submit(*texts, metadata={"run": 1})
        work_all()

        url = r.json()["status_url"]
        shown = gateway.get(f"{url}?limit=30", key=acme_key).json()
        assert (shown["status"], shown["total"]) == ("complete", 110)
        counts = ("successful_count", "failed_count", "flagged_count")
        assert [shown[name] for name in counts] == [110, 0, 1]
        assert shown["metadata"] == {"run": 1}
        assert shown["started_at"] <= shown["finished_at"] < shown["expires_at"]
        assert len(shown["results"]) == 30
        found = pages(gateway, acme_key, f"{url}?limit=30")
        assert [one["id"] for one in found] == [f"t{n}" for n in range(110)]
        assert [one["id"] for one in found if one["result"]["decision"] == "flag"] == ["t7"]

    def test_all_of_it_as_lines(self, gateway, submit, acme_key):
        r = submit(*different(turns.CHUNK_ITEMS + 10))
        work_all()
        lines = gateway.get(
            r.json()["status_url"], key=acme_key, headers={"Accept": "application/x-ndjson"}
        )

        assert lines.headers["content-type"] == "application/x-ndjson"
        assert lines.text.endswith("\n")
        found = [json.loads(line) for line in lines.text.splitlines()]
        assert [one["id"] for one in found] == [f"t{n}" for n in range(turns.CHUNK_ITEMS + 10)]
        assert {one["result"]["decision"] for one in found} == {"allow"}

    def test_each_verdict_is_a_row_of_the_log(self, gateway, submit, acme_key):
        r = submit(HARMLESS, ATTACK)
        work_all()

        found = pages(gateway, acme_key, r.json()["status_url"])
        rows = {str(row.request_id): row for row in UsageLog.objects.all()}
        assert set(rows) == {one["result"]["request_id"] for one in found}
        assert {row.endpoint for row in rows.values()} == {BATCH}
        acme_key.row.refresh_from_db()
        assert acme_key.row.last_used_ip == "127.0.0.1"

    def test_it_costs_one_of_the_minute_and_one_of_the_day_for_each_item(
        self, gateway, submit, acme_key
    ):
        before = remaining(gateway, acme_key)
        submit(*[HARMLESS] * 150)
        after = remaining(gateway, acme_key)

        assert {name: before[name] - after[name] for name in before} == {
            "minute": 1,
            "day": 150,
            "workspace_day": 150,
            "workspace_minute": 1,
        }

    def test_bad_items_fail_alone_and_all_of_them_fail_the_batch(self, gateway, submit, acme_key):
        some = submit(HARMLESS, "x" * 10_001).json()["status_url"]
        none = submit("x" * 10_001, "").json()["status_url"]
        work_all()

        some, none = (gateway.get(url, key=acme_key).json() for url in (some, none))
        assert (some["status"], some["successful_count"], some["failed_count"]) == ("partial", 1, 1)
        assert some["results"][1]["error"]["code"] == "validation_error"
        assert (none["status"], none["failed_count"]) == ("failed", 2)

    def test_nobody_waits_for_a_giant(self, submit):
        submit(*different(4 * turns.CHUNK_ITEMS))
        submit(HARMLESS)
        sizes = [JobChunk.objects.get(pk=chunk_id).size for chunk_id in in_line()]

        assert sizes == [1, *[turns.CHUNK_ITEMS] * 4]

    def test_a_suspended_workspace_waits(self, gateway, submit, acme):
        submit(HARMLESS)
        Workspace.objects.update(suspended_at=timezone.now())
        work_all()
        assert Job.objects.get().status == "queued"

        Workspace.objects.update(suspended_at=None)
        work_all()
        assert Job.objects.get().status == "complete"


class TestTexts:
    def test_they_are_encrypted_while_they_wait_and_gone_afterwards(self, submit):
        submit(ATTACK)
        [chunk] = JobChunk.objects.all()
        assert ATTACK not in chunk.items
        assert ATTACK in encryption.decrypt(chunk.items)

        work_all()
        chunk.refresh_from_db()
        assert chunk.items == ""
        assert ATTACK not in chunk.results

    def test_a_cancelled_batch_keeps_none(self, gateway, submit, acme_key):
        url = submit(ATTACK).json()["status_url"]
        gateway.delete(url, key=acme_key)

        assert JobChunk.objects.get().items == ""

    def test_what_this_worker_cannot_decrypt_another_may(self, submit):
        submit(ATTACK)
        [chunk_id] = free_chunks()
        kept = JobChunk.objects.get().items
        JobChunk.objects.update(items="gAAAAA")

        assert not worker.judge_chunk(chunk_id)

        chunk = JobChunk.objects.get()
        assert (chunk.state, chunk.worker, chunk.items) == ("queued", None, "gAAAAA")
        JobChunk.objects.update(items=kept)
        assert worker.judge_chunk(chunk_id)

    def test_they_are_not_remembered_in_memory(self, submit):
        encryption._remembered.cache_clear()
        submit(ATTACK)
        work_all()

        assert encryption._remembered.cache_info().currsize == 0

    def test_what_no_worker_can_decrypt_fails_and_blocks_nothing(self, gateway, submit, acme_key):
        url = submit(ATTACK).json()["status_url"]
        JobChunk.objects.update(items="gAAAAA", attempts=store.ATTEMPTS_MAX)
        work_all()

        shown = gateway.get(url, key=acme_key).json()
        assert shown["status"] == "failed"
        assert shown["results"][0]["error"]["code"] == "internal_error"


def walk_of(job, sizes, states):
    """Chunks of these sizes and states for it; the lines of all that is done before a gap."""
    lines, first, is_gap = [], 0, False
    for number, (size, state) in enumerate(zip(sizes, states, strict=True)):
        results = [str(first + n) for n in range(size)] if state == "done" else []
        job.chunks.create(
            number=number, first=first, size=size, state=state, results="\n".join(results)
        )
        is_gap = is_gap or state == "queued"
        lines += [] if is_gap else results
        first += size
    return lines


class TestCancelling:
    def test_it_ends_and_what_is_judged_stays(self, gateway, submit, acme_key):
        url = submit(*different(turns.CHUNK_ITEMS + 10)).json()["status_url"]
        work = store.claim(free_chunks()[0])
        assert store.finish(work, gateway.run(judge(work)))
        r = gateway.delete(url, key=acme_key)

        assert r.status_code == 200
        assert r.json()["status"] == "cancelled"
        work_all()
        shown = gateway.get(url, key=acme_key).json()
        assert (shown["status"], shown["successful_count"]) == ("cancelled", turns.CHUNK_ITEMS)
        assert len(pages(gateway, acme_key, url)) == turns.CHUNK_ITEMS
        assert AuditEvent.objects.filter(action="job.cancelled").exists()

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 7])
    def test_pages_end_whatever_was_cancelled(self, acme_key, monkeypatch, limit):
        """For every mix of states: each result once, in order, and no page leads to itself."""
        monkeypatch.setattr(turns, "CHUNK_ITEMS", 3)
        sizes = (3, 3, 3, 2)
        job = Job.objects.create(
            workspace=acme_key.row.workspace,
            api_key_id=acme_key.row.pk,
            total=sum(sizes),
            request_id="walked",
            expires_at=timezone.now() + timedelta(days=1),
        )
        for states in product(["done", "cancelled", "queued"], repeat=len(sizes)):
            job.chunks.all().delete()
            expected = walk_of(job, sizes, states)
            found, at = [], 0
            while at is not None:
                lines, following = store.results(job, at, limit)
                found += lines
                assert following is None or (lines and following > at), (states, at)
                at = following
            assert found == expected, states

    def test_what_a_worker_brings_too_late_is_dropped(self, gateway, submit, acme_key):
        url = submit(HARMLESS).json()["status_url"]
        [chunk_id] = free_chunks()
        work = store.claim(chunk_id)
        gateway.delete(url, key=acme_key)
        assert not store.finish(work, gateway.run(judge(work)))

        shown = gateway.get(url, key=acme_key).json()
        assert (shown["status"], shown["results"]) == ("cancelled", [])
        assert not UsageLog.objects.exists()
        assert store.renew([work]) == set()

    def test_a_running_worker_lets_go(self, gateway, engine, submit, acme_key):
        engine.is_slow(3)
        url = submit(HARMLESS).json()["status_url"]
        working = threading.Thread(target=work_all)
        working.start()
        wait_for(lambda: JobChunk.objects.filter(state="processing").exists())
        gateway.delete(url, key=acme_key)
        working.join(10)

        assert not working.is_alive()
        assert Job.objects.get().status == "cancelled"

    @pytest.mark.parametrize("end", ["finish", "cancel"])
    def test_what_is_over_cannot_be_cancelled(self, gateway, submit, acme_key, end):
        url = submit(HARMLESS).json()["status_url"]
        if end == "finish":
            work_all()
        else:
            gateway.delete(url, key=acme_key)
        body = problem(gateway.delete(url, key=acme_key), 409, "conflict")

        assert ("complete" if end == "finish" else "cancelled") in body["detail"]


async def judge(work):
    from detection.jobs import judging

    return await judging.judge(work.items, work.origin)


def wait_for(condition, seconds=10):
    import time

    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


class TestAWorkerThatDies:
    def test_its_chunk_is_taken_over_when_the_lease_ends(self, gateway, submit, acme_key):
        url = submit(*different(COUNT)).json()["status_url"]
        first, _second = map(store.claim, free_chunks())
        store.finish(first, gateway.run(judge(first)))
        work_all()
        assert gateway.get(url, key=acme_key).json()["successful_count"] == turns.CHUNK_ITEMS

        JobChunk.objects.filter(state="processing").update(leased_until=timezone.now())
        work_all()
        assert gateway.get(url, key=acme_key).json()["status"] == "complete"
        assert UsageLog.objects.count() == COUNT
        assert len(pages(gateway, acme_key, url)) == COUNT

    def test_it_may_come_back_but_says_nothing_more(self, gateway, submit, acme_key):
        submit(HARMLESS)
        [chunk_id] = free_chunks()
        slow = store.claim(chunk_id)
        JobChunk.objects.update(leased_until=timezone.now())
        quick = store.claim(chunk_id)
        judged = gateway.run(judge(quick))
        assert store.finish(quick, judged)
        assert not store.finish(slow, judged)

        assert Job.objects.get().succeeded == 1
        assert UsageLog.objects.count() == 1

    def test_what_kills_every_worker_is_given_up(self, gateway, submit, acme_key):
        url = submit(HARMLESS).json()["status_url"]
        JobChunk.objects.update(attempts=store.ATTEMPTS_MAX)
        work_all()

        shown = gateway.get(url, key=acme_key).json()
        assert shown["status"] == "failed"
        assert shown["results"] == [
            {
                "id": "t0",
                "status": "error",
                "result": None,
                "error": shown["results"][0]["error"],
            }
        ]


class TestASingleText:
    @pytest.fixture
    def later(self, gateway, engine, acme_key, receiver):
        def later(text=ATTACK, headers=None, **more):
            body = {"text": text, "webhook_url": receiver.url("/told"), **more}
            return gateway.post(ASYNC, body, key=acme_key, headers=headers)

        return later

    def test_it_is_accepted_judged_and_read(self, gateway, later, acme_key):
        r = later(metadata={"user": "u1"})
        accepted = r.json()

        assert r.status_code == 202
        assert set(accepted) == {
            *("request_id", "status", "estimated_completion_seconds", "webhook_url", "status_url")
        }
        assert r.headers["location"] == f"{ASYNC}/{accepted['request_id']}"
        waiting = gateway.get(accepted["status_url"], key=acme_key).json()
        assert (waiting["status"], waiting["result"]) == ("queued", None)
        work_all()
        done = gateway.get(accepted["status_url"], key=acme_key).json()
        assert (done["status"], done["error"]) == ("complete", None)
        assert done["result"]["decision"] == "flag"
        assert done["result"]["request_id"] == done["request_id"] == accepted["request_id"]
        assert done["metadata"] == done["result"]["metadata"] == {"user": "u1"}
        assert str(UsageLog.objects.get().request_id) == accepted["request_id"]

    def test_the_outcome_is_sent_to_its_webhook_url(self, gateway, later, receiver, acme_key):
        accepted = later(metadata={"user": "u1"}).json()
        work_all()
        deliver_all()

        [got] = receiver.received
        body = json.loads(got.body)
        assert got.path == "/told"
        assert body["type"] == "detection.completed"
        assert body["request_id"] == accepted["request_id"]
        assert body["data"]["metadata"] == {"user": "u1"}
        assert body["data"]["result"]["decision"] == "flag"
        assert ATTACK not in got.body.decode()

    def test_without_anybody_to_tell_it_is_refused(self, gateway, engine, acme_key):
        r = gateway.post(ASYNC, {"text": HARMLESS}, key=acme_key)

        assert field(problem(r, 422, "validation_error")) == "webhook_url"

    def test_a_webhook_of_the_workspace_is_enough(
        self, gateway, engine, acme_key, webhook, receiver
    ):
        r = gateway.post(ASYNC, {"text": HARMLESS}, key=acme_key)
        work_all()
        deliver_all()

        assert r.status_code == 202
        [got] = receiver.received
        assert json.loads(got.body)["request_id"] == r.json()["request_id"]

    def test_no_verdict_is_an_outcome_too(self, gateway, engine, later, receiver, acme_key):
        engine.is_down()
        url = later(config={"on_unavailable": "fail_closed"}).json()["status_url"]
        work_all()
        deliver_all()

        done = gateway.get(url, key=acme_key).json()
        assert (done["status"], done["result"]) == ("failed", None)
        assert done["error"]["code"] == "detection_unavailable"
        body = json.loads(receiver.received[0].body)
        assert body["type"] == "detection.failed"
        assert body["data"]["result"]["http_status"] == 503


class TestWhoMayRead:
    @pytest.mark.parametrize("base", [BATCH, ASYNC])
    def test_an_unknown_job_and_another_workspaces_are_the_same(
        self, gateway, submit, make_key, globex, acme_key, base
    ):
        theirs = make_key(globex)
        mine = submit(HARMLESS).json()["batch_id"]
        unknown = problem(gateway.get(f"{base}/{uuid4()}", key=theirs), 404, "not_found")
        other = problem(gateway.get(f"{base}/{mine}", key=theirs), 404, "not_found")
        words = problem(gateway.get(f"{base}/nonsense", key=theirs), 404, "not_found")

        assert unknown["detail"] == other["detail"]
        assert words["status"] == 404
        if base == BATCH:
            problem(gateway.delete(f"{base}/{mine}", key=theirs), 404, "not_found")

    def test_another_key_of_the_workspace_may(self, gateway, submit, make_key):
        mine = submit(HARMLESS).json()

        found = gateway.get(mine["status_url"], key=make_key()).json()

        assert found["batch_id"] == mine["batch_id"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=-1", "cursor=zz"])
    def test_a_page_that_cannot_be(self, gateway, submit, acme_key, query):
        url = submit(HARMLESS).json()["status_url"]

        problem(gateway.get(f"{url}?{query}", key=acme_key), 422, "validation_error")

    def test_results_end_after_their_days(self, gateway, submit, acme_key):
        url = submit(HARMLESS).json()["status_url"]
        work_all()
        with time_machine.travel(timezone.now() + timedelta(days=7, minutes=1), tick=True):
            problem(gateway.get(url, key=acme_key), 404, "not_found")
            store.prune()
        assert not Job.objects.exists()
        assert not JobChunk.objects.exists()


class TestNotifications:
    def test_who_asked_for_batch_events_and_the_webhook_url(
        self, submit, make_webhook, receiver, acme
    ):
        make_webhook("/registered", ["batch.completed"])
        r = submit(HARMLESS, "x" * 10_001, webhook_url=receiver.url("/named"), metadata={"n": 1})
        work_all()
        deliver_all()

        assert sorted(got.path for got in receiver.received) == ["/named", "/registered"]
        for got in receiver.received:
            body = json.loads(got.body)
            assert body["type"] == "batch.completed"
            assert body["data"]["metadata"] == {"n": 1}
            assert body["data"]["result"] == {
                "batch_id": r.json()["batch_id"],
                "status": "partial",
                "total": 2,
                "succeeded": 1,
                "failed": 1,
                "flagged": 0,
                "status_url": r.json()["status_url"],
            }

    def test_no_event_is_sent_twice_or_unasked(self, submit, receiver, webhook):
        submit(HARMLESS)
        work_all()
        deliver_all()

        assert [json.loads(got.body)["type"] for got in receiver.received] == [
            "detection.completed"
        ]

    def test_a_failed_batch(self, submit, make_webhook, receiver):
        make_webhook("/a", ["batch.failed"])
        submit("")
        work_all()
        deliver_all()

        [got] = receiver.received
        assert json.loads(got.body)["data"]["result"]["code"] == "validation_error"

    @pytest.mark.parametrize("url", ["https://127.0.0.1/", "http://example.com/", "ftp://x", "x"])
    @pytest.mark.parametrize("path", [BATCH, ASYNC, "/v1/detect"])
    def test_an_address_we_may_not_send_to(self, gateway, engine, acme_key, path, url):
        body = {"webhook_url": url}
        body |= {"requests": items(HARMLESS)} if path == BATCH else {"text": HARMLESS}
        r = gateway.post(path, body, key=acme_key)

        assert field(problem(r, 422, "validation_error")) == "webhook_url"
        assert not Job.objects.exists()
        assert not OutboxEvent.objects.exists()
        assert not engine.asked
        assert remaining(gateway, acme_key)["day"] == 10_000


class TestIdempotency:
    def test_the_same_again_is_given_the_same(self, gateway, submit, acme_key):
        headers = {**LATER, "Idempotency-Key": "a" * 36}
        first = submit(HARMLESS, headers=headers)
        day = remaining(gateway, acme_key)["day"]
        again = submit(HARMLESS, headers=headers)

        assert again.status_code == 202
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert remaining(gateway, acme_key)["day"] == day
        assert Job.objects.count() == 1

    def test_another_body_under_the_key_is_refused(self, gateway, submit, acme_key):
        headers = {**LATER, "Idempotency-Key": "b" * 36}
        submit(HARMLESS, headers=headers)
        r = submit(ATTACK, headers=headers)

        problem(r, 422, "idempotency_mismatch")
        assert Job.objects.count() == 1

    def test_it_is_each_workspaces_own(self, submit, make_key, globex):
        headers = {**LATER, "Idempotency-Key": "c" * 36}
        submit(HARMLESS, headers=headers)
        submit(HARMLESS, headers=headers, key=make_key(globex))

        assert Job.objects.count() == 2

    def test_after_a_day_it_is_free_again(self, submit):
        headers = {**LATER, "Idempotency-Key": "d" * 36}
        submit(HARMLESS, headers=headers)
        with time_machine.travel(timezone.now() + timedelta(hours=24, minutes=1), tick=True):
            forget_limits()  # what Redis kept of it for an hour has ended, too
            r = submit(ATTACK, headers=headers)
            assert r.status_code == 202
            retention.prune()
        assert Job.objects.count() == 2
        assert IdempotencyRecord.objects.count() == 1

    def test_a_refusal_is_not_remembered(self, gateway, submit, acme_key):
        headers = {**LATER, "Idempotency-Key": "e" * 36}
        problem(
            submit(HARMLESS, headers=headers, webhook_url="https://127.0.0.1"),
            422,
            "validation_error",
        )

        accepted = submit(HARMLESS, headers=headers).json()

        assert accepted["batch_id"] == str(Job.objects.get().pk)

    @pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
    def test_a_key_that_cannot_be(self, submit, key):
        r = submit(HARMLESS, headers={**LATER, "Idempotency-Key": key})

        assert field(problem(r, 422, "validation_error")) == "Idempotency-Key"

    def test_a_batch_that_is_answered_at_once_makes_no_row(self, submit):
        headers = {"Idempotency-Key": "f" * 36}
        ids = {submit(HARMLESS, headers=headers).json()["batch_id"] for _ in range(2)}

        assert len(ids) == 1
        assert not IdempotencyRecord.objects.exists()

    def test_a_detection_with_a_webhook_url_sends_one_event(
        self, gateway, engine, acme_key, receiver
    ):
        body = {"text": ATTACK, "webhook_url": receiver.url("/told"), "metadata": {"n": 1}}
        headers = {"Idempotency-Key": "g" * 36}
        first, again = (
            gateway.post("/v1/detect", body, key=acme_key, headers=headers) for _ in range(2)
        )
        deliver_all()

        assert first.status_code == 200
        assert first.json() == again.json()
        assert again.headers["idempotency-replayed"] == "true"
        [got] = receiver.received
        assert json.loads(got.body)["request_id"] == first.json()["request_id"]
        gateway.flush_usage()
        stream.drain()
        assert UsageLog.objects.count() == 1

    def test_also_on_a_test_of_a_webhook(self, gateway, acme_key, webhook, receiver):
        body = {"webhook_id": str(webhook.pk)}
        headers = {"Idempotency-Key": "h" * 36}
        first, again = (
            gateway.post("/webhooks/test", body, key=acme_key, headers=headers) for _ in range(2)
        )
        deliver_all()

        assert first.json() == again.json()
        assert len(receiver.received) == 1

    def test_two_first_calls_at_once_make_one_job(self, gateway, engine, acme_key, acme):
        if connection.vendor != "postgresql":
            pytest.skip("needs PostgreSQL: SQLite's transactions exclude each other")
        body = {"requests": items(*different(120))}
        headers = {"X-API-Key": acme_key, "Idempotency-Key": "i" * 36}
        calls = [{"method": "POST", "url": BATCH, "json": body, "headers": headers}] * 6
        answers = gateway.at_once(calls)

        assert Job.objects.count() == 1
        codes = {r.status_code for r in answers}
        assert 202 in codes
        assert codes <= {202, 409}
        assert len({r.json()["batch_id"] for r in answers if r.status_code == 202}) == 1
        for r in answers:
            if r.status_code == 409:
                problem(r, 409, "idempotency_in_progress")
                assert r.headers["retry-after"] == "1"

    def test_a_repeat_while_the_first_is_served_is_a_conflict(self, acme, rf_post):
        if connection.vendor != "postgresql":
            pytest.skip("needs PostgreSQL: SQLite's transactions exclude each other")
        started, may_end, seen = threading.Event(), threading.Event(), []

        def effect():
            from django.http import HttpResponse

            started.set()
            may_end.wait(10)
            seen.append(1)
            return HttpResponse("{}", content_type="application/json", status=202)

        def first():
            try:
                idempotency.once(Sender(acme.pk, "me", rf_post("same")), effect)
            finally:
                connection.close()

        thread = threading.Thread(target=first)
        thread.start()
        assert started.wait(10)
        with pytest.raises(Exception, match="being served right now"):
            idempotency.once(Sender(acme.pk, "me", rf_post("same")), effect)
        may_end.set()
        thread.join(10)
        replay = idempotency.once(Sender(acme.pk, "me", rf_post("same")), effect)

        assert len(seen) == 1
        assert replay["Idempotency-Replayed"] == "true"


@pytest.fixture
def rf_post(rf):
    def make(key):
        return rf.post("/x", b"{}", content_type="application/json", HTTP_IDEMPOTENCY_KEY=key)

    return make


def test_the_request_ids_are_minted_here(submit, gateway, acme_key):
    url = submit(HARMLESS).json()["status_url"]
    work_all()
    [one] = gateway.get(url, key=acme_key).json()["results"]

    assert UUID(one["result"]["request_id"]).version == 7


def test_an_actor_may_cancel_from_elsewhere(submit, acme):
    submit(HARMLESS)
    job = store.cancel(Job.objects.get(), actor=Actor("ada@acme.example"))

    assert job.status == "cancelled"
    assert AuditEvent.objects.get(action="job.cancelled").actor == "ada@acme.example"


class TestTheTaskOfAChunk:
    """`detection.tasks.judge_chunk`: a message may be lost, come twice, or fail."""

    def test_there_is_one_for_each_and_it_waits_in_the_queue(self, submit):
        submit(*different(COUNT))

        chunks = JobChunk.objects.order_by("number")
        assert in_line() == [chunk.pk for chunk in reversed(chunks)]  # the small one first
        assert queues.length(queues.DETECTION) == 2
        assert queues.lengths() == {
            name: 2 if name == queues.DETECTION else 0 for name in queues.NAMES
        }

    def test_a_message_that_comes_twice_finds_nothing_to_do(self, engine, submit):
        submit(HARMLESS)
        [chunk_id] = in_line()

        assert tasks.judge_chunk(str(chunk_id)) is True
        assert tasks.judge_chunk(str(chunk_id)) is False
        assert len(engine.asked) == 1
        assert UsageLog.objects.count() == 1

    def test_what_fails_waits_again_and_is_tried_again(self, submit, monkeypatch):
        submit(HARMLESS)
        [chunk_id] = in_line()
        monkeypatch.setattr(judging, "judge", broken)

        with pytest.raises(ZeroDivisionError):
            worker.judge_chunk(chunk_id)

        chunk = JobChunk.objects.get()
        assert (chunk.state, chunk.worker, chunk.attempts) == ("queued", None, 1)
        monkeypatch.undo()
        assert worker.judge_chunk(chunk_id)

    def test_celery_tries_again_later_and_ever_later(self):
        task = tasks.judge_chunk
        assert task.acks_late
        assert task.autoretry_for == (Exception,)
        assert (task.retry_backoff, task.max_retries) == (True, store.ATTEMPTS_MAX)
        assert worker.CHUNK_SECONDS_MAX < task.soft_time_limit < task.time_limit

    def test_what_takes_too_long_is_given_up_and_waits_again(self, engine, submit, monkeypatch):
        submit(HARMLESS, config={"on_unavailable": "fail_closed"})
        engine.is_slow(3)
        monkeypatch.setattr(worker, "CHUNK_SECONDS_MAX", 0.1)

        with pytest.raises(TimeoutError):
            worker.judge_chunk(in_line()[0])

        assert JobChunk.objects.get().state == "queued"

    def test_a_message_that_was_lost_is_sent_again(self, submit):
        submit(*different(COUNT))
        sent = in_line()
        redis.client().flushdb()
        assert tasks.work() == 0  # it may still be on its way
        assert in_line() == []

        with time_machine.travel(timezone.now() + turns.TRUST + timedelta(seconds=1)):
            assert tasks.work() == 2
            assert in_line() == sent
            assert tasks.work() == 0

    def test_what_waits_in_line_is_sent_again_only_after_a_long_time(self, submit):
        submit(*different(COUNT))

        with time_machine.travel(timezone.now() + timedelta(minutes=9)):
            assert tasks.work() == 0
        with time_machine.travel(timezone.now() + timedelta(minutes=11)):
            assert tasks.work() == 2

    def test_a_broker_that_hangs_keeps_no_request_waiting(self, gateway, submit, silent):
        with broker_at(silent):
            r = gateway.post(BATCH, {"requests": items(HARMLESS)}, key=submit.key, headers=LATER)
            known = gateway.get(r.json()["status_url"], key=submit.key)

        assert (r.status_code, known.status_code) == (202, 200)
        assert database.trouble_since is None

    def test_a_chunk_whose_worker_died_is_sent_again(self, submit):
        submit(HARMLESS)
        [chunk_id] = in_line()
        store.claim(chunk_id)
        redis.client().flushdb()
        assert tasks.work() == 0

        with time_machine.travel(timezone.now() + turns.TRUST + timedelta(seconds=1)):
            assert tasks.work() == 1
        assert in_line() == [chunk_id]

    def test_without_a_broker_it_is_accepted_and_sent_when_it_is_back(self, submit):
        with broker_at("redis://127.0.0.1:1/0"):
            r = submit(HARMLESS)

        assert r.status_code == 202
        assert JobChunk.objects.get().sent_at is None
        assert tasks.work() == 1
        assert len(in_line()) == 1


async def broken(*_, **__):
    return 1 / 0
