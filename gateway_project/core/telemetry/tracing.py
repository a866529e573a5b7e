"""Traces by OpenTelemetry, where they are wanted (`TRACING`, requirements/otel.txt); else no cost.

A trace goes by `traceparent` (W3C Trace Context): a request's span is a child of the caller's, and
what it sends on, to the engine, in a task's message and to a webhook's receiver, names the span
that sent it. Spans hold routes, statuses and ids of ours; never texts, keys or addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INSTRUMENTATION = "gateway"
HEADER = "traceparent"
tracer: Any = None
"""None: traces are off."""
_provider: Any = None


def start(role: str, version: str) -> None:
    """Begin, once for each process, after any fork. `OTEL_…` variables say where to."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    use(BatchSpanProcessor(OTLPSpanExporter()), role, version)


def use(processor: Any, role: str, version: str) -> None:
    """The same with another way out."""
    global tracer, _provider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    facts = {"service.name": f"gateway-{role}", "service.version": version}
    _provider = TracerProvider(resource=Resource.create(facts))
    _provider.add_span_processor(processor)
    tracer = _provider.get_tracer(INSTRUMENTATION, version)


def stop() -> None:
    """Send what is left, for a few seconds at most."""
    global tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    tracer = _provider = None


def begin(name: str, traceparent: str | None, kind: str, **attributes: Any) -> Any:
    """A span below the one that `traceparent` names, or a trace of its own; None while off.

    `kind`: server, client, consumer. Whoever begins it calls `end`.
    """
    if tracer is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = Context()
    if traceparent:
        carrier = {HEADER: traceparent}
        parent = TraceContextTextMapPropagator().extract(carrier, context=parent)
    return tracer.start_span(
        name, context=parent, kind=SpanKind[kind.upper()], attributes=attributes
    )


def end(span: Any, *, error: bool = False, name: str = "", **attributes: Any) -> None:
    """None is none."""
    if span is None:
        return
    if name:
        span.update_name(name)
    span.set_attributes(attributes)
    if error:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR))
    span.end()


def traceparent_of(span: Any) -> str | None:
    """What names this span to others."""
    if span is None:
        return None
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


@contextmanager
def calling(name: str, headers: dict[str, str], **attributes: Any) -> Iterator[None]:
    """A call to somebody else, below the span that `headers` name; they name the call's then."""
    span = begin(name, headers.get(HEADER), "client", **attributes)
    if span is None:
        yield
        return
    headers[HEADER] = traceparent_of(span) or ""
    failed = True
    try:
        yield
        failed = False
    finally:
        end(span, error=failed)
