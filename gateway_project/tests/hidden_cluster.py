"""A Redis Cluster behind one address, as services and proxies hide one.

Each command goes to the node of its key. The nodes themselves refuse what touches two slots
(`CROSSSLOT`); `refused` has what they said. Scripts are loaded everywhere, a transaction goes where
its first key lies, messages (pub/sub) go by way of the first node, which tells the others.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import redis
from redis.crc import key_slot

from gateway_project.tests.loop_thread import LoopThread

KEYLESS = ("CLIENT", "SELECT", "AUTH")
EVERYWHERE = ("SCRIPT", "FLUSHALL")
ANYWHERE = ("PING", "PUBLISH", "INFO", "TIME", "HELLO", "COMMAND", "CONFIG", "UNWATCH")


class HiddenCluster:
    def __init__(self, nodes: list[tuple[str, int]]) -> None:
        self.refused: list[str] = []
        self.answered: set[int] = set()
        """Ports of nodes that were asked for a key."""
        self._nodes = nodes
        slots: Any = redis.Redis(*nodes[0]).execute_command("CLUSTER", "SLOTS")
        self._ranges = [(first, last, (node[0].decode(), node[1])) for first, last, node in slots]
        self._thread = LoopThread("hidden-cluster")
        self._server = self._thread.run(self._start())
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def close(self) -> None:
        self._thread.loop.call_soon_threadsafe(self._server.close)
        self._thread.close()

    def node_of(self, key: bytes) -> tuple[str, int]:
        slot = key_slot(key)
        return next(node for first, last, node in self._ranges if first <= slot <= last)

    async def _start(self) -> Any:
        return await asyncio.start_server(self._take, "127.0.0.1", 0)

    async def _take(self, reader: Any, writer: Any) -> None:
        client = _Client(self, writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if command[0].upper() in (b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE"):
                        await client.tunnel(command)
                    else:
                        await client.answer(command)
                await writer.drain()
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # one side hung up, or the test is over
        finally:
            client.close()
            writer.transport.abort()


class _Client:
    """One connection to us, and those to nodes that it needed."""

    def __init__(self, cluster: HiddenCluster, writer: Any) -> None:
        self._cluster, self._writer = cluster, writer
        self._open: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._hello: list[bytes] | None = None
        self._queued: list[list[bytes]] | None = None
        self._listening: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        for _, writer in self._open.values():
            writer.transport.abort()

    async def answer(self, command: list[bytes]) -> None:
        name = command[0].decode().upper()
        if self._listening is not None:  # a connection that listens says PING there
            (await self._node(self._cluster._nodes[0]))[1].write(
                hiredis.pack_command(tuple(command))
            )
        elif name == "MULTI":
            self._queued = []
            self._writer.write(b"+OK\r\n")
        elif name == "EXEC":
            await self._execute()
        elif self._queued is not None:
            self._queued.append(command)
            self._writer.write(b"+QUEUED\r\n")
        elif name in KEYLESS:
            self._writer.write(b"+OK\r\n")
        elif name in EVERYWHERE:
            replies = [await self._ask(node, [command]) for node in self._cluster._nodes]
            self._writer.write(replies[0])
        else:
            if name == "HELLO":
                self._hello = command
            self._writer.write(await self._ask(self._place(command), [command]))

    async def tunnel(self, command: list[bytes]) -> None:
        reader, writer = await self._node(self._cluster._nodes[0])
        writer.write(hiredis.pack_command(tuple(command)))
        if self._listening is None:
            self._listening = asyncio.ensure_future(self._pass_on(reader))

    async def _pass_on(self, reader: Any) -> None:
        while data := await reader.read(65536):
            self._writer.write(data)

    async def _execute(self) -> None:
        commands, self._queued = self._queued or [], None
        node = self._place(commands[0])
        self._writer.write(await self._ask(node, [[b"MULTI"], *commands, [b"EXEC"]]))

    def _place(self, command: list[bytes]) -> tuple[str, int]:
        name = command[0].decode().upper()
        if name in ANYWHERE:
            return self._cluster._nodes[0]
        if name in ("EVAL", "EVALSHA"):
            key = command[3] if int(command[2]) else b""
        else:
            key = command[2] if name in ("XREAD", "OBJECT") else command[1]
        node = self._cluster.node_of(key)
        self._cluster.answered.add(node[1])
        return node

    async def _ask(self, node: tuple[str, int], commands: list[list[bytes]]) -> bytes:
        """The last of their replies, byte for byte."""
        reader, writer = await self._node(node)
        raw = b""
        for command in commands:
            writer.write(hiredis.pack_command(tuple(command)))
            raw = await _reply(reader)
            if raw.startswith((b"-CROSSSLOT", b"-MOVED", b"-EXECABORT")):
                self._cluster.refused.append(f"{raw.decode().strip()}: {commands}")
        return raw

    async def _node(self, node: tuple[str, int]) -> tuple[Any, Any]:
        if node not in self._open:
            self._open[node] = await asyncio.open_connection(*node)
            if self._hello is not None:
                await self._ask(node, [self._hello])
        return self._open[node]


async def _reply(reader: Any) -> bytes:
    parser, raw = hiredis.Reader(), b""
    while True:
        data = await reader.read(65536)
        if not data:
            raise asyncio.IncompleteReadError(raw, None)
        raw += data
        parser.feed(data)
        if parser.gets() is not False:
            return raw
