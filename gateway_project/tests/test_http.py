"""The client of our upstreams, against servers that say exactly what a test wants."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from contextlib import asynccontextmanager

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway_project.core.upstream.client import (
    BadAnswer,
    ConnectFailed,
    UpstreamClient,
    UpstreamTimeout,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANG_UP = object()


class Upstream:
    """Answers each request with the next piece of the script; keeps what it was sent."""

    def __init__(self, script):
        self.script = list(script)
        self.heads: list[bytes] = []
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while self.script:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if b"Content-Length: " in head:
                    await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))
                says = self.script.pop(0)
                for part in says if isinstance(says, list) else [says]:
                    if part is HANG_UP:
                        return
                    if isinstance(part, float):
                        await asyncio.sleep(part)
                    else:
                        writer.write(part)
                        await writer.drain()
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def client_of(script, tls=None, user="", **options):
    upstream = Upstream(script)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    scheme = "https" if tls else "http"
    url = f"{scheme}://{user}127.0.0.1:{port}/base/"
    try:
        async with UpstreamClient("test", url, **options) as client:
            yield client, upstream
    finally:
        server.close()  # else the loop waits for it, and hides what failed


def run(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(scenario())


def ask(script, *, seconds=5.0, **options):
    """(status, content) of one request, or what it raised; and the upstream."""

    async def scenario():
        async with client_of(script, **options) as (client, upstream):
            try:
                answer = await client.request("GET", "/x", timeout_seconds=seconds)
                return (answer.status, answer.content), upstream
            except Exception as exc:  # noqa: BLE001 - the test looks at it
                return exc, upstream

    return run(scenario)


@pytest.mark.parametrize(
    ("says", "content"),
    [
        (OK, b"ok"),
        ([OK[:5], OK[5:30], OK[30:]], b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        ([b"HTTP/1.0 200 OK\r\n\r\nuntil", b" it closes", HANG_UP], b"until it closes"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
    ids=["length", "pieces", "chunks", "closing", "continue", "none", "empty"],
)
def test_an_answer_ends_as_http_says(says, content):
    (status, found), _ = ask([says])

    assert (status in (200, 204), found) == (True, content)


@pytest.mark.parametrize(
    "says",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal", HANG_UP],
        [b"HTTP/1.1 200 OK\r\nContent-Le", HANG_UP],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhal", HANG_UP],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 30_000,
    ],
    ids=["half body", "half head", "half chunk", "no http", "gzip", "large", "large head"],
)
def test_what_is_no_whole_answer_is_a_bad_one(says):
    error, upstream = ask([says], answer_bytes_max=100_000)

    assert isinstance(error, BadAnswer)
    assert upstream.connections == 1


class TestConnections:
    def test_one_is_kept_for_the_next_request(self):
        async def scenario():
            async with client_of([OK, OK, OK]) as (client, upstream):
                for _ in range(3):
                    await client.request("POST", "/x", body=b"12", timeout_seconds=5)
                return upstream

        assert run(scenario).connections == 1

    @pytest.mark.parametrize(
        "first",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            OK + OK,  # two answers to one request
            [OK, 0.02, OK],
        ],
        ids=["asked to close", "said twice", "said later"],
    )
    def test_one_that_cannot_be_trusted_is_not(self, first):
        async def scenario():
            async with client_of([first, b"HTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n"]) as (
                client,
                upstream,
            ):
                await client.request("GET", "/x", timeout_seconds=5)
                await asyncio.sleep(0.1)  # what comes late has to come
                second = await client.request("GET", "/x", timeout_seconds=5)
                return second.status, upstream.connections

        assert run(scenario) == (201, 2)

    def test_one_in_use_is_not_kept_when_the_address_changes(self):
        async def scenario():
            async with client_of([[0.05, OK], OK]) as (client, upstream):
                under_way = asyncio.create_task(client.request("GET", "/x", timeout_seconds=5))
                await asyncio.sleep(0.02)
                client.base_url = client.base_url
                await under_way
                await client.request("GET", "/x", timeout_seconds=5)
                return upstream.connections

        assert run(scenario) == 2

    def test_those_of_a_busy_hour_are_closed_when_they_have_rested(self):
        async def scenario():
            async with client_of([[0.05, OK]] * 2 + [OK] * 3) as (client, _):
                calls = [client.request("GET", "/x", timeout_seconds=5) for _ in range(2)]
                await asyncio.gather(*calls)
                oldest = client._idle[0]
                oldest.idle_since -= 60
                await client.request("GET", "/x", timeout_seconds=5)
                return len(client._idle), oldest.is_open

        assert run(scenario) == (1, False)

    def test_one_that_closed_while_kept_costs_no_request(self):
        async def scenario():
            async with client_of([[OK], HANG_UP, OK]) as (client, upstream):
                await client.request("GET", "/x", timeout_seconds=5)
                second = await client.request("GET", "/x", timeout_seconds=5)
                return second.status, upstream.connections

        assert run(scenario) == (200, 2)

    def test_it_costs_no_other_its_connection(self):
        async def scenario():
            async with client_of([[OK], [0.2, OK], HANG_UP, OK, OK, OK]) as (client, _):
                await client.request("GET", "/x", timeout_seconds=5)
                slow = asyncio.create_task(client.request("GET", "/slow", timeout_seconds=5))
                await asyncio.sleep(0.05)
                used = client._generation
                await client.request("GET", "/y", timeout_seconds=5)
                await slow
                return client._generation - used, len(client._idle)

        assert run(scenario) == (0, 2)

    def test_who_closes_twice_has_failed(self):
        error, upstream = ask([HANG_UP, HANG_UP, OK])

        assert isinstance(error, ConnectFailed)
        assert upstream.connections == 2

    def test_nobody_there(self):
        async def scenario():
            async with UpstreamClient("test", "http://127.0.0.1:1") as client:
                with pytest.raises(ConnectFailed, match="ConnectionRefusedError"):
                    await client.request("GET", "/x", timeout_seconds=5)

        run(scenario)

    def test_the_answer_to_a_request_that_gave_up_is_nobody_elses(self):
        async def scenario():
            late = [0.2, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"]
            async with client_of([late, OK]) as (client, _):
                with pytest.raises(UpstreamTimeout) as caught:
                    await client.request("GET", "/x", timeout_seconds=0.05)
                second = await client.request("GET", "/x", timeout_seconds=5)
                return caught.value.had_seconds > 0, second.content

        assert run(scenario) == (True, b"ok")

    def test_who_waits_for_a_place_had_none(self):
        async def scenario():
            async with client_of([[0.5, OK], OK], in_flight_max=1) as (client, upstream):
                first = asyncio.create_task(client.request("GET", "/x", timeout_seconds=5))
                await asyncio.sleep(0.05)
                with pytest.raises(UpstreamTimeout) as caught:
                    await client.request("GET", "/x", timeout_seconds=0.05)
                await first
                return caught.value.had_seconds, len(upstream.heads)

        assert run(scenario) == (0.0, 1)


def test_what_is_sent():
    async def scenario():
        async with client_of([OK], user="ann:p%40ss@") as (client, upstream):
            await client.request(
                "POST", "/x?y=1", body=b"{}", headers={"X-Request-ID": "a"}, timeout_seconds=5
            )
            return upstream.heads[0].decode(), client._address[1]

    head, port = run(scenario)

    assert head == (
        f"POST /base/x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Authorization: Basic YW5uOnBAc3M=\r\nX-Request-ID: a\r\nContent-Length: 2\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/x", {"X": "a\r\nY: b"}), ("/x HTTP/1.1\r\nY: b", {}), ("/x y", {})],
)
def test_nothing_ends_a_line_early(path, headers):
    async def scenario():
        async with client_of([OK]) as (client, _):
            with pytest.raises(ValueError, match="would end its line"):
                await client.request("GET", path, headers=headers, timeout_seconds=5)

    run(scenario)


class TestTLS:
    @pytest.fixture
    def certificate(self, tmp_path):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / "certificate.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
        return path

    @pytest.fixture
    def tls(self, certificate):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        return context

    def test_a_trusted_certificate(self, tls, certificate, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

        assert ask([OK], tls=tls)[0] == (200, b"ok")

    def test_an_unknown_one(self, tls):
        error, upstream = ask([OK], tls=tls)

        assert isinstance(error, ConnectFailed)
        assert upstream.heads == []
