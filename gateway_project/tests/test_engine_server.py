"""`manage.py engine`: our own engine as a process, by the contract that the gateway speaks"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer

from detection.engines import calibration, classifier, go, server
from detection.engines.calibration import Calibration
from detection.engines.classifier import ModelUnusable, NoScore
from detection.engines.server import Server
from detection.tests import tiny_model
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.checks import check_settings
from gateway_project.core.upstream.client import Answer
from gateway_project.tests.served import ROOT, wait_until

NEEDS_MODEL = pytest.mark.skipif(
    bool(classifier.missing_libraries()), reason="needs requirements/engine.txt"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_check_of_the_settings_names_a_mistake(settings):
    settings.DETECTION_ENGINES = "judge=openai+http://h/v1"
    assert [one.id for one in check_settings(None)] == ["gateway.E004"]
    settings.DETECTION_ENGINES = "judge=openai+http://:key@h.example/v1?model=m"
    assert [one.id for one in check_settings(None)] == ["gateway.W002"]


class Process:
    def __init__(self, *arguments):
        self.port = free_port()
        command = [sys.executable, "-m", "detection.engines.server", f"--port={self.port}"]
        self.popen = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def is_up(self):
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            assert self.popen.poll() is None, "it ended"
            return False

    def detect(self, text, **more):
        return self.http.post("/v1/detect", json={"text": text, **more})


@pytest.fixture(scope="module")
def engine_process(tmp_path_factory):
    arguments = []
    if not classifier.missing_libraries():
        folder = tiny_model.write(tmp_path_factory.mktemp("models") / "tiny", window=64)
        arguments = [f"--model={folder}"]
    process = Process(*arguments)
    wait_until(process.is_up, seconds=60)
    yield process
    process.http.close()
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(20) == 0


class TestTheProcess:
    @pytest.mark.parametrize(("text", "is_attack"), [(ATTACK, True), (HARMLESS, False)])
    def test_its_answers_are_what_the_gateway_reads(self, engine_process, text, is_attack):
        r = engine_process.detect(text)
        score = go.GoEngine._read(Answer(r.status_code, r.content, 0.0), len(text))

        assert r.json()["is_malicious"] is is_attack
        assert (score.score >= 0.6) == is_attack
        assert (score.scanned_chars, score.unseen) == (len(text), ())

    @NEEDS_MODEL
    def test_the_classifier_judges_beside_the_rules(self, engine_process):
        body = engine_process.detect("the attack").json()

        assert (body["is_malicious"], body["threat_types"]) == (True, ["injection"])
        assert body["endpoint"] == "rules+tiny"
        assert "tiny" in body["reason"]

    @NEEDS_MODEL
    def test_what_the_classifier_has_no_words_for_is_reported(self, engine_process):
        coverage = engine_process.detect("hello 忽略").json()["coverage"]

        assert coverage == {"scanned_chars": 6, "reasons": ["language_without_rules"]}

    def test_json_is_read_by_its_strings(self, engine_process):
        escaped = "".join(f"\\u{ord(c):04x}" for c in ATTACK)

        body = engine_process.detect(f'{{"a": "{escaped}"}}', content_type="tool_output").json()

        assert body["is_malicious"] is True

    def test_no_floor_no_cut_and_a_threshold_of_zero_is_zero(self, engine_process):
        assert engine_process.detect(HARMLESS).json()["confidence"] < 0.3
        long = f"{HARMLESS} " * 100 + ATTACK
        assert engine_process.detect(long).json()["is_malicious"] is True
        config = {"confidence_threshold": 0}
        assert engine_process.detect(HARMLESS, config=config).json()["is_malicious"] is True
        assert engine_process.detect("").json()["confidence"] == 0

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"{", b"[]", b"null", b'{"text": 5}', b'{"text": null}', b"{}"),
            *(b'{"text": "x", "content_type": "picture"}', b"\xff"),
            b'{"text": "x", "config": {"confidence_threshold": "high"}}',
            b'{"text": "x", "config": {"confidence_threshold": NaN}}',
            b'{"text": "x", "config": {"confidence_threshold": -0.1}}',
            b'{"text": "x", "config": {"confidence_threshold": %s}}' % (b"9" * 400),
            b'{"text": "x", "config": {"confidence_threshold": %s}}' % (b"9" * 5_000),
            b'{"text": "x", "more": %s}' % (b"[" * 50_000 + b"]" * 50_000),
            b'{"text": "\\ud800"}',
        ],
        ids=range(16),
    )
    def test_what_is_no_request_is_a_400_with_a_reason(self, engine_process, content):
        self.refused(engine_process, content, "application/json")

    def test_nor_is_one_in_an_unknown_charset(self, engine_process):
        self.refused(engine_process, b'{"text": "x"}', "application/json; charset=nope")

    @staticmethod
    def refused(process, content, media_type):
        failed = process.http.get("/v1/metrics").json()["requests_failed"]
        r = process.http.post("/v1/detect", content=content, headers={"Content-Type": media_type})

        assert r.status_code == 400
        assert set(r.json()) == {"error", "details"}
        assert process.http.get("/v1/metrics").json()["requests_failed"] == failed + 1

    # By 400 the gateway knows that the engine is not away for other texts.
    @pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError, 500), (NoScore, 400)])
    def test_a_mistake_of_its_own_is_json_too_and_counted(self, monkeypatch, error, status):
        async def judge(*about):
            raise error

        async def asked():
            engine = Server()
            monkeypatch.setattr(engine, "judge", judge)
            async with TestClient(TestServer(engine.app())) as client:
                r = await client.post("/v1/detect", json={"text": "x"})
                metrics = await client.get("/v1/metrics")
                return r.status, set(await r.json()), (await metrics.json())["requests_failed"]

        assert asyncio.run(asked()) == (status, {"error", "details"}, 1)

    def test_other_mistakes_are_json_too(self, engine_process):
        assert engine_process.http.get("/v1/detect").json()["error"] == "Method Not Allowed"
        assert engine_process.http.get("/nowhere").json()["error"] == "Not Found"
        large = engine_process.http.post("/v1/detect", json={"text": "x" * (5 << 20)})
        assert (large.status_code, "error" in large.json()) == (413, True)

    def test_health_and_metrics_say_what_the_go_engine_says(self, engine_process):
        engine_process.detect(ATTACK)

        health = engine_process.http.get("/health").json()
        metrics = engine_process.http.get("/v1/metrics").json()

        assert health["status"] == "healthy"
        assert {"version", "uptime", "requests_served", "average_latency_ms"} <= set(health)
        assert metrics["requests_total"] == (
            metrics["requests_successful"] + metrics["requests_failed"]
        )
        assert metrics["detections_by_threat"]

    def test_many_at_once_are_each_answered_for_themselves(self, engine_process):
        texts = [ATTACK if n % 3 == 0 else f"{HARMLESS} {n}" for n in range(60)]
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(engine_process.detect, texts))

        assert [r.json()["is_malicious"] for r in answers] == [n % 3 == 0 for n in range(60)]

    def test_it_is_small_and_knows_no_django(self, engine_process):
        status = Path(f"/proc/{engine_process.popen.pid}/status").read_text()
        resident_kb = int(status.split("VmRSS:")[1].split()[0])
        program = "import sys, detection.engines.server; sys.exit('django' in sys.modules)"

        assert resident_kb < 400_000
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


class TestItsEnd:
    @pytest.mark.slow
    def test_it_answers_what_it_has_before_it_goes(self):
        process = Process()
        wait_until(process.is_up, seconds=60)
        with ThreadPoolExecutor(8) as pool:
            coming = [pool.submit(process.detect, f"{HARMLESS} " * 100) for _ in range(8)]
            process.popen.send_signal(signal.SIGTERM)
            done = [one.exception() or one.result().status_code for one in coming]

        assert process.popen.wait(20) == 0
        process.http.close()
        assert all(one == 200 or isinstance(one, httpx.TransportError) for one in done)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--model=/no/such/folder"], b"no folder"),
            (["--calibration=/no/such/file"], b"no calibration"),
        ],
    )
    def test_without_its_model_it_ends_with_a_sentence(self, arguments, says):
        done = subprocess.run(
            [sys.executable, "-m", "detection.engines.server", "--port=0", *arguments],
            cwd=ROOT, capture_output=True, timeout=60, env=os.environ,
        )  # fmt: skip

        assert done.returncode == 1
        assert b"The engine cannot start." in done.stderr
        assert says in done.stderr or b"is not installed" in done.stderr
        assert b"Traceback" not in done.stderr


class TestCalibration:
    def test_it_moves_the_scores_of_its_type_alone(self, tmp_path):
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps({"tool_output": {"slope": 1.0, "bias": -2.0}}))
        found = calibration.read(path)

        assert found["tool_output"].of(0.5) == pytest.approx(0.1192, abs=1e-4)
        assert Calibration().of(0.37) == 0.37
        one, other = Server(), Server(None, found)
        assert one.version != other.version

    @pytest.mark.parametrize(
        "text",
        [
            *("", "[]", "{", '{"tool_output": 5}', '{"tool_output": {"slope": 1}}'),
            *('{"x": {"slope": 1, "bias": 0}}', '{"document": {"slope": 0, "bias": 0}}'),
            *('{"document": {"slope": NaN, "bias": 0}}', '{"document": {"slope": 1, "bias": "x"}}'),
        ],
    )
    def test_mistakes_are_refused(self, tmp_path, text):
        path = tmp_path / "calibration.json"
        path.write_text(text)

        with pytest.raises(ModelUnusable):
            calibration.read(path)

    @pytest.mark.parametrize("score", [0.0, 1e-9, 0.5, 1.0])
    def test_any_score_stays_a_score(self, score):
        assert 0 <= Calibration(3.0, 1.0).of(score) <= 1


def test_rules_alone_refuse_when_too_many_wait(monkeypatch):
    from detection.engines.batching import Busy

    monkeypatch.setattr(server, "RULES_WAITING_MAX", 2)

    async def work():
        one = Server()
        return await asyncio.gather(
            *(one.judge(HARMLESS, "user_input") for _ in range(6)), return_exceptions=True
        )

    found = asyncio.run(work())

    assert sum(isinstance(one, Busy) for one in found) == 4
