"""First steps and quotas, as the overview tells them."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import User, Workspace

STEPS = "/app/first-steps"


def done(response):
    return [step.is_done for step in response.context["steps"]]


def test_steps_tick_one_after_the_other_and_then_stop_asking(
    owner, acme, gateway, engine, make_key
):
    Workspace.objects.update(is_confirmed=False)
    assert done(owner.get(STEPS)) == [False, False, False]
    Workspace.objects.update(is_confirmed=True)
    assert done(owner.get(STEPS)) == [True, False, False]

    key = make_key()
    assert owner.get(STEPS, {"seen": "1"}).status_code == 200
    assert owner.get(STEPS, {"seen": "2"}).status_code == 204  # nothing new

    gateway.detect("Good morning.", key=key)
    gateway.flush_usage()
    r = owner.get(STEPS, {"seen": "2"})
    assert r.status_code == 286
    assert b"hx-trigger" not in r.content
    assert owner.get("/app/").context["steps"] is None


def test_steps_are_the_workspaces_own(owner, stranger, acme_key):
    assert done(owner.get(STEPS)) == [True, True, False]
    assert done(stranger.get(STEPS)) == [True, False, False]


def test_quotas_are_what_the_limiter_says(owner, acme_key, gateway, engine):
    for _ in range(3):
        gateway.detect("Good morning.", key=acme_key)

    facts = owner.get("/app/").context

    [(_, _, left)] = facts["rows"]
    assert (left["minute"].limit, left["minute"].remaining) == (60, 57)
    assert facts["workspace_day"].remaining == 9_997
    page = owner.get(f"/app/keys/{acme_key.row.pk}")
    assert page.context["limits"]["day"].remaining == 9_997
    # Looking took nothing.
    assert owner.get("/app/").context["workspace_day"].remaining == 9_997


def test_without_keys_there_is_an_invitation(owner):
    facts = owner.get("/app/").context

    assert (facts["rows"], facts["workspace_day"]) == ([], None)


@pytest.mark.parametrize("path", ["/app/", "/app/keys", "/app/requests"])
def test_lists_of_keys_read_no_policies(owner, make_key, path):
    for _ in range(3):
        make_key()

    with CaptureQueriesContext(connection) as queries:
        assert owner.get(path).status_code == 200

    asked = [query["sql"] for query in queries]
    assert any("accounts_apikey" in sql for sql in asked)
    assert not any("detection_policy" in sql for sql in asked)


@pytest.mark.parametrize("count", [1, 30])
def test_queries_do_not_grow_with_keys(owner, make_key, django_assert_num_queries, count):
    for number in range(count):
        make_key(name=f"key {number}")

    # Session, user, membership with workspace and plan, keys, timeline and the sum before it, sums
    # by key of the first day's hours and of the days since, first call, announcements.
    with django_assert_num_queries(11):
        facts = owner.get("/app/").context

    assert len(facts["rows"]) == min(count, 20)
    assert facts["more_keys"] == max(0, count - 20)


def test_staff_without_a_workspace_land_on_a_page_that_leads_on(enter, gateway):
    root = enter(User.objects.create_superuser("root@gateway.example", "x"))
    landed, elsewhere = root.get("/app/"), root.get("/app/keys")

    assert landed.status_code == 200
    assert b'href="/admin/"' in landed.content
    assert elsewhere.status_code == 404


def test_a_person_without_a_workspace_sees_whom_to_ask(enter, bob):
    landed = enter(bob).get("/app/")

    assert landed.status_code == 200
    assert b"to invite bob@acme.example" in landed.content
    assert b"/admin/" not in landed.content
