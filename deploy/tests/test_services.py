"""`deploy/services.py`: stores for one command, and nothing left behind.

The script is run as people run it; only what needs another kind of machine is called directly.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy import services

SCRIPT = Path(services.__file__)
# Asks both stores something and prints what a test has to know about them.
ASK = """
import json, os, sys, psycopg, redis
os.environ.pop("PGSSLMODE", None)  # a person's own, which must not disturb the server's start
with psycopg.connect(os.environ["DATABASE_URL"]) as database:
    row = database.execute(
        "SELECT current_database(), current_setting('data_directory'), current_setting('fsync')"
    ).fetchone()
with redis.Redis.from_url(os.environ["REDIS_URL"]) as store:
    store.set("greeting", "hello")
    said, info = store.get("greeting").decode(), store.info("server")
print(json.dumps({
    "postgres": row, "said": said, "redis_pid": info["process_id"],
    "urls": [os.environ["DATABASE_URL"], os.environ["REDIS_URL"]],
}))
sys.exit(7)
"""


def environment(**changes: str) -> dict[str, str]:
    """Ours without stores: the tests themselves run inside `services.py run`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
    return kept | changes


def run(
    *command: str, need: str = "postgres,redis", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "run", "--need", need, "--", *command],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_private_stores_answer_and_are_gone_afterwards() -> None:
    def ask(_: int) -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-c", ASK, PGSSLMODE="verify-full", PGHOST="nowhere.invalid")

    with ThreadPoolExecutor() as two_people:
        runs = list(two_people.map(ask, range(2)))
    for done in runs:
        assert done.returncode == 7, f"not the command's own exit code: {done.stderr}"
    answers: list[dict[str, Any]] = [json.loads(done.stdout) for done in runs]
    for answer in answers:
        database, data_directory, fsync = answer["postgres"]
        assert (database, fsync, answer["said"]) == ("gateway", "off", "hello")
        assert not Path(data_directory).parent.exists()
        assert not is_running(answer["redis_pid"])
        for url in answer["urls"]:
            assert "does not answer" in str(
                services.trouble("redis" if url.startswith("redis") else "postgres", url)
            )
    assert not {*answers[0]["urls"]} & {*answers[1]["urls"]}


def test_stores_of_the_environment_are_used_as_they_are() -> None:
    print_urls = "import os; print(os.environ['DATABASE_URL'], os.environ['REDIS_URL'])"
    # The inner run finds both set: it must hand on exactly what the outer one made.
    inner = [sys.executable, str(SCRIPT), "run", "--", sys.executable, "-c", print_urls]
    outer = f"{print_urls}; import subprocess; subprocess.run({inner!r}, check=True)"
    done = run(sys.executable, "-u", "-c", outer)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("need", "variable", "scheme"),
    [("postgres", "DATABASE_URL", "postgresql"), ("redis", "REDIS_URL", "redis")],
)
def test_a_named_store_that_does_not_answer_ends_the_run(
    need: str, variable: str, scheme: str
) -> None:
    where = f"127.0.0.1:{unused_port()}"
    done = run("true", need=need, **{variable: f"{scheme}://me:secret@{where}/0"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"services: {variable} is set, but {where} does not answer (Connection refused): "
        f"start it, correct or unset {variable}.\n"
    )


def test_a_named_store_of_the_wrong_kind_ends_the_run() -> None:
    done = run("true", need="redis", REDIS_URL="postgresql://127.0.0.1/gateway")
    assert done.returncode == 2
    assert "REDIS_URL is set, but is no address of redis" in done.stderr


def test_sqlite_has_nothing_to_be_started() -> None:
    done = run("sh", "-c", "echo $DATABASE_URL", need="postgres", DATABASE_URL="sqlite:///x.db")
    assert (done.returncode, done.stdout) == (0, "sqlite:///x.db\n")


def test_a_command_that_does_not_exist_is_reported() -> None:
    done = run("no-such-command", need="redis")
    assert done.returncode == 127
    assert "cannot run no-such-command (No such file or directory)" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_server(number: signal.Signals) -> None:
    command = "trap 'echo told; exit 3' TERM; echo $REDIS_URL; while :; do sleep 0.05; done"
    if number == signal.SIGKILL:  # nobody is left to tell the command; it ends by itself
        command = "echo $REDIS_URL; sleep 0.3"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "run", "--need", "redis", "--", "sh", "-c", command],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert services.trouble("redis", url) is None
        with redis.Redis.from_url(url) as store:
            folder = Path(store.config_get("dir")["dir"])
        process.send_signal(number)
        rest = process.stdout.read()
    if number == signal.SIGTERM:
        assert (process.returncode, rest) == (3, "told\n")
        assert not folder.exists()
    give_up = time.monotonic() + 5
    while services.trouble("redis", url) is None and time.monotonic() < give_up:
        time.sleep(0.02)
    assert services.trouble("redis", url) is not None
    shutil.rmtree(folder, ignore_errors=True)  # what kill -9 leaves is an empty folder and a log


def test_without_binaries_and_without_root_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(services, "POSTGRES_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(services, "listen", lambda handler: None)  # signals are pytest's here
    for name in services.VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    assert services.main(["run", "--", "true"]) == 2
    assert capsys.readouterr().err == (
        "services: please install postgresql redis-server first "
        "(on Debian, as root, with apt-get).\n"
    )


def test_what_is_only_wanted_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(services, "find", lambda need: None)
    monkeypatch.setattr(services, "can_install", lambda: False)
    monkeypatch.setattr(services, "run_command", lambda *_: 7)
    monkeypatch.setattr(services, "listen", lambda handler: None)  # signals are pytest's here
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x.db")
    arguments = ["run", "--need", "postgres", "--want", "nginx", "--", "true"]
    assert services.main(arguments) == 7
    assert capsys.readouterr().err == (
        "services: going on without nginx: please install nginx first "
        "(on Debian, as root, with apt-get).\n"
    )


def test_root_on_debian_gets_them_installed_without_daemons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[tuple[list[str], bool]] = []
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(services, "POLICY_FILE", policy)
    monkeypatch.setattr(services, "can_install", lambda: True)
    monkeypatch.setattr(
        services,
        "must_succeed",
        lambda command, **_: steps.append((command, os.access(policy, os.X_OK))),
    )
    services.install(["postgres", "redis", "chromium", "nginx"])
    assert [command[-4:] for command, _ in steps] == [
        ["apt-get", "update"],
        ["postgresql", "redis-server", "chromium", "nginx"],
    ]
    assert all(daemons_are_kept_from_starting for _, daemons_are_kept_from_starting in steps)
    assert not policy.exists()


def test_the_newest_postgresql_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9", "15", "16"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        if version != "16":  # only its client is installed
            (folder / "initdb").touch()
    monkeypatch.setattr(services, "POSTGRES_ROOT", tmp_path)
    assert services.find("postgres") == tmp_path / "15" / "bin" / "postgres"


def test_doctor_says_what_it_found() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "doctor"],
        env=environment(DATABASE_URL="sqlite:///x.db"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "DATABASE_URL is set: answers" in done.stdout
    assert str(services.find("redis")) in done.stdout
