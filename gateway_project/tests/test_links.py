"""Links in answers, pages and mails: of the operators' words, whatever the caller's `Host` says."""

from __future__ import annotations

import pytest
from django.core import mail

from gateway_project.tests.test_portal import PASSWORD

pytestmark = pytest.mark.hostile
FOREIGN = {"Host": "evil.example"}


def following(gateway, key, **headers):
    r = gateway.get("/v1/keys?limit=1", key=key, headers=headers)
    assert r.status_code == 200, r.text
    return r.json()["next"]


@pytest.fixture
def two_keys(make_key):
    make_key(name="another")
    return make_key(scopes=["keys:write"])


def test_public_url_goes_before_all(gateway, settings, two_keys):
    settings.PUBLIC_URL = "https://gateway.example"

    assert following(gateway, two_keys).startswith("https://gateway.example/v1/keys?")
    assert following(gateway, two_keys, **FOREIGN).startswith("https://gateway.example/v1/keys?")


@pytest.mark.parametrize(
    ("allowed", "host", "begins"),
    [
        (["gateway.example"], "gateway.example", "http://gateway.example/"),
        (["gateway.example", "b.example"], "B.example", "http://b.example/"),
        (["gateway.example"], "gateway.example:6666", "http://gateway.example/"),
        (["gateway.example"], "gateway.example:8000", "http://gateway.example:8000/"),
        ([".example"], "evil.example", "http://127.0.0.1:8000/"),
        (["*"], "evil.example", "http://127.0.0.1:8000/"),
        (["[::1]"], "[::1]:8000", "http://[::1]:8000/"),
        (["my_service"], "my_service:8000", "http://my_service:8000/"),
        (["my_service"], "MY_Service.", "http://my_service/"),
    ],
)
def test_without_it_a_name_that_was_written_down(
    gateway, settings, two_keys, allowed, host, begins
):
    settings.ALLOWED_HOSTS, settings.PORT = allowed, 8000

    assert following(gateway, two_keys, Host=host).startswith(begins)


PATHS = ["/v1/keys", "/v1/limits", "/", "/api/v1/queue", "/metrics"]


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *(("gateway.example", True), ("Gateway.Example.:8000", True), ("my_service", True)),
        *(("my_service:8000", True), ("a.my_own.example:1", True), ("my_service.example", False)),
        *(("my_servic", False), ("my_service:", True), ("my_service:x", False), ("_", False)),
    ],
)
def test_both_planes_know_a_name_by_one_rule(gateway, settings, host, is_ours):
    settings.ALLOWED_HOSTS = ["gateway.example", "my_service", ".my_own.example"]

    answers = [gateway.get(path, headers={"Host": host}) for path in PATHS]

    refused = ["ALLOWED_HOSTS" in r.text for r in answers]
    assert refused == [not is_ours] * len(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_host_is_refused_on_both_planes(gateway, settings, path):
    settings.ALLOWED_HOSTS = ["gateway.example"]

    r = gateway.get(path, headers=FOREIGN)

    assert (r.status_code, r.json()["code"]) == (400, "bad_request")
    assert "ALLOWED_HOSTS" in r.json()["detail"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_probes_know_no_name(gateway, settings, path):
    settings.ALLOWED_HOSTS = ["gateway.example"]

    r = gateway.get(path, headers={"Host": "10.0.0.7:8000"})

    assert r.json()["status"] in ("up", "degraded")


def test_mails_lead_to_us(gateway):
    body = {"email": "eve@x.example", "password": PASSWORD}

    gateway.post("/auth/register", body, headers=FOREIGN)

    [message] = mail.outbox
    assert "evil.example" not in message.body
    assert "http://127.0.0.1:8000/accounts/confirm-email/" in message.body
