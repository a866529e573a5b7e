"""Workers that run alone show what they count, by a process that knows no Django."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from gateway_project.tests.served import ROOT, free_port, wait_until

COUNT = (
    "from gateway_project.core.telemetry import metrics;"
    "metrics.tasks_total.labels('scratch', 'success').inc(3)"
)
EXPORTER = "gateway_project.core.telemetry.exporter"


@pytest.fixture
def exporter(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", EXPORTER, "--host=127.0.0.1", f"--port={port}"],
        cwd=ROOT, env=environment,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{url}/metrics", verify=False).status_code == 200)
    yield url, environment
    process.kill()
    process.wait()


def test_what_another_process_counted_is_shown(exporter):
    url, environment = exporter
    subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, env=environment, check=True)

    text = httpx.get(f"{url}/metrics", verify=False).text

    assert 'gateway_tasks_total{outcome="success",task="scratch"} 3.0' in text
    assert httpx.get(f"{url}/other", verify=False).status_code == 404


def test_without_a_folder_it_says_what_to_set():
    done = subprocess.run(
        [sys.executable, "-m", EXPORTER],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "PROMETHEUS_MULTIPROC_DIR is not set" in done.stderr
