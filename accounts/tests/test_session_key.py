"""The playground's key: short-lived, `detect` alone, in no list, on one set of counters."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from accounts import services
from accounts.authentication import policies_of
from accounts.models import ApiKey
from accounts.services import Actor
from accounts.tests.shapes import refusal
from accounts.usage import reports

ACTOR = Actor("test")


def test_it_detects_and_does_nothing_else(engine, gateway, acme, alice):
    _, text = services.session_key(acme, alice, actor=ACTOR)

    assert gateway.detect("Good morning.", key=text).status_code == 200
    assert refusal(gateway.get("/v1/keys", key=text)) == (403, "scope_denied")


def test_it_ends_after_a_quarter_of_an_hour(acme, alice):
    key, _ = services.session_key(acme, alice, actor=ACTOR)

    left = key.expires_at - timezone.now()
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)


def test_no_list_shows_it(gateway, acme, alice, acme_admin_key):
    services.session_key(acme, alice, actor=ACTOR)

    shown = gateway.get("/v1/keys", key=acme_admin_key).json()["results"]

    assert [row["id"] for row in shown] == [str(acme_admin_key.row.pk)]


def test_another_buys_no_new_minute(acme, alice, bob):
    first, second, others = (
        services.session_key(acme, user, actor=ACTOR)[0] for user in (alice, alice, bob)
    )

    assert policies_of(first) == policies_of(second)
    assert policies_of(first) != policies_of(others)


def test_those_that_ended_are_removed(acme, alice, bob):
    old, _ = services.session_key(acme, alice, actor=ACTOR)
    kept, _ = services.session_key(acme, bob, actor=ACTOR)
    long_ago = timezone.now() - timedelta(hours=2)
    ApiKey.objects.filter(pk__in=[old.pk, kept.pk]).update(expires_at=long_ago)

    fresh, _ = services.session_key(acme, alice, actor=ACTOR)

    assert set(ApiKey.objects.values_list("pk", flat=True)) == {kept.pk, fresh.pk}


def test_its_calls_are_the_workspaces(
    engine, gateway, acme, alice, globex, django_assert_num_queries
):
    key, text = services.session_key(acme, alice, actor=ACTOR)
    gateway.detect("Good morning.", key=text)
    gateway.flush_usage()
    since = timezone.now() - timedelta(hours=1)

    with django_assert_num_queries(2):
        (bucket,) = reports.timeline(acme.pk, since, "minute")
        sums = reports.by_subject([key.pk], since, "minute")

    assert (bucket["requests"], bucket["errors"], sum(bucket["latency"])) == (1, 0, 1)
    assert sums == {key.pk: {"requests": 1, "flagged": bucket["flagged"], "errors": 0}}
    assert reports.has_usage(acme.pk)
    assert not reports.has_usage(globex.pk)
