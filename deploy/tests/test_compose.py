"""The image and the compose file: valid, complete, and true to the code they start."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.apps import apps
from django.conf import settings

from gateway_project.core.stores import queues
from gateway_project.server import __main__, web_process

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
OURS = ("gateway", "worker", "worker-detection", "beat", "migrate", "engine", "robin", "backup")
ONCE = ("migrate", "backup")
PROFILES = {
    "monitoring": {"prometheus", "alertmanager", "grafana"},
    "robin": {"robin", "robin-ui"},
    "backup": {"backup"},
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return loaded


def check(tool: str, *arguments: str) -> None:
    program = Path(sys.executable).with_name(tool)
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def is_sent_to_the_build(path: str) -> bool:
    """Docker's rule: the last pattern that matches a path, or a folder above it, decides."""
    parents = [Path(path), *Path(path).parents]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().lstrip("!")
        if not pattern or pattern.startswith("#"):
            continue
        names = [p.name if pattern.startswith("**/") else p.as_posix() for p in parents[:-1]]
        depth = pattern.removeprefix("**/")
        if any(
            fnmatch.fnmatchcase(name, depth) and name.count("/") == depth.count("/")
            for name in names
        ):
            sent = line.startswith("!")
    return sent


def test_the_compose_file_follows_its_schema() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_hadolint_accepts_the_dockerfile() -> None:
    check("hadolint", "Dockerfile")


def test_the_services(services: dict[str, Any]) -> None:
    assert set(services) == {
        *OURS,
        "postgres",
        "redis",
        "cache",
        *PROFILES["monitoring"],
        "robin-ui",
    }
    for profile, names in PROFILES.items():
        found = {n for n, service in services.items() if profile in service.get("profiles", ())}
        assert found == names
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        # The image itself checks the gateway's health.
        assert name == "gateway" or "healthcheck" in service, name
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped"), name


def test_everything_waits_for_the_migrations(services: dict[str, Any]) -> None:
    for name in ("gateway", "worker", "worker-detection", "beat"):
        waits_for = services[name]["depends_on"]
        assert waits_for["migrate"]["condition"] == "service_completed_successfully"
        assert waits_for["postgres"]["condition"] == "service_healthy"
        assert waits_for["redis"]["condition"] == "service_healthy"


def test_a_stop_of_the_gateway_fits_into_its_grace_period(services: dict[str, Any]) -> None:
    grace = float(services["gateway"]["stop_grace_period"].removesuffix("s"))
    stop = settings.DRAIN_SECONDS + web_process.LINGER_SECONDS + __main__.GRACEFUL_SECONDS
    assert stop + 10 <= grace


def test_proxies_wait_as_long_as_the_longest_answer() -> None:
    for name in ("deploy/robin-ui.conf", "docs/operations.md"):
        [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", (ROOT / name).read_text())
        assert int(seconds) > settings.ROBIN_LIST_TIMEOUT_SECONDS, name


def test_all_processes_count_in_one_folder(services: dict[str, Any]) -> None:
    for name in ("gateway", "worker", "worker-detection", "beat"):
        folder = services[name]["environment"]["PROMETHEUS_MULTIPROC_DIR"]
        assert f"metrics:{folder}" in services[name]["volumes"], name


def test_copies_of_mails_lie_on_disk(services: dict[str, Any]) -> None:
    """Any of them may be larger than what a container has of memory."""
    volumes = dict(one.split(":")[:2][::-1] for one in services["gateway"]["volumes"])
    named = yaml.safe_load(COMPOSE.read_text())["volumes"]
    assert named[volumes["/tmp"]] is None  # of the default driver, which is on disk
    assert services["gateway"]["tmpfs"] == []
    assert "TMPDIR" not in services["gateway"]["environment"]


def test_with_robin_ui_a_token_lasts_a_working_day(services: dict[str, Any]) -> None:
    """Its pages hang when one ends; of all processes, since they should not differ."""
    for name in ("gateway", "worker", "worker-detection", "beat"):
        lasts = services[name]["environment"]["ACCESS_TOKEN_EXPIRE_MINUTES"]
        assert lasts == "${ACCESS_TOKEN_EXPIRE_MINUTES:-720}", name


def test_secrets_come_from_files_that_the_script_makes(
    services: dict[str, Any], tmp_path: Path
) -> None:
    done = [
        subprocess.run(
            [sys.executable, ROOT / "deploy/make_secrets.py", tmp_path / "secrets"],
            capture_output=True, text=True, check=True,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    files = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    loaded = yaml.safe_load(COMPOSE.read_text())["secrets"]
    assert {name: one["file"] for name, one in loaded.items()} == {
        name: f"./secrets/{name}" for name in files
    }
    assert "made nothing" in done[1]  # a second time nothing is made anew
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o444}
    assert files["postgres_password"].read_text() in files["database_url"].read_text()
    for name, service in services.items():
        for variable, value in (service.get("environment") or {}).items():
            if variable.upper().endswith("_FILE"):
                assert value.split("/")[-1] in service["secrets"], f"{name}: {variable}"
                if name in OURS:  # what `.env` may have does not stand beside it
                    assert service["environment"][variable.removesuffix("_FILE")] == ""
            elif re.search("SECRET|PASSWORD|PEPPER|KEYS|TOKEN(?!_EXPIRE)", variable):
                assert value == "", f"{name}: {variable}"


def test_files_and_connections_are_bounded(services: dict[str, Any]) -> None:
    for name in ("gateway", "worker", "worker-detection", "redis", "cache"):
        assert services[name]["ulimits"]["nofile"]["soft"] >= 65536, name
    for name, service in services.items():
        assert service["logging"]["options"]["max-size"], name


def test_none_may_take_the_host(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert 64 <= service["pids_limit"] <= 512, name


def test_the_two_redis_keep_and_forget(services: dict[str, Any]) -> None:
    keeps, forgets = (" ".join(services[name]["command"]) for name in ("redis", "cache"))
    assert "--appendonly yes" in keeps
    assert "--maxmemory-policy noeviction" in keeps
    assert "--maxmemory-policy allkeys-lru" in forgets


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / volume.partition(":")[0]).exists(), volume


def test_backups_are_made_by_a_client_of_the_servers_version(services: dict[str, Any]) -> None:
    backup = services["backup"]
    version = backup["build"]["args"]["POSTGRESQL_CLIENT"]
    assert services["postgres"]["image"].startswith(f"postgres:{version}-")
    assert backup["image"] != services["gateway"]["image"]
    place = backup["command"][-1]
    assert any(volume.endswith(f":{place}") for volume in backup["volumes"])


def test_every_extra_of_the_image_is_sent_to_the_build() -> None:
    text = (ROOT / "Dockerfile").read_text()
    [extras] = re.findall(r'EXTRA="([a-z0-9 ]+)"', text)
    assert len(extras.split()) == 3
    for extra in ("base", *extras.split()):
        assert is_sent_to_the_build(f"requirements/{extra}.txt"), extra
        assert f"requirements/{extra}.txt" in text


def test_each_queue_has_one_kind_of_worker(services: dict[str, Any]) -> None:
    lines = [" ".join(services[name]["command"]) for name in ("worker", "worker-detection")]
    taken = [name for line in lines for name in re.findall(r"--queues=(\S+)", line)[0].split(",")]
    assert sorted(taken) == sorted(queues.NAMES)


def test_every_variable_is_in_the_example() -> None:
    example = ROOT / ".env.example"
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE.read_text()))
    shown = set(re.findall(r"^#? ?([A-Z_]+)=", example.read_text(), re.MULTILINE))
    assert used <= shown, f"not in .env.example: {', '.join(sorted(used - shown))}"


def test_the_image_gets_what_it_needs_and_no_more() -> None:
    needed = [
        "manage.py",
        "LICENSE",
        "NOTICE",
        "requirements/base.txt",
        "templates/x.html",
        "static/portal/x.css",
        "docs/guides/quickstart.md",
    ]
    ours = [Path(app.path) for app in apps.get_app_configs() if ROOT in Path(app.path).parents]
    for folder in ours:
        if ".venv" not in folder.parts:
            needed.append(f"{folder.relative_to(ROOT)}/__init__.py")
    assert len(needed) > 8
    assert [path for path in needed if not is_sent_to_the_build(path)] == []
    kept_out = [
        *(
            ".env",
            "secrets/secret_key",
            ".git/config",
            "var/secrets/secret_key",
            "var/gateway.sqlite3",
            ".venv/bin/python",
        ),
        *(
            "accounts/tests/__init__.py",
            "gateway_project/core/__pycache__/x.pyc",
            "requirements/dev.txt",
            "docs/settings.md",
        ),
    ]
    assert [path for path in kept_out if is_sent_to_the_build(path)] == []
