"""Several web processes on one socket: started, kept alive, replaced, stopped.

They are forked from the supervisor, which imported the application, and share what none of them
changes. After a SIGHUP they are begun anew instead, since the files of secrets are read where
settings are imported; they share nothing then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess

import uvicorn
from uvicorn import _subprocess
from uvicorn.supervisors import multiprocess

from gateway_project.server.handshakes import allow_handshakes
from gateway_project.server.web_process import Server

SIGHUP_SENTENCE = (
    "SIGHUP: the web processes are replaced one by one. Settings are not read again, but for the "
    "files behind NAME_FILE: to change one, stop the gateway and start it.\n"
)


class Worker(multiprocess.Process):
    """One of several web processes on the supervisor's socket."""

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = Server(self.config)
        return self._server

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        for number in multiprocess.SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # not the supervisor's, who queues them
        super().target(sockets)

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
        preload()
        _begin_by("fork")
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
        sys.stderr.write(SIGHUP_SENTENCE)
        sys.stderr.flush()
        _begin_by("spawn")
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


def preload() -> None:
    """Import all that a web process serves, and keep collections away from it."""
    from django.urls import get_resolver

    from gateway_project import asgi  # noqa: F401 - the application, and its settings
    from gateway_project.core.api import openapi
    from gateway_project.core.memory import tune_gc

    get_resolver().reverse_dict  # noqa: B018 - reading it imports every view
    openapi.document()
    tune_gc()


def _begin_by(method: str) -> None:
    _subprocess.spawn = multiprocessing.get_context(method)  # type: ignore[assignment]


def tell(child: BaseProcess, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child.pid or 0, number)
