"""httpx as Robin's calls use it, against servers that say exactly what a test wants."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from gateway_project.core.context import RequestContext, current
from gateway_project.core.upstream.client import (
    AnswerTooLarge,
    BadAnswer,
    ConnectFailed,
    UpstreamTimeout,
)
from gateway_project.tests.test_http import HANG_UP, OK, Upstream, run
from robin.upstream.http import RobinHTTP


@asynccontextmanager
async def robin_saying(script, user=""):
    upstream = Upstream(script)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    http = RobinHTTP("test", f"http://{user}127.0.0.1:{port}/base/", {"X-Own": "ours"})
    try:
        yield http, upstream
    finally:
        await http.close()
        server.close()


def ask(script, *, method="GET", path="/x", seconds=5.0, bytes_max=None, user=""):
    """(status, content) of one request, or what it raised; and the upstream."""

    async def scenario():
        async with robin_saying(script, user) as (http, upstream):
            http.answer_bytes_max = bytes_max or http.answer_bytes_max
            body = b"{}" if method == "POST" else None
            try:
                answer = await http.request(method, path, body=body, timeout_seconds=seconds)
                return (answer.status, answer.content), upstream
            except Exception as exc:  # noqa: BLE001 - the test looks at it
                return exc, upstream

    return run(scenario)


def head_of(upstream: Upstream, number: int = 0) -> dict[str, str]:
    lines = upstream.heads[number].decode().split("\r\n")[1:-2]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize(
    ("says", "content"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        ([b"HTTP/1.0 200 OK\r\n\r\nuntil", b" it closes", HANG_UP], b"until it closes"),
        (b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", b""),
    ],
    ids=["length", "chunks", "closing", "redirect"],
)
def test_an_answer_as_it_came(says, content):
    found, upstream = ask([says, OK])

    assert found == (302 if b"302" in says else 200, content)
    assert len(upstream.heads) == 1  # a redirect is not followed


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal", HANG_UP], BadAnswer),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhal", HANG_UP], BadAnswer),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, AnswerTooLarge),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 30_000, BadAnswer),
        (HANG_UP, ConnectFailed),
        (9.0, UpstreamTimeout),
    ],
    ids=["half body", "half chunk", "no http", "gzip", "large", "large head", "hang up", "silent"],
)
def test_what_httpx_raises_leaves_as_ours(says, error):
    found, _ = ask([says, says, says], seconds=0.5, bytes_max=1000)

    assert type(found) is error


def test_nobody_there():
    async def scenario():
        http = RobinHTTP("test", "http://127.0.0.1:1", {})
        with pytest.raises(ConnectFailed, match="ConnectError"):
            await http.request("GET", "/x", timeout_seconds=5)
        await http.close()

    run(scenario)


def test_a_read_is_repeated_once_over_a_new_connection():
    async def scenario():
        async with robin_saying([[OK], HANG_UP, OK]) as (http, upstream):
            await http.request("GET", "/x", timeout_seconds=5)
            again = await http.request("GET", "/x", timeout_seconds=5)
            return again.content, upstream.connections, len(upstream.heads)

    # The second ends unanswered on the kept connection.
    assert run(scenario) == (b"ok", 2, 3)
    found, upstream = ask([HANG_UP, HANG_UP, OK])
    assert isinstance(found, ConnectFailed)
    assert len(upstream.heads) == 2


def test_what_changes_something_has_a_connection_of_its_own_and_is_sent_once():
    async def scenario():
        async with robin_saying([OK, HANG_UP, OK]) as (http, upstream):
            await http.request("GET", "/x", timeout_seconds=5)
            with pytest.raises(ConnectFailed):
                await http.request("POST", "/x", body=b"{}", timeout_seconds=5)
            return upstream.connections, len(upstream.heads)

    assert run(scenario) == (2, 2)


def test_two_at_once_and_who_waits_in_vain_had_none():
    async def scenario():
        async with robin_saying([[0.5, OK]] * 3) as (http, upstream):
            first = [
                asyncio.create_task(http.request("GET", "/x", timeout_seconds=5)) for _ in range(2)
            ]
            await asyncio.sleep(0.1)
            with pytest.raises(UpstreamTimeout) as caught:
                await http.request("GET", "/x", timeout_seconds=0.1)
            await asyncio.gather(*first)
            return caught.value.had_seconds, len(upstream.heads), upstream.connections

    assert run(scenario) == (0.0, 2, 2)


def test_what_is_read_in_parts_is_one_of_the_two_at_a_time():
    async def scenario():
        async with robin_saying([OK, [0.3, OK], OK]) as (http, upstream):
            async with http.stream("/list", timeout_seconds=5):
                beside = asyncio.create_task(http.request("GET", "/x", timeout_seconds=5))
                await asyncio.sleep(0.05)
                with pytest.raises(UpstreamTimeout) as caught:
                    await http.request("GET", "/x", timeout_seconds=0.05)
            await beside
            return caught.value.had_seconds, len(upstream.heads)

    assert run(scenario) == (0.0, 2)


def test_one_that_asks_and_asks_keeps_no_other_waiting():
    async def scenario():
        async with robin_saying([[0.05, OK]] * 12) as (http, _):
            ended = []

            async def ask_as(address):
                current.set(RequestContext(address, None, None))
                await http.request("GET", "/x", timeout_seconds=5)
                ended.append(address)

            busy = [asyncio.create_task(ask_as("192.0.2.1")) for _ in range(8)]
            await asyncio.sleep(0.01)
            await asyncio.gather(*busy, asyncio.create_task(ask_as("192.0.2.2")))
            return ended.index("192.0.2.2")

    assert run(scenario) <= 4  # behind the two that were under way, and two of the others at most


def test_callers_that_give_up_leave_the_slots_to_others():
    async def scenario():
        async with robin_saying([[0.3, OK]] * 6 + [OK]) as (http, _):
            for _ in range(3):
                calls = [http.request("GET", "/x", timeout_seconds=0.05) for _ in range(2)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(end) for end in ended] == [UpstreamTimeout] * 2
            answer = await http.request("GET", "/x", timeout_seconds=5)
            return answer.content

    # What comes late belongs to a connection that is closed.
    assert run(scenario) == b"ok"


def test_what_is_sent():
    async def scenario():
        context = RequestContext("127.0.0.1", "caller-1", None)
        current.set(context)
        cookie = OK.replace(b"\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n", 1)
        async with robin_saying([cookie, OK, OK], user="ann:p%40ss@") as (http, upstream):
            await http.request("GET", "/a%2Fb?c=%20d&e=%26", timeout_seconds=5)
            context.correlation_id = None
            await http.request("POST", "/x", body=b"{}", headers={"Accept": "x"}, timeout_seconds=5)
            current.set(None)
            await http.request("GET", "/x", timeout_seconds=5)
            return upstream, context.request_id

    upstream, request_id = run(scenario)
    first, second, third = (head_of(upstream, n) for n in range(3))

    assert upstream.heads[0].startswith(b"GET /base/a%2Fb?c=%20d&e=%26 HTTP/1.1\r\n")
    assert first["authorization"] == "Basic YW5uOnBAc3M="
    assert first["accept-encoding"] == "identity"
    assert first["x-own"] == "ours"
    assert [head.get("x-request-id") for head in (first, second, third)] == [
        "caller-1", request_id, None,
    ]  # fmt: skip
    assert (second["accept"], second["content-length"]) == ("x", "2")
    assert not any("cookie" in head for head in (first, second, third))


def test_the_answer_says_its_media_type():
    typed = OK.replace(b"\r\n", b"\r\nContent-Type: Text/HTML; charset=utf-8\r\n", 1)

    async def scenario():
        async with robin_saying([typed, OK]) as (http, _):
            answers = [await http.request("GET", "/x", timeout_seconds=5) for _ in "12"]
            return [answer.content_type for answer in answers]

    assert run(scenario) == ["text/html", ""]
