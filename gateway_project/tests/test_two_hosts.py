"""Two gateways and two workers on hosts whose clocks are ten seconds apart, behind one pgbouncer in
transaction mode: what one does, the others know at once.

No beat runs. `make run-two` has all served tests go by way of pgbouncer, too.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from accounts.models import UsageLog
from accounts.services import Actor
from deploy import services
from detection.models import Job
from detection.tests.working import broker_at
from gateway_project.tests.clocks import TEN_AHEAD, off_by
from gateway_project.tests.conftest import need_stores
from gateway_project.tests.private_redis import PrivateRedis
from gateway_project.tests.served import Served, Worker, database_url, wait_until
from gateway_project.worker import beat
from webhooks import services as webhook_services

pytestmark = [pytest.mark.hostile, pytest.mark.served, pytest.mark.timeout(180)]
LOGIN = "/api/v1/auth/login"


@pytest.fixture(scope="module")
def redis_of_all(tmp_path_factory):
    with PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def pooler():
    """pgbouncer before the tests' database; every process that is started then goes through it."""
    if os.environ.get("POOLER_URL"):
        yield
        return
    program = services.find("pgbouncer")
    if program is None:
        pytest.skip("needs pgbouncer: `make test` installs it")
    target = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}".format(**settings.DATABASES["default"])
    with (
        ExitStack() as stack,
        tempfile.TemporaryDirectory(dir="/tmp") as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = services.start_pgbouncer(stack, program, Path(home), target)
        patch.setenv("POOLER_URL", url)
        yield


@pytest.fixture(scope="module")
def installation(_gateway_session, pooler, redis_of_all, tmp_path_factory):
    """Two gateways, the first of them ahead; so is the first of the workers."""
    need_stores()
    common = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "DATABASE_URL": database_url()}
    hosts = ["ahead", off_by(TEN_AHEAD)], ["right", {}]
    with ExitStack() as stack:
        for name, clock in hosts:
            folder = tmp_path_factory.mktemp(f"worker-{name}")
            options = ("--pool=threads", "--concurrency=4")
            worker = Worker(folder, redis_of_all.url, *options, **common, **clock)
            stack.callback(worker.close)
        gateways = []
        for name, clock in hosts:
            more = {"WORKERS": "1", "REDIS_URL": redis_of_all.url, **common, **clock}
            gateways.append(Served(tmp_path_factory.mktemp(name), **more))
            stack.callback(gateways[-1].close)
        for gateway in gateways:
            gateway.wait()
        yield gateways


@pytest.fixture
def hosts(gateway, engine, installation, redis_of_all):
    # The schedule's rows went with those of the test before: who begins to lead writes them.
    redis_of_all.client.delete(beat.LOCK)
    with broker_at(redis_of_all.url):
        yield installation


def call(served, method, path, key="", **more):
    headers = {**({"X-API-Key": key} if key else {}), **more.pop("headers", {})}
    return httpx.request(method, f"{served.url}{path}", headers=headers, timeout=30, **more)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["made ahead", "made behind"])
def test_a_key_its_calls_jobs_and_webhooks(hosts, acme, receiver, order):
    here, there = (hosts[n] for n in order)
    registered = call(
        here, "POST", "/auth/register", json={"email": "d@x.example", "password": "long and good"}
    ).json()
    key = registered["api_key"]["key"]
    _, secret = webhook_services.register(
        acme.__class__.objects.get(members__email="d@x.example").pk,
        receiver.url(),
        ["detection.completed", "batch.completed"],
        actor=Actor("test"),
    )

    # A key of this very moment, at the other host; a trial has ten calls a minute.
    assert there.detect(key).status_code == 200
    texts = [{"id": str(n), "text": f"What is the {n}th prime?"} for n in range(5)]
    asked = call(
        there,
        "POST",
        "/v1/detect/batch",
        key,
        headers={"Prefer": "respond-async"},
        json={"requests": texts},
    )
    assert asked.status_code == 202, asked.text
    statuses = [served.detect(key).status_code for served in hosts for _ in range(8)]
    assert 429 in statuses

    wait_until(lambda: UsageLog.objects.count() >= 2)
    wait_until(lambda: receiver.received)
    assert receiver.received[0].verified_by(secret)
    wait_until(lambda: Job.objects.get().status == "complete")
    assert call(here, "DELETE", "/auth/revoke", key).status_code == 204
    wait_until(lambda: there.detect(key).status_code == 401)


def test_tokens_of_one_host_are_good_at_the_other(hosts, member):
    ada = member("ROLE_ADMIN", signed_in=False)
    for here, there in (hosts, hosts[::-1]):
        signed_in = call(
            here,
            "POST",
            LOGIN,
            json={"username": ada.user.email, "password": "a good long password"},
        )
        assert signed_in.status_code == 200, signed_in.text
        bearer = {"Authorization": f"Bearer {signed_in.json()['tokens']['accessToken']}"}
        cookie = {"Cookie": f"refreshToken={signed_in.cookies['refreshToken']}"}

        me = call(there, "GET", "/api/v1/auth/me", headers=bearer)
        assert me.json()["email"] == ada.user.email
        again = call(there, "POST", "/api/v1/auth/refresh", headers=cookie, json={})
        assert again.status_code == 200, again.text
        renewed = {"Authorization": f"Bearer {again.json()['accessToken']}"}
        assert call(here, "GET", "/api/v1/auth/me", headers=renewed).json() == me.json()


def test_a_renewed_lease_is_nobody_elses(hosts, engine, acme, make_key):
    """Each chunk is judged once, however long its engine takes."""
    engine.is_slow(0.5)
    key = make_key(rate_limit_per_minute=1000)
    texts = [{"id": str(n), "text": f"What is the {n}th prime?"} for n in range(400)]
    asked = call(hosts[1], "POST", "/v1/detect/batch", key, json={"requests": texts})
    assert asked.status_code == 202

    wait_until(lambda: Job.objects.get().status == "complete", seconds=90)

    attempts = set(Job.objects.get().chunks.values_list("attempts", flat=True))
    assert attempts == {1}
    assert {one["text"] for one in engine.asked} == {one["text"] for one in texts}
