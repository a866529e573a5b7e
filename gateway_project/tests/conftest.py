"""What tests about real processes share beside the fixtures of the root's conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from accounts.models import User
from detection.tests.working import broker_at
from gateway_project.tests.clocks import TEN_AHEAD, off_by
from gateway_project.tests.private_redis import PrivateRedis
from gateway_project.tests.served import ROOT, Served, Worker
from gateway_project.tests.test_admin import signed_in
from portal.tests.browser import chromium, open_tab  # noqa: F401 - a person's browser
from portal.tests.conftest import enter, owner, stranger, viewer  # noqa: F401 - of its pages
from robin.tests.conftest import _robin_session, member, robin  # noqa: F401 - Robin and its people
from webhooks.tests.conftest import make_webhook, receiver, webhook  # noqa: F401 - of webhooks


@pytest.fixture
def root(gateway):
    """A superuser's browser."""
    return signed_in(gateway, User.objects.create_superuser("root@gateway.example", "x"))


@pytest.fixture
def own_redis(tmp_path):
    """A Redis to stop, freeze and flush: `serve(REDIS_URL=own_redis.url)`."""
    with PrivateRedis(tmp_path) as server:
        yield server


@pytest.fixture
def serve(gateway, engine, tmp_path):
    """`serve(WORKERS="2")` starts one; all are stopped at the end.

    Those that run at the same time need folders of their own.
    """
    need_stores()
    started: list[Served] = []

    def start(folder: str = "served", **options: Any) -> Served:
        served = Served(tmp_path / folder, **options)
        started.append(served)
        served.wait()
        return served

    yield start
    for served in started:
        served.close()


@contextmanager
def running(folder: Path, **options: str) -> Iterator[Served]:
    """One that several tests share; what is theirs alone, `serve` starts."""
    need_stores()
    served = Served(folder, **options)
    try:
        served.wait()
        yield served
    finally:
        served.close()


@pytest.fixture(scope="module")
def _shared_served(_gateway_session, tmp_path_factory):
    with running(tmp_path_factory.mktemp("shared"), WORKERS="1") as served:
        yield served


@pytest.fixture
def shared(gateway, engine, _shared_served):
    """One of one process for all tests of a module that do it no harm."""
    return _shared_served


def need_stores() -> None:
    if connection.vendor != "postgresql" or not settings.REDIS_URL:
        pytest.skip("needs PostgreSQL and Redis: `make test` starts them")


@pytest.fixture
def work(gateway, own_redis, tmp_path):
    """`work()` starts a real Celery worker; all are killed at the end.

    `work("--pool=threads", …)` has options of its own. Each is on a host of its own: the clocks of
    one and the next are ten seconds apart, and the tests' own is right.
    """
    if connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL: `make test` starts it")
    started = []
    offsets = cycle([TEN_AHEAD, ""])

    def start(*options, code=ROOT, **environment):
        if offset := next(offsets):
            environment |= off_by(offset)
        started.append(Worker(tmp_path, own_redis.url, *options, code=code, **environment))
        return started[-1]

    with broker_at(own_redis.url):
        yield start
    for worker in started:
        worker.close()
