"""The playground's page and key. What its script does is seen in a browser."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from accounts.models import ApiKey, AuditEvent
from accounts.services import Actor
from detection.policies import policy as policies
from detection.tests import fake_engines

URL, KEY_URL = "/app/playground", "/app/playground/key"


def test_its_key_asks_for_verdicts_and_counts_to_the_workspace(engine, gateway, owner, acme):
    r = owner.post(KEY_URL)
    assert r.status_code == 201
    assert r["Cache-Control"] == "no-store, no-transform"

    assert gateway.detect("Good morning.", key=r.json()["key"]).status_code == 200
    gateway.flush_usage()

    [(row, key)] = owner.get("/app/requests").context["rows"]
    assert (row.workspace_id, key) == (acme.pk, None)
    assert AuditEvent.objects.filter(action="key.created", actor="alice@acme.example").exists()


@pytest.fixture
def deep(gateway, engine):
    with fake_engines.serving() as fake:
        fake.answer = fake_engines.go(0.95)
        fake_engines.add(gateway, "deep", f"http://{fake.address}")
        yield fake
        fake_engines.remove(gateway, "deep")


def test_it_offers_each_engine_that_a_policy_names(owner, acme, acme_key):
    shadow = {"engines": {"shadow": {"engine": "deep", "share": 0.1}}}
    policies.save(acme_key.row, shadow, actor=Actor("test"))

    choices = [(like, engine) for _, like, engine in owner.get(URL).context["choices"]]

    like = str(acme_key.row.pk)
    assert choices == [("", ""), (like, ""), (like, "default"), (like, "deep")]


def test_one_of_them_alone_judges(owner, gateway, engine, deep, acme_key):
    band = {"engine": "deep", "from": 0.9, "to": 0.9}
    policies.save(
        acme_key.row, {"engines": {"second": band}, "mode": "monitor"}, actor=Actor("test")
    )

    r = owner.post(KEY_URL, {"like": acme_key.row.pk, "engine": "deep"})
    body = gateway.detect("Good morning.", key=r.json()["key"]).json()

    assert (body["engine"], body["would_flag"]) == ("deep", True)
    assert engine.asked == []


@pytest.mark.parametrize("whose", ["workspace", "key", "another"])
def test_an_engine_that_the_policy_does_not_name_is_refused(owner, acme_key, globex_key, whose):
    band = {"engine": "deep", "from": 0.4, "to": 0.6}
    policies.save(globex_key.row, {"engines": {"second": band}}, actor=Actor("test"))
    like = {"workspace": "", "key": acme_key.row.pk, "another": globex_key.row.pk}[whose]

    r = owner.post(KEY_URL, {"like": like, "engine": "deep"})

    assert r.status_code == 404
    assert not ApiKey.objects.filter(is_session=True).exists()


def test_no_page_lists_it(owner, acme):
    owner.post(KEY_URL)
    made = ApiKey.objects.get(is_session=True)

    assert list(owner.get("/app/keys").context["keys"]) == []
    assert owner.get(f"/app/keys/{made.pk}").status_code == 404


def test_a_viewer_gets_none(viewer):
    assert viewer.post(KEY_URL).status_code == 403
    assert 'id="playground"' not in viewer.get(URL).content.decode()
    assert not ApiKey.objects.exists()


def test_a_stranger_is_led_to_the_form(gateway):
    assert Client().post(KEY_URL)["Location"].startswith("/accounts/login/")


def test_a_form_of_another_site_gets_none(enter, alice, acme):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice, backend="django.contrib.auth.backends.ModelBackend")

    assert client.post(KEY_URL).status_code == 403
    assert not ApiKey.objects.exists()


def test_looking_makes_none(owner):
    assert owner.get(KEY_URL)["Location"] == URL  # to where its form is
    owner.get(URL)

    assert not ApiKey.objects.exists()


def test_the_page_holds_neither_inline_script_nor_style(owner):
    page = owner.get(URL).content.decode()

    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
