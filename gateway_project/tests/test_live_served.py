"""/ws/queue on real sockets: two workers with one lock, and clients of every kind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import asynccontextmanager

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.served]
BIG = "x" * 200


class Robin:
    """The file that the served processes take for Robin."""

    def __init__(self, folder):
        self.path = folder / "queue.json"
        self.has(1, 2)

    def has(self, *numbers, **fields):
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps([{"uid": f"uid-{n}", **fields} for n in numbers]))
        draft.rename(self.path)  # whole, whenever it is read

    def asked(self):
        """The processes that asked, in order."""
        path = self.path.with_suffix(".asked")
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def robin(tmp_path):
    return Robin(tmp_path)


@pytest.fixture
def served(serve, robin):
    return serve(
        WORKERS="2",
        DJANGO_SETTINGS_MODULE="gateway_project.tests.fake_robin_settings",
        FAKE_ROBIN=str(robin.path),
        QUEUE_POLL_SECONDS="0.2",
        TRUSTED_PROXY_HOPS="1",
    )


class Viewer:
    def __init__(self, socket):
        self.socket = socket
        self.items = None

    async def says(self, kind):
        async with asyncio.timeout(15):
            while True:
                message = json.loads(await self.socket.recv())
                if message["type"] == "snapshot":
                    self.items = {item["uid"] for item in message["items"]}
                elif message["type"] == "diff":
                    self.items -= set(message["removed"])
                    self.items |= {item["uid"] for item in message["added"]}
                if message["type"] == kind:
                    return message

    async def sees(self, *numbers):
        expected = {f"uid-{n}" for n in numbers}
        while self.items != expected:
            await self.says("diff" if self.items is not None else "snapshot")

    async def code(self):
        try:
            async with asyncio.timeout(15):
                while True:
                    await self.socket.recv()
        except websockets.ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None


@asynccontextmanager
async def viewers(served, token, count):
    """`count` connections; the kernel spreads them over the workers."""
    url = served.url.replace("http", "ws") + "/ws/queue"
    found = [await connect(url, subprotocols=["bearer", token]) for _ in range(count)]
    try:
        yield [Viewer(socket) for socket in found]
    finally:
        for socket in found:
            await socket.close()


async def seen(viewers, *numbers):
    await asyncio.gather(*(viewer.sees(*numbers) for viewer in viewers))


def test_two_workers_have_one_leader_and_one_state(served, robin, member):
    """All see the same, the end of a session is heard in each, and who asks is replaced."""
    ada, bob = member(by_hand=True), member(by_hand=True)

    async def scenario():
        async with viewers(served, bob.token, 6) as his:
            await seen(his, 1, 2)
            async with httpx.AsyncClient() as http:
                answer = await http.post(f"{served.url}/api/v1/auth/logout", headers=bob.bearer)
            assert answer.status_code == 204
            assert set(await asyncio.gather(*(viewer.code() for viewer in his))) == {4401}
        async with viewers(served, ada.token, 12) as all_of_them:
            await seen(all_of_them, 1, 2)
            robin.has(2, 3)
            await seen(all_of_them, 2, 3)
            leader = robin.asked()[-1]
            assert leader in served.web_workers()
            count = len(robin.asked())
            await asyncio.sleep(1)
            assert set(robin.asked()[count:]) == {leader}

            os.kill(leader, signal.SIGKILL)
            started = time.monotonic()
            robin.has(3, 4)
            received = await asyncio.gather(
                *(viewer.sees(3, 4) for viewer in all_of_them), return_exceptions=True
            )
            took = time.monotonic() - started

            left = [viewer for viewer, e in zip(all_of_them, received, strict=True) if e is None]
            gone = [e for e in received if e is not None]
            assert left, "all sockets were the dead worker's: the kernel did not spread them"
            assert all(isinstance(e, websockets.ConnectionClosed) for e in gone)
            assert robin.asked()[-1] != leader
            assert took < 10

    asyncio.run(scenario())
    # Nobody watches any more: nobody is asked.
    time.sleep(0.3)
    count = len(robin.asked())
    time.sleep(0.7)
    assert len(robin.asked()) == count


def test_a_client_that_does_not_read_is_dropped_alone(served, robin, member):
    ada = member(by_hand=True)
    url = served.url.replace("http", "ws") + "/ws/queue"

    async def scenario():
        # It leaves what it is sent in the kernel's buffers, until they are full.
        slow = await connect(url, subprotocols=["bearer", ada.token], max_queue=1)
        async with viewers(served, ada.token, 2) as all_of_them:
            turn = 0
            async with asyncio.timeout(60):
                while "live_client_dropped" not in served.output():
                    turn += 1
                    numbers = range(turn * 1000, turn * 1000 + 1000)
                    robin.has(*numbers, filler=BIG)
                    await seen(all_of_them, *numbers)
            # A stop tells the others to come again.
            served.process.send_signal(signal.SIGTERM)
            codes = await asyncio.gather(*(viewer.code() for viewer in all_of_them))
            assert set(codes) == {1012}  # service restart
        slow.transport.abort()

    asyncio.run(scenario())
    assert served.process.wait(30) == 0
    [dropped] = [x for x in served.lines() if x.get("event") == "live_client_dropped"]
    assert dropped["code"] == 4408


def test_no_token_is_in_any_log(serve, robin, member):
    served = serve(
        WORKERS="1",
        DJANGO_SETTINGS_MODULE="gateway_project.tests.fake_robin_settings",
        FAKE_ROBIN=str(robin.path),
        LOG_LEVEL="DEBUG",
    )
    ada = member(by_hand=True)
    url = served.url.replace("http", "ws") + f"/ws/queue?token={ada.token}"

    async def scenario():
        async with connect(url) as socket:
            await Viewer(socket).sees(1, 2)
        async with connect(url + "x") as socket:
            assert await Viewer(socket).code() == 4401

    asyncio.run(scenario())
    assert served.stop() == 0
    assert "live_leads" in served.output()
    for secret in (ada.token, ada.token.rpartition(".")[2][:20]):
        assert secret not in served.output()
