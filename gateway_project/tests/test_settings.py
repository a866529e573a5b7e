"""Settings: documented, checked, refused with a sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings as settings_in_force
from django.core.exceptions import ImproperlyConfigured

from accounts.keys import Peppers
from gateway_project import checks
from gateway_project.environment import Environment, doubts

ROOT = Path(__file__).resolve().parents[2]


def names_read() -> set[str]:
    """Names that the code reads from the environment."""
    text = (ROOT / "gateway_project/settings.py").read_text()
    read = re.findall(r"env\.\w+\(\s*\"([A-Z0-9_]+)\"", text)
    read += re.findall(r"environ\.get\(\s*\"([A-Z0-9_]+)\"", text)
    return {*read, "PROMETHEUS_MULTIPROC_DIR"}


def test_every_setting_is_in_the_document_and_no_other():
    text = (ROOT / "docs/settings.md").read_text()

    assert set(re.findall(r"^\| `([A-Z0-9_]+)`", text, re.M)) == names_read()


def test_the_example_names_only_settings_that_exist():
    text = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^([A-Z0-9_]+)=", text, re.M))

    assert named <= names_read()


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
        ("SECRET_KEY", "short", "gateway.E009"),
        ("JWT_SECRET", "short", "gateway.E020"),
        ("JWT_ALGORITHM", "none", "gateway.E021"),
        ("JWT_ALGORITHM", "RS256", "gateway.E021"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", 0, "gateway.E022"),
        ("REFRESH_TOKEN_EXPIRE_DAYS", 0, "gateway.E022"),
        ("QUEUE_POLL_SECONDS", 0.0, "gateway.E023"),
        ("ROBIN_CLIENT_API_URL", "http://robin:8090", "gateway.E024"),
        ("ROBIN_TIMEOUT_SECONDS", 0.0, "gateway.E025"),
        ("ROBIN_LOG_TIMEZONE", "Mars/Olympus", "gateway.E026"),
        ("HTTPS_ONLY", True, "gateway.W003"),
        ("TRUSTED_PROXY_HOPS", -1, "gateway.E012"),
        ("ALLOWED_HOSTS", [".gateway.example"], "gateway.W004"),
    ],
)
def test_a_mistake_is_a_system_check_with_a_hint(settings, setting, value, check):
    settings.REDIS_URL = ""
    settings.WORKERS = 2 if setting == "EMBEDDED_WORKER" else 1
    settings.IS_LOCAL = False
    setattr(settings, setting, value)

    found = {message.id: message for message in checks.check_settings(None)}

    assert found[check].hint


@pytest.mark.slow
def test_the_checks_are_registered(tmp_path):
    done = manage("check", VAR_DIR=str(tmp_path), WORKERS="2")

    assert "gateway.E001" in done.stderr
    assert done.returncode != 0


def test_the_tests_own_settings_have_no_mistake():
    assert checks.check_settings(None) == []


def test_links_in_plain_are_a_mistake_behind_tls(settings):
    settings.HTTPS_ONLY, settings.PUBLIC_URL = True, "http://gateway.example"

    assert "gateway.E011" in {message.id for message in checks.check_settings(None)}


@pytest.mark.parametrize("url", ["gateway.example", "ftp://a", "https://a/b", "https://a@b"])
def test_a_public_url_is_a_scheme_and_a_host(tmp_path, url):
    done = manage("check", VAR_DIR=str(tmp_path), PUBLIC_URL=url)

    assert "PUBLIC_URL must look like https://gateway.example." in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("NAT64_PREFIXES", "64:ff9b::/95"), ("NAT64_PREFIXES", "10.0.0.0/8"),
     ("WEBHOOK_REFUSED_NETWORKS", "10.0.0.1/8")],
)  # fmt: skip
def test_networks_that_cannot_be_are_refused_in_a_sentence(tmp_path, name, value):
    done = manage("check", VAR_DIR=str(tmp_path), **{name: value})

    assert f"{name}: " in done.stderr


def test_the_example_is_safe_behind_a_proxy():
    text = (ROOT / ".env.example").read_text()

    assert "\nTRUSTED_PROXY_HOPS=1\n" in text
    assert "\nHTTPS_ONLY=true\n" in text
    # Who reached it past the proxy could claim any address.
    assert '"${BIND_ADDRESS:-127.0.0.1}:8000:8000"' in (ROOT / "docker-compose.yml").read_text()


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
    return python("manage.py", *arguments, **environment)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in names_read()}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("environ", "number", "expected"),
    [
        ({"SECRET_KEY": "abc "}, "gateway.W005", "SECRET_KEY has white space around"),
        ({"REDIS_URL": " redis://a"}, "gateway.W005", "REDIS_URL has white space around"),
        ({"SECRET_KEY": "a", "SECRET_KEY_FILE": "FILE:b"}, "gateway.W007", "the file's is used"),
        ({"SECRET_KEY_FILE": "FILE:"}, "gateway.W006", "SECRET_KEY is not set"),
        ({"SECRET_KEY_FILE": "FILE:\n"}, "gateway.W006", "names an empty file"),
        ({"SECRET_KEY_FILE": "FILE:a "}, "gateway.W005", "SECRET_KEY_FILE has white space"),
        ({"TRUSTED_PROXY_HOP": "1"}, "gateway.W008", "Is TRUSTED_PROXY_HOPS meant?"),
        ({"ALLOWED_HOST": "a"}, "gateway.W008", "Is ALLOWED_HOSTS meant?"),
        ({"KEY_PEPPER_FILE": "/a"}, "gateway.W008", "Is KEY_PEPPERS meant?"),
    ],
)
def test_what_is_probably_not_meant(tmp_path, environ, number, expected):
    (tmp_path / "secret").write_text(environ.get("SECRET_KEY_FILE", "").removeprefix("FILE:"))
    given = {
        k: str(tmp_path / "secret") if v.startswith("FILE:") else v for k, v in environ.items()
    }

    found = list(doubts(settings_in_force.ENVIRONMENT_ASKED, given))

    assert [one.id for one in found] == [number]
    assert expected in f"{found[0].message} {found[0].do}"


def test_what_is_meant(tmp_path):
    """Lists with blanks, engines in lines, a file with its line's end, names of other programs."""
    (tmp_path / "secret").write_text("abc\n")
    given = {
        "ALLOWED_HOSTS": "a, b\n",
        "WORKERS": " 2",
        "SECRET_KEY_FILE": str(tmp_path / "secret"),
        "JWT_SECRET": "abc\n",
        "GATEWAY_PORT": "tcp://10.0.0.1:80",
        "REDIS_PORT": "x",
        "HOSTNAME": "h",
        "EXTRA": "engine",
        "ENGINE_MODELS": "./m",
        "AWS_SECRET_ACCESS_KEY": "x",
        "POSTGRES": "1",
        "TEST_DATABASE_URL": "x",
        "PYTHON": "p",
        "PROMETHEUS_MULTIPROC_DIR": "/run",
    }

    assert list(doubts(settings_in_force.ENVIRONMENT_ASKED, given)) == []


def test_a_list_may_have_blanks(monkeypatch):
    monkeypatch.setenv("ALLOWED_HOSTS", "gateway.example, localhost ,")

    assert Environment().list("ALLOWED_HOSTS") == ["gateway.example", "localhost"]


def test_a_file_of_settings_that_this_user_cannot_read(tmp_path, monkeypatch):
    (tmp_path / ".env").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything

    with pytest.raises(ImproperlyConfigured, match="cannot be read by this user"):
        Environment().read_dotenv(tmp_path / ".env")


def test_serve_takes_an_empty_file_for_no_secret(tmp_path):
    (tmp_path / "secret").touch()

    done = manage("serve", VAR_DIR=str(tmp_path), SECRET_KEY_FILE=str(tmp_path / "secret"))

    assert done.returncode == 1
    assert "  SECRET_KEY=" in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("WORKERS", "two", "WORKERS must be a whole number, not 'two'."),
        ("DRAIN_SECONDS", "soon", "DRAIN_SECONDS must be a number, not 'soon'."),
        ("HTTPS_ONLY", "ture", "HTTPS_ONLY must be true or false, not 'ture'."),
        ("SECRET_KEY_FILE", "/nowhere", "SECRET_KEY_FILE names a file that cannot be read"),
        ("DATABASE_URL", "postgres:/x", "DATABASE_URL must look like postgres://user:password@"),
        ("REDIS_URL", "localhost:6379", "REDIS_URL must look like redis://"),
        ("KEY_PEPPERS", "1:", "KEY_PEPPERS: each entry is <version>:<pepper"),
        ("FIELD_ENCRYPTION_KEYS", "x", "FIELD_ENCRYPTION_KEYS: each entry is 32 bytes"),
        ("WEBHOOK_ALLOWED_NETWORKS", "10.1/8", "WEBHOOK_ALLOWED_NETWORKS: "),
        ("SECRET_KEY", "short", "SECRET_KEY is shorter than 32 characters"),
    ],
)
def test_a_value_that_cannot_be_right_ends_in_a_sentence(tmp_path, setting, value, sentence):
    done = manage("check", VAR_DIR=str(tmp_path), **{setting: value})

    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_address_of_a_store_is_not_repeated_for_it_may_hold_a_password(tmp_path):
    done = manage("check", VAR_DIR=str(tmp_path), DATABASE_URL="mysql://me:hunter2@host/name")

    assert "DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stderr


CELERY = ("-m", "celery", "-A", "gateway_project")


@pytest.mark.slow
def test_celery_says_it_in_the_same_sentence(tmp_path):
    done = python(*CELERY, "report", VAR_DIR=str(tmp_path), KEY_PEPPERS="1:")

    assert done.returncode != 0
    assert "KEY_PEPPERS: each entry is <version>:<pepper" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "role",
    [
        pytest.param(("manage.py", "serve"), id="serve", marks=pytest.mark.slow),
        pytest.param((*CELERY, "worker"), id="worker"),
        pytest.param((*CELERY, "beat"), id="beat", marks=pytest.mark.slow),
    ],
)
def test_a_role_with_the_example_as_it_is_says_what_is_missing_and_how_to_make_it(tmp_path, role):
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )

    done = python(*role, **{**example, "VAR_DIR": str(tmp_path)})

    assert done.returncode == 1

    assert re.findall(r"^  ([A-Z0-9_]+)=", done.stderr, re.M) == [
        *("SECRET_KEY", "KEY_PEPPERS", "FIELD_ENCRYPTION_KEYS"),
    ]
    assert ".env.example" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ("postgres://gateway:x@127.0.0.1:1/gateway", "couldn't get a connection after"),
        ("sqlite://:memory:", "no such table: accounts_user"),
    ],
    ids=["away", "without tables"],
)
def test_a_command_without_its_database_says_where_to_look(tmp_path, database, reason):
    done = manage("confirm_email", "a@b.example", VAR_DIR=str(tmp_path), DATABASE_URL=database)

    assert done.returncode == 1
    assert f"The database failed: {reason}" in done.stderr
    assert "manage.py doctor database database.migrations" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_a_command_is_not_taken_for_its_database(tmp_path):
    deadlock = (
        "import psycopg; from django.db import OperationalError; "
        "raise OperationalError('deadlock') from psycopg.errors.DeadlockDetected('deadlock')"
    )
    done = manage("shell", "-c", deadlock, VAR_DIR=str(tmp_path), DATABASE_URL="sqlite://:memory:")

    assert "Traceback" in done.stderr
    assert "The database failed" not in done.stderr


@pytest.mark.slow
def test_each_secret_of_the_example_is_made_by_the_command_above_it(tmp_path):
    text = (ROOT / ".env.example").read_text()
    made = {
        name: subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, check=True
        ).stdout.strip()
        for command, name in re.findall(r"^#   (python3 .*)\n(?:#.*\n)*([A-Z0-9_]+)=", text, re.M)
    }

    assert set(made) == {"SECRET_KEY", "KEY_PEPPERS", "FIELD_ENCRYPTION_KEYS"}
    assert manage("check", **{**made, "VAR_DIR": str(tmp_path)}).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value"),
    [("DATABASE_URL", "sqlite:////tmp/of-somebody.sqlite3"), ("SECRET_KEY", "s" * 40)],
)
def test_run_writes_no_demo_where_the_environment_names_an_installation(tmp_path, setting, value):
    done = manage("run", VAR_DIR=str(tmp_path), **{setting: value})

    assert done.returncode == 1
    assert f"This environment sets {setting}" in done.stderr
    assert "make serve" in done.stderr
    assert "ARGS=--demo-in-this-database" in done.stderr
    assert not (tmp_path / "demo.json").exists()
    assert not Path("/tmp/of-somebody.sqlite3").exists()


@pytest.mark.slow
def test_a_secret_may_come_from_a_file(tmp_path):
    (tmp_path / "peppers").write_text("7:" + "p" * 32)
    code = "from django.conf import settings; print(settings.KEY_PEPPERS.current_version)"

    done = manage(
        "shell", "-c", code, VAR_DIR=str(tmp_path), KEY_PEPPERS_FILE=str(tmp_path / "peppers")
    )

    assert done.stdout.split()[-1] == "7", done.stderr


# Of the settings that may hold a secret, a value that is not their default.
AS_FILES = {
    "SECRET_KEY": "s" * 40,
    "SECRET_KEY_FALLBACKS": "f" * 40,
    "KEY_PEPPERS": "7:" + "p" * 32,
    "FIELD_ENCRYPTION_KEYS": "A" * 43 + "=",
    "DATABASE_URL": "postgres://user:secret@db.example/gateway",
    "REDIS_URL": "redis://:secret@redis.example/0",
    "CACHE_REDIS_URL": "redis://:secret@cache.example/0",
    "METRICS_TOKEN": "m" * 40,
    "JWT_SECRET": "j" * 40,
    "JWT_SECRET_FALLBACKS": "k" * 40,
    "ROBIN_CLIENT_API_URL": "http://user:secret@robin.example:8090",
    "ROBIN_SERVICE_API_URL": "http://user:secret@robin.example:8080",
    "ROBIN_CLIENT_API_TOKEN": "c" * 40,
    "ROBIN_SERVICE_API_TOKEN": "d" * 40,
    "DETECTION_ENGINE_URL": "http://engine.example:8080",
    "OIDC_CLIENT_SECRET": "o" * 40,
    "EMAIL_URL": "smtp+tls://user:secret@mail.example:587",
    "BACKUP_IDENTITY": "AGE-SECRET-KEY-1X",
    "ACCESS_TOKEN_EXPIRE_MINUTES": "31",  # no secret, and named like one
    "REFRESH_TOKEN_EXPIRE_DAYS": "8",
    "KEY_CACHE_BYTES_MAX": "1000",
    "KEY_CACHE_SECONDS": "59.0",
}
LIKE_A_SECRET = re.compile(r"SECRET|KEY|TOKEN|PEPPER|_URL$|IDENTITY|PASSWORD")


@pytest.mark.slow
def test_each_secret_may_come_from_a_file_that_ends_with_a_line(tmp_path):
    """With a newline at its end, as `echo` and every editor leave one."""
    secret = {name for name in names_read() if LIKE_A_SECRET.search(name)} - {"PUBLIC_URL"}
    assert secret == set(AS_FILES)
    for name, value in AS_FILES.items():
        (tmp_path / name).write_text(f"{value}\n")
    code = (
        "import json; from django.conf import settings as s; p = s.KEY_PEPPERS.by_version;"
        f"print(json.dumps({{n: str(getattr(s, n)) for n in {list(AS_FILES)!r}}}"
        " | {'KEY_PEPPERS': f'{p[0][0]}:{p[0][1].decode()}'}))"
    )
    files = {f"{name}_FILE": str(tmp_path / name) for name in AS_FILES}

    done = manage("shell", "-c", code, VAR_DIR=str(tmp_path), **files)

    found = json.loads(done.stdout.splitlines()[-1])
    lists = {"SECRET_KEY_FALLBACKS", "FIELD_ENCRYPTION_KEYS"}
    expected = {name: f"['{v}']" if name in lists else v for name, v in AS_FILES.items()}
    fallbacks = found.pop("JWT_SECRET_FALLBACKS")
    assert expected.pop("JWT_SECRET_FALLBACKS") in fallbacks
    assert "\\n" not in fallbacks
    assert found == expected


@pytest.mark.slow
def test_secrets_of_a_checkout_are_made_once_and_readable_by_their_owner_only(tmp_path):
    code = "from django.conf import settings; print(settings.SECRET_KEY)"

    first, second = (manage("shell", "-c", code, VAR_DIR=str(tmp_path)) for _ in range(2))

    assert first.stdout == second.stdout
    assert (tmp_path / "secrets/secret_key").stat().st_mode & 0o777 == 0o600


def test_nothing_but_the_composition_reads_the_environment():
    allowed = {
        "settings.py",
        "environment.py",  # what settings are read by
        "celery.py",
        "asgi.py",
        "multiprocess.py",
        "metrics.py",
        "run.py",
        "local_supervisor.py",
        "serve.py",
        "server.py",
        "evaluate.py",
        "exporter.py",
        "installation.py",  # of the doctor: whether the metrics' folder is set
        "postgres.py",  # of backups: what pg_dump inherits
    }
    readers = {
        path.name
        for folder in ("gateway_project", "accounts", "detection", "webhooks", "robin", "portal")
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.parts and re.search(r"os\.environ|os\.getenv", path.read_text())
    }

    assert readers <= allowed
