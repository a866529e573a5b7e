"""The web server: uvicorn, with a stop that a proxy in front can follow (docs/request-life.md).

`command` is how `serve`, `run`, tests and benchmarks start it. SIGTERM: not ready, serve on for
`DRAIN_SECONDS`, close the listeners, finish what is in flight, flush. SIGINT, or SIGTERM again: the
same without the waiting. SIGHUP, with several workers: replace them one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

BACKLOG = 2048
WS_BYTES_MAX = 4096  # of a message from a client; nothing is expected of one
GRACEFUL_SECONDS = 15
# How long connections stay open behind the listeners: one that was just accepted has not sent its
# request yet, and an idle one may be about to.
LINGER_SECONDS = 1.0
# More than proxies keep theirs (nginx and most balancers: 60 s). Who closes an idle connection must
# not be the one that waits for requests on it.
KEEP_ALIVE_SECONDS = 75
HANDSHAKE_SECONDS = 0.02  # for those that have begun when the listeners are about to close
START_SECONDS_MAX = 30

# Berkeley packet filter: drop what has SYN without ACK, keep the rest.
NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of TCP's flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone? else skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFF_FFFF),  # accept
    )
)
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # Linux; Python has no names for them


def command(*, host: str, port: int, workers: int) -> list[str]:
    """The command line that serves the application (docs/decisions/0002 says why uvicorn)."""
    return [
        sys.executable,
        "-m",
        "gateway_project.server",
        f"--host={host}",
        f"--port={port}",
        f"--workers={workers}",
    ]


class Server(uvicorn.Server):
    """One web process. uvicorn's own answer to SIGTERM is to close its listeners at once."""

    _closes_at: float | None = None
    _is_last = False  # nobody else goes on listening on this port
    _lingers = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed on to uvicorn: it would end the process by the same signal, not with code 0.
        if not self.started:  # nobody was served yet, and the application may be half imported
            self.should_exit = True
            return
        from django.conf import settings

        from gateway_project.process import Process

        is_first = not Process.leaving
        Process.leaving = True
        if is_first:
            self._is_last = sig == signal.SIGTERM
        if sig == signal.SIGTERM and is_first and settings.DRAIN_SECONDS:
            Process.ready = False
            self._closes_at = monotonic() + settings.DRAIN_SECONDS
        elif is_first or sig == signal.SIGINT or self.config.workers == 1:
            # A supervisor says SIGINT: of SIGTERM its workers may get two, one of them from
            # whoever stops the whole group (systemd does).
            self._lingers = bool(settings.DRAIN_SECONDS)
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._closes_at is not None and monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._is_last:
            for listener in sockets or []:
                refuse_handshakes(listener)
            await asyncio.sleep(HANDSHAKE_SECONDS)
        # The kernel resets what it has accepted and we have not when the last listener closes: no
        # await in between.
        late = [connection for listener in sockets or [] for connection in _accepted(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        give_up = monotonic() + LINGER_SECONDS * self._lingers
        while self.server_state.connections and monotonic() < give_up:  # noqa: ASYNC110 - uvicorn's set
            await asyncio.sleep(0.02)
        await super().shutdown()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def refuse_handshakes(listener: socket.socket) -> None:
    """Let no new connection begin, and those that have begun come through.

    Who asks meanwhile asks again a second later, and is then refused.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(NO_SYN, len(NO_SYN))
        count = len(NO_SYN) // struct.calcsize("HBBI")
        with suppress(OSError):  # a sandbox that has no filters
            listener.setsockopt(
                socket.SOL_SOCKET,
                SO_ATTACH_FILTER,
                struct.pack("HP", count, ctypes.addressof(program)),
            )


def allow_handshakes(listener: socket.socket) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # there is no filter, which is the rule
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    listener.setblocking(False)
    with suppress(OSError):
        while True:
            yield listener.accept()[0]


class Worker(multiprocess.Process):
    """One of several web processes on the supervisor's socket."""

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = Server(self.config)
        return self._server

    def terminate(self) -> None:
        """Retire it: without a drain, for the others accept on the same port."""
        if self.exitcode is None:
            tell(self.process, signal.SIGINT)
        self.parent_conn.close()
        self.child_conn.close()


class Supervisor(multiprocess.Multiprocess):
    """Keeps the workers running; uvicorn's own, but for how it stops and replaces them."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        multiprocess.Process = Worker  # type: ignore[misc]  # the name that its methods call
        self._restart = threading.Thread()
        self._stop_signal = signal.SIGTERM

    def handle_int(self) -> None:
        self._stop_signal = signal.SIGINT
        super().handle_int()

    def handle_term(self) -> None:
        if self.should_exit.is_set():  # the second one
            self._stop_signal = signal.SIGINT
        super().handle_term()

    def handle_hup(self) -> None:
        # In a thread: a stop must not wait until the last worker has been replaced.
        if self._restart.is_alive():
            self.signal_queue.append(signal.SIGHUP)  # after this one
        else:
            self._restart = threading.Thread(target=self.restart_all, name="restart")
            self._restart.start()

    def keep_subprocess_alive(self) -> None:
        # Somebody may have sent SIGTERM to one worker: it took itself for the last, and its filter
        # is on the socket that all share.
        for listener in self.sockets:
            allow_handshakes(listener)
        if not self._restart.is_alive():  # who is retiring answers no pings
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        # Ours would go on accepting for workers that have gone.
        for listener in self.sockets:
            listener.close()
        # Not `self.processes`: a restart under way has workers that are not in it.
        for child in multiprocessing.active_children():
            tell(child, self._stop_signal)

    def join_all(self) -> None:
        while children := multiprocessing.active_children():
            if {signal.SIGINT, signal.SIGTERM} & set(self.signal_queue):
                self.signal_queue.clear()
                for child in children:
                    tell(child, signal.SIGINT)
            time.sleep(0.05)


def tell(child: BaseProcess, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child.pid or 0, number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway_project.server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    config = uvicorn.Config(
        "gateway_project.asgi:application",
        host=options.host,
        port=options.port,
        workers=options.workers,
        loop="uvloop",
        http="gateway_project.protocol:BoundedHTTPProtocol",
        lifespan="on",
        ws="gateway_project.protocol:BoundedWebSocketProtocol",
        ws_max_size=WS_BYTES_MAX,
        # Each client would take 100 KB for it, and the same text would be compressed for each.
        ws_per_message_deflate=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_worker_healthcheck=START_SECONDS_MAX,
        # Which proxies to believe is our own setting, and the access log is our own event.
        proxy_headers=False,
        access_log=False,
        server_header=False,
        log_level="warning",
    )
    sockets = [config.bind_socket()]
    if config.workers > 1:
        supervisor = Supervisor(config, sockets)
        supervisor.run()
        failed = any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes)
        return STARTUP_FAILURE if failed else 0
    server = Server(config)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # it would lose what is not written yet
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets)
    return 0


def metrics_folder() -> Path:
    """The folder of Prometheus' multiprocess files: as configured, else a fresh one.

    A configured one may be shared with a Celery worker, so nothing in it is ours to remove.
    """
    configured = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(configured or tempfile.mkdtemp(prefix="gateway-metrics-"))


def drop_metrics_folder(folder: Path) -> None:
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
