"""/app/keys: as many keys as the plan gives."""

from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.utils.html import escape

from accounts.models import ApiKey, AuditEvent, Plan
from accounts.tests.shapes import refusal

FORM = {
    "name": "one more",
    "scopes": ["detect"],
    "rate_limit_per_minute": 5,
    "rate_limit_per_day": 5,
}


@pytest.mark.hostile
def test_one_more_is_refused_on_the_form(owner, make_key):
    Plan.objects.update(keys_max=2)
    make_key()

    first, second = (owner.post("/app/keys", FORM) for _ in range(2))

    assert owner.get(first["Location"]).context["made"].name == "one more"
    assert "gives a workspace 2 keys" in second.context["form"].non_field_errors()[0]
    assert "gives a workspace 2 keys" in second.content.decode()
    assert ApiKey.objects.count() == 2


@pytest.fixture
def many(acme, make_key):
    """Sixty keys, every third of the shop."""
    return [
        make_key(name=f"key {number:02}", tags=["shop"] if number % 3 == 0 else [])
        for number in range(60)
    ]


def names(client, query=""):
    return [key.name for key, _ in client.get(f"/app/keys{query}").context["keys"]]


class TestMany:
    def test_they_stand_on_pages(self, owner, many):
        pages = [names(owner, f"?sort=name&page={number}") for number in (1, 2, 3)]

        assert [len(page) for page in pages] == [25, 25, 10]
        assert [name for page in pages for name in page] == [
            f"key {number:02}" for number in range(60)
        ]

    @pytest.mark.parametrize(
        ("query", "count"),
        [
            ("?q=key 07", 1),
            ("?q=shop", 20),
            ("?q=nothing", 0),
            ("?state=ended", 0),
            ("?q=KEY 1", 10),
        ],
    )
    def test_they_are_found(self, owner, many, query, count):
        assert owner.get(f"/app/keys{query}").context["page"].paginator.count == count

    def test_one_is_found_by_what_lists_show_of_it(self, owner, many):
        row = many[7].row

        assert names(owner, f"?q={row.prefix}…{row.last4}") == ["key 07"]
        assert names(owner, f"?q={row.last4}") == ["key 07"]

    def test_queries_do_not_grow(self, owner, many, django_assert_num_queries):
        # Session, user, places, how many, keys, sums of two stretches, how many of all, the check
        # of the connection, and announcements.
        with django_assert_num_queries(10):
            owner.get("/app/keys")

    @pytest.mark.hostile
    @pytest.mark.parametrize("query", ["?page=99", "?page=x", "?sort=evil", "?q=%25", "?state=x"])
    def test_a_wrong_query_is_no_error(self, owner, many, query):
        assert set(names(owner, query)) <= {key.row.name for key in many}

    def test_a_file_of_them_has_no_key(self, owner, many):
        answer = owner.get("/app/keys/export?q=shop")

        lines = body_of(answer).splitlines()
        assert len(lines) == 21
        assert all(str(key) not in "".join(lines) for key in many)


class TestEditing:
    def form(self, **changes):
        return {
            "name": "Till", "scopes": ["detect", "batch"], "tags": "shop, eu, shop",
            "owner": "dana@acme.example", "allowed_cidrs": "203.0.113.0/24", "expires_at": "",
            "rate_limit_per_minute": 5, "rate_limit_per_day": 50,
        } | changes  # fmt: skip

    def test_all_that_the_api_changes(self, owner, acme_key):
        done = owner.post(f"/app/keys/{acme_key.row.pk}/edit", self.form())

        assert done["Location"] == f"/app/keys/{acme_key.row.pk}"
        row = ApiKey.objects.get(pk=acme_key.row.pk)
        assert (row.name, row.tags, row.owner) == ("Till", ["shop", "eu"], "dana@acme.example")
        assert (row.rate_limit_per_minute, row.scopes) == (5, ["detect", "batch"])
        audited = AuditEvent.objects.get(action="key.changed").details["changes"]
        assert audited["name"][1] == "Till"
        assert audited["allowed_cidrs"] == [[], ["203.0.113.0/24"]]

    def test_saving_without_a_change_records_nothing(self, owner, acme_key):
        page = f"/app/keys/{acme_key.row.pk}/edit"
        initial = owner.get(page).context["form"].initial
        owner.post(page, {k: "" if v is None else v for k, v in initial.items()})

        assert not AuditEvent.objects.filter(action="key.changed").exists()

    @pytest.mark.parametrize(
        "changes",
        [{"name": ""}, {"rate_limit_per_minute": 61}, {"scopes": []}, {"tags": "x" * 41}],
    )
    def test_what_is_wrong_changes_nothing(self, owner, acme_key, changes):
        answer = owner.post(f"/app/keys/{acme_key.row.pk}/edit", self.form(**changes))

        assert set(answer.context["form"].errors) == set(changes)
        assert ApiKey.objects.get(pk=acme_key.row.pk).name == acme_key.row.name


class TestRotating:
    def test_the_old_key_says_until_when_and_what_still_calls(
        self, owner, gateway, engine, acme_key
    ):
        done = owner.post(f"/app/keys/{acme_key.row.pk}/rotate", {"grace_seconds": 3600})
        gateway.detect("Good morning.", key=acme_key)
        gateway.flush_usage()

        facts = owner.get(f"/app/keys/{acme_key.row.pk}").context
        assert facts["successor"].pk == ApiKey.objects.exclude(pk=acme_key.row.pk).get().pk
        assert facts["calls_since"] == 1
        page = owner.get(done["Location"]).content.decode()
        assert "The key that it replaces" in page

    def test_its_grace_ends_at_once_or_goes_on(self, owner, gateway, acme_key):
        page = f"/app/keys/{acme_key.row.pk}"
        owner.post(f"{page}/rotate", {"grace_seconds": 3600})
        before = ApiKey.objects.get(pk=acme_key.row.pk).grace_until
        owner.post(f"{page}/extend")
        after = ApiKey.objects.get(pk=acme_key.row.pk).grace_until
        assert after - before == timedelta(days=1)

        owner.post(f"{page}/end")
        assert refusal(gateway.get("/v1/limits", key=acme_key)) == (401, "invalid_api_key")
        again = owner.post(f"{page}/extend", follow=True).content.decode()
        assert "not in its grace any more" in again

    @pytest.mark.hostile
    @pytest.mark.parametrize("act", ["end", "extend"])
    def test_a_key_in_use_is_not_ended_without_its_name(self, owner, gateway, acme_key, act):
        owner.post(f"/app/keys/{acme_key.row.pk}/{act}")

        assert gateway.get("/v1/limits", key=acme_key).json()["policies"]
        row = ApiKey.objects.get()
        assert (row.grace_until, row.revoked_at) == (None, None)


class TestTestKeys:
    def test_a_name_is_enough(self, owner):
        owner.post("/app/keys", {"name": "Shop", "scopes": ["detect"]})

        row = ApiKey.objects.get()
        assert (row.scopes, row.rate_limit_per_minute) == (["detect"], 60)

    def test_they_take_nothing_of_the_workspace(self, owner, gateway, engine, make_key, settings):
        settings.TRIAL_RATE_LIMIT_PER_DAY = 3
        live, test = make_key(), make_key(is_test=True)
        answers = [gateway.detect("Good morning.", key=test).status_code for _ in range(4)]

        assert str(test).startswith("gw_test_")
        assert answers == [200, 200, 200, 429]
        states = gateway.get("/v1/limits", key=live).json()["policies"]
        assert {state["name"]: state["remaining"] for state in states}["workspace_day"] == 10_000

    @pytest.mark.hostile
    def test_however_many_share_one_allowance(self, gateway, engine, make_key, settings):
        settings.TRIAL_RATE_LIMIT_PER_DAY = 3
        keys = [make_key(is_test=True) for _ in range(4)]

        *taken, last = [gateway.detect("Good morning.", key=key) for key in keys]

        assert [r.status_code for r in taken] == [200] * 3
        assert refusal(last) == (429, "quota_exceeded")

    @pytest.mark.parametrize("path", ["/app/keys", "/app/keys/{pk}", "/app/requests"])
    def test_they_are_marked_everywhere(self, owner, gateway, engine, make_key, path):
        test = make_key(is_test=True)
        gateway.detect("Good morning.", key=test)
        gateway.flush_usage()

        page = owner.get(path.format(pk=test.row.pk)).content.decode()

        assert '<span class="badge warn">test</span>' in page


@pytest.mark.parametrize("name", ["x" * 100, "مفتاح المتجر", "<b>bold</b>", "a\u202eb"])
def test_a_strange_name_is_only_a_name(owner, make_key, name):
    key = make_key(name=name)
    for path in ("/app/", "/app/keys", f"/app/keys/{key.row.pk}", f"/app/keys/{key.row.pk}/edit"):
        page = owner.get(path)
        assert page.status_code == 200
        assert b"<b>bold</b>" not in page.content
    assert f"<bdi>{escape(name)}</bdi>" in owner.get("/app/keys").content.decode()


def body_of(answer):
    async def read():
        return b"".join([piece async for piece in answer.streaming_content]).decode()

    return async_to_sync(read)()
