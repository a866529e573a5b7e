"""What processes leave for each other says its version; what a later one left is left alone."""

from __future__ import annotations

import json
from uuid import uuid4

import orjson
import pytest
import time_machine
from django.utils import timezone

from accounts import parking
from accounts.events import publish
from accounts.models import Parked, UsageLog
from accounts.services import Actor
from accounts.tests.test_usage import row
from accounts.usage import buffer as usage
from accounts.usage import stream
from detection.jobs import store, worker
from detection.models import Job, JobChunk
from detection.tests.working import work_all
from gateway_project.celery import app
from gateway_project.core import encryption
from gateway_project.core.stores import redis
from gateway_project.core.stores.bus import LATER, Bus
from gateway_project.core.telemetry.metrics import parked_total
from robin.queue.live import Queue, Snapshot
from webhooks import services
from webhooks.delivery import outbox
from webhooks.delivery.engine import deliver_all
from webhooks.models import WebhookDelivery, WebhookSecret

pytestmark = pytest.mark.hostile
OTHER_KEY = "b3RoZXIga2V5IG9mIGFub3RoZXIgaG9zdCwgMzIgYnk="


class TestNotesOfTheBus:
    def messages(self, data):
        bus, messages = Bus(), []
        bus.on("keys", messages.append, lambda: messages.append("gap"))
        bus._on_message({"type": "message", "channel": b"gw:keys", "data": data})
        return messages

    def test_one_of_this_version_is_heard(self):
        assert self.messages(b"one") == ["one"]

    @pytest.mark.parametrize("data", [f"{LATER}2 one two".encode(), LATER.encode()])
    def test_one_of_a_later_version_may_have_said_anything(self, data):
        assert self.messages(data) == ["gap"]

    def test_bytes_that_are_no_text_end_nothing(self):
        assert self.messages(b"\xff\xfe") == ["\ufffd\ufffd"]


class TestTasks:
    @pytest.fixture
    def task(self):
        ran = []

        def note(number):
            ran.append(number)

        made = app.task(name="tests.noted", shared=False)(note)
        made.ran = ran
        yield made
        app.tasks.unregister(made.name)

    def test_its_messages_say_their_version(self, task, monkeypatch):
        sent = {}
        monkeypatch.setattr(app, "send_task", lambda *_, **more: sent.update(more))
        task.apply_async((1,), headers={"more": "x"})

        assert sent["headers"]["v"] == 1
        assert sent["headers"]["more"] == "x"

    @pytest.mark.parametrize(("headers", "ran"), [({}, [1]), ({"v": 1}, [1]), ({"v": 2}, [])])
    def test_one_of_a_later_version_is_not_run(self, task, headers, ran):
        task.push_request(headers=headers)
        try:
            task(1)
        finally:
            task.pop_request()

        assert task.ran == ran


class TestTheLiveQueue:
    def test_a_snapshot_that_a_later_version_stored_is_none(self):
        queue = Queue([{"uid": "a"}], {"total": 1})
        mine = Snapshot(7, "now", queue.totals, {"a": {"uid": "a"}}).json()
        later = orjson.dumps({"v": 2, "pages": []})

        assert Snapshot.of(mine) is not None
        assert Snapshot.of(later) is None
        assert Snapshot.of(None) is None


class TestChunks:
    """A chunk that this process cannot read is another's: nothing of it changes."""

    @pytest.fixture
    def chunk(self, gateway, engine, acme_key):
        texts = [{"id": str(n), "text": f"What is the {n}th prime?"} for n in range(3)]
        headers = {"Prefer": "respond-async"}
        r = gateway.post("/v1/detect/batch", {"requests": texts}, key=acme_key, headers=headers)
        assert r.status_code == 202, r.text
        return JobChunk.objects.get()

    def unread(self, chunk):
        for _ in range(2 * store.ATTEMPTS_MAX):
            assert worker.judge_chunk(chunk.pk) is False
        chunk.refresh_from_db()
        return chunk.state, chunk.attempts, chunk.job.status

    def test_by_a_key_that_is_not_here(self, chunk, settings):
        known, settings.FIELD_ENCRYPTION_KEYS = settings.FIELD_ENCRYPTION_KEYS, [OTHER_KEY]

        assert self.unread(chunk) == ("queued", 0, "queued")

        settings.FIELD_ENCRYPTION_KEYS = known
        work_all()
        assert Job.objects.get().status == "complete"

    def test_of_a_later_version(self, chunk):
        items = json.loads(encryption.decrypt(chunk.items))
        later = [{**item, "v": 2, "text": None, "texts": []} for item in items]
        chunk.items = encryption.encrypt(json.dumps(later))
        chunk.save(update_fields=["items"])

        assert self.unread(chunk) == ("queued", 0, "queued")

    def test_its_task_is_sent_again_soon(self, chunk, settings):
        settings.FIELD_ENCRYPTION_KEYS = [OTHER_KEY]
        self.unread(chunk)

        assert store.lost(in_line=lambda: True) == []
        with time_machine.travel(timezone.now() + store.LEFT_TO_OTHERS, tick=True):
            assert [one.pk for one in store.lost(in_line=lambda: True)] == [chunk.pk]


class TestDeliveries:
    def test_one_whose_secret_is_not_for_this_process_is_left_to_others(
        self, gateway, acme, webhook, receiver, settings
    ):
        publish(acme, "detection.completed", result={"number": 1})
        known, settings.FIELD_ENCRYPTION_KEYS = settings.FIELD_ENCRYPTION_KEYS, [OTHER_KEY]
        deliver_all()

        delivery = WebhookDelivery.objects.get()
        assert (delivery.status, delivery.attempts_made, delivery.step) == ("pending", 0, 0)
        assert (delivery.is_claimed, delivery.error) == (False, "")
        assert delivery.attempts.count() == 0

        settings.FIELD_ENCRYPTION_KEYS = known
        with time_machine.travel(timezone.now() + outbox.LEFT_TO_OTHERS, tick=True):
            deliver_all()
        assert WebhookDelivery.objects.get().status == "delivered"

    def test_of_two_secrets_it_has_but_one(self, gateway, acme, webhook, receiver, settings):
        """Signed with that alone, receivers that know the other would refuse it."""
        known = settings.FIELD_ENCRYPTION_KEYS
        settings.FIELD_ENCRYPTION_KEYS = [OTHER_KEY, *known]
        services.rotate_secret(webhook, overlap_seconds=3600, actor=Actor("test"))
        assert WebhookSecret.objects.filter(webhook=webhook).count() == 2
        settings.FIELD_ENCRYPTION_KEYS = known
        publish(acme, "detection.completed", result={"number": 1})
        deliver_all()

        assert WebhookDelivery.objects.get().status == "pending"
        assert receiver.received == []


@pytest.mark.needs_redis
class TestUsageEntries:
    """One of a later version, with a column more: 500 rows were counted as one, and deleted."""

    @pytest.fixture
    def later(self, gateway, acme_key):
        """In the stream, with an entry of this version behind it."""
        rows = [[*map(str, row(acme_key)), "one more"] for _ in range(500)]
        content = orjson.dumps([rows, {}])
        redis.client().xadd(stream.STREAM, {"v": "2", "id": str(uuid4()), "rows": content})
        usage.buffer.append(row(acme_key), "127.0.0.1")
        gateway.run(usage.buffer.flush())
        return content

    def test_ours_say_their_version(self, gateway, acme_key, later):
        [_, (_, fields)] = redis.client().xrange(stream.STREAM)

        assert fields[b"v"] == stream.VERSION

    def test_it_is_parked_whole_and_the_others_are_written(self, gateway, later):
        assert stream.drain() == 1

        parked = Parked.objects.get()
        assert parked.error == "LaterVersion"
        assert json.loads(parking.payload_of(parked))["rows"] == later.decode()
        assert UsageLog.objects.count() == 1
        assert redis.client().xlen(stream.STREAM) == 0

    def test_where_no_more_can_be_parked_it_waits_for_a_worker_that_knows_it(
        self, gateway, later, monkeypatch
    ):
        monkeypatch.setattr(parking, "PER_WORKSPACE_MAX", 0)
        monkeypatch.setattr(stream, "ENTRIES_AT_ONCE", 1)

        assert stream.drain() == 1
        assert redis.client().xlen(stream.STREAM) == 1
        monkeypatch.setattr(parking, "PER_WORKSPACE_MAX", 10)
        stream.left.forget()  # a minute later
        assert stream.drain() == 0
        assert Parked.objects.count() == 1

    def test_many_of_them_are_not_looked_at_by_each_drain(
        self, gateway, acme_key, later, monkeypatch
    ):
        for _ in range(3):
            redis.client().xadd(stream.STREAM, {"v": "2", "id": str(uuid4()), "rows": later})
        monkeypatch.setattr(parking, "PER_WORKSPACE_MAX", 0)
        counted = parked_total.labels(stream.UNREADABLE)._value
        before = counted.get()
        looked_at = []
        readable = stream._readable
        monkeypatch.setattr(stream, "_readable", lambda f: looked_at.append(1) or readable(f))

        assert stream.drain() == 1
        assert len(looked_at) == 5
        usage.buffer.append(row(acme_key), "127.0.0.1")
        gateway.run(usage.buffer.flush())
        assert stream.drain() == 1
        assert len(looked_at) == 6
        assert redis.client().xlen(stream.STREAM) == 4
        assert counted.get() == before
