"""The line of the log that says where the time of a slow request went."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time

import pytest

from gateway_project.core.api.middleware import CAME, LAST_BYTE, RequestMiddleware
from gateway_project.core.telemetry.slow import beside, seconds_since_last_byte

NOW = 1000.0


@pytest.fixture
def slow_from(gateway, monkeypatch):
    """`slow_from(0.1)`: what takes longer is slow, in seconds."""
    return lambda seconds: monkeypatch.setattr(gateway.application, "slow_seconds", seconds)


def lines(capsysbinary):
    out = capsysbinary.readouterr().out.splitlines()
    return [json.loads(line) for line in out if b'"slow_request"' in line]


def test_it_says_where_the_time_went_and_nothing_of_the_caller(
    gateway, engine, acme_key, slow_from, capsysbinary
):
    slow_from(0.0)
    r = gateway.detect("Mallory's launch code", key=acme_key)

    [line] = lines(capsysbinary)
    assert line["request_id"] == r.json()["request_id"]
    assert (line["route"], line["status"]) == ("/v1/detect", 200)
    parts = [line[name] for name in ("limiter_ms", "upstream_ms", "other_ms")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(line["duration_ms"], abs=0.05)
    assert line["cpu_ms"] > 0
    assert line["no_core_ms"] >= 0
    assert "Mallory" not in str(line)


def test_who_is_quick_leaves_none(gateway, engine, acme_key, slow_from, capsysbinary):
    slow_from(60.0)
    gateway.detect("hello", key=acme_key)

    assert lines(capsysbinary) == []


def test_the_debug_timing_is_in_the_log_alone(gateway, engine, acme_key, slow_from, capsysbinary):
    slow_from(60.0)
    r = gateway.post(
        "/v1/detect", json={"text": "hello"}, headers={"X-API-Key": acme_key, "X-Debug-Timing": "1"}
    )

    [line] = lines(capsysbinary)
    assert line["request_id"] == r.json()["request_id"]
    assert r.headers["server-timing"].count("dur=") == 3


@pytest.mark.parametrize(
    ("read", "arrived", "socket_ms", "queued_ms"),
    [(0.2, 0.2, 0, 200), (0.0, 0.2, 200, 0), (0.15, 0.2, 50, 150)],
    ids=["in the loop", "in the socket", "in both"],
)
def test_what_waited_before_its_first_turn_is_slow(
    read, arrived, socket_ms, queued_ms, monkeypatch, capsysbinary
):
    for module in ("context", "api.middleware"):
        monkeypatch.setattr(f"gateway_project.core.{module}.perf_counter", lambda: NOW)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_):
        pass

    def ask(read, arrived):
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        scope |= {CAME: NOW - read, LAST_BYTE: lambda: arrived}
        asyncio.run(RequestMiddleware(app, slow_seconds=0.1)(scope, nothing, nothing))
        assert LAST_BYTE not in scope  # it holds the connection

    ask(0.0, 0.0)
    assert lines(capsysbinary) == []
    ask(read, arrived)
    [line] = lines(capsysbinary)
    parts = [line[name] for name in ("socket_ms", "queued_ms", "duration_ms")]
    assert parts == [socket_ms, queued_ms, 200]


def test_the_kernel_knows_how_long_a_byte_lay_in_the_socket():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        client.send(b"hello")
        time.sleep(0.02)
        assert seconds_since_last_byte(server) >= 0.01  # it counts in steps of up to 10 ms


def test_what_a_process_does_beside_is_measured():
    collector, usage = beside.collector, beside.usage

    gc.collect()
    with beside.sending_usage():
        pass

    assert beside.collector > collector
    assert beside.usage > usage
