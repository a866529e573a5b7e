"""What one job holds fails it alone, or an item of it alone, and ends: nobody tries it for ever."""

from __future__ import annotations

import json
from contextlib import suppress

import orjson
import pytest

from accounts.models import ApiKey, OutboxEvent, Parked, UsageLog, Workspace
from detection.engines import scores
from detection.jobs import store, worker
from detection.models import Job, JobChunk
from detection.tests.working import free_chunks, work_all
from gateway_project.core import encryption

pytestmark = pytest.mark.hostile
LATER = {"Prefer": "respond-async"}


def nested(levels):
    inner = 1
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def batch(*ids):
    return {"requests": [{"id": one, "text": f"Good morning, {one}."} for one in ids]}


@pytest.fixture
def jobs(gateway, engine, acme_key, globex_key, make_key, globex):
    """A job of two items of Acme, and one of Globex."""
    other = make_key(globex, scopes=["detect", "batch"])
    answers = [
        gateway.post("/v1/detect/batch", batch("1", "2"), key=acme_key, headers=LATER),
        gateway.post("/v1/detect/batch", batch("1"), key=other, headers=LATER),
    ]
    assert [r.status_code for r in answers] == [202, 202]
    return [Job.objects.get(pk=r.json()["batch_id"]) for r in answers]


def keep_items(job, change):
    """Rewrite what waits, as a version before this one could have kept it."""
    chunk = job.chunks.get()
    items = orjson.loads(encryption.decrypt(chunk.items))
    change(items)
    chunk.items = encryption.encrypt(json.dumps(items))
    chunk.save()


def ended(job):
    job.refresh_from_db()
    return job.status, job.succeeded, job.failed


@pytest.mark.parametrize(
    "metadata",
    [{"a": "\x00"}, {"\x00": 1}, nested(100), {"a": nested(240)}, {"a": nested(300)}],
    ids=["a value", "a key", "deep", "deeper", "too deep"],
)
def test_metadata_from_before_it_was_refused(gateway, jobs, acme_key, metadata):
    Workspace.objects.update(wanted_events=["detection.completed"])
    keep_items(jobs[0], lambda items: items[0].update(metadata=metadata))

    work_all()

    assert ended(jobs[1]) == ("complete", 1, 0)
    status, succeeded, failed = ended(jobs[0])
    assert succeeded + failed == 2
    assert succeeded >= 1
    assert status in ("complete", "partial")
    assert UsageLog.objects.count() == 3
    theirs = OutboxEvent.objects.filter(workspace=jobs[1].workspace)
    assert theirs.count() == 1


def test_an_event_that_cannot_be_sent_costs_no_results(gateway, jobs, monkeypatch):
    Workspace.objects.update(wanted_events=["batch.completed"])
    usual = store.publish

    def publish(workspace, *about, **more):
        if workspace.pk == jobs[0].workspace_id:
            more["metadata"] = {"a": "\x00"}
        return usual(workspace, *about, **more)

    monkeypatch.setattr(store, "publish", publish)
    work_all()

    assert ended(jobs[0]) == ("complete", 2, 0)
    assert ended(jobs[1]) == ("complete", 1, 0)
    assert [parked.kind for parked in Parked.objects.all()] == ["jobs.event"]
    assert OutboxEvent.objects.get().workspace_id == jobs[1].workspace_id


def test_results_that_are_refused_end_the_chunk(gateway, jobs, monkeypatch):
    usual, mine = store._usage, jobs[0].chunks.get().pk

    def usage(work, judged):
        if work.chunk_id == mine and any(one.is_ok for one in judged):
            raise TypeError("not serialisable")
        return usual(work, judged)

    monkeypatch.setattr(store, "_usage", usage)
    work_all()

    assert ended(jobs[0]) == ("failed", 0, 2)
    assert ended(jobs[1]) == ("complete", 1, 0)
    [parked] = Parked.objects.all()
    assert (parked.kind, parked.origin) == ("jobs.chunk", str(mine))
    assert not JobChunk.objects.exclude(items="").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: ApiKey.objects.filter(pk=job.api_key_id).update(detection_policy={"allow": 5}),
        lambda job: ApiKey.objects.filter(pk=job.api_key_id).update(detection_policy=[1]),
        lambda job: Workspace.objects.filter(pk=job.workspace_id).update(wanted_events=5),
        lambda job: job.chunks.update(items=encryption.encrypt("[5]")),
        lambda job: job.chunks.update(items=encryption.encrypt("[" * 5000)),
        lambda job: keep_items(job, lambda items: items[0].pop("text")),
        lambda job: keep_items(job, lambda items: items[0].update(config={"mode": "odd"})),
        lambda job: keep_items(job, lambda items: items[0].update(text="\ud800")),
    ],
    ids=[
        "policy",
        "no policy",
        "events",
        "items",
        "not JSON",
        "no text",
        "config",
        "half",
    ],
)
def test_what_cannot_be_worked_on_ends_after_its_attempts(gateway, jobs, spoil):
    spoil(jobs[0])

    for _ in range(store.ATTEMPTS_MAX + 1):
        for chunk_id in free_chunks():
            with suppress(Exception):
                worker.judge_chunk(chunk_id)

    assert free_chunks() == []
    assert ended(jobs[1]) == ("complete", 1, 0)
    _, succeeded, failed = ended(jobs[0])
    assert succeeded + failed == 2
    assert failed >= 1


@pytest.mark.parametrize(
    "row",
    [b"", b"5", b"[]", b"{", b'["x", [], null, null, 1, 1, 9999999999]', b"[2, null, 1]", b"\xff",
     b'[0.5, null, null, null, 1, 1, 4102444800]', b'[NaN, [], null, null, 1, 1, 1]'],
)  # fmt: skip
def test_a_score_that_is_none_is_a_miss(row):
    assert scores._read(row) is None
