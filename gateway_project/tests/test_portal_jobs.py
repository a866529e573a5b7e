"""The page of jobs, their list in the admin, and staff's numbers of them"""

from __future__ import annotations

import json

import pytest

from accounts.models import new_id
from detection.models import Job
from detection.tests.test_detect import ATTACK, HARMLESS
from detection.tests.working import work_all
from gateway_project.tests.test_admin import signed_in

BATCH = "/v1/detect/batch"


@pytest.fixture
def submit(gateway, engine, acme_key):
    def submit(*texts, **more):
        requests = [{"id": f"t{n}", "text": text} for n, text in enumerate(texts)]
        headers = {"Prefer": "respond-async"}
        r = gateway.post(BATCH, {"requests": requests, **more}, key=acme_key, headers=headers)
        return r.json()["batch_id"]

    return submit


def test_the_first_one_is_easy(owner):
    page = owner.get("/app/jobs").text

    assert "No job yet" in page
    assert "respond-async" in page


def test_it_is_listed_and_shown_with_its_results(owner, viewer, submit):
    job = submit(HARMLESS, ATTACK, "x" * 10_001, metadata={"run": 7})
    waiting = owner.get(f"/app/jobs/{job}").text
    assert "hx-trigger" in waiting
    assert "Nothing is judged yet" in waiting
    work_all()

    for person in (owner, viewer):
        assert job in person.get("/app/jobs").text
        page = person.get(f"/app/jobs/{job}").text
        assert "partial" in page
        assert "hx-trigger" not in page
        assert "system_prompt_leak" in page
        assert "validation_error" in page
        assert "&quot;run&quot;: 7" in page
        assert ATTACK not in page


def test_results_come_in_pages_and_as_a_file(gateway, alice, owner, submit):
    job = submit(*[f"{HARMLESS} {n}" for n in range(60)])
    work_all()

    first, second = (owner.get(f"/app/jobs/{job}?from={at}").text for at in (0, 50))
    assert "t49" in first
    assert "t50" not in first
    assert "?from=50" in first
    assert "t50" in second
    assert "t49" not in second
    r = signed_in(gateway, alice).get(f"/app/jobs/{job}/download")
    assert r.headers["content-disposition"] == f'attachment; filename="{job}.ndjson"'
    assert [json.loads(line)["id"] for line in r.text.splitlines()] == [f"t{n}" for n in range(60)]


def test_cancelling_is_for_those_who_may_change(owner, viewer, submit):
    job = submit(HARMLESS)
    assert "Cancel this" not in viewer.get(f"/app/jobs/{job}").text
    assert viewer.post(f"/app/jobs/{job}/cancel").status_code == 403
    assert Job.objects.get().status == "queued"

    assert "Cancelled." in owner.post(f"/app/jobs/{job}/cancel", follow=True).text
    assert Job.objects.get().status == "cancelled"
    assert "already" in owner.post(f"/app/jobs/{job}/cancel", follow=True).text


@pytest.mark.parametrize("path", ["", "/download"])
def test_of_another_workspace_it_is_as_missing_as_none(stranger, submit, path):
    job = submit(HARMLESS)

    assert stranger.get(f"/app/jobs/{job}{path}").status_code == 404
    assert stranger.get(f"/app/jobs/{new_id()}{path}").status_code == 404
    assert job not in stranger.get("/app/jobs").text


def test_staff_find_it_without_its_texts(root, submit):
    job = submit(ATTACK)
    listed = root.get("/admin/detection/job/").text
    shown = root.get(f"/admin/detection/job/{job}/change/").text

    assert "0 of 1" in listed
    assert job in shown
    for term in (job, "acme"):
        assert "0 of 1" in root.get(f"/admin/detection/job/?q={term}").text
    assert "0 of 1" not in root.get(f"/admin/detection/job/?q={new_id()}").text
    assert ATTACK not in listed + shown


def test_staff_count_what_waits(root, submit):
    submit(HARMLESS)
    before = root.get("/admin/stats").json()["jobs"]
    work_all()
    after = root.get("/admin/stats").json()["jobs"]

    assert (before["queued"], before["processing"]) == (1, 0)
    assert before["oldest_queued_seconds"] >= 0
    assert after == {"queued": 0, "processing": 0, "oldest_queued_seconds": None}
