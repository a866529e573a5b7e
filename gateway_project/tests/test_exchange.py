"""How an answer leaves: in one piece where it is whole, and as uvicorn sends it where it is not."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway_project.core.api.middleware import WHOLE_BODY
from gateway_project.server import protocol
from gateway_project.server.protocol import BoundedHTTPProtocol

START = {"type": "http.response.start", "status": 200}
LENGTH = (b"content-length", b"5")
ASK = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi"


class Wire:
    """A client's connection, as the protocol sees it."""

    def __init__(self):
        self.pieces = []
        self.is_closed = False

    def write(self, data):
        self.pieces.append(bytes(data))

    def close(self):
        self.is_closed = True

    abort = close

    def is_closing(self):
        return self.is_closed

    def get_extra_info(self, name):
        return {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)}.get(name)

    def get_write_buffer_size(self):
        return 0

    def can_write_eof(self):
        return False

    def ignore(self, *_):
        pass

    pause_reading = resume_reading = set_protocol = ignore


def sent_by(*messages, ask=ASK):
    """The pieces that leave when an application says this."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    async def run():
        config = uvicorn.Config(
            app, http=BoundedHTTPProtocol, proxy_headers=False, access_log=False, log_config=None
        )
        config.load()
        protocol = BoundedHTTPProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        protocol.access_log = False
        wire = Wire()
        protocol.connection_made(wire)
        protocol.data_received(ask)
        for _ in range(5):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return wire.pieces

    return asyncio.run(run())


def body(content, *, more=False):
    return {"type": "http.response.body", "body": content, "more_body": more}


def test_a_whole_answer_is_one_piece():
    [piece] = sent_by({**START, "headers": [(b"A", b"b"), LENGTH]}, body(b"hello"))

    assert piece == b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 5\r\n\r\nhello"


def test_one_that_ends_its_connection_says_so():
    ask = ASK.replace(b"Host", b"Connection: close\r\nHost")

    [piece] = sent_by({**START, "headers": [LENGTH]}, body(b"hello"), ask=ask)

    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in piece


@pytest.mark.parametrize(
    ("start", "messages", "wanted"),
    [
        ([LENGTH], [body(b"he", more=True), body(b"llo")], b"content-length: 5\r\n\r\nhello"),
        ([], [body(b"hello")], b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ([LENGTH, (b"connection", b"close")], [body(b"hello")], b"connection: close\r\n\r\nhello"),
    ],
    ids=["in parts", "without a length", "of its connection"],
)
def test_all_others_leave_as_before(start, messages, wanted):
    whole = b"".join(sent_by({**START, "headers": start}, *messages))

    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole.endswith(wanted)


def test_the_answer_to_head_has_no_body():
    ask = ASK.replace(b"POST", b"HEAD")

    whole = b"".join(sent_by({**START, "headers": [LENGTH]}, body(b""), ask=ask))

    assert whole.endswith(b"content-length: 5\r\n\r\n")


@pytest.mark.hostile
@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"\r\n", b"a\x00b"])
def test_no_header_ends_its_line(value):
    whole = b"".join(sent_by({**START, "headers": [(b"x", value), LENGTH]}, body(b"hello")))

    assert value not in whole.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")
    assert b"set-cookie" not in whole
    assert b"hello" not in whole


@pytest.mark.parametrize(("workers", "ends_with"), [(2, 3), (1, None)])
def test_a_connection_ends_where_another_process_may_have_less_to_do(
    workers, ends_with, monkeypatch
):
    monkeypatch.setattr(protocol, "REQUESTS_OF_A_CONNECTION", (3, 3))

    async def app(scope, receive, send):
        await send({**START, "headers": [LENGTH]})
        await send(body(b"hello"))

    async def run():
        config = uvicorn.Config(app, http=BoundedHTTPProtocol, log_config=None, workers=workers)
        config.load()
        connection = BoundedHTTPProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        wire = Wire()
        connection.connection_made(wire)
        for number in (1, 2, 3):
            connection.data_received(ASK)
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
            assert (b"connection: close" in wire.pieces[-1]) is (number == ends_with)
            assert wire.is_closed is (number == ends_with)
        connection.connection_lost(None)

    asyncio.run(run())


def test_a_body_that_is_here_is_given_once():
    given = []

    async def app(scope, receive, send):
        given.extend((scope[WHOLE_BODY](), scope[WHOLE_BODY]()))
        given.append(await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(receive())), 5))

    async def run(*pieces):
        config = uvicorn.Config(app, http=BoundedHTTPProtocol, log_config=None)
        config.load()
        protocol = BoundedHTTPProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        protocol.connection_made(Wire())
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(0)
        protocol.connection_lost(None)  # which `receive` is told of
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    asyncio.run(run(ASK))
    assert given == [b"hi", b"", {"type": "http.disconnect"}]
    given.clear()
    asyncio.run(run(ASK[:-1], ASK[-1:]))
    assert given[:2] == [None, None]


def test_a_connection_has_one_timer_and_is_closed_when_it_has_rested_long_enough():
    async def app(scope, receive, send):
        await send({**START, "headers": [LENGTH]})
        await send(body(b"hello"))

    async def run():
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app, http=BoundedHTTPProtocol, access_log=False, log_config=None)
        config.load()
        protocol = BoundedHTTPProtocol(config, ServerState(), {}, loop)
        protocol.access_log = False
        wire, timers = Wire(), set()
        protocol.connection_made(wire)
        for _ in range(3):
            protocol.data_received(ASK)
            for _ in range(5):
                await asyncio.sleep(0)
            assert protocol._idle_since is not None
            timers.add(protocol.timeout_keep_alive_task)
        protocol._idle_since -= protocol.timeout_keep_alive - 1
        protocol._look_whether_idle()  # as the timer does
        is_early = wire.is_closed
        protocol._idle_since -= 1
        protocol._look_whether_idle()
        protocol.connection_lost(None)
        return len(timers), is_early, wire.is_closed, protocol.timeout_keep_alive_task

    assert asyncio.run(run()) == (1, False, True, None)
