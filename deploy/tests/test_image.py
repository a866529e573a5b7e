"""The image's roles, and what is left out of it. `make image` builds it and starts each of them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands

from deploy import image
from deploy.prune import prune

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("serve", "worker", "beat", "engine", "migrate", "manage")


def resolved(folder: Path, *arguments: str) -> list[str]:
    """What the entrypoint becomes, where programs say how they were called."""
    for name in ("python", "celery", "other"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["sh", "deploy/entrypoint.sh", *arguments],
        cwd=ROOT,
        env={"PATH": f"{folder}:/bin:/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_a_command_that_exists(role: str, tmp_path: Path) -> None:
    program, *command = resolved(tmp_path, role, "--x=1", "2 3")

    assert command[-2:] == ["--x=1", "2 3"]
    if program == "celery":
        assert command[:2] == ["-A", "gateway_project"]
        assert command[2] == role
    elif command[0] == "-m":
        assert importlib.util.find_spec(command[1])
    else:
        assert command[0] == "manage.py"
        assert role == "manage" or command[1] in get_commands()


def test_anything_else_is_run_as_it_stands(tmp_path: Path) -> None:
    assert resolved(tmp_path, "other", "a b") == ["other", "a b"]


def commands(text: str) -> list[list[str]]:
    """The `command` and `args` of a YAML file with templates in it."""
    found = re.findall(r"^ *(?:command|args): \[([^\]]*)\]", text, re.MULTILINE)
    return [[word.strip(" \"'") for word in one.split(",")] for one in found]


def test_installations_name_roles_and_nothing_that_is_for_tests() -> None:
    """A stand-in may be started by its name alone, to try the pages of Robin."""
    named: list[list[str]] = []
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name: one for name, one in services.items() if one["image"].startswith("gateway:")}
    named += [one["command"] for one in ours.values() if "command" in one]
    for template in (ROOT / "deploy/chart/templates").glob("*.yaml"):
        named += [one for one in commands(template.read_text()) if one[0] in (*ROLES, "python")]
    assert {one[0] for one in named} >= {"worker", "beat", "engine", "migrate", "serve"}
    for one in named:
        assert one[0] in ROLES or one[:2] == ["python", "-m"], one
        assert not any("standin" in word and word != "robin_standin" for word in one), one


def test_what_no_process_reads_is_left_out(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    kept = ["a/code.py", "a/test/client.py", "a/x.js"]
    kept += [f"a/locale/{tag}/LC_MESSAGES/django.mo" for tag, _ in settings.LANGUAGES]
    kept += ["b/static/__init__.py", "b/static/x.png"]
    gone = ["a/tests/test_a.py", "a/tests/deep/x.py", "a/static/a/x.css", "a/x.js.map"]
    gone += ["a/_fast.c", "a/_fast.pyx", "a/code.pyi"]
    gone += [f"a/locale/{one}" for one in ("fr/LC_MESSAGES/django.mo", "en/LC_MESSAGES/django.po")]
    for name in (*kept, *gone):
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    assert prune(tmp_path) == len(gone)

    left = {str(path.relative_to(packages)) for path in packages.rglob("*") if path.is_file()}
    assert left == set(kept)


@pytest.mark.parametrize(
    ("path", "is_wrong"),
    [
        ("/venv/lib/python3.11/site-packages/pip/__init__.py", True),
        ("/venv/lib/python3.11/site-packages/jsonschema/tests/test_cli.py", True),
        ("/app/accounts/tests/test_keys.py", True),
        ("/app/.env", True),
        ("/usr/bin/gcc", True),
        ("/usr/bin/pip3", True),
        ("/usr/local/bin/pip3.11", True),
        ("/usr/local/lib/python3.11/site-packages/setuptools/__init__.py", True),
        ("/usr/local/lib/python3.11/ensurepip/__init__.py", True),
        ("/usr/lib/python3/dist-packages/wheel/__init__.py", True),
        ("/usr/bin/pipesz", False),
        ("/venv/lib/python3.11/site-packages/django/test/client.py", False),
        ("/app/accounts/models.py", False),
    ],
)
def test_the_built_image_is_looked_through(path: str, is_wrong: bool) -> None:
    assert bool(image.FORBIDDEN.search(path)) is is_wrong


def test_its_base_is_named_in_full() -> None:
    """An engine without a list of registries knows no short names."""
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-[a-z]+", image.base_name())
    assert os.environ.get("IMAGE_FOLDER") or ROOT not in image.FOLDER.parents


DOCKER = """\
#!/bin/sh
# As Docker answers: who builds has no base to look at, and only root sees all files. Here every
# container may write wherever it likes, which the check refuses; clients end, containers run on.
echo "$*" >> "$DOCKER_TOLD"
case "$*" in
    info | build* | "rm --force"*) ;;
    "pull --quiet $BASE") touch "$DOCKER_TOLD.pulled" ;;
    "image inspect"*"$BASE") test -e "$DOCKER_TOLD.pulled" && echo 100000000 ;;
    "image inspect"*) echo 150000000 ;;
    "run --rm --user=0 --entrypoint=find"*) echo /app/manage.py ;;
    *--entrypoint*) echo "find: /root: Permission denied"; exit 1 ;;
    run*) ;;
    *) echo "unknown: $*"; exit 125 ;;
esac
"""


def test_with_docker_it_comes_to_the_check_and_leaves_no_container(tmp_path: Path) -> None:
    program, calls = tmp_path / "docker", tmp_path / "told"
    program.write_text(DOCKER)
    program.chmod(0o755)
    own = {"BASE": image.base_name(), "DOCKER_TOLD": str(calls)}
    stores = {"DATABASE_URL": "x", "REDIS_URL": "x"}
    env = {**os.environ, **own, **stores, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run(
        [sys.executable, "-m", "deploy.image", "--postgresql-client=16"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    dockerfile = (ROOT / "Dockerfile").read_text()
    build = next(line for line in calls.read_text().splitlines() if line.startswith("build "))
    given = dict(re.findall(r"--build-arg=(\w+)=(\S*)", build))
    assert set(given) == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    assert given["POSTGRESQL_CLIENT"] == "16"
    assert "150 MB, 50 MB above its base" in done.stdout
    assert "/app/x could be written" in done.stderr, done.stderr
    begun = re.search(r"--name=(\S+)", calls.read_text())
    assert begun
    assert f"rm --force {begun[1]}" in calls.read_text()
