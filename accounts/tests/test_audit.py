"""The audit trail: sealed, checked, told of, and read by who may."""

from __future__ import annotations

import ast
import re
from datetime import timedelta
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.utils import timezone

import accounts
from accounts import audit, retention, services
from accounts.events import audit as note
from accounts.models import AuditChain, AuditEvent, OutboxEvent, Workspace
from accounts.tests.shapes import refusal

ACTOR = services.Actor("dana@acme.example", "203.0.113.7", "01a206fe-78a1-766d-896f-d02e80a236dd")


@pytest.fixture
def trail(gateway, acme):
    """Five acts in Acme and one of nobody's, sealed."""
    for number in range(5):
        note("key.changed", workspace=acme, target=number, changes={"name": ["a", number]},
             **ACTOR.fields())  # fmt: skip
    note("breaker.forced", target="engine", **ACTOR.fields())
    audit.seal()
    return acme


def tampered(statement, *values):
    """As by somebody who owns the database."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET session_replication_role = replica")
        cursor.execute(statement, values)
        if connection.vendor == "postgresql":
            cursor.execute("SET session_replication_role = DEFAULT")


class TestSealing:
    def test_each_workspace_has_a_chain_of_its_own(self, trail, globex):
        note("key.created", workspace=globex, **ACTOR.fields())
        assert audit.seal() == 1

        ends = {chain.pk: chain.number for chain in AuditChain.objects.all()}
        assert ends[globex.pk] == AuditEvent.objects.filter(workspace=globex).count()
        for chain, last in ends.items():
            found = audit.verify(chain)
            assert (found.wrong, found.first, found.last) == (None, 1, last)

    def test_sealing_twice_is_sealing_once(self, trail):
        before = list(AuditEvent.objects.order_by("id").values_list("number", "digest"))

        assert audit.seal() == 0
        assert list(AuditEvent.objects.order_by("id").values_list("number", "digest")) == before

    def test_what_is_rolled_back_leaves_no_gap(self, trail):
        with transaction.atomic():
            note("key.created", workspace=trail, **ACTOR.fields())
            transaction.set_rollback(True)
        note("key.created", workspace=trail, **ACTOR.fields())
        audit.seal()

        assert audit.verify(trail.pk).wrong is None

    def test_more_than_a_round_is_sealed_in_rounds(self, trail, monkeypatch):
        monkeypatch.setattr(audit, "ROWS_A_ROUND", 2)
        for _ in range(5):
            note("key.created", workspace=trail, **ACTOR.fields())

        assert audit.seal() == 5
        assert audit.verify(trail.pk).wrong is None


class TestVerifying:
    @pytest.mark.hostile
    @pytest.mark.parametrize(
        "change",
        [
            "actor = 'nobody'",
            "action = 'key.created'",
            "target = 'other'",
            "client_ip = '198.51.100.1'",
            "request_id = ''",
            "at = at - interval '1 second'",
            "details = '{\"changes\": {}}'",
        ],
    )
    @pytest.mark.needs_postgresql
    def test_a_changed_row_is_found(self, trail, change):
        for index in (3, 0):
            row = AuditEvent.objects.filter(workspace=trail).order_by("number")[index]
            tampered(f"UPDATE accounts_auditevent SET {change} WHERE id = %s", row.pk)

            found = audit.verify(trail.pk)

            assert (found.wrong, found.at) == ("the row was changed", row.number)

    @pytest.mark.hostile
    @pytest.mark.parametrize(
        ("index", "wrong"), [(0, "rows are missing"), (1, "rows are missing"), (-1, "at the end")]
    )
    def test_a_row_that_was_taken_out_is_found(self, trail, index, wrong):
        numbers = sorted(
            AuditEvent.objects.filter(workspace=trail).values_list("number", flat=True)
        )
        tampered(
            "DELETE FROM accounts_auditevent WHERE workspace_id = %s AND number = %s",
            trail.pk if connection.vendor == "postgresql" else trail.pk.hex,
            numbers[index],
        )

        found = audit.verify(trail.pk)

        assert found.wrong is not None
        assert wrong in found.wrong
        assert found.at == numbers[index]

    def test_the_command_says_where_and_ends_with_1(self, trail):
        output = StringIO()
        call_command("audit", "verify", workspace=trail.slug, stdout=output)
        assert "unbroken" in output.getvalue()
        row = AuditEvent.objects.filter(workspace=trail).order_by("number")[2]
        pk = row.pk if connection.vendor == "postgresql" else row.pk.hex
        tampered("UPDATE accounts_auditevent SET actor = 'x' WHERE id = %s", pk)

        with pytest.raises(CommandError):
            call_command("audit", "verify", stdout=output)
        assert f"acme: the row was changed, at number {row.number}" in output.getvalue()

    @pytest.mark.hostile
    def test_a_trail_that_was_emptied_is_found(self, trail):
        tampered("DELETE FROM accounts_auditevent")

        for chain in (trail.pk, audit.NOBODYS):
            found = audit.verify(chain)
            assert (found.wrong, found.at) == ("rows are missing at the end", 1)

    @pytest.mark.hostile
    def test_a_chain_whose_end_is_not_written_down_is_found(self, trail):
        AuditChain.objects.filter(pk=trail.pk).delete()

        output = StringIO()
        with pytest.raises(CommandError):
            call_command("audit", "verify", stdout=output)
        assert "acme: what says where its chain ends is missing" in output.getvalue()

    def test_a_workspace_without_acts_has_no_chain_and_nothing_is_wrong(self, gateway, acme):
        assert audit.verify(acme.pk).wrong is None


class TestForgetting:
    @pytest.fixture
    def aged(self, gateway):
        """Three acts of three years ago and two of now. The third was written a moment before the
        second, whose act was done first."""
        acme = Workspace.objects.create(slug="old", name="Old")
        now = timezone.now()
        then = now - timedelta(days=3 * 365)
        for at in (then, then + timedelta(minutes=2), then + timedelta(minutes=1), now, now):
            AuditEvent.objects.create(action="key.changed", actor="x", workspace=acme, at=at)
        audit.seal()
        return acme

    def test_the_chain_begins_behind_what_is_past_its_time(self, aged):
        retention.prune()

        found = audit.verify(aged.pk)
        assert (found.wrong, found.first, found.last) == (None, 4, 5)

    def test_whatever_the_order_of_their_times(self, aged):
        first_two = timezone.now() - timedelta(days=3 * 365) + timedelta(minutes=1, seconds=30)

        assert audit.forget(first_two, 100) == 2

        found = audit.verify(aged.pk)
        assert (found.wrong, found.first, found.last) == (None, 4, 5)

    def test_nothing_younger_may_go_with_it(self, aged):
        retention.prune()
        first = AuditEvent.objects.filter(workspace=aged).order_by("number")[0]
        tampered(
            "DELETE FROM accounts_auditevent WHERE id = %s",
            first.pk if connection.vendor == "postgresql" else first.pk.hex,
        )

        found = audit.verify(aged.pk)
        assert (found.wrong, found.at) == ("rows are missing", 4)

    def test_a_chain_of_which_nothing_is_left_goes_on(self, aged):
        audit.forget(timezone.now() + timedelta(days=1), 3)
        tampered("DELETE FROM accounts_auditevent WHERE number > 3")
        AuditChain.objects.filter(pk=aged.pk).update(number=3)  # as if there had been no more
        AuditChain.objects.filter(pk=aged.pk).update(digest=F("forgotten_digest"))
        assert audit.verify(aged.pk).wrong is None

        note("key.created", workspace=aged, **ACTOR.fields())
        audit.seal()

        found = audit.verify(aged.pk)
        assert (found.wrong, found.first, found.last) == (None, 4, 4)


@pytest.mark.needs_postgresql
@pytest.mark.hostile
class TestAppendOnly:
    def test_the_database_changes_no_sealed_row(self, trail):
        with pytest.raises(DatabaseError, match="never changed"):
            AuditEvent.objects.filter(workspace=trail).update(actor="nobody")

    def test_the_database_deletes_none_of_the_last_month(self, trail):
        with pytest.raises(DatabaseError, match="30 days"):
            AuditEvent.objects.filter(workspace=trail)._raw_delete("default")


class TestTelling:
    def test_a_siem_hears_of_each_record_once(self, trail):
        Workspace.objects.filter(pk=trail.pk).update(wanted_events=["audit.recorded"])
        note("key.revoked", workspace=trail, target="k", **ACTOR.fields())
        note("breaker.forced", target="engine", **ACTOR.fields())  # not theirs
        for _ in range(2):
            audit.seal()

        [event] = OutboxEvent.objects.filter(type="audit.recorded")
        result = event.body["data"]["result"]
        assert (result["action"], result["actor"]) == ("key.revoked", ACTOR.name)
        assert result["digest"] == AuditEvent.objects.get(action="key.revoked").digest


class TestReading:
    def test_the_api_has_before_and_after(self, gateway, trail, make_key):
        key = make_key(scopes=["audit:read"])

        answer = gateway.get("/v1/audit?action=key.changed&limit=2", key=key)

        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert [row["target"] for row in body["results"]] == ["4", "3"]
        assert body["results"][0]["changes"] == {"name": ["a", 4]}
        assert body["results"][0]["client_ip"] == "203.0.113.7"
        rest = gateway.get(body["next"].replace("http://testserver", ""), key=key).json()
        assert [row["target"] for row in rest["results"]] == ["2", "1"]

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("action=key.", 6),
            ("action=member.", 0),
            ("actor=dana@acme.example", 5),
            ("target=3", 1),
            ("since=2020-01-01T00:00:00Z", 6),
            ("until=2020-01-01T00:00:00Z", 0),
        ],
    )
    def test_filters(self, gateway, trail, make_key, query, found):
        key = make_key(scopes=["audit:read"])  # which is a record as well

        rows = gateway.get(f"/v1/audit?{query}", key=key).json()["results"]

        assert len([row for row in rows if row["action"].startswith("key.")]) == found

    @pytest.mark.parametrize("query", ["since=yesterday", "limit=0", "nonsense=1"])
    def test_what_is_wrong_is_reported(self, gateway, trail, make_key, query):
        answer = gateway.get(f"/v1/audit?{query}", key=make_key(scopes=["audit:read"]))

        assert refusal(answer) == (422, "validation_error")

    @pytest.mark.hostile
    def test_nobody_reads_anothers(self, gateway, trail, globex_key, make_key, globex):
        own = gateway.get("/v1/audit", key=globex_key)
        assert refusal(own) == (403, "scope_denied")
        _, stranger = services.issue_key(globex, actor=ACTOR, scopes=["audit:read"])

        rows = gateway.get("/v1/audit", key=stranger).json()["results"]

        assert {row["target"] for row in rows}.isdisjoint(map(str, range(5)))

    def test_beyond_the_plans_days_nothing_is_read(self, gateway, trail, make_key):
        trail.plan.audit_days = 1
        trail.plan.save()
        old = AuditEvent(action="key.old", actor="x", workspace=trail)
        old.at = timezone.now() - timedelta(days=2)
        old.save()

        rows = gateway.get("/v1/audit", key=make_key(scopes=["audit:read"])).json()["results"]

        assert "key.old" not in {row["action"] for row in rows}

    @pytest.mark.hostile
    def test_no_key_and_no_secret_is_in_it(self, gateway, trail, make_key):
        key = make_key(name="Shop", scopes=["audit:read", "keys:write"])
        gateway.patch(f"/v1/keys/{key.row.pk}", {"name": "Till"}, key=key)

        rows = gateway.get("/v1/audit", key=key).json()["results"]

        assert str(key) not in str(rows)
        assert key.row.key_hash not in str(rows)
        changed = next(row for row in rows if row["changes"].get("name") == ["Shop", "Till"])
        assert changed["actor"] == f"key {key.row.prefix}…"


def test_every_act_of_a_chain_has_another_number(trail):
    numbers = AuditEvent.objects.filter(workspace=trail).order_by("number")

    assert all(row.number == expected for row, expected in zip(numbers, count(1), strict=False))


def test_every_act_that_changes_something_says_what_it_was_before():
    """By the name of the act, wherever one is written down."""
    root, silent = Path(accounts.__file__).parents[1], set()
    for app in ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks"):
        sources = [path.read_text() for path in (root / app).rglob("[!t]*.py")]
        for one in (one for source in sources for one in ast.walk(ast.parse(source))):
            if isinstance(one, ast.Call) and one.args and "audit" in ast.unparse(one.func):
                name = str(getattr(one.args[0], "value", ""))
                is_change = re.search(r"(changed|saved|_given|_set)$", name)
                if is_change and "changes" not in {word.arg for word in one.keywords}:
                    silent.add(name)

    assert silent == {"user.password_set"}
