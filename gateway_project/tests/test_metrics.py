"""Metrics: their names, and one sum over processes that come and go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from gateway_project.core import multiprocess, observability
from gateway_project.tests.served import ROOT, wait_until

DEAD = 2**22 + 1  # above the largest number that Linux gives a process
NAMES = {
    "gateway_requests": ("method", "endpoint", "status"),
    "gateway_request_duration_seconds": ("method", "endpoint"),
    "gateway_circuit_breaker_state": ("service",),
    "gateway_rate_limit_exceeded": ("policy",),
    "gateway_ratelimit_degraded": ("policy",),
    "gateway_cache_requests": ("cache", "result"),
    "gateway_upstream_duration_seconds": ("upstream",),
    "gateway_detections": ("source", "decision"),
    "gateway_key_cache": ("result",),
    "gateway_usage_dropped": (),
    "gateway_usage_written": (),
    "gateway_tasks": ("task", "outcome"),
    "gateway_task_duration_seconds": ("task",),
}


def test_they_have_the_names_and_labels_that_dashboards_know():
    declared = {
        metric._name: metric._labelnames
        for metric in vars(observability).values()
        if getattr(metric, "_name", "").startswith("gateway_")
    }

    assert declared == NAMES


class TestSweep:
    @pytest.fixture
    def folder(self, tmp_path):
        def write(name, value, metric="gateway_x_total"):
            key = json.dumps([metric, metric, {"a": "b"}, "help"])
            values = MmapedDict(str(tmp_path / name))
            values.write_value(key, value, 0)
            values.close()

        write(f"counter_{DEAD}.db", 3)
        write(f"counter_{DEAD + 1}.db", 4)
        write(f"counter_{os.getpid()}.db", 5)
        write(f"gauge_livemax_{DEAD}.db", 2, "gateway_state")
        write(f"gauge_livemax_{os.getpid()}.db", 1, "gateway_state")
        return tmp_path

    def values(self, folder):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))
        return {s.name: s.value for metric in registry.collect() for s in metric.samples}

    def test_totals_stay_and_what_the_dead_were_is_gone(self, folder):
        before = self.values(folder)

        multiprocess.sweep(folder)

        assert before == {"gateway_x_total": 12, "gateway_state": 2}
        assert self.values(folder) == {"gateway_x_total": 12, "gateway_state": 1}
        assert {path.name for path in folder.glob("*.db")} == {
            "counter_archive.db",
            f"counter_{os.getpid()}.db",
            f"gauge_livemax_{os.getpid()}.db",
        }

    def test_the_archive_grows_with_the_next_dead(self, folder):
        multiprocess.sweep(folder)
        (folder / f"counter_{os.getpid()}.db").rename(folder / f"counter_{DEAD + 2}.db")

        multiprocess.sweep(folder)
        multiprocess.sweep(folder)

        assert self.values(folder)["gateway_x_total"] == 12

    def test_a_draft_of_a_sweep_that_died_is_not_counted(self, folder):
        (folder / "counter_archive.draft").write_bytes(b"half")

        multiprocess.sweep(folder)

        assert self.values(folder)["gateway_x_total"] == 12


@pytest.mark.served
def test_two_workers_and_a_celery_worker_are_one_sum_that_outlives_a_kill(
    serve, make_key, tmp_path
):
    folder = tmp_path / "shared"
    key = make_key(rate_limit_per_minute=1000)
    served = serve(WORKERS="2", PROMETHEUS_MULTIPROC_DIR=str(folder))
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "SECRET_KEY": settings.SECRET_KEY,
        "DATABASE_URL": "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(
            **settings.DATABASES["default"]
        ),
    }
    command = [sys.executable, "-m", "celery", "-A", "gateway_project", "worker", "--beat"]
    command += ["--concurrency=1", f"--schedule={tmp_path}/beat", "--loglevel=INFO"]
    log = (tmp_path / "worker.log").open("w+b")
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def total(pattern):
        text = httpx.get(f"{served.url}/metrics").text
        return sum(float(x) for x in re.findall(rf"^{pattern} (\S+)$", text, re.M))

    answered = r'gateway_requests_total\{endpoint="/v1/detect",method="POST",status="200"\}'
    drained = r'gateway_tasks_total\{outcome="success",task="accounts.tasks.drain_usage"\}'
    try:
        for n in range(30):
            served.detect(key, f"hello {n}")
        before = total(answered)
        wait_until(lambda: total(drained) > 0)
        wait_until(lambda: total("gateway_usage_written_total") == 30)
        proc = Path("/proc")
        children = proc / f"{served.process.pid}/task/{served.process.pid}/children"
        web = [
            child
            for child in children.read_text().split()
            if b"spawn_main" in (proc / child / "cmdline").read_bytes()
        ]
        os.kill(int(web[0]), signal.SIGKILL)
        wait_until(lambda: sum(x.get("event") == "process_started" for x in served.lines()) == 3)
        after = total(answered)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
        log.seek(0)
        said = log.read().decode()
        log.close()

    assert (before, after) == (30, 30)
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert events, said
    assert not any(event["level"] == "error" for event in events), said
