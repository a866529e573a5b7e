"""Free ports for stand-ins. Without Django, as all that they start with."""

from __future__ import annotations

import socket
from collections.abc import Container


def is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def next_free(port: int, *, host: str = "127.0.0.1", but: Container[int] = ()) -> int:
    """`but`: ports that were given to somebody who does not listen there yet."""
    while port in but or not is_free(host, port):
        port += 1
    return port
