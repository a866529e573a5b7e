"""The processes of docker-compose.yml, with its environment and by its commands, without Docker.

Names of services become addresses of this machine; all else is as in the file: secrets as files,
commands, and the commands of the health checks, which have to end well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from django.conf import settings

from accounts.models import ApiKey
from deploy import services
from deploy.make_secrets import make
from gateway_project.tests.conftest import need_stores
from gateway_project.tests.served import ROOT, database_url, free_port, wait_until

FILE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
TO_DECIDE = ("backup", "mail", "settings.origins")
OF_THE_TESTS = ("database", "redis.memory", "redis.persistence")
RUNNING = ("engine", "gateway", "worker", "worker-detection", "beat", "robin")
BIN = Path(sys.executable).parent


@pytest.fixture
def installation(gateway, own_redis, tmp_path):
    """`start(name)` and `check(name)`, as Docker would."""
    need_stores()
    ports = {port: free_port() for port in ("8000", "8080", "8081", "8090")}
    folder = tmp_path / "secrets"
    make(folder)
    for name, content in {"database_url": database_url()}.items():
        (folder / name).chmod(0o600)
        (folder / name).write_text(content)
    started = {}
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M))

    def adapted(text):
        text = text.replace("/run/secrets", str(folder)).replace("/run/metrics", f"{tmp_path}/m")
        text = re.sub(r"redis://(redis|cache):6379/0", own_redis.url, text)
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        text = re.sub(r"//engine:", "//127.0.0.1:", text).replace("0.0.0.0", "127.0.0.1")
        for inside, outside in ports.items():
            text = re.sub(rf"\b{inside}\b", str(outside), text)
        return text

    def environment(name):
        service = FILE["services"][name]
        stated = {key: adapted(str(value)) for key, value in service["environment"].items()}
        shell = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)}
        return {
            **shell,
            **example,
            **stated,
            "NAME_SERVERS": os.environ["NAME_SERVERS"],
            "ALLOWED_HOSTS": "127.0.0.1",
            "DRAIN_SECONDS": "0",
            "PORT": str(ports["8000"]),
        }

    # The port that the image's entrypoint gives the engine.
    more = {"engine": [f"--port={ports['8081']}"]}

    def start(name):
        command = [*(FILE["services"][name].get("command") or image_command()), *more.get(name, [])]
        with (tmp_path / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                ["sh", "deploy/entrypoint.sh", *(adapted(word) for word in command)],
                cwd=ROOT, env=environment(name), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def check(name):
        found = FILE["services"][name].get("healthcheck") or {"test": image_check()}
        if found.get("disable"):
            return started[name].poll() is None
        kind, *words = found["test"]
        words = [adapted(word) for word in words]
        command = ["sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        done = subprocess.run(
            command, cwd=ROOT, env=environment(name), capture_output=True, timeout=60, check=False
        )
        return done.returncode == 0

    def ask(name, *words):
        done = subprocess.run(
            ["sh", "deploy/entrypoint.sh", *words],
            cwd=ROOT, env=environment(name), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    yield start, check, ask, ports
    for process in started.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def image_command():
    return json.loads(re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M)[-1])


def image_check():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return ["CMD", *json.loads(re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.M)[0])]


@pytest.mark.slow
@pytest.mark.served
@pytest.mark.timeout(280)
def test_each_process_starts_and_its_health_check_says_so(installation):
    start, check, ask, ports = installation
    for name in RUNNING:
        start(name)

    for name in RUNNING:
        wait_until(lambda name=name: check(name), seconds=120)
    answer = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{ports['8000']}/health"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert json.loads(answer.stdout)["components"]["engine"]["status"] == "up"
    assert ApiKey.objects.count() == 0  # it is the database that the file names

    document = json.loads(ask("gateway", "manage", "doctor", "--json"))
    found = {
        one["check"]: one["message"]
        for one in document["findings"]
        if one["status"] in ("warning", "error")
    }
    assert set(found) - {*OF_THE_TESTS} == {*TO_DECIDE}, found


def test_the_health_check_of_postgres_tells_up_from_down(gateway):
    need_stores()
    [_, *words] = FILE["services"]["postgres"]["healthcheck"]["test"]
    words[0] = str(services.find("postgres").with_name(words[0]))
    port = settings.DATABASES["default"]["PORT"]
    silent = {"capture_output": True, "check": False}

    assert subprocess.run([*words, "-p", str(port)], **silent).returncode == 0
    assert subprocess.run([*words, "-p", str(free_port())], **silent).returncode != 0


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is missing")
@pytest.mark.parametrize("name", ["redis", "cache"])
def test_health_checks_of_the_stores_tell_up_from_down(name, tmp_path):
    """Of a server that was started by the file's own command."""
    service, port = FILE["services"][name], free_port()
    asked = service["healthcheck"]["test"][1].replace("redis-cli", f"redis-cli -p {port}")
    command = [*service["command"], "--port", str(port), "--bind", "127.0.0.1"]
    silent = {"capture_output": True, "check": False}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        wait_until(lambda: subprocess.run(["sh", "-c", asked], **silent).returncode == 0)
        kept = (tmp_path / "appendonlydir").is_dir()
        server.terminate()
    assert subprocess.run(["sh", "-c", asked], **silent).returncode != 0
    assert kept is (name == "redis")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "program", "port", "data"),
    [
        ("prometheus", "prometheus", "9090", "/prometheus"),
        ("alertmanager", "prometheus-alertmanager", "9093", "/alertmanager"),
    ],
)
def test_health_checks_of_the_monitoring_tell_up_from_down(name, program, port, data, tmp_path):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing: apt-get install {program}")
    service, own = FILE["services"][name], str(free_port())
    _, *asked = [word.replace(port, own) for word in service["healthcheck"]["test"]]
    places = {f"path={data}": f"path={tmp_path}"}
    for volume in service["volumes"]:
        if volume.startswith("./"):
            outside, inside, _ = volume.split(":")
            places[inside] = str(ROOT / outside)
    command = [program, f"--web.listen-address=127.0.0.1:{own}"]
    for word in service["command"]:
        for inside, outside in places.items():
            word = word.replace(inside, outside)
        command.append(word)
    command += ["--cluster.listen-address="] if name == "alertmanager" else []
    silent = {"capture_output": True, "check": False}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_until(lambda: subprocess.run(asked, **silent).returncode == 0)
        server.terminate()
    assert subprocess.run(asked, **silent).returncode != 0
