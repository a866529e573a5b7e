"""A TCP proxy before a store that can refuse, fall silent, or be slow, whenever a test says so."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Literal

Mode = Literal["well", "refusing", "silent", "slow"]
SLOW_SECONDS = 0.6


class Proxy:
    """`proxy.mode = "silent"`: connections stay, and nothing gets through in either direction."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.mode: Mode = "well"
        self._open: set[socket.socket] = set()
        self._is_over = False
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._thread.join()
        self._listener.close()
        self.cut()

    def be(self, mode: Mode) -> None:
        """From now on; one that refuses also resets what is open."""
        self.mode = mode
        if mode == "refusing":
            self.cut()

    def cut(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._is_over or self.mode == "refusing":
                client.close()
                if self._is_over:
                    return
                continue
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            self._open |= {client, server}
            try:
                with selectors.DefaultSelector() as ready:
                    ready.register(client, selectors.EVENT_READ, server)
                    ready.register(server, selectors.EVENT_READ, client)
                    while True:
                        for key, _ in ready.select():
                            while self.mode == "silent" and not self._is_over:
                                time.sleep(0.01)
                            data = key.fileobj.recv(65536)
                            if not data:
                                return
                            if self.mode == "slow":
                                time.sleep(SLOW_SECONDS)
                            key.data.sendall(data)
            finally:
                self._open -= {client, server}
