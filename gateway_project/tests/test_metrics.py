"""Metrics and logs: every process counts, the dead go on counting, and nothing secret is said."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from celery import Celery, current_app
from celery.exceptions import Ignore, WorkerLostError
from celery.signals import setup_logging
from prometheus_client import REGISTRY, metrics
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from detection.jobs.turns import CHUNK_ITEMS
from detection.tests.working import broker_at, wait_until_sent
from gateway_project.core.telemetry import metrics as observability
from gateway_project.core.telemetry import multiprocess, saturation
from gateway_project.core.telemetry.multiprocess import FILE, MetricsFolder
from gateway_project.tests.served import ROOT, Served, wait_until
from gateway_project.worker import beat, signals

# api-shapes.md, "Health and metrics", and those that we added.
NAMES = {
    "gateway_event_loop_lag_seconds": (),
    "gateway_process_memory_bytes": ("role",),
    "gateway_database_connections": ("pool", "state"),
    "gateway_database_waiting": ("pool",),
    "gateway_redis_waiting_commands": (),
    "gateway_redis_waiting_bytes": (),
    "gateway_bus_connected": (),
    "gateway_channel_layer_waiting_messages": (),
    "gateway_live_clients": (),
    "gateway_live_polls_total": (),
    "gateway_engine_tokens_total": ("engine", "direction"),
    "gateway_shadow_total": ("engine", "outcome"),
    "gateway_requests_total": ("method", "endpoint", "status"),
    "gateway_request_duration_seconds": ("method", "endpoint"),
    "gateway_circuit_breaker_state": ("service",),
    "gateway_rate_limit_exceeded_total": ("policy",),
    "gateway_ratelimit_degraded_total": ("policy",),
    "gateway_cache_requests_total": ("cache", "result"),
    "gateway_upstream_duration_seconds": ("upstream",),
    "gateway_detections_total": ("source", "decision"),
    "gateway_policy_matches_total": ("list",),
    "gateway_key_cache_total": ("result",),
    "gateway_usage_dropped_total": (),
    "gateway_usage_texts_dropped_total": (),
    "gateway_usage_buffer_bytes": (),
    "gateway_bound_reached_total": ("bound",),
    "gateway_cache_bytes": ("cache",),
    "gateway_parked_total": ("kind",),
    "gateway_log_lines_dropped_total": (),
    "gateway_usage_written_total": (),
    "gateway_tasks_total": ("task", "outcome"),
    "gateway_task_duration_seconds": ("task",),
    "gateway_webhook_attempts_total": ("outcome",),
    "gateway_webhook_oldest_pending_seconds": (),
}


def declared() -> dict[str, metrics.MetricWrapperBase]:
    found = [x for x in vars(observability).values() if isinstance(x, metrics.MetricWrapperBase)]
    return {x._name + ("_total" if x._type == "counter" else ""): x for x in found}


def test_the_metrics_have_the_names_and_labels_that_were_agreed():
    assert {name: metric._labelnames for name, metric in declared().items()} == NAMES


def test_no_gauge_makes_a_series_for_each_process():
    modes = {x._multiprocess_mode for x in declared().values() if x._type == "gauge"}

    assert modes == {"livemax", "livesum", "mostrecent"}  # `all` would, with the process as a label


# -- The folder -----------------------------------------------------------------------------------


class Somebody:
    """A process, as far as the folder can tell: a name that is held while it lives, and files."""

    def __init__(self, folder: MetricsFolder) -> None:
        self.folder = folder
        self.name, self._handle = folder.enter()

    def dies(self) -> None:
        os.close(self._handle)

    def writes(self, kind: str, metric: str, sample: str, value: float, at: float = 0.0, **labels):
        key = mmap_key(metric, sample, list(labels), list(labels.values()), "Help.")
        file = MmapedDict(str(self.folder.path / f"{kind}_{self.name}.db"))
        file.write_value(key, value, at)
        file.close()

    def counts(self, value: float, **labels: str) -> None:
        self.writes("counter", "calls", "calls_total", value, **labels)

    def observes(self, *buckets: float) -> None:
        for bound, value in zip(("0.1", "1.0", "+Inf"), buckets, strict=True):
            self.writes("histogram", "seconds", "seconds_bucket", value, le=bound)
        self.writes("histogram", "seconds", "seconds_sum", sum(buckets) / 2)


@pytest.fixture
def folder(tmp_path: Path) -> MetricsFolder:
    return MetricsFolder(tmp_path / "metrics")


def scraped(folder: MetricsFolder) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in folder.collect()
        for sample in metric.samples
    }


def owners(path: Path) -> set[str]:
    """Names whose files lie in the folder."""
    return {match[2] for entry in path.iterdir() if (match := FILE.fullmatch(entry.name))}


def swept_in(folder: MetricsFolder, steps: int) -> bool:
    """Sweep, and die before the step after so many; True when there was no such step."""

    class Killed(BaseException):
        pass

    left = iter(range(steps))

    def mortal(real):
        def step(*args, **more):
            if next(left, None) is None:
                raise Killed
            return real(*args, **more)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for kind, method in (
            *((Path, name) for name in ("rename", "unlink", "write_text")),
            (MmapedDict, "write_value"),
        ):
            patch.setattr(kind, method, mortal(getattr(kind, method)))
        try:
            folder.collect()
        except Killed:
            return False
    return True


class TestFolder:
    def test_the_dead_go_on_counting_in_one_file_for_each_type(self, folder):
        for turn in range(5):
            process = Somebody(folder)
            process.counts(10 + turn, route="a")
            process.counts(1, route="b")
            process.observes(1, 2, 3)
            process.dies()

        expected = {
            ("calls_total", "a"): 60.0,
            ("calls_total", "b"): 5.0,
            ("seconds_bucket", "0.1"): 5.0,
            ("seconds_bucket", "1.0"): 15.0,
            ("seconds_bucket", "+Inf"): 30.0,
            ("seconds_count",): 30.0,
            ("seconds_sum",): 15.0,
        }
        assert scraped(folder) == scraped(folder) == expected
        assert {p.name for p in folder.path.iterdir()} == {
            "counter_archive.db",
            "histogram_archive.db",
            "lock",
        }

    def test_the_living_are_left_alone(self, folder):
        living, dead = Somebody(folder), Somebody(folder)
        living.counts(1)
        dead.counts(2)
        file = folder.path / f"counter_{living.name}.db"
        before = (file.stat().st_ino, file.read_bytes())
        dead.dies()

        assert scraped(folder) == {("calls_total",): 3.0}
        assert (file.stat().st_ino, file.read_bytes()) == before
        assert owners(folder.path) == {living.name, "archive"}
        living.counts(5)
        assert scraped(folder) == {("calls_total",): 7.0}

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("livemax", 3),
            ("livemin", 3),
            ("livesum", 3),
            ("livemostrecent", 3),
            ("max", 7),
            ("min", 2),
            ("sum", 12),
            ("mostrecent", 7),
        ],
    )
    def test_gauges_of_the_dead_go_or_stay_by_their_mode(self, folder, mode, expected):
        for value, at, lives in ((7, 30, False), (2, 20, False), (3, 10, True)):
            process = Somebody(folder)
            process.writes(f"gauge_{mode}", "level", "level", value, at)
            if not lives:
                process.dies()

        assert scraped(folder) == scraped(folder) == {("level",): expected}

    def test_a_series_for_each_process_ends_with_it(self, folder):
        living, dead = Somebody(folder), Somebody(folder)
        living.writes("gauge_all", "level", "level", 1)
        dead.writes("gauge_all", "level", "level", 2)
        dead.dies()

        assert scraped(folder) == {("level", living.name): 1.0}

    def test_it_says_how_many_requests_each_of_the_living_answered(self, folder):
        processes = [Somebody(folder) for _ in range(3)]
        for number, process in enumerate(processes):
            os.utime(folder.path / f"{process.name}.lock", (number, number))
        for process, endpoint, count in zip((0, 0, 1, 2), "abaa", (1, 2, 4, 8), strict=True):
            processes[process].writes(
                *("counter", "gateway_requests", "gateway_requests_total", count), endpoint=endpoint
            )
        processes[1].dies()
        Somebody(folder).counts(1)  # which answers none

        found = {key[1]: count for key, count in scraped(folder).items() if "process" in key[0]}

        assert found == {"0": 3, "1": 8}

    def test_a_sweep_that_was_killed_at_any_moment_counts_nothing_twice(self, tmp_path):
        finished, steps = False, 0
        while not finished:
            folder = MetricsFolder(tmp_path / str(steps))
            processes = [Somebody(folder) for _ in range(3)]
            for value, process in zip((1, 2, 4), processes, strict=True):
                process.counts(value)
                process.observes(value, value, value)
                process.writes("gauge_livemax", "level", "level", value)
            for process in processes:
                process.dies()

            finished = swept_in(folder, steps)

            found = scraped(folder)
            assert (found["calls_total",], found["seconds_count",]) == (7.0, 21.0), steps
            assert owners(folder.path) == {"archive"}, steps
            steps += 1
        assert steps > 20

    def test_scrapes_beside_births_and_deaths_see_each_count_once(self, folder):
        counted, lock, done = [0.0], threading.Lock(), threading.Event()

        def live_and_die():
            for _ in range(25):
                process = Somebody(folder)
                with lock:  # so that what the scrapes have to see is known
                    process.counts(1)
                    counted[0] += 1
                process.dies()

        def scrape() -> list[bool]:
            seen = []
            while not done.is_set():
                least = counted[0]
                value = scraped(folder).get(("calls_total",), 0.0)
                with lock:
                    seen.append(least <= value <= counted[0])
            return seen

        with ThreadPoolExecutor(5) as pool:
            scrapes = [pool.submit(scrape) for _ in range(2)]
            lives = [pool.submit(live_and_die) for _ in range(3)]
            for life in lives:
                life.result()
            done.set()
            seen = [right for each in scrapes for right in each.result()]

        assert scraped(folder) == {("calls_total",): 75.0}
        assert seen
        assert all(seen)
        assert owners(folder.path) == {"archive"}

    @pytest.mark.parametrize("content", [b"", b"\x01", b"\xff\xff\x00\x00" * 4, b"\0" * 8])
    def test_a_broken_file_of_the_dead_stops_nobody(self, folder, content):
        (folder.path / "counter_0badbadbadbadbad.db").write_bytes(content)
        process = Somebody(folder)
        process.counts(1)

        assert scraped(folder) == {("calls_total",): 1.0}
        assert owners(folder.path) == {process.name, "archive"}

    def test_what_is_not_ours_stays(self, folder):
        other = folder.path / "customers.db"
        other.write_text("precious")

        folder.collect()

        assert other.read_text() == "precious"
        assert scraped(folder) == {}


class TestRun:
    """What `serve` and `run` do with the folder when they start and stop."""

    def test_one_that_is_shared_is_left_as_it_is(self, folder, monkeypatch):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder.path))
        living, dead = Somebody(folder), Somebody(folder)
        living.counts(1)
        dead.counts(2)
        dead.dies()

        assert multiprocess.metrics_folder() == folder.path
        multiprocess.drop_metrics_folder(folder.path)

        assert scraped(folder) == {("calls_total",): 3.0}

    def test_one_of_its_own_goes_with_the_run(self, monkeypatch):
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        folder = multiprocess.metrics_folder()

        multiprocess.drop_metrics_folder(folder)

        assert not folder.exists()


COUNTING = r"""
import os, signal
from gateway_project.core.telemetry.metrics import usage_dropped

usage_dropped.inc(1)
child = os.fork()
if not child:
    usage_dropped.inc(2)
os.write(1, b"%d\n" % os.getpid())
signal.pause()
"""


@pytest.fixture
def counting(folder):
    """A parent that counted 1 and its forked child that counted 2: their process ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder.path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    numbers = [int(process.stdout.readline()) for _ in range(2)]
    yield process.pid, sum(numbers) - process.pid
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_forked_child_lives_on_when_its_parent_is_killed(folder, counting):
    """Celery's pool: children inherit the open files of the parent, also the one it holds."""
    dropped = [scraped(folder)["gateway_usage_dropped_total",]]
    names = [owners(folder.path)]
    for pid in counting:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: scraped(folder) and owners(folder.path) != names[-1], 10)
        dropped.append(scraped(folder)["gateway_usage_dropped_total",])
        names.append(owners(folder.path))

    assert dropped == [3.0, 3.0, 3.0]
    assert [len(found - {"archive"}) for found in names] == [2, 1, 0]


CLOSED = """
import os
from gateway_project.core.telemetry.metrics import usage_dropped
usage_dropped.inc(1)
if child := os.fork():
    os._exit(os.waitpid(child, 0)[1])
os.closerange(3, 256)
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
usage_dropped.inc(2)
assert all(os.fstat(number) for number in taken)
"""


def test_a_child_that_closes_all_files_counts_on_and_closes_nobody_elses(folder):
    """Celery's embedded beat does so first of all."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder.path)}
    subprocess.run([sys.executable, "-c", CLOSED], cwd=ROOT, env=environment, check=True)

    assert scraped(folder)["gateway_usage_dropped_total",] == 3.0


# -- Tasks ----------------------------------------------------------------------------------------


@pytest.fixture
def scratch():
    """An application of its own, so that tasks of tests are in nobody's list."""
    app = Celery("scratch", broker="memory://", set_as_current=False)
    yield app
    app.close()


def total(task: str, outcome: str) -> float:
    labels = {"task": task, "outcome": outcome}
    return REGISTRY.get_sample_value("gateway_tasks_total", labels) or 0.0


@contextmanager
def events(capsys):
    """The log lines of the block, as JSON."""
    found: list[dict] = []
    capsys.readouterr()
    yield found
    found += [json.loads(x) for x in capsys.readouterr().out.splitlines() if x.startswith("{")]


class TestTasks:
    def test_each_end_is_counted_and_timed(self, scratch):
        @scratch.task(name="scratch.ends", bind=True, max_retries=0)
        def ends(self, how):
            if how == "failure":
                raise ValueError
            if how == "ignored":
                raise Ignore

        for how in ("success", "success", "failure", "ignored"):
            ends.apply(args=[how])

        outcomes = ("success", "failure", "ignored", "retry")
        assert [total("scratch.ends", x) for x in outcomes] == [2, 1, 1, 0]
        runs = REGISTRY.get_sample_value(
            "gateway_task_duration_seconds_count", {"task": "scratch.ends"}
        )
        assert runs == 4
        assert signals._started == {}

    def test_workers_and_beat_say_what_memory_they_hold(self, scratch, monkeypatch):
        monkeypatch.setattr(saturation, "memory_bytes", lambda: 12_000_000)
        monkeypatch.setattr(beat.Scheduler, "_acquire", lambda self: False)

        @scratch.task(name="scratch.weighs")
        def weighs():
            pass

        weighs.apply()
        beat.Scheduler(current_app, lazy=True).tick()

        for role in ("worker", "beat"):
            bytes_ = REGISTRY.get_sample_value("gateway_process_memory_bytes", {"role": role})
            assert bytes_ == 12_000_000

    def test_a_retry_is_no_failure(self, scratch, capsys):
        @scratch.task(name="scratch.tries", bind=True, max_retries=1, default_retry_delay=0)
        def tries(self):
            if not self.request.retries:
                raise self.retry(exc=ConnectionError("the secret"), countdown=0)

        with events(capsys) as entries:
            tries.apply()

        assert [total("scratch.tries", x) for x in ("retry", "success", "failure")] == [1, 1, 0]
        ours = [x for x in entries if x["component"] == "gateway.tasks"]
        assert [(x["event"], x["level"], x["error"]) for x in ours] == [
            ("task_retried", "warning", "ConnectionError")
        ]
        assert "the secret" not in json.dumps(ours)

    def test_a_lost_child_is_counted_by_its_parent(self, scratch):
        @scratch.task(name="scratch.lost")
        def lost():
            pass

        signals._failed(lost, "id", WorkerLostError("signal 9"))

        assert total("scratch.lost", "failure") == 1

    def test_a_failure_is_one_error_with_its_stack_and_without_arguments(self, scratch, capsys):
        @scratch.task(name="scratch.fails")
        def fails(text, *, key):
            raise RuntimeError("broken")

        signals.configure()
        with events(capsys) as entries:
            fails.apply(args=["a private text"], kwargs={"key": "a private key"})

        [error] = [x for x in entries if x["level"] == "error"]
        assert (error["event"], error["task"], error["error"]) == (
            "task_failed",
            "scratch.fails",
            "RuntimeError",
        )
        assert "RuntimeError: broken" in error["exception"]
        assert "private" not in json.dumps(entries)

    def test_an_expected_failure_is_no_error(self, scratch, capsys):
        @scratch.task(name="scratch.expected", throws=(KeyError,))
        def expected():
            raise KeyError

        with events(capsys) as entries:
            expected.apply()

        assert [(x["event"], x["level"]) for x in entries] == [("task_failed", "info")]

    def test_celery_brings_no_format_of_its_own(self):
        receivers = [ref() for _, ref in setup_logging.receivers]

        assert signals.configure in receivers


# -- All of it, served ----------------------------------------------------------------------------


class CeleryWorker:
    """`celery -A gateway_project worker` in the environment of a served gateway."""

    def __init__(self, served: Served, tmp_path: Path) -> None:
        self._log = (tmp_path / "worker.log").open("w+b")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "gateway_project", "worker"),
                "--concurrency=1",
            ],
            cwd=ROOT,
            env=served.environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lines(self) -> list[dict]:
        self._log.seek(0)
        lines = self._log.read().decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def text(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def says(self, event: str) -> bool:
        assert self.process.poll() is None, self.text()
        return any(event in line["event"] for line in self.lines())

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture
def work(tmp_path):
    started = []

    def start(served: Served) -> CeleryWorker:
        worker = CeleryWorker(served, tmp_path)
        started.append(worker)
        wait_until(lambda: worker.says("ready."))
        return worker

    yield start
    for worker in started:
        worker.close()


def series(served: Served, name: str, **labels: str) -> float:
    text = httpx.get(f"{served.url}/metrics", verify=False).text
    wanted = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    wanted = f"{name}{{{wanted}}}" if labels else name
    found = re.findall(rf"^{re.escape(wanted)} (\S+)$", text, re.M)
    return float(found[0]) if found else 0.0


def detections(served: Served) -> float:
    labels = {"endpoint": "/v1/detect", "method": "POST", "status": "200"}
    return series(served, "gateway_requests_total", **labels)


def are_drained(served: Served, rows: int) -> bool:
    current_app.send_task("accounts.tasks.drain_usage")
    return series(served, "gateway_usage_written_total") == rows


@pytest.mark.served
class TestServed:
    @pytest.mark.slow
    def test_two_web_workers_and_celery_are_one_page_whoever_answers_and_dies(
        self, serve, work, make_key
    ):
        key = make_key(rate_limit_per_minute=1000)
        served = serve()
        folder = Path(served.environment["PROMETHEUS_MULTIPROC_DIR"])
        worker = work(served)
        heartbeat = {"task": "accounts.tasks.record_heartbeat", "outcome": "success"}

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: served.detect(key), range(40)))
        current_app.send_task(heartbeat["task"])
        current_app.send_task(heartbeat["task"], kwargs={"text": "a private text"})
        current_app.send_task("accounts.tasks.nowhere", kwargs={"text": "a private text"})
        wait_until(lambda: detections(served) == 40)
        wait_until(lambda: series(served, "gateway_tasks_total", **heartbeat) >= 1)
        everywhere = {detections(served) for _ in range(8)}
        wait_until(lambda: worker.says("task_failed") and worker.says("unregistered"))
        wait_until(lambda: are_drained(served, 40))
        names = owners(folder) - {"archive"}

        os.kill(served.web_workers()[0], signal.SIGKILL)
        wait_until(lambda: sum(x["event"] == "process_started" for x in served.lines()) == 3)
        after_death = {detections(served) for _ in range(8)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: served.detect(key), range(10)))
        wait_until(lambda: detections(served) == 50)
        restarted = owners(folder) - {"archive"}
        done = series(served, "gateway_tasks_total", **heartbeat)
        worker.kill()
        tasks = series(served, "gateway_tasks_total", **heartbeat)
        failures = series(served, "gateway_tasks_total", **{**heartbeat, "outcome": "failure"})
        left = owners(folder) - {"archive"}

        assert everywhere == after_death == {40.0}
        assert tasks >= done >= 1  # its beat sends one more each 15 s
        assert failures == 1
        # Two web workers and what they are forked from, Celery's parent and its child: one of the
        # five is another, then two are gone.
        assert [len(x) for x in (names, restarted, names & restarted, left)] == [5, 5, 4, 3]
        self.check_log_of(worker)

    def check_log_of(self, worker: CeleryWorker) -> None:
        entries = worker.lines()
        errors = {x["component"]: x for x in entries if x["level"] == "error"}

        assert all({"event", "level", "timestamp", "component"} <= set(x) for x in entries)
        assert set(errors) == {"gateway.tasks", "celery.worker.consumer.consumer"}
        assert errors["gateway.tasks"]["event"] == "task_failed"
        assert "TypeError" in errors["gateway.tasks"]["exception"]
        assert "a private text" not in worker.text()
        # No banner, and no line in a format of Celery's: "[2026-01-01 00:00:00,000: INFO/…".
        assert not re.search(r"^( *-{3,}|\[tasks\]|\[\d{4}-)", worker.text(), re.M)

    @pytest.mark.slow
    def test_the_counts_of_an_earlier_run_go_on_and_its_live_gauges_are_gone(self, serve, make_key):
        key = make_key(rate_limit_per_minute=1000)
        first = serve()
        folder = Path(first.environment["PROMETHEUS_MULTIPROC_DIR"])
        for _ in range(3):
            first.detect(key)
        wait_until(lambda: detections(first) == 3)
        gauges = list(folder.glob("gauge_live*.db"))
        first.stop()
        names = {name for name, *_ in scraped(MetricsFolder(folder))}

        second = serve()

        assert second.environment["PROMETHEUS_MULTIPROC_DIR"] == str(folder)
        assert detections(second) == 3
        second.detect(key)
        wait_until(lambda: detections(second) == 4)
        assert gauges
        assert not any(path.exists() for path in gauges)
        assert "gateway_requests_total" in names
        assert "gateway_circuit_breaker_state" not in names

    @pytest.mark.slow
    def test_the_log_has_one_event_a_request_and_no_secret(self, serve, make_key):
        key = make_key(name="logged")
        served = serve(WORKERS="1", LOG_LEVEL="DEBUG", by_command=True)
        text, query = "a very private text", "privatequery"
        correlation = {"X-Request-ID": "caller-12345678"}
        with httpx.Client(base_url=served.url, verify=False, headers={"X-API-Key": key}) as http:
            http.post("/v1/detect", json={"text": text}, headers=correlation)
            http.post(f"/v1/detect?token={query}", json={"text": text, "more": text})
            http.post("/v1/detect", content=f'{{"text": "{text}', headers={"Content-Type": "x/y"})
            http.get(f"/v1/nowhere/{query}?token={query}")
            http.get(f"/admin/login/?next={query}")
            http.post("/admin/login/", data={"username": "x@y.example", "password": query})
            http.post("/auth/register", json={"email": "dana@y.example", "password": text})
            http.get("/v1/limits", headers={"X-API-Key": key[:-1] + "!"})
        served.stop()

        requests = [x for x in served.lines() if x["event"] == "request"]
        detect = next(x for x in requests if x["correlation_id"])
        for secret in (key, key[8:-7], text, query, "dana@y.example"):
            assert secret not in served.output()
        asked = [x for x in requests if x["route"] not in ("/health/ready",)]
        # An event follows its answer, and Django closes its own a moment later: in no order.
        assert sorted((x["method"], x["route"], x["status"]) for x in asked) == [
            ("GET", "/admin/login/", 302),
            ("GET", "/v1/limits", 401),
            ("GET", "unmatched", 404),
            ("POST", "/admin/login/", 403),
            ("POST", "/auth/register", 201),
            ("POST", "/v1/detect", 200),
            ("POST", "/v1/detect", 415),
            ("POST", "/v1/detect", 422),
        ]
        assert {key for x in requests for key in x} == {
            *("component", "event", "level", "timestamp"),
            *("request_id", "correlation_id", "method", "route", "status", "duration_ms"),
            *("workspace", "key_prefix", "upstream_ms"),
        }
        assert detect["correlation_id"] == "caller-12345678"
        assert (detect["workspace"], detect["key_prefix"]) == ("acme", key.row.prefix)
        assert 0 < detect["upstream_ms"] <= detect["duration_ms"]


def test_a_breaker_says_when_its_state_changes(capsys, monkeypatch):
    from gateway_project.core.upstream import breaker as module

    monkeypatch.setattr(module, "_registry", {})
    breaker = module.Breaker("scratch", failures_max=1)
    with events(capsys) as entries:
        breaker.acquire().failed()

    [change] = entries
    assert (change["event"], change["service"], change["old"], change["new"]) == (
        "breaker_state_changed",
        "scratch",
        "closed",
        "open",
    )


def test_errors_have_a_stack_and_not_what_was_sent(gateway, make_key, capsys, monkeypatch):
    from detection import services

    def broken(*_, **__):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(services, "detect_all", broken)
    with events(capsys) as entries:
        r = gateway.detect("a very private text", key=make_key())

    [error] = [x for x in entries if x["level"] == "error"]
    assert r.status_code == 500
    assert error["request_id"] == r.json()["request_id"]
    assert "ZeroDivisionError: bug" in error["exception"]
    assert "a very private text" not in json.dumps(entries)


def test_the_page_has_our_metrics_and_those_of_django(gateway):
    text = gateway.get("/metrics").text

    assert "# TYPE gateway_requests_total counter" in text
    assert "# TYPE django_db_execute_total counter" in text


class TestWhatWaits:
    def test_jobs_and_queues_are_looked_up_at_the_scrape(self, gateway, acme_key):
        before = gateway.get("/metrics").text
        body = {"requests": [{"id": str(n), "text": "hello"} for n in range(2 * CHUNK_ITEMS + 1)]}
        assert gateway.post("/v1/detect/batch", body, key=acme_key).status_code == 202
        wait_until_sent()
        after = gateway.get("/metrics").text

        assert value(before, "gateway_jobs_queued") == 0
        assert value(before, "gateway_jobs_oldest_queued_seconds") == 0
        assert value(after, "gateway_jobs_queued") == 1
        assert value(after, "gateway_jobs_oldest_queued_seconds") > 0
        assert value(before, 'gateway_celery_queue_length{queue="detection"}') == 0
        assert value(after, 'gateway_celery_queue_length{queue="detection"}') == 3
        assert value(after, 'gateway_celery_queue_length{queue="mail"}') == 0

    def test_without_a_broker_its_series_are_missing_and_the_others_there(self, gateway):
        with broker_at("redis://127.0.0.1:1/0"):
            text = gateway.get("/metrics").text

        assert "gateway_celery_queue_length{" not in text
        assert value(text, "gateway_jobs_queued") == 0


def value(page, series):
    [line] = [line for line in page.splitlines() if line.startswith(f"{series} ")]
    return float(line.rpartition(" ")[2])
