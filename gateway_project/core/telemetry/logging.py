"""The format of the log. Declares no metric, so that settings may import it first."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TextIO, cast

import orjson
import structlog

from gateway_project.core import clock

if TYPE_CHECKING:
    from structlog.typing import EventDict


def configure_logging(*, level: str, format: str) -> None:  # noqa: A002 - the setting's name
    """Send structlog and the standard library's loggers to standard output, one line an event.

    `format` is "json" (one object a line) or "console" (for people).
    """
    Together.is_json, Together.is_wanted = format == "json", level in ("DEBUG", "INFO")
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_dumps)
        if format == "json"
        else _console_renderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer]
        if format == "json"
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=(
            structlog.BytesLoggerFactory(cast(BinaryIO, StandardOutput))
            if format == "json"
            else structlog.PrintLoggerFactory(cast(TextIO, _TextOutput))
        ),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast(TextIO, _TextOutput))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _add_component],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer() if format == "json" else _console_renderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One "request" event of ours says all that these do, with a request id and without the path.
    for noisy in ("uvicorn.access", "httpx", "aiohttp.access"):
        logging.getLogger(noisy).setLevel("CRITICAL")
    # Three lines a second for tasks that ended well, one with what the task returned;
    # `gateway_tasks_total` counts them.
    for noisy in ("celery.beat", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel("WARNING")
    for refusals in ("django.request", "django.security.csrf"):
        logging.getLogger(refusals).setLevel("ERROR")
    # The server brings handlers of its own, which do not write JSON.
    for name in ("uvicorn", "uvicorn.error"):
        server = logging.getLogger(name)
        server.handlers.clear()
        server.propagate = True


def _console_renderer() -> Any:
    # Plain on purpose: rich tracebacks print local variables, and those hold keys and texts.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _add_component(logger: Any, name: str, event: EventDict) -> EventDict:
    # What a library says has the fields of what we say.
    event["component"] = event["_record"].name
    return event


class StandardOutput:
    """Today's `sys.stdout`, not the one of import time: what redirects it sees the log too.

    Nothing stops for the sake of a line. It is dropped when the disk is full, when nobody is at the
    other end of the pipe, and when whoever is there does not read.
    """

    when_dropped: ClassVar[Callable[[int], None]] = staticmethod(lambda _: None)
    _is_cut: ClassVar[bool] = False  # the last line has no end

    @classmethod
    def write(cls, line: bytes) -> None:
        left = b"\n" + line if cls._is_cut else line
        try:
            while left:
                left = left[_written(left) :]
            cls._is_cut = False
        except (OSError, ValueError):  # the latter of a stream that is closed
            cls._is_cut = cls._is_cut or len(left) < len(line)
            cls.when_dropped(max(1, left.rstrip(b"\n").count(b"\n") + 1))

    @classmethod
    def flush(cls) -> None:
        """Nothing to do: each line is written at once."""


class _TextOutput:
    """The same for what writes text."""

    @staticmethod
    def write(text: str) -> None:
        StandardOutput.write(text.encode(errors="backslashreplace"))

    flush = StandardOutput.flush


def _written(line: bytes) -> int:
    """Write what can be without waiting for a reader; raises `BlockingIOError` for nothing."""
    stream = sys.stdout.buffer
    try:
        number = stream.fileno()
    except OSError:  # memory, in a test
        return stream.write(line)
    look = select.poll()
    look.register(number, select.POLLOUT)  # there is room for `PIPE_BUF` at least
    if not look.poll(0):
        raise BlockingIOError
    return os.write(number, line[: select.PIPE_BUF])


class Together:
    """A logger of an event that comes with each request: its lines wait for each other.

    For `wait_seconds` at most, so that one write takes many; each line by itself would cost as much
    as all else that is counted of a request. A process that is killed loses those that wait. For
    one event loop; as JSON alone, otherwise each line is written at once.
    """

    is_json: ClassVar[bool] = False
    is_wanted: ClassVar[bool] = True
    wait_seconds: ClassVar[float] = 0.02

    def __init__(self, component: str) -> None:
        self._component = component
        self._plain = get_logger(component)
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._flushes_in: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def info(self, event: str, **fields: Any) -> None:
        if not self.is_json:
            self._plain.info(event, **fields)
            return
        if not self.is_wanted:
            return
        fields["component"], fields["event"], fields["level"] = self._component, event, "info"
        fields["timestamp"] = clock.now()
        line = orjson.dumps(fields, option=LINE)
        # Pieces of this size are not mixed with what other processes write into the same pipe.
        if self._bytes + len(line) > select.PIPE_BUF:
            self.flush()
        self._waiting.append(line)
        self._bytes += len(line)
        loop = asyncio.get_running_loop()
        if self._flushes_in is not loop:
            self._flushes_in = loop
            if self.wait_seconds:
                loop.call_later(self.wait_seconds, self._flush_in_time)
            else:
                loop.call_soon(self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._flushes_in = None
        self.flush()

    def flush(self) -> None:
        if self._waiting:
            lines = b"".join(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            StandardOutput.write(lines)


LINE = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


def _dumps(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def get_logger(name: str) -> Any:
    """A structlog logger whose events carry `component=name`."""
    return structlog.get_logger(component=name)
