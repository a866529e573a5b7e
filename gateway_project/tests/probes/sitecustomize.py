"""Loaded by Python itself in every process whose PYTHONPATH leads here: says what it holds.

Whoever connects to the socket file `$PROBES/PID` gets a line of JSON: after a full collection, how
many objects of each type there are (what was frozen at the start is left out), blocks of memory in
use, open files and threads.
"""

import gc
import json
import os
import socket
import sys
import threading
from collections import Counter


def _found() -> dict[str, object]:
    for _ in range(3):  # what finalizers let go of goes in the next one
        gc.collect()
    types = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return {
        "types": types,
        "blocks": sys.getallocatedblocks(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def _serve() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{os.environ['PROBES']}/{os.getpid()}")
        listener.listen()
        while True:
            caller, _ = listener.accept()
            with caller:
                caller.sendall(json.dumps(_found()).encode() + b"\n")


def _start() -> None:
    threading.Thread(target=_serve, name="probe", daemon=True).start()


if "PROBES" in os.environ:
    os.register_at_fork(after_in_child=_start)
    _start()
