"""What served processes do while their stores fail and their clients are slow.

Each test is a row of the table in docs/faults.md.
"""

from __future__ import annotations

import json
import select
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from accounts.models import UsageLog
from accounts.usage import stream
from gateway_project.tests.served import wait_until
from gateway_project.tests.test_served import database_away

pytestmark = pytest.mark.served


def _has_answered(client):
    return bool(select.select([client], [], [], 0)[0])


def ready(served):
    return httpx.get(f"{served.url}/health/ready").json()


def spend(served, key, calls):
    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(lambda _: served.detect(key).status_code, range(calls)))


def test_200_at_once_through_two_workers_let_exactly_60_pass(serve, acme_key):
    statuses = spend(serve(WORKERS="2"), acme_key, 200)

    assert (statuses.count(200), statuses.count(429)) == (60, 140)


class TestRedis:
    @pytest.mark.slow
    def test_away_limits_are_local_and_said_so_and_exact_again_afterwards(
        self, serve, own_redis, acme_key
    ):
        served = serve(WORKERS="1", REDIS_URL=own_redis.url)
        served.detect(acme_key)

        own_redis.stop()
        away = spend(served, acme_key, 70)
        shown = ready(served)
        text = httpx.get(f"{served.url}/metrics").text
        own_redis.start()
        wait_until(lambda: served.limits(acme_key) and ready(served)["limits"] == "exact")
        back = spend(served, acme_key, 70)

        assert (away.count(200), away.count(429)) == (60, 10)
        assert (shown["status"], shown["limits"]) == ("degraded", "degraded")
        assert 'gateway_ratelimit_degraded_total{policy="minute"}' in text
        assert (back.count(200), back.count(429)) == (60, 10)

    @pytest.mark.slow
    def test_closed_by_policy_it_refuses_with_503(self, serve, own_redis, acme_key):
        served = serve(WORKERS="1", REDIS_URL=own_redis.url, RATE_LIMIT_FAILURE_POLICY="closed")

        own_redis.stop()
        r = served.detect(acme_key)

        assert (r.status_code, r.json()["code"]) == (503, "store_unavailable")

    @pytest.mark.slow
    def test_flushed_in_the_middle_no_request_fails(self, serve, own_redis, make_key):
        key = make_key(rate_limit_per_minute=1000)
        served = serve(WORKERS="2", REDIS_URL=own_redis.url)

        statuses = []
        for n in range(60):
            if n % 20 == 10:
                with own_redis.client as client:
                    client.flushall()
            statuses.append(served.detect(key, f"hello {n}").status_code)

        assert statuses == [200] * 60

    @pytest.mark.slow
    def test_frozen_it_slows_nobody_down_for_long(self, serve, own_redis, make_key):
        key = make_key(rate_limit_per_minute=1000)
        served = serve(WORKERS="1", REDIS_URL=own_redis.url)
        served.detect(key)

        own_redis.freeze()
        answers = [served.detect(key, f"hello {n}") for n in range(5)]
        own_redis.thaw()

        assert {r.json()["decision"] for r in answers} == {"allow"}


@pytest.mark.slow
def test_the_database_restarted_in_the_middle_costs_no_known_key_and_no_row(serve, make_key):
    key = make_key(rate_limit_per_minute=1000)
    served = serve(WORKERS="1")
    statuses = [served.detect(key).status_code]

    with database_away():
        statuses += [served.detect(key, f"hello {n}").status_code for n in range(20)]
        wait_until(lambda: ready(served)["checks"]["database"] == "down")
        is_ready = httpx.get(f"{served.url}/health/ready").status_code
    wait_until(lambda: ready(served)["status"] == "up")
    statuses += [served.detect(key).status_code]
    served.stop()
    stream.drain()

    assert statuses == [200] * 22
    assert is_ready == 200  # to send nobody here any more would make an outage of a trouble
    assert UsageLog.objects.count() == 22


LIVE = b"GET /health/live HTTP/1.1\r\n"


class TestSlowClients:
    def slow(self, served, sent, count):
        clients = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", served.port), timeout=20)
            client.sendall(sent)
            clients.append(client)
        return clients

    def test_a_thousand_of_them_keep_nobody_waiting_and_get_a_408(self, serve, make_key):
        key = make_key(rate_limit_per_minute=1000)
        served = serve(WORKERS="1", BODY_SECONDS_MAX="3")
        head = (
            f"POST /v1/detect HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )

        clients = self.slow(served, head.encode(), 1000)
        statuses = {served.detect(key, f"hello {n}").status_code for n in range(20)}
        answers = {client.recv(12) for client in clients}
        for client in clients:
            client.close()

        assert statuses == {200}
        assert answers == {b"HTTP/1.1 408"}

    @pytest.mark.hostile
    def test_bodies_that_never_end_leave_room_for_another_address(self, serve, make_key):
        key = make_key(rate_limit_per_minute=1000)
        served = serve(WORKERS="1", BODIES_BYTES_MAX="2000000")
        head = (
            b"POST /v1/detect/batch HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
        )

        clients = [
            socket.create_connection(("127.0.0.1", served.port), 20, ("127.0.0.2", 0))
            for _ in range(20)
        ]
        for client in clients:
            client.sendall(head + b" " * 100_000)
        refused = wait_until(lambda: [client for client in clients if _has_answered(client)])
        answer = refused[0].recv(65536)
        text = '{"text": "' + "a" * 9000 + '"}'
        transport = httpx.HTTPTransport(local_address="127.0.0.3")
        with httpx.Client(transport=transport) as other:
            body = iter([text[:100].encode(), text[100:].encode()])
            r = other.post(
                f"{served.url}/v1/detect",
                content=body,
                headers={"X-API-Key": key, "Content-Type": "application/json"},
            )
        for client in clients:
            client.close()

        assert r.status_code == 200
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Send this one again" in answer
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert 'bound="bodies"' in httpx.get(f"{served.url}/metrics").text

    @pytest.mark.slow
    def test_a_head_that_never_ends_is_given_up(self, serve, acme_key, monkeypatch):
        served = serve(WORKERS="1", HEAD_SECONDS_MAX="1")

        for sent in (b"", b"GET /health/live HTT", b"GET /health/live HTTP/1.1\r\nHost: "):
            (client,) = self.slow(served, sent, 1)
            assert client.recv(100) == b""
            client.close()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("head", "status", "code"),
        [
            (LIVE + b"X-Filler: " + b"a" * 40_000 + b"\r\n\r\n", b"431", "headers_too_large"),
            (LIVE + b"A: b\r\n" * 8_000 + b"\r\n", b"431", "headers_too_large"),
            (b"GET /?" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", b"414", "address_too_long"),
            (b"\x16\x03\x01\x02\x00\x01\x00", b"400", "bad_request"),
        ],
        ids=["a large header", "many headers", "a long address", "TLS"],
    )
    def test_a_head_that_is_none_is_a_problem_and_the_end(self, shared, head, status, code):
        (client,) = self.slow(shared, head, 1)

        answer = b""
        while part := client.recv(65536):
            answer += part
        client.close()

        top, _, body = answer.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 " + status)
        assert b"application/problem+json" in top
        assert json.loads(body)["code"] == code
        assert httpx.get(f"{shared.url}/health/live").status_code == 200
