"""Workspaces take turns for the workers, whatever each of them has waiting."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from inspect import signature
from pathlib import Path

import pytest
from django.db.models import F
from django.utils import timezone

from accounts.models import Plan, Workspace, new_id
from accounts.tests.shapes import problem
from conftest import make_workspace
from detection.jobs import judging, store, turns
from detection.jobs.judging import Item
from detection.models import Job, JobChunk
from detection.schemas import DetectConfig
from detection.tests.test_batch import HARMLESS, items

pytestmark = pytest.mark.hostile
CONFIG = DetectConfig()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(turns, "CHUNK_ITEMS", 50)


@pytest.fixture
def tenant(gateway, alice, make_key):
    """`tenant("a")`: hand in jobs of so many items each; nothing is sent yet."""

    def make(slug):
        workspace = make_workspace(slug, alice)
        key = make_key(workspace)

        def submit(*sizes):
            for size in sizes:
                order = store.Order(Job.Kind.BATCH, workspace.pk, key.row.pk, str(new_id()))
                store.create(order, [Item.of(str(n), HARMLESS, CONFIG) for n in range(size)])
            return workspace

        return submit

    return make


def taken():
    """Whose turn it is now, in the order of sending."""
    ids = [message.chunk_id for message in turns.take()]
    whose = dict(JobChunk.objects.values_list("pk", "workspace_id"))
    return [whose[pk] for pk in ids]


def finish(workspace, count=1):
    """So many of a workspace's chunks are judged."""
    sent = JobChunk.objects.filter(workspace_id=workspace.pk, state="queued")
    ids = sent.exclude(sent_at=None).order_by("sent_at", "turn").values_list("pk", flat=True)
    JobChunk.objects.filter(pk__in=list(ids[:count])).update(state="done")


def test_one_alone_takes_half_of_the_places(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 8
    tenant("noisy")(1000)

    assert len(taken()) == 4
    assert taken() == []


def test_whoever_comes_later_goes_next(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 8
    noisy = tenant("noisy")(*[1000] * 5)
    taken()
    quiet = tenant("quiet")(1)

    assert taken() == [quiet.pk]
    finish(noisy)
    assert taken() == []  # it has three, and as much is left for all
    finish(noisy)
    assert taken() == [noisy.pk]


def test_ten_that_have_much_leave_a_place_for_an_eleventh(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 32
    for number in range(10):
        tenant(f"noisy-{number}")(1000, 1000)
    shares = Counter(taken())
    quiet = tenant("quiet")(1)

    assert len(shares) == 10
    assert max(shares.values()) - min(shares.values()) <= 1
    assert taken() == [quiet.pk]


def test_more_tenants_than_places_all_get_on(tenant, settings):
    """No order that starves: each in its turn, though others hand in more and more."""
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 4
    submits = [tenant(f"tenant-{number}") for number in range(8)]
    workspaces = [submit(200) for submit in submits]
    JobChunk.objects.update(turn=F("turn") - timedelta(minutes=1))
    done = Counter()
    for _ in range(24):
        for pk in taken():
            done[pk] += 1
        for submit in submits[:4]:  # busy ones
            submit(1)
        for workspace in workspaces:
            finish(workspace)

    assert min(done[workspace.pk] for workspace in workspaces) >= 4  # each giant is finished


def test_within_a_workspace_a_giants_last_chunk_is_not_passed_for_ever(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 2
    submit = tenant("busy")
    workspace = submit(150)  # three chunks
    giant = Job.objects.get()
    for _ in range(20):  # a steady stream of small ones, two seconds apart
        taken()
        finish(workspace)
        JobChunk.objects.update(turn=timezone.now() - timedelta(seconds=2))
        JobChunk.objects.filter(job=giant).update(turn=timezone.now() - timedelta(seconds=60))
        submit(1)

    assert not giant.chunks.filter(sent_at=None).exists()


def test_a_small_job_passes_a_giant_of_its_workspace(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 4
    submit = tenant("one")
    workspace = submit(1000)
    taken()
    submit(1)
    small = Job.objects.order_by("-created_at").first()
    finish(workspace)

    [message] = turns.take()

    assert JobChunk.objects.get(pk=message.chunk_id).job == small
    assert message.priority == 0


def test_what_is_done_at_once_passes_first_chunks_and_those_pass_the_rest(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 8
    tenant("giant")(1000)
    tenant("small")(turns.SMALL_ITEMS)

    chunks = {chunk.pk: chunk for chunk in JobChunk.objects.all()}
    found = {(chunks[m.chunk_id].size, m.priority) for m in turns.take()}

    assert found == {(50, 1), (50, turns.LAST), (turns.SMALL_ITEMS, 0)}


def test_texts_are_shared_and_not_chunks(tenant, settings):
    """One that hands in its texts one by one gets on as fast as one that hands in hundreds."""
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 4
    big, single = tenant("big")(1000), tenant("single")(*[1] * 30)

    shares = Counter([*taken(), *taken()])

    assert shares[big.pk] == 1
    assert shares[single.pk] >= 4


def test_behind_slow_workers_each_has_one_in_line(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 16
    noisy = tenant("noisy")(*[1000] * 3)
    taken()
    JobChunk.objects.exclude(sent_at=None).update(sent_at=timezone.now() - timedelta(seconds=2))
    others = [tenant(f"other-{number}")(200) for number in range(2)]

    assert sorted(taken()) == sorted(other.pk for other in others)
    finish(noisy)
    assert taken() == []
    finish(noisy, 100)
    JobChunk.objects.filter(state="queued").exclude(sent_at=None).delete()
    assert Counter(taken())[noisy.pk] > 1  # nobody waits any more


def test_nothing_overtakes_a_message_that_waits_too_long(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 8
    submit = tenant("one")
    submit(1000)
    taken()
    JobChunk.objects.exclude(sent_at=None).update(sent_at=timezone.now() - timedelta(seconds=4))
    tenant("another")(1)

    assert [message.priority for message in turns.take()] == [turns.LAST]


def test_messages_that_are_lost_hold_nobody_up(tenant, settings):
    """Nor their own workspace: whatever has no message any more is not in line."""
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 16
    unlucky = tenant("unlucky")(1000)
    [first, *_] = turns.take()
    sent = JobChunk.objects.exclude(sent_at=None)
    JobChunk.objects.exclude(pk=first.chunk_id).update(sent_at=None)
    sent.update(sent_at=timezone.now() - turns.TRUST - timedelta(seconds=1))
    tenant("other")(1000)

    assert len({*taken()}) == 2
    assert sent.filter(workspace_id=unlucky.pk).count() > 2


def test_one_suspended_later_takes_no_place_and_makes_nobody_late(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 8
    stopped = tenant("stopped")(1000)
    taken()
    JobChunk.objects.exclude(sent_at=None).update(sent_at=timezone.now() - timedelta(seconds=5))
    Workspace.objects.filter(pk=stopped.pk).update(suspended_at=timezone.now())
    other = tenant("other")(1000)

    assert taken() == [other.pk] * 4


def test_suspended_ones_fill_no_page_of_those_who_wait(tenant, settings, monkeypatch):
    monkeypatch.setattr(turns, "WORKSPACES_AT_ONCE", 2)
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 16
    for number in range(4):
        workspace = tenant(f"stopped-{number}")(1)
        Workspace.objects.filter(pk=workspace.pk).update(suspended_at=timezone.now())
    others = [tenant(f"other-{number}")(1) for number in range(3)]

    assert sorted([*taken(), *taken()]) == sorted(other.pk for other in others)


def test_a_round_chooses_no_more_than_the_full_chunks_that_have_places(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 4
    tenant("singles")(*[1] * 30)

    assert len(taken()) == 4


def test_a_suspended_workspace_holds_nobody_up(tenant, settings):
    settings.JOB_CHUNKS_IN_FLIGHT_MAX = 4
    stopped = tenant("stopped")(1000)
    Workspace.objects.filter(pk=stopped.pk).update(suspended_at=timezone.now())
    other = tenant("other")(1)

    assert taken() == [other.pk]


class TestWhatMayWait:
    @pytest.mark.parametrize("name", ["waiting_items", "waiting_bytes"])
    def test_a_workspace_has_only_so_much_waiting(self, gateway, engine, acme_key, name):
        Plan.objects.update(**{f"{name}_max": 100 if name == "waiting_items" else 30_000})
        answers = [
            gateway.post(
                "/v1/detect/batch",
                {"requests": items(*[HARMLESS * 4] * 60)},
                key=acme_key,
                headers={"Prefer": "respond-async"},
            )
            for _ in range(3)
        ]

        assert answers[0].status_code == 202
        detail = problem(answers[-1], 429, "rate_limited")["detail"]
        assert name in detail
        assert int(answers[-1].headers["retry-after"]) > 0
        assert sum(JobChunk.objects.values_list("size", flat=True)) <= 100

    def test_another_goes_on(self, gateway, engine, acme_key, globex, make_key):
        Plan.objects.update(waiting_items_max=60)
        body, later = {"requests": items(*[HARMLESS] * 60)}, {"Prefer": "respond-async"}
        post = "/v1/detect/batch"
        assert gateway.post(post, body, key=acme_key, headers=later).status_code == 202
        refused = gateway.post(post, body, key=acme_key, headers=later).json()
        assert refused["code"] == "rate_limited"

        other = make_key(globex)
        assert gateway.post(post, body, key=other, headers=later).status_code == 202

    def test_all_at_once_do_not_pass_the_bound(self, gateway, engine, acme_key):
        Plan.objects.update(waiting_items_max=100)
        call = {"method": "POST", "url": "/v1/detect/batch"}
        call["json"] = {"requests": items(*[HARMLESS] * 20)}
        call["headers"] = {"X-API-Key": acme_key, "Prefer": "respond-async"}

        answers = gateway.at_once([call] * 12)

        assert [r.status_code for r in answers].count(202) == 5
        assert sum(JobChunk.objects.values_list("size", flat=True)) == 100

    def test_the_work_of_others_is_not_shown(self, gateway, engine, acme_key, tenant):
        body, later = {"requests": items(HARMLESS)}, {"Prefer": "respond-async"}

        def estimate():
            r = gateway.post("/v1/detect/batch", body, key=acme_key, headers=later)
            return r.json()["estimated_completion_seconds"]

        before = estimate()
        tenant("noisy")(*[1000] * 5)

        assert estimate() == before


def test_only_a_worker_begins_many_texts_at_a_turn_of_the_loop():
    """In a web process all other requests wait for them."""
    detection = Path(judging.__file__).parent.parent
    asking = {
        str(path.relative_to(detection))
        for path in detection.rglob("*.py")
        if "judging.BEHIND" in path.read_text() and "tests" not in path.parts
    }

    assert signature(judging.judge).parameters["turns"].default is judging.BESIDE
    assert asking == {"jobs/worker.py"}
