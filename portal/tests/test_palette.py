"""/app/search: what the box on Ctrl-K finds, and whose."""

from __future__ import annotations

from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import new_id
from accounts.tests.shapes import logged
from portal.palette import PAGES


def a_request(workspace, key):
    return logged(
        {
            "request_id": new_id(),
            "api_key_id": key.row.pk,
            "workspace_id": workspace.pk,
            "endpoint": "/v1/detect",
            "http_status": 200,
            "request_size": 1,
            "response_time_ms": 1.0,
            "created_at": timezone.now(),
        }
    )


def labels(client, word):
    answer = client.get("/app/search", {"q": word})
    assert answer.status_code == 200
    return [result["label"] for result in answer.json()["results"]]


def test_pages_by_their_names_and_what_they_are_for(owner, acme):
    assert labels(owner, "keys")[0] == "Keys"
    assert "Sessions" in labels(owner, "stolen")
    assert "Audit" in labels(owner, "who did")
    assert labels(owner, "no such thing") == []


@pytest.mark.parametrize("name", sorted(name for _, name, _ in PAGES))
def test_every_page_that_is_found_is_there(owner, acme, name):
    urls = {
        result["url"]
        for label, found, _ in PAGES
        if found == name
        for result in owner.get("/app/search", {"q": label}).json()["results"]
    }

    assert urls
    assert {owner.get(url).status_code for url in urls} <= {200, 302}


@pytest.mark.hostile
def test_who_may_not_read_the_trail_is_not_led_there(viewer):
    assert "Audit" not in labels(viewer, "audit")


def test_keys_by_name_and_by_what_lists_show(owner, make_key):
    row = make_key(name="Till of the shop").row

    assert labels(owner, "till of") == ["Till of the shop"]
    assert labels(owner, f"{row.prefix}…{row.last4}") == ["Till of the shop"]


def test_anything_by_its_id(owner, acme, acme_key):
    row = a_request(acme, acme_key)

    assert labels(owner, str(row.request_id)) == ["Request"]
    assert labels(owner, str(acme_key.row.pk)) == [acme_key.row.name]
    assert labels(owner, str(uuid4())) == []


@pytest.mark.hostile
def test_nothing_of_others_is_found(stranger, owner, acme, acme_key, make_key):
    make_key(name="Till of the shop")
    row = a_request(acme, acme_key)

    for word in ("till of", str(row.request_id), str(acme_key.row.pk), acme_key.row.prefix):
        assert labels(stranger, word) == []


@pytest.mark.hostile
@pytest.mark.parametrize("word", ["%", "_" * 500, "' OR 1=1", "gw_live_", "\x00"[:0]])
def test_a_strange_word_is_no_error(owner, acme, word):
    assert isinstance(labels(owner, word), list)


def test_a_key_for_tests_says_so(owner, acme, make_key):
    made = make_key(name="nightly", is_test=True)

    assert labels(owner, "nightly") == ["nightly (test)"]
    assert labels(owner, str(made.row.pk)) == ["nightly (test)"]
    assert "nightly (test)" in owner.get("/app/requests").content.decode()
