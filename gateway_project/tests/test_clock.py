"""One time for the whole installation, whatever the clocks of its hosts say."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import time_machine
from django.db import connection

from accounts.tests.shapes import refusal
from gateway_project.core import clock
from gateway_project.tests.test_public_pages import JSON

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).resolve().parents[2]
APPS = ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
# Dotted names, as they are called or handed over, that read the host's clock.
HOST_CLOCK = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "timezone.now"),
    *("timezone.localtime", "timezone.localdate", "datetime.now", "datetime.utcnow"),
    *("datetime.today", "date.today", "uuid.uuid1", "uuid_utils.compat.uuid7", "aware_utcnow"),
    *("core.get_usage", "core.is_ratelimited", "decorators.ratelimit"),  # django-ratelimit's
}
MAY = {
    "gateway_project/core/clock.py": "it is what others ask",
    "gateway_project/doctor/stores.py": "it compares the host's clock with those of the stores",
    "portal/members.py": "held against times that allauth wrote",
    "accounts/migrations/0001_initial.py": "`date_joined` is Django's column",
}


def modules() -> Iterator[Path]:
    for app in APPS:
        for path in (ROOT / app).rglob("*.py"):
            if not {"tests", "standin"} & set(path.parts):
                yield path


def readers_of_the_host_clock(tree: ast.AST) -> set[str]:
    """What of `HOST_CLOCK` a module names, under whatever name it imports it."""
    names: dict[str, str] = {}  # local name -> dotted
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = node.module.removeprefix("django.utils.")
            for alias in node.names:
                tail = module.rpartition(".")[2]
                short = alias.name if module in ("django.utils", "datetime") else None
                names[alias.asname or alias.name] = short or f"{tail}.{alias.name}"
                if f"{node.module}.{alias.name}" in HOST_CLOCK:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name] = alias.name
    shown = {  # a time that it is given, in somebody's zone
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and "local" in ast.unparse(node.func)
    }
    for node in ast.walk(tree):
        if node in shown:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(names.get(node.id, ""))
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            head, _, rest = dotted.partition(".")
            found.add(f"{names.get(head, head)}.{rest}".removeprefix("datetime.datetime."))
            found.add(".".join(f"{names.get(head, head)}.{rest}".split(".")[-2:]))
        elif isinstance(node, ast.keyword) and node.arg in ("auto_now", "auto_now_add"):
            found.add("timezone.now")
    return found & HOST_CLOCK


def test_nothing_of_ours_reads_the_hosts_clock():
    found = {
        str(path.relative_to(ROOT)): readers
        for path in modules()
        if (readers := readers_of_the_host_clock(ast.parse(path.read_text())))
    }

    assert set(found) == set(MAY), "ask gateway_project.core.clock instead"


@pytest.mark.parametrize(
    "source",
    [
        "from time import time\ntime()",
        "from time import time as now\nnow()",
        "import time\ntime.time()",
        "import time as t\nt.time_ns()",
        "from django.utils import timezone\nx = dict(default=timezone.now)",
        "from django.utils.timezone import now\nnow()",
        "from datetime import UTC, datetime\ndatetime.now(UTC)",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import date\ndate.today()",
        "from uuid_utils.compat import uuid7\nuuid7()",
        "models.DateTimeField(auto_now_add=True)",
        "from django_ratelimit.core import get_usage\nget_usage()",
        "from django_ratelimit.decorators import ratelimit\nratelimit()",
    ],
)
def test_the_check_knows_each_way_to_read_it(source):
    assert readers_of_the_host_clock(ast.parse(source))


@pytest.mark.needs_redis
def test_forms_count_by_the_time_that_hosts_share(gateway, engine):
    """Of two hosts whose clocks are minutes apart."""
    answers = []
    for n in range(11):
        with time_machine.travel(time.time() + 100 * (n % 2)):
            answers.append(gateway.request("POST", "/", data={"text": "Hello"}, headers=JSON))

    assert [r.status_code for r in answers[:10]] == [200] * 10
    assert refusal(answers[10]) == (429, "rate_limited")


LEARN = clock.learn  # the real one, which tests are without


@pytest.fixture
def learn(monkeypatch):
    """As processes have it; what was learned is forgotten at the end."""
    monkeypatch.setattr(clock, "learn", LEARN)
    yield LEARN
    clock.forget()


def test_a_store_behind_this_host_is_believed(learn):
    learn(time.time() - 10, time.monotonic())

    assert -11 < clock.time() - time.time() < -9
    assert clock.now().timestamp() == pytest.approx(clock.time(), abs=1)


def test_ids_are_made_in_the_installations_time(learn):
    learn(time.time() - 3600, time.monotonic())

    ids = [clock.new_id() for _ in range(1000)]

    assert ids == sorted(ids)
    assert len({*ids}) == 1000
    assert {made.version for made in ids} == {7}
    assert (ids[0].int >> 80) / 1000 == pytest.approx(time.time() - 3600, abs=60)


def test_a_host_clock_that_jumps_changes_nothing(learn):
    learn(time.time(), time.monotonic())
    before = clock.time()

    with time_machine.travel(time.time() + 86_400):
        assert clock.time() - before < 60


def test_an_answer_that_was_long_on_its_way_does_not_move_what_is_known(learn):
    """Asked 20 s ago and answered at once: by half of the way the time would be 10 s behind."""
    learn(time.time(), time.monotonic())

    learn(time.time() - 20, time.monotonic() - 20)

    assert clock.time() == pytest.approx(time.time(), abs=1)


@pytest.mark.parametrize("off", [-3600, 30])
def test_a_store_whose_clock_was_set_is_believed(learn, off):
    learn(time.time(), time.monotonic())

    learn(time.time() + off, time.monotonic() - 20)

    assert clock.time() - time.time() == pytest.approx(off + 10, abs=1)


def test_each_new_connection_tells_the_time(learn, transactional_db):
    """On a host that is an hour ahead."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one host")
    learn(0.0, time.monotonic())  # as if PostgreSQL had another idea before
    with time_machine.travel(time.time() + 3600):
        fresh = connection.copy()
        fresh.settings_dict["OPTIONS"].pop("pool", None)
        try:
            fresh.ensure_connection()
        finally:
            fresh.close()

        assert time.time() - clock.time() == pytest.approx(3600, abs=60)
