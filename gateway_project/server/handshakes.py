"""Closing a listener without losing a connection that has begun (docs/decisions/0010).

`accepted` is for every stop; the filter only where `SERVER_CLOSE_FILTER` asks for it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

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


def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    listener.setblocking(False)
    with suppress(OSError):
        while True:
            yield listener.accept()[0]
