"""While an upgrade is under way, the previous release's processes work on the new schema, beside
the new ones, and each reads what the other left in Redis.

The code of the last release in CHANGELOG.md, by its tag, or by the commit that named it there.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from io import BytesIO

import httpx
import pytest
from django.apps import apps
from django.db import migrations
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED

from accounts.models import ApiKey, UsageLog, Workspace
from deploy import packages
from gateway_project.tests.served import ROOT, wait_until

OURS = ("accounts", "detection", "robin", "webhooks")


def git(*arguments: str) -> bytes:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60
    ).stdout


def previous_release() -> str:
    """Its tag or commit; the test is skipped where there is no history."""
    version = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    try:
        if git("tag", "--list", f"v{version}"):
            return f"v{version}"
        commits = git("log", "--format=%H", f"-S## [{version}] - ", "--", "CHANGELOG.md").split()
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs git and the history of the project")
    if not commits:
        pytest.skip(f"the history ends before {version}")
    return commits[-1].decode()


@pytest.fixture
def old_code(tmp_path):
    folder = tmp_path / "previous"
    archive = git("archive", previous_release())
    with tarfile.open(fileobj=BytesIO(archive)) as content:
        content.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old_libraries(old_code, tmp_path):
    """A folder with those that its lock names and this environment no longer has."""
    here = packages.installed()
    lock = (old_code / "requirements" / "base.txt").read_text()
    pins = re.findall(r"^[\w.-]+(?:\[.*\])?==.*(?:\n {4}--hash.*)*", lock, re.M)
    gone = [pin for pin in pins if packages.canonical(re.split(r"[\[=]", pin)[0]) not in here]
    folder = tmp_path / "libraries"
    if gone:
        wanted = tmp_path / "gone.txt"
        wanted.write_text("\n".join(gone))
        options = ["--no-deps", "--require-hashes", "--quiet", "--target", folder, "-r", wanted]
        subprocess.run([*packages.PIP, "install", *options], check=True, timeout=120)
    return folder


@pytest.mark.hostile
@pytest.mark.served
@pytest.mark.timeout(300)
def test_it_serves_and_writes_on_the_new_schema(
    serve, work, own_redis, old_code, old_libraries, make_key
):
    key = make_key(rate_limit_per_minute=1000)
    of_before = {"code": old_code, "PYTHONPATH": str(old_libraries)}
    old = serve("old", **of_before, WORKERS="1", REDIS_URL=own_redis.url)
    new = serve("new", WORKERS="1", REDIS_URL=own_redis.url)

    # What it inserts: people, workspaces, keys, sessions, events. Columns that it does not know
    # have a default of the database's.
    made = httpx.post(
        f"{old.url}/auth/register",
        json={"email": "old@x.example", "password": "a good long password"},
        timeout=30,
    )
    assert made.status_code == 201, made.text
    assert Workspace.objects.get(members__email="old@x.example").keys.count() == 1
    statuses = {
        s.detect(k).status_code for s in (old, new) for k in (key, made.json()["api_key"]["key"])
    }
    assert statuses == {200}

    # What each left in the stream, written by a worker of the new code, then by one of the old.
    worker = work("--concurrency=1")
    wait_until(lambda: UsageLog.objects.count() == 4)
    worker.stop()
    assert {served.detect(key, "more").status_code for served in (old, new)} == {200}
    worker = work("--concurrency=1", "--beat", **of_before)
    wait_until(lambda: UsageLog.objects.count() == 6)
    worker.stop()

    # What one says, the other hears.
    assert new.revoke(key).status_code == 204
    wait_until(lambda: old.detect(key).status_code == 401)
    assert ApiKey.objects.get(pk=key.row.pk).revoked_at is not None


def added_without_default(operations, app: str):
    """Columns that these operations add, and that a process which does not know them cannot fill.

    A column that belongs to a table of the same migration is nobody's yet.
    """
    made = {op.name_lower for op in operations if isinstance(op, migrations.CreateModel)}
    for op in operations:
        if isinstance(op, migrations.SeparateDatabaseAndState):
            yield from added_without_default(op.state_operations, app)
        if not isinstance(op, migrations.AddField) or op.model_name_lower in made:
            continue
        field = op.field
        if field.many_to_many or field.null or field.db_default is not NOT_PROVIDED:
            continue
        yield op.model_name_lower, op.name


def lacking():
    for (app, name), migration in MigrationLoader(None).disk_migrations.items():
        if app not in OURS:
            continue
        for model, column in added_without_default(migration.operations, app):
            try:
                field = apps.get_model(app, model)._meta.get_field(column)
            except LookupError:
                continue  # gone since
            if field.db_default is NOT_PROVIDED and not field.null:
                yield f"{app}.{name}: {model}.{column}"


@pytest.mark.hostile
def test_every_column_that_was_added_has_a_default_of_the_databases():
    """Whoever runs the version before goes on inserting rows after `migrate`."""
    found = set(lacking())
    # Made in the same release as its table, before there was a release.
    found.discard("accounts.0001_initial: membership.workspace")

    assert not found, "add `db_default=`"
