"""A trace goes from the caller to the engine, the task and the webhook; off, nothing is done."""

from __future__ import annotations

from copy import deepcopy
from unittest.mock import Mock

import pytest
from celery import Celery, current_app, signals
from celery.concurrency import prefork, thread
from django.db import connections
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from detection import tasks
from detection.jobs import store
from detection.models import JobChunk
from detection.tests.working import wait_until_sent
from gateway_project import checks
from gateway_project.celery import VersionedTask
from gateway_project.core import clock
from gateway_project.core.context import RequestContext, current
from gateway_project.core.telemetry import tracing
from webhooks.delivery.engine import deliver_all

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture
def spans():
    """What was ended, by name; `spans(name)`: all of that name."""
    exporter = InMemorySpanExporter()
    tracing.use(SimpleSpanProcessor(exporter), "test", "0")

    def ended(name=None):
        found = exporter.get_finished_spans()
        if name is None:
            return {span.name: span for span in found}
        return [span for span in found if span.name == name]

    yield ended
    tracing.stop()


@pytest.fixture
def work_sent(monkeypatch):
    """Runs the tasks that were sent, all or the one of that number."""
    sent = []
    monkeypatch.setattr(
        "celery.app.task.Task.apply_async",
        lambda self, args=(), headers=None, **_: sent.append((self, args, headers)),
    )

    def run(number=None):
        wait_until_sent()
        for task, args, headers in list(sent) if number is None else [sent[number]]:
            task.apply(args, headers=headers)

    return run


def ids(span):
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def told(received):
    return {name.lower(): value for name, value in received.headers.items()}["traceparent"]


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

    def test_a_webhook_of_a_detection_is_below_its_request(
        self, gateway, engine, acme_key, make_webhook, receiver, spans
    ):
        make_webhook("/subscribed")
        gateway.post(
            "/v1/detect",
            {"text": "hello", "webhook_url": receiver.url("/named")},
            key=acme_key,
            headers={"traceparent": TRACEPARENT},
        )
        request = spans()["POST /v1/detect"]
        gateway.flush_usage()
        deliver_all()

        calls = spans("webhook POST")
        assert ids(request)[0] == TRACE
        assert [parent(call) for call in calls] == [ids(request)[1]] * 2
        assert {got.path for got in receiver.received} == {"/named", "/subscribed"}
        assert {told(got) for got in receiver.received} == {
            f"00-{TRACE}-{ids(call)[1]}-01" for call in calls
        }

    def test_a_job_is_in_the_trace_of_its_request_up_to_its_webhooks(
        self, gateway, engine, acme_key, make_webhook, receiver, spans, work_sent
    ):
        make_webhook("/subscribed", ["batch.completed", "detection.completed"])
        gateway.post(
            "/v1/detect/batch",
            {"requests": [{"id": "1", "text": "hello"}], "webhook_url": receiver.url("/named")},
            key=acme_key,
            headers={"traceparent": TRACEPARENT},
        )
        work_sent()
        deliver_all()

        found = spans()
        task = found["task detection.tasks.judge_chunk"]
        calls = spans("webhook POST")
        assert (ids(task)[0], parent(task)) == (TRACE, ids(found["POST /v1/detect/batch"])[1])
        assert parent(found["engine POST /v1/detect"]) == ids(task)[1]
        assert [parent(call) for call in calls] == [ids(task)[1]] * 3
        assert {told(got)[:35] for got in receiver.received} == {f"00-{TRACE}"}

    def test_a_chunk_that_was_lost_is_sent_again_in_its_trace(
        self, gateway, engine, acme_key, spans, work_sent
    ):
        gateway.post(
            "/v1/detect/batch",
            {"requests": [{"id": "1", "text": "hello"}]},
            key=acme_key,
            headers={"traceparent": TRACEPARENT, "Prefer": "respond-async"},
        )
        wait_until_sent()
        JobChunk.objects.update(sent_at=clock.now() - store.TRUST_IN_LINE)
        tasks.work()
        work_sent(-1)

        assert ids(spans()["task detection.tasks.judge_chunk"])[0] == TRACE


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

    def test_with_children_in_each_of_them(self, calls, monkeypatch):
        # A child keeps one connection in place of a pool: these tests do not.
        settings = deepcopy(connections.settings["default"])
        monkeypatch.setitem(connections.settings, "default", settings)
        signals.worker_ready.send(sender=Mock(pool=object.__new__(prefork.TaskPool)))
        assert calls == []

        signals.worker_process_init.send(sender="a child")
        signals.worker_process_shutdown.send(sender="a child")
        assert calls == ["start", "stop"]


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


def test_on_without_the_library_is_a_mistake_that_is_reported(settings, monkeypatch):
    settings.TRACING = True
    monkeypatch.setattr(checks, "find_spec", lambda _: None)

    found = {message.id: message for message in checks.check_settings(None)}

    assert "requirements/otel.txt" in found["gateway.E010"].hint
