"""The log of requests: filters, pages by cursor, one request, and nobody else's."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import new_id
from accounts.tests.shapes import logged, refusal

URL = "/app/requests"


@pytest.fixture
def add(acme, acme_key):
    def add(**fields):
        row = {
            "request_id": new_id(),
            "api_key_id": acme_key.row.pk,
            "workspace_id": acme.pk,
            "endpoint": "/v1/detect",
            "http_status": 200,
            "request_size": 120,
            "response_time_ms": 12.0,
            "upstream_ms": 9.0,
            "status": "complete",
            "source": "engine",
            "decision": "allow",
            "is_malicious": False,
            "confidence": 0.02,
            "created_at": timezone.now(),
        }
        return logged(row | fields)

    return add


def shown(response):
    return [row.pk for row, _ in response.context["rows"]]


class TestList:
    def test_newest_first_and_only_the_workspaces(self, owner, stranger, add, globex):
        now = timezone.now()
        old, new = add(created_at=now - timedelta(hours=2)), add(created_at=now)
        foreign = add(workspace_id=globex.pk)

        assert shown(owner.get(URL)) == [new.pk, old.pk]
        assert shown(stranger.get(URL)) == [foreign.pk]

    def test_filters_narrow(self, owner, add, acme_key, make_key):
        other = make_key(name="other")
        yesterday = timezone.now() - timedelta(days=1)
        rows = {
            "plain": add(),
            "flagged": add(decision="flag"),
            "failed": add(http_status=503, decision=""),
            "refused": add(http_status=422, decision=""),
            "other": add(api_key_id=other.row.pk),
            "old": add(created_at=yesterday),
        }
        evening = f"{timezone.now() - timedelta(hours=12):%Y-%m-%dT%H:%M}"

        def names(query):
            found = shown(owner.get(f"{URL}?{query}"))
            return {name for name, row in rows.items() if row.pk in found}

        assert names("decision=flag") == {"flagged"}
        assert names("status=5") == {"failed"}
        assert names("status=4") == {"refused"}
        assert names(f"key={other.row.pk}") == {"other"}
        assert names(f"until={evening}") == {"old"}
        assert names(f"since={evening}") == set(rows) - {"old"}

    @pytest.mark.parametrize(
        "query",
        [
            "key=nonsense",
            "key=0195e7a0-0000-7000-8000-000000000000",  # nobody's
            "status=9",
            "decision=maybe",
            "since=yesterday",
            "since=2026-02-31T00:00",
            "since=2026-05-02T00:00&until=2026-05-01T00:00",
        ],
    )
    def test_a_wrong_filter_is_told_and_shows_nothing(self, owner, add, query):
        add()

        r = owner.get(f"{URL}?{query}")

        assert r.status_code == 200
        assert shown(r) == []
        assert "errorlist" in r.content.decode()

    def test_a_foreign_key_is_as_unknown_as_none(self, owner, add, globex_key):
        foreign = owner.get(f"{URL}?key={globex_key.row.pk}").context["form"].errors
        unknown = owner.get(f"{URL}?key={uuid4()}").context["form"].errors

        assert list(foreign) == list(unknown) == ["key"]

    def test_pages_follow_one_another_without_gap_or_repeat(self, owner, add):
        now = timezone.now()
        # Many share a moment: the id has to break the tie.
        made = [add(created_at=now - timedelta(seconds=n // 40)).pk for n in range(120)]

        seen, query, pages = [], "", 0
        while query is not None:
            r = owner.get(URL + query)
            seen += shown(r)
            query, pages = r.context["older"], pages + 1

        assert pages == 3
        assert sorted(seen) == sorted(made)
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize("cursor", ["nonsense", "AAAA", "MjAyNi0wNS0wMSAx", "é"])
    def test_a_broken_cursor_is_404(self, owner, cursor):
        assert refusal(owner.get(URL, {"cursor": cursor})) == (404, "not_found")

    def test_beyond_the_plans_days_nothing_is_shown(self, owner, add):
        add(created_at=timezone.now() - timedelta(days=6))
        gone = add(created_at=timezone.now() - timedelta(days=8))

        assert len(shown(owner.get(URL))) == 1
        at = {"at": gone.created_at.isoformat()}
        assert owner.get(f"{URL}/{gone.request_id}", at).status_code == 404

    def test_queries_do_not_grow_with_rows(self, owner, add, django_assert_num_queries):
        for _ in range(60):
            add()

        # Session, user, membership with workspace and plan, keys, rows.
        with django_assert_num_queries(6):
            owner.get(URL)


class TestOne:
    def test_it_splits_the_time(self, owner, add):
        row = add()

        r = owner.get(f"{URL}/{row.request_id}")

        assert [(part["name"], part["ms"]) for part in r.context["timing"]] == [
            ("Gateway", 3.0),
            ("Engine", 9.0),
        ]

    def test_the_lists_link_finds_ids_that_tell_no_time(self, owner, add):
        row = add(request_id=uuid4(), created_at=timezone.now() - timedelta(days=2))

        assert refusal(owner.get(f"{URL}/{row.request_id}")) == (404, "not_found")
        at = {"at": row.created_at.isoformat()}
        assert owner.get(f"{URL}/{row.request_id}", at).status_code == 200

    def test_anothers_is_as_missing_as_none(self, stranger, add):
        row = add()

        for request_id in (row.request_id, new_id()):
            r = stranger.get(f"{URL}/{request_id}", {"at": row.created_at.isoformat()})
            assert refusal(r) == (404, "not_found")

    @pytest.mark.parametrize("at", ["", "nonsense", "2026-02-31", "0001-01-01T00:00:00"])
    def test_a_wrong_moment_is_no_error(self, owner, add, at):
        r = owner.get(f"{URL}/{add().request_id}", {"at": at})

        assert r.status_code in (200, 404)

    def test_an_id_of_a_far_future_is_missing(self, owner, acme):
        r = owner.get(f"{URL}/ffffffff-ffff-7fff-bfff-ffffffffffff")
        assert refusal(r) == (404, "not_found")
