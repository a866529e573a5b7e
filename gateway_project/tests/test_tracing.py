"""A trace goes from the caller to the engine, the task and the webhook; off, nothing is done."""

from __future__ import annotations

from unittest.mock import Mock
from uuid import uuid4

import pytest
from celery import Celery, current_app, signals
from celery.concurrency import prefork, thread
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gateway_project import checks
from gateway_project.celery import VersionedTask
from gateway_project.core.context import RequestContext, current
from gateway_project.core.telemetry import tracing
from webhooks.delivery.sending import Job, send_once

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture
def spans():
    """What was ended, by name, once asked."""
    exporter = InMemorySpanExporter()
    tracing.use(SimpleSpanProcessor(exporter), "test", "0")
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    tracing.stop()


def ids(span):
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span):
    return f"{span.parent.span_id:016x}" if span.parent else None


class TestOn:
    def test_from_the_caller_through_us_to_the_engine(self, gateway, engine, acme_key, spans):
        r = gateway.post(
            "/v1/detect",
            {"text": "a private text"},
            key=acme_key,
            headers={"traceparent": TRACEPARENT},
        )
        found = spans()
        ours, call = found["POST /v1/detect"], found["engine POST /v1/detect"]

        assert r.status_code == 200
        assert ids(ours)[0] == ids(call)[0] == TRACE
        assert (parent(ours), parent(call)) == (CALLER, ids(ours)[1])
        sent = {name.lower(): value for name, value in engine.asked[0]["headers"].items()}
        assert sent["traceparent"] == f"00-{TRACE}-{ids(call)[1]}-01"
        assert ours.attributes["http.route"] == "/v1/detect"
        assert ours.attributes["http.response.status_code"] == 200
        assert "a private text" not in str([dict(span.attributes) for span in found.values()])
        assert acme_key not in str([dict(span.attributes) for span in found.values()])

    def test_a_trace_of_its_own_without_a_caller(self, gateway, engine, acme_key, spans):
        gateway.detect("hello", key=acme_key)

        found = spans()
        assert parent(found["POST /v1/detect"]) is None
        assert ids(found["engine POST /v1/detect"])[0] == ids(found["POST /v1/detect"])[0]

    def test_a_caller_that_does_not_sample_is_heeded(self, gateway, engine, acme_key, spans):
        gateway.post(
            "/v1/detect",
            {"text": "hello"},
            key=acme_key,
            headers={"traceparent": f"00-{TRACE}-{CALLER}-00"},
        )

        assert spans() == {}

    def test_an_engine_that_fails_is_an_error_of_its_span_alone(
        self, gateway, engine, acme_key, spans
    ):
        engine.is_down()
        gateway.detect("hello", key=acme_key)

        found = spans()
        assert found["engine POST /v1/detect"].status.status_code == StatusCode.ERROR
        assert found["POST /v1/detect"].status.status_code != StatusCode.ERROR

    def test_a_task_is_below_whoever_sent_it_and_what_it_does_below_it(self, spans):
        seen = {}
        app = Celery("scratch", broker="memory://", set_as_current=False, task_cls=VersionedTask)

        @app.task(name="scratch.traced", bind=True)
        def traced(self):
            seen["inside"] = current.get().traceparent

        traced.apply(headers={tracing.HEADER: TRACEPARENT})
        app.close()

        task = spans()["task scratch.traced"]
        assert (ids(task)[0], parent(task)) == (TRACE, CALLER)
        assert seen["inside"] == f"00-{TRACE}-{ids(task)[1]}-01"
        assert current.get() is None or current.get().traceparent != seen["inside"]

    def test_a_message_names_the_span_that_sends_it(self, spans, monkeypatch):
        sent = {}
        task = current_app.tasks["accounts.tasks.record_heartbeat"]
        monkeypatch.setattr(
            "celery.app.task.Task.apply_async",
            lambda self, *a, headers=None, **m: sent.update(headers),
        )
        token = current.set(RequestContext("", None, TRACEPARENT))
        try:
            task.apply_async()
        finally:
            current.reset(token)

        assert sent[tracing.HEADER] == TRACEPARENT

    def test_a_webhook_names_the_call_to_its_receiver(self, gateway, receiver, spans):
        token = current.set(RequestContext("", None, TRACEPARENT))
        try:
            outcome = send_once(job_to(receiver.url("/hook")))
        finally:
            current.reset(token)

        call = spans()["webhook POST"]
        [got] = receiver.received
        headers = {name.lower(): value for name, value in got.headers.items()}
        assert outcome.kind == "delivered"
        assert (ids(call)[0], parent(call)) == (TRACE, CALLER)
        assert headers["traceparent"] == f"00-{TRACE}-{ids(call)[1]}-01"


class TestWorkers:
    """Tracing begins once in each process that runs tasks, and ends with it."""

    @pytest.fixture
    def calls(self, settings, monkeypatch):
        calls = []
        settings.TRACING = True
        monkeypatch.setattr(tracing, "tracer", None)
        monkeypatch.setattr(tracing, "stop", lambda: calls.append("stop"))

        def start(*_):
            calls.append("start")
            monkeypatch.setattr(tracing, "tracer", calls)

        monkeypatch.setattr(tracing, "start", start)
        return calls

    def test_with_a_pool_of_threads_in_the_worker_itself(self, calls):
        worker = Mock(pool=object.__new__(thread.TaskPool))
        signals.worker_ready.send(sender=worker)
        signals.worker_ready.send(sender=worker)  # after a loss of the broker
        assert calls == ["start"]

        signals.worker_shutdown.send(sender=worker)
        assert calls == ["start", "stop"]

    def test_with_children_in_each_of_them(self, calls):
        signals.worker_ready.send(sender=Mock(pool=object.__new__(prefork.TaskPool)))
        assert calls == []

        signals.worker_process_init.send(sender="a child")
        signals.worker_process_shutdown.send(sender="a child")
        assert calls == ["start", "stop"]


def job_to(url):
    return Job(
        delivery_id=uuid4(), webhook_id=uuid4(), workspace_id=uuid4(), url=url, event_id="e",
        body=b"{}", secrets=("whsec_" + "A" * 32,), inbox_id=None, is_active=True,
        is_suspended=False, is_failing=False,
    )  # fmt: skip


class TestOff:
    def test_nothing_is_begun_and_the_callers_trace_goes_on(self, gateway, engine, acme_key):
        assert tracing.tracer is None
        gateway.post(
            "/v1/detect",
            {"text": "hello"},
            key=acme_key,
            headers={"traceparent": TRACEPARENT},
        )

        sent = {name.lower(): value for name, value in engine.asked[0]["headers"].items()}
        assert sent["traceparent"] == TRACEPARENT
        assert tracing.begin("x", TRACEPARENT, "server") is None

    @pytest.mark.slow
    def test_nothing_of_it_is_loaded(self):
        import subprocess
        import sys

        # redis-py loads the SDK where it is installed; what sends, only we would.
        code = "import sys, gateway_project.asgi; print('opentelemetry.exporter' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip().splitlines()[-1] == "False"


def test_on_without_the_library_is_a_mistake_that_is_said(settings, monkeypatch):
    settings.TRACING = True
    monkeypatch.setattr(checks, "find_spec", lambda _: None)

    found = {message.id: message for message in checks.check_settings(None)}

    assert "requirements/otel.txt" in found["gateway.E010"].hint
