"""Settings: documented, checked, refused with a sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from accounts.keys import Peppers
from gateway_project import checks

ROOT = Path(__file__).resolve().parents[2]


def names_read() -> set[str]:
    """Names that the code reads from the environment."""
    text = (ROOT / "gateway_project/settings.py").read_text()
    read = re.findall(r"env\.\w+\(\s*\"([A-Z_]+)\"", text)
    read += re.findall(r"environ\.get\(\s*\"([A-Z_]+)\"", text)
    return {*read, "PROMETHEUS_MULTIPROC_DIR"}


def test_every_setting_is_in_the_document_and_no_other():
    text = (ROOT / "docs/settings.md").read_text()

    assert set(re.findall(r"^\| `([A-Z_]+)`", text, re.M)) == names_read()


def test_the_example_names_only_settings_that_exist():
    text = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^([A-Z_]+)=", text, re.M))

    assert named - names_read() == {"POSTGRES_PASSWORD"}


@pytest.mark.parametrize(
    ("setting", "value", "check"),
    [
        ("WORKERS", 2, "gateway.E001"),
        ("LOG_FORMAT", "xml", "gateway.E002"),
        ("RATE_LIMIT_FAILURE_POLICY", "maybe", "gateway.E003"),
        ("DETECTION_ENGINE_URL", "engine:8080", "gateway.E004"),
        ("DETECTION_ENGINE_SCORE_FLOOR", 1.0, "gateway.E005"),
        ("EMBEDDED_WORKER", True, "gateway.E006"),
        ("DRAIN_SECONDS", -1.0, "gateway.E008"),
        ("JWT_SECRET", "short", "gateway.E020"),
        ("JWT_ALGORITHM", "none", "gateway.E021"),
        ("JWT_ALGORITHM", "RS256", "gateway.E021"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", 0, "gateway.E022"),
        ("REFRESH_TOKEN_EXPIRE_DAYS", 0, "gateway.E022"),
        ("QUEUE_POLL_SECONDS", 0.0, "gateway.E023"),
        ("ROBIN_CLIENT_API_URL", "http://robin:8090", "gateway.E024"),
        ("ROBIN_TIMEOUT_SECONDS", 0.0, "gateway.E025"),
        ("ROBIN_LOG_TIMEZONE", "Mars/Olympus", "gateway.E026"),
    ],
)
def test_a_mistake_is_a_system_check_with_a_hint(settings, setting, value, check):
    settings.REDIS_URL = ""
    settings.WORKERS = 2 if setting == "EMBEDDED_WORKER" else 1
    setattr(settings, setting, value)

    found = {message.id: message for message in checks.check_settings(None)}

    assert found[check].hint


def test_the_tests_own_settings_have_no_mistake():
    assert checks.check_settings(None) == []


def test_deployment_is_warned_of_local_secrets_and_open_cors(settings):
    settings.IS_LOCAL = True
    settings.CORS_ALLOWED_ORIGINS = ["*"]

    assert {m.id for m in checks.check_deployment(None)} == {"gateway.W001", "gateway.E007"}


@pytest.mark.parametrize(
    "text", ["", "1:short", "x:" + "a" * 20, "1:" + "a" * 20 + ",1:" + "b" * 20]
)
def test_peppers_that_cannot_be_right_are_refused(text):
    with pytest.raises(ValueError, match="entry"):
        Peppers.parse(text)


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in names_read()}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_serve_without_settings_says_which_are_missing(tmp_path):
    done = manage("serve", VAR_DIR=str(tmp_path))

    assert done.returncode == 1
    for name in ("SECRET_KEY", "KEY_PEPPERS", "DATABASE_URL", "REDIS_URL", "DETECTION_ENGINE_URL"):
        assert f"  {name}=" in done.stderr
    assert "make run" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_peppers_are_refused_in_a_sentence(tmp_path):
    done = manage("check", VAR_DIR=str(tmp_path), KEY_PEPPERS="nonsense")

    assert done.returncode != 0
    assert "KEY_PEPPERS: each entry is <version>:<pepper" in done.stderr


def test_a_secret_may_come_from_a_file(tmp_path):
    (tmp_path / "peppers").write_text("7:" + "p" * 32)
    code = "from django.conf import settings; print(settings.KEY_PEPPERS.current_version)"

    done = manage(
        "shell", "-c", code, VAR_DIR=str(tmp_path), KEY_PEPPERS_FILE=str(tmp_path / "peppers")
    )

    assert done.stdout.split()[-1] == "7", done.stderr


def test_secrets_of_a_checkout_are_made_once_and_readable_by_their_owner_only(tmp_path):
    code = "from django.conf import settings; print(settings.SECRET_KEY)"

    first, second = (manage("shell", "-c", code, VAR_DIR=str(tmp_path)) for _ in range(2))

    assert first.stdout == second.stdout
    assert (tmp_path / "secrets/secret_key").stat().st_mode & 0o777 == 0o600


def test_nothing_but_the_composition_reads_the_environment():
    allowed = {
        "settings.py",
        "celery.py",
        "asgi.py",
        "multiprocess.py",
        "metrics.py",
        "run.py",
        "serve.py",
        "evaluate.py",
    }
    readers = {
        path.name
        for folder in ("gateway_project", "accounts", "detection", "webhooks", "robin", "portal")
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.parts and re.search(r"os\.environ|os\.getenv", path.read_text())
    }

    assert readers <= allowed
