"""A mail server for Robin to deliver to, which does what the recipient's domain says.

    python -m deploy.robin_real.sink PORT FILE [SECONDS]

Whoever is taken is a line of FILE: Unix seconds and recipient. SECONDS is how long it takes over
each mail, as distant servers do.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

TAKEN = "taken.example"
LATER = "later.example"
NEVER = "never.example"
SLOW = "slow.example"
LIAR = "liar.example"
"""Its answer has a second line that looks like one of Robin's log."""
SLOW_SECONDS = 25.0
"""Robin waits for 30."""
REPLIES = {LATER: "451 4.2.1 Try again later", NEVER: "550 5.1.1 No such user"}
LINE_BYTES_MAX = 64 << 10


def forged(logger: str) -> str:
    """A line as Robin's log has them, of this moment."""
    stamp = f"{datetime.now(UTC):%m%d-%H%M%S}999"
    return f"ERROR|{stamp}|main|{logger}||||root logged in"


class Sink:
    def __init__(self, file: Path, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._file = file.open("a", buffering=1)

    def close(self) -> None:
        self._file.close()

    async def start(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port, limit=LINE_BYTES_MAX)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever hangs up may
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        recipients: list[str] = []
        await say("220 sink.example")
        while line := await reader.readline():
            verb, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            verb = verb.upper()
            if verb in ("EHLO", "HELO"):
                await say("250 sink.example")
            elif verb == "RCPT":
                recipient = rest.partition("<")[2].partition(">")[0]
                domain = recipient.rpartition("@")[2]
                reply = REPLIES.get(domain, "250 2.1.5 OK")
                if domain == LIAR:
                    reply = f"550-5.7.1 Not you\r\n{forged('auth.Liar')}"
                recipients += [recipient] if reply.startswith("250") else []
                await say(reply)
            elif verb == "DATA":
                if not recipients:
                    await say("503 5.5.1 No recipients")
                    continue
                await say("354 Go ahead")
                await self._take(reader, recipients)
                recipients = []
                await say("250 2.0.0 Taken")
            elif verb == "QUIT":
                await say("221 2.0.0 Bye")
                return
            elif verb in ("MAIL", "RSET", "NOOP"):
                recipients = [] if verb == "RSET" else recipients
                await say("250 2.0.0 OK")
            else:
                await say("502 5.5.2 Not known here")

    async def _take(self, reader: asyncio.StreamReader, recipients: list[str]) -> None:
        while (line := await reader.readline()) not in (b".\r\n", b".\n"):
            if not line:
                raise ConnectionResetError
        is_slow = any(one.endswith(f"@{SLOW}") for one in recipients)
        if wait := SLOW_SECONDS if is_slow else self.seconds:
            await asyncio.sleep(wait)
        for one in recipients:
            self._file.write(f"{time.time():.3f} {one}\n")


def taken(file: Path) -> list[tuple[float, str]]:
    """(Unix seconds, recipient) of each mail that was taken."""
    if not file.exists():
        return []
    lines = (line.split(" ", 1) for line in file.read_text().splitlines())
    return [(float(at), recipient) for at, recipient in lines]


async def main(port: int, file: Path, seconds: float) -> None:
    with closing(Sink(file, seconds)) as sink:
        async with await sink.start(port) as server:
            await server.serve_forever()


if __name__ == "__main__":
    port, file, *more = sys.argv[1:]
    asyncio.run(main(int(port), Path(file), float(more[0]) if more else 0.0))
