"""Acme's webhooks, and a receiver on this machine that they may be sent to."""

from __future__ import annotations

import ipaddress

import pytest

from accounts.services import Actor
from webhooks import services
from webhooks.tests.receiver import Receiver

ACTOR = Actor("test")


@pytest.fixture
def receiver(settings):
    settings.WEBHOOK_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def make_webhook(acme, receiver):
    """`make_webhook("/a", ["quota.80"])`; its secret is `webhook.secret`."""

    def make(path="/hook", events=("detection.completed",), workspace=acme, **fields):
        webhook, secret = services.register(
            workspace.pk, receiver.url(path), list(events), actor=ACTOR, **fields
        )
        webhook.secret = secret
        return webhook

    return make


@pytest.fixture
def webhook(make_webhook):
    return make_webhook()


@pytest.fixture
def api(gateway, acme_key):
    """The API as Acme's key uses it: `api("POST", "/register", {…})`."""

    def call(method, path, json=None, **more):
        body = {} if json is None else {"json": json}
        return gateway.request(method, f"/webhooks{path}", key=acme_key, **body, **more)

    return call
