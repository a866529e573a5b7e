"""One web process without a server's sockets: requests go into its protocol, answers come out.

`benchmarks/hot_path.py` starts it in the environment of a gateway, perhaps of another checkout, so
it imports nothing of this folder. It reads orders from standard input, a line of JSON each:
`{"kind": "detect" | "cached", "requests", "at_once", "profile"?, "calls"?}`, and answers with one:
`{"cpu_seconds", "instructions" or null, "writes", "trips"}`, all for the whole order, and with
`calls` instead of the time how many functions were called and coroutines begun. The usage flush is
in it; whatever Redis, the engine and the worker do is not.
"""

from __future__ import annotations

import asyncio
import cProfile
import ctypes
import inspect
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

BODY = (
    '{"text":"Message %s. Please read the attached report, list its three main findings in plain '
    'words, and say which of them the team should look at before the release on Friday."}'
)
START = 8  # in bytes of code: no wait stands before it
_run = os.urandom(4).hex()
_numbers = itertools.count()


class Wire(asyncio.Transport):
    """A connection's other end, in memory."""

    def __init__(self, player: Player) -> None:
        super().__init__({"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", 8_000)})
        self._player = player
        self.sent: list[bytes] = []

    def write(self, data: Any) -> None:
        self.sent.append(data)
        self._player.on_write()

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise RuntimeError(f"closed after {b''.join(self.sent)[:400]!r}")

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0


class Player:
    """One connection that asks again as soon as it is answered."""

    def __init__(self, gateway: Driver) -> None:
        self._gateway = gateway
        self._wire = Wire(self)
        self.protocol = gateway.protocol()
        self.protocol.connection_made(self._wire)
        self._is_looking = False

    def ask(self) -> None:
        self._wire.sent.clear()
        self.protocol.data_received(self._gateway.message())

    def on_write(self) -> None:
        self._gateway.writes += 1
        if not self._is_looking:
            self._is_looking = True
            self._gateway.loop.call_soon(self._look)

    def _look(self) -> None:
        self._is_looking = False
        if not self.protocol.cycle.response_complete:
            return
        answer = b"".join(self._wire.sent)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer[:800])
        self._gateway.answered(self)


class Driver:
    """The process: its application, and an order at a time."""

    def __init__(self, keys: list[str]) -> None:
        self.loop = asyncio.get_running_loop()
        self.writes = 0
        self._keys = itertools.cycle(keys)
        self._left = self._open = 0
        self._is_unique = True
        self._done: asyncio.Future[None] | None = None
        self._players: list[Player] = []

    async def start(self) -> None:
        from gateway_project.asgi import application

        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        outgoing: asyncio.Queue[Any] = asyncio.Queue()
        await self._incoming.put({"type": "lifespan.startup"})
        self._lifespan = asyncio.create_task(
            application({"type": "lifespan"}, self._incoming.get, outgoing.put)
        )
        message = await outgoing.get()
        if message["type"] != "lifespan.startup.complete":
            raise RuntimeError(message)
        self._config = uvicorn.Config(
            application,
            http="gateway_project.server.protocol:BoundedHTTPProtocol",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            log_level="warning",
        )
        self._config.load()
        self._state = ServerState()
        self._state.default_headers = [(b"date", b"Mon, 30 Nov 2026 05:00:00 GMT")]

    def protocol(self) -> Any:
        kind: Any = self._config.http_protocol_class
        return kind(config=self._config, server_state=self._state, app_state={})

    def message(self) -> bytes:
        mark = f"{_run}-{next(_numbers)}" if self._is_unique else _run
        body = BODY % mark
        head = (
            "POST /v1/detect HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"
            f"X-API-Key: {next(self._keys)}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return (head + body).encode()

    def answered(self, player: Player) -> None:
        if self._left:
            self._left -= 1
            player.ask()
            return
        self._open -= 1
        if not self._open and self._done is not None:
            self._done.set_result(None)

    async def run(self, order: dict[str, Any]) -> dict[str, Any]:
        from accounts.usage.buffer import buffer
        from gateway_project.core.stores import redis

        self._is_unique = order["kind"] == "detect"
        while len(self._players) < order["at_once"]:
            self._players.append(Player(self))
        players = self._players[: order["at_once"]]
        self._left, self._open = order["requests"] - len(players), len(players)
        self._done = self.loop.create_future()
        await buffer.flush()
        profile = cProfile.Profile() if order.get("profile") else None
        calls = Calls()
        writes, trips = self.writes, redis.connection().round_trips
        began, counted = time.process_time(), _instructions.read()
        if profile is not None:
            profile.enable()
        if order.get("calls"):
            sys.setprofile(calls.note)
        for player in players:
            player.ask()
        await self._done
        await buffer.flush()
        if order.get("calls"):
            sys.setprofile(None)
        if profile is not None:
            profile.disable()
            profile.dump_stats(order["profile"])
        counted_now = _instructions.read()
        return {
            "cpu_seconds": time.process_time() - began,
            "instructions": None if counted is None else counted_now - counted,
            "writes": self.writes - writes,
            "trips": redis.connection().round_trips - trips,
            **(calls.found if order.get("calls") else {}),
        }


class Calls:
    """Functions of Python and of C that were called, and coroutines that were begun."""

    def __init__(self) -> None:
        self.found = {"python": 0, "c": 0, "coroutines": 0}

    def note(self, frame: Any, event: str, _: Any) -> None:
        if event == "c_call":
            self.found["c"] += 1
        elif event == "call":
            self.found["python"] += 1
            # A coroutine that goes on after a wait is called again, further down.
            if frame.f_code.co_flags & inspect.CO_COROUTINE and frame.f_lasti <= START:
                self.found["coroutines"] += 1


class Instructions:
    """The processor's own count of this thread's instructions in user space, where it may be read.

    `perf_event_open(2)`: type 0 (hardware), config 1 (instructions), without kernel and hypervisor.
    """

    SIZE, TYPE, CONFIG, EXCLUDE = 112, 0, 1, 1 << 5 | 1 << 6
    SYSCALL = {"x86_64": 298, "aarch64": 241}

    def __init__(self) -> None:
        words = bytearray(self.SIZE)
        words[4:8] = self.SIZE.to_bytes(4, sys.byteorder)
        words[8:16] = self.CONFIG.to_bytes(8, sys.byteorder)
        words[40:48] = self.EXCLUDE.to_bytes(8, sys.byteorder)
        number = self.SYSCALL.get(os.uname().machine)
        attributes = (ctypes.c_char * self.SIZE).from_buffer(words)
        call = ctypes.CDLL(None, use_errno=True).syscall
        self._file = -1 if number is None else call(number, attributes, 0, -1, -1, 0)

    def read(self) -> Any:
        return None if self._file < 0 else int.from_bytes(os.read(self._file, 8), sys.byteorder)


_instructions = Instructions()


async def main(keys: list[str], out: Any) -> None:
    driver = Driver(keys)
    await driver.start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        out.write(json.dumps(await driver.run(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    # What the gateway logs goes where its log would go, and not between the answers.
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    uvloop.install()
    asyncio.run(main(Path(sys.argv[1]).read_text().split(), answers))
