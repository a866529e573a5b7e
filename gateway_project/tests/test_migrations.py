"""A database without the migrations of this code: not ready, and it is said what to run."""

import subprocess
import sys

import httpx
import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from gateway_project.core.stores import migrations
from gateway_project.core.telemetry import health
from gateway_project.system import views
from gateway_project.tests.served import ROOT, Served, wait_until

A_MIGRATION = ("accounts", "0001_initial")


@pytest.fixture
def recorded(gateway, monkeypatch):
    """`recorded(remove=…)` changes what the database says it has, and forgets what was known."""
    recorder = MigrationRecorder(connection)
    undo = []

    def change(*, remove=None, add=None):
        if remove:
            recorder.record_unapplied(*remove)
            undo.append(lambda: recorder.record_applied(*remove))
        if add:
            recorder.record_applied(*add)
            undo.append(lambda: recorder.record_unapplied(*add))
        monkeypatch.setattr(migrations, "missing", None)
        monkeypatch.setattr(views, "MIGRATIONS", health.Probe(views._migrations))

    yield change
    for step in undo:
        step()


def test_readiness_says_what_to_run_while_a_migration_is_missing(gateway, recorded):
    recorded(remove=A_MIGRATION)

    ready, whole = gateway.get("/health/ready"), gateway.get("/health").json()

    assert ready.status_code == 503
    assert ready.json()["status"] == "down"
    assert ready.json()["checks"]["migrations"] == "down"
    assert "accounts.0001_initial" in ready.json()["detail"]
    assert ".venv/bin/python manage.py migrate" in ready.json()["detail"]
    assert whole["components"]["migrations"]["status"] == "down"
    assert whole["detail"] == ready.json()["detail"]


def test_a_newer_database_does_not_stop_the_old_code(gateway, recorded):
    recorded(add=("accounts", "9999_of_the_next_version"))

    ready = gateway.get("/health/ready")

    assert ready.status_code == 200
    assert "migrations" not in ready.json()["checks"]


def test_a_migration_that_stands_for_others_is_there_when_they_are(recorded, monkeypatch):
    recorded()
    names = {**migrations._of_this_code(), ("accounts", "0001_squashed"): (A_MIGRATION,)}
    monkeypatch.setattr(migrations, "_of_this_code", lambda: names)

    assert migrations.find_missing() == []


def test_the_database_is_asked_once_and_not_for_each_request(gateway, recorded, monkeypatch):
    recorded()
    asked = []
    find = migrations.find_missing

    def counted():
        asked.append(1)
        return find()

    monkeypatch.setattr(migrations, "find_missing", counted)
    for _ in range(3):
        gateway.run(migrations.look())

    assert asked == [1]


@pytest.fixture
def start(engine, tmp_path):
    """`start(DATABASE_URL=…)`: served, without waiting that it is ready."""
    started = []

    def start(database_url):
        served = Served(
            tmp_path / "served",
            by_command=True,
            WORKERS="1",
            VAR_DIR=str(tmp_path),
            DATABASE_URL=database_url,
            REDIS_URL="redis://127.0.0.1:1/0",
        )
        started.append(served)
        return served

    yield start
    for served in started:
        if served.process.poll() is None:
            served.stop()
        served.log.close()


@pytest.mark.served
def test_a_gateway_on_an_empty_database_is_ready_once_it_is_migrated(start, tmp_path):
    """With a file of SQLite: what is said does not depend on the kind of database."""
    served = start(f"sqlite:///{tmp_path}/empty.sqlite3")

    first = wait_until(lambda: httpx.get(f"{served.url}/health/ready"))
    output = served.output()
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity=0"],
        cwd=ROOT,
        env=served.environment,
        check=True,
    )
    wait_until(lambda: httpx.get(f"{served.url}/health/ready").status_code == 200)

    assert first.status_code == 503
    assert "manage.py migrate" in first.json()["detail"]
    by_serve = [line for line in output.splitlines() if not line.startswith("{")]
    assert by_serve[-1].endswith(f"Run: {migrations.COMMAND}")
    [line] = [line for line in served.lines() if line["event"] == "migrations_missing"]
    assert migrations.COMMAND in line["do"]


@pytest.mark.slow
@pytest.mark.served
def test_a_process_that_never_saw_its_database_is_not_ready_and_says_so(start):
    served = start("postgres://nobody:x@127.0.0.1:1/nothing")

    r = wait_until(lambda: httpx.get(f"{served.url}/health/ready"))

    assert r.status_code == 503
    assert "DATABASE_URL" in r.json()["detail"]
    assert r.json()["limits"] == "degraded"
    assert "The database of DATABASE_URL does not answer" in served.output()
    assert "database_unavailable" in {line["event"] for line in served.lines()}
