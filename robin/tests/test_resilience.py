"""Robin away, slow, lying or half: what clients are told, what breakers count, what is sent."""

from __future__ import annotations

import asyncio

import pytest
from django.db import OperationalError

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from gateway_project.core.errors import StoreUnavailable
from gateway_project.core.upstream.client import UpstreamTimeout
from robin.queue import jobs
from robin.queue.scan import Reading, Scanner
from robin.standin.server import JSON, Context, Reply
from robin.tests import contracts
from robin.tests.contracts import holds
from robin.upstream import viewset
from robin.upstream.http import RobinHTTP

UNKNOWN = "00000000-0000-4000-8000-000000000000"
COUNTS = [
    f'{{"deletedCount":{count}}}' for count in ('"1"', "true", "-1", "2", "0.5", "null", "[1]")
]
"""No number of items that one of them may be."""


@pytest.fixture
def ada(member, robin, settings):
    settings.ROBIN_TIMEOUT_SECONDS = settings.ROBIN_LOGS_TIMEOUT_SECONDS = 2.0
    return member("ROLE_ADMIN", by_hand=True)


def client_breaker(robin):
    return robin.ports.client.breaker_of("/client/queue/list")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("500", 502, "upstream_unexpected"),
        ("html", 502, "upstream_unexpected"),
        ("half", 502, "upstream_unexpected"),
        ("empty", 502, "upstream_unexpected"),
        ("reset", 503, "upstream_unavailable"),
        ("hang", 504, "upstream_timeout"),
    ],
)
@pytest.mark.parametrize("path", ["queue", "storage"])
def test_each_way_to_fail(ada, robin, path, fault, status, code):
    robin.client.faults.answer = fault
    if (path, fault) == ("queue", "hang"):  # a list may take long: it goes on behind
        status, code = 503, "upstream_unavailable"

    r = ada.get(f"/api/v1/{path}")

    assert (r.status_code, r.json()["code"]) == (status, code)
    holds(contracts.PROBLEM, r.json())
    if path == "storage":
        assert robin.ports.client.breaker.report()["failures"] == 1
    assert ("retry-after" in r.headers) == (status == 503)
    for word in ("API Endpoint", "switched", "<html", robin.client_url):
        assert word not in r.text


@pytest.mark.parametrize(
    "path",
    ["queue", "queue/stats", f"queue/{UNKNOWN}", "storage", "storage/raw?path=a.eml", "logs",
     "logs/loggers", "config"],
)  # fmt: skip
def test_no_landing_page_ever_leaks(ada, robin, path):
    robin.client.faults.answer = robin.service.faults.answer = "html"
    r = ada.get(f"/api/v1/{path}")
    assert (r.status_code, r.json()["code"]) == (502, "upstream_unexpected")
    assert "Endpoint" not in r.text


@pytest.mark.parametrize("action", ["retry", "bounce"])
@pytest.mark.parametrize("fault", ["reset", "half", "hang", "html", "500"])
def test_what_changes_something_is_sent_once(ada, robin, action, fault):
    ada.get("/api/v1/queue")  # a connection is kept from now on
    robin.client.asked.clear()
    robin.client.faults.answer, robin.client.faults.times = fault, 1
    robin.client.faults.prefix = f"/client/queue/{action}"

    r = ada.post(f"/api/v1/queue/{UNKNOWN}/{action}", {})

    assert r.status_code in (502, 503, 504)
    assert [path for method, path in robin.client.asked if method == "POST"] == [
        f"/client/queue/{action}"
    ]
    # What became of it nobody knows, and that is said; and it was noted before it was sent.
    counts = {name: r.json()[name] for name in ("done", "requested", "unknown")}
    assert counts == {"done": 0, "requested": 1, "unknown": 1}
    assert AuditEvent.objects.filter(action=f"robin.queue.{action}", target=UNKNOWN).exists()


def raising(error):
    def fail(*args, **more):
        raise error

    return fail


def answering(status):
    return lambda robin, patch: robin.client.contexts.update(
        {"/client/queue/delete": Context(lambda call: Reply("no", status))}
    )


WAYS = {
    "400": (answering(400), 0),
    "401": (answering(401), 0),
    "403": (answering(403), 0),
    "404": (answering(404), 0),
    "405": (answering(405), 0),
    "500": (answering(500), 1),
    "a redirect": (answering(302), 1),
    "never its turn": (
        lambda robin, patch: patch.setattr(RobinHTTP, "request", raising(UpstreamTimeout("", 0.0))),
        0,
    ),
    "nobody there": (lambda robin, patch: robin.run(robin.client.stop()), 0),
    "its breaker is open": (lambda robin, patch: client_breaker(robin).force("open"), 0),
    "it reads out its queue": (
        lambda robin, patch: patch.setattr(Scanner, "turn", raising(Reading("", seconds=1))), 0
    ),
    "no store": (
        lambda robin, patch: patch.setattr(Scanner, "claimed", raising(StoreUnavailable())), 0
    ),
    "no database": (
        lambda robin, patch: patch.setattr(viewset, "audit", raising(OperationalError("away"))), 0
    ),
}  # fmt: skip
"""How an action fails, and of how many items of one nobody knows then."""


@pytest.mark.parametrize("way", WAYS)
def test_however_an_action_fails_it_says_what_became_of_it(ada, robin, monkeypatch, way):
    uid = robin.seed.queue.select(["READY"])[0].uid
    arrange, unknown = WAYS[way]
    arrange(robin, monkeypatch)

    for r in (
        ada.request("DELETE", f"/api/v1/queue/{uid}"),
        ada.post("/api/v1/queue/actions", {"action": "delete", "uids": [uid]}),
    ):
        counts = {name: r.json().get(name) for name in ("done", "requested", "unknown")}
        assert counts == {"done": 0, "requested": 1, "unknown": unknown}
    for line in AuditEvent.objects.filter(action="robin.queue.delete.result"):
        assert counts.items() <= line.details.items()


@pytest.mark.parametrize("uid", [UNKNOWN, "x"])
def test_what_is_not_there_counts_too(ada, robin, uid):
    r = ada.request("DELETE", f"/api/v1/queue/{uid}")
    assert refusal(r) == (404, "not_found")
    assert {"done": 0, "requested": 1, "unknown": 0}.items() <= r.json().items()


def test_many_that_cannot_be_noted_count_too(ada, robin, monkeypatch):
    uids = [item.uid for item in robin.seed.queue.select(["READY"])[:30]]
    monkeypatch.setattr(jobs, "audit", raising(OperationalError("away")))
    r = ada.post("/api/v1/queue/actions", {"action": "delete", "uids": uids})
    assert refusal(r) == (503, "store_unavailable")
    assert {"done": 0, "requested": 30, "unknown": 0}.items() <= r.json().items()


def test_a_read_is_sent_again_when_a_kept_connection_was_dropped(ada, robin):
    ada.get("/api/v1/storage")
    robin.client.faults.answer, robin.client.faults.times = "reset", 1

    assert ada.get("/api/v1/storage").status_code == 200
    assert len(robin.client.asked) == 3
    assert robin.ports.client.breaker.report()["failures"] == 0


def test_the_breaker_opens_after_five_and_asks_no_more(ada, robin):
    robin.run(robin.client.stop())
    for _ in range(5):
        assert ada.get("/api/v1/storage").status_code == 503
    assert robin.ports.client.state == "open"

    r = ada.get("/api/v1/storage")

    assert (r.status_code, r.json()["code"]) == (503, "upstream_unavailable")
    assert 1 <= int(r.headers["retry-after"]) <= 30
    assert "left alone" in r.json()["message"]
    # The other server is none of its business.
    assert ada.get("/api/v1/config").status_code == 200


def test_it_closes_as_soon_as_a_cheap_look_succeeds(ada, robin, monkeypatch):
    robin.run(robin.client.stop())
    for _ in range(5):
        ada.get("/api/v1/storage")
    robin.run(robin.client.start())
    robin.client.asked.clear()
    monkeypatch.setattr(robin.ports.client, "_next_look", 0.0)

    assert ada.get("/api/v1/storage").status_code == 200
    assert robin.client.asked[0] == ("GET", "/health")
    assert robin.ports.client.state == "closed"


def test_who_is_away_is_looked_for_once_a_second(ada, robin):
    robin.run(robin.client.stop())
    for _ in range(5):
        ada.get("/api/v1/storage")
    looks = []
    peek = robin.ports.client.peek

    async def counted():
        looks.append(1)
        return await peek()

    robin.ports.client.peek = counted
    for _ in range(10):
        assert refusal(ada.get("/api/v1/storage")) == (503, "upstream_unavailable")
    assert len(looks) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", ["logs", "queue", "storage"])
def test_what_fails_leaves_the_rest_alone(ada, robin, path):
    prefix = {"logs": "/logs", "queue": "/client/queue", "storage": "/store"}
    robin.client.faults.answer, robin.client.faults.prefix = "500", prefix[path]
    for _ in range(7):
        assert refusal(ada.get(f"/api/v1/{path}"))[1] in (
            "upstream_unexpected",
            "upstream_unavailable",
        )
    for other in {*prefix} - {path}:
        assert ada.get(f"/api/v1/{other}").status_code == 200
    assert ada.get("/api/v1/config").status_code == 200


def test_a_failure_of_robin_s_says_so(ada, robin):
    robin.client.faults.answer = "500"
    r = ada.get("/api/v1/storage")
    assert refusal(r) == (502, "upstream_unexpected")
    assert "Robin failed" in r.json()["message"]
    assert "credentials" not in r.json()["message"]


def test_what_a_client_asks_wrongly_never_opens_it(ada, robin):
    for path in ("storage?path=nowhere", f"queue/{UNKNOWN}", "storage/file?path=x.eml"):
        for _ in range(6):
            assert ada.get(f"/api/v1/{path}").status_code == 404
    assert client_breaker(robin).state == "closed"


def test_refused_credentials_are_not_the_caller_s_fault(ada, robin):
    for port in (robin.client, robin.service):
        port.auth.kind, port.auth.value = "bearer", "secret-of-robin"

    for path in ("queue", "config"):
        r = ada.get(f"/api/v1/{path}")
        assert (r.status_code, r.json()["code"]) == (502, "upstream_unexpected")
        assert "credentials" in r.json()["message"]
        assert "www-authenticate" not in r.headers
    assert client_breaker(robin).state == "closed"


@pytest.mark.parametrize("kind", ["bearer", "basic"])
def test_our_credentials_are_accepted(ada, robin, gateway, settings, kind):
    from robin.upstream import client

    for port in (robin.client, robin.service):
        port.auth.kind, port.auth.value = kind, "robin:p@ss/word" if kind == "basic" else "tok"
    if kind == "bearer":
        settings.ROBIN_CLIENT_API_TOKEN = settings.ROBIN_SERVICE_API_TOKEN = "tok"
    else:
        pair = "http://robin:p%40ss%2Fword@"
        settings.ROBIN_CLIENT_API_URL = robin.client_url.replace("http://", pair)
        settings.ROBIN_SERVICE_API_URL = robin.service_url.replace("http://", pair)

    async def open_again():
        await client.close_robin()
        client.open_robin()

    gateway.run(open_again())

    assert ada.get("/api/v1/queue").status_code == 200
    assert ada.get("/api/v1/config").status_code == 200
    assert "ready" in gateway.get("/api/v1/health").json()["queue"]


def test_health_is_quick_while_a_port_hangs(ada, robin, gateway):
    robin.client.faults.answer = "hang"

    async def ask():
        async with gateway.http() as http:
            slow = [
                asyncio.create_task(http.get("/api/v1/storage", headers=ada.bearer))
                for _ in range(6)
            ]
            await asyncio.sleep(0.05)
            config = await http.get("/api/v1/config", headers=ada.bearer)
            health = await http.get("/api/v1/health/aggregate")
            whole = await http.get("/health")
            return config, health, whole, await asyncio.gather(*slow)

    config, health, whole, slow = gateway.run(ask())

    assert config.status_code == 200
    assert health.status_code == whole.status_code == 200
    assert health.json()["robinServiceApi"]["status"] == "UP"
    assert health.json()["queue"]["size"] == 112
    assert "robin_client" in whole.json()["breakers"]
    # Two had Robin and waited in vain; the others never got there, which says nothing about it.
    assert {r.status_code for r in slow} <= {503, 504}
    assert robin.ports.client.breaker.report()["failures"] <= 2


def test_an_operator_holds_a_breaker_open(ada, robin):
    client_breaker(robin).force("open")
    assert refusal(ada.get("/api/v1/queue")) == (503, "upstream_unavailable")
    client_breaker(robin).force(None)
    assert ada.get("/api/v1/queue").status_code == 200


def test_a_bulk_action_that_fails_says_so_and_is_audited(ada, robin):
    uid = robin.seed.queue.select(["READY"])[0].uid
    robin.client.faults.answer, robin.client.faults.prefix = "500", "/client/queue/delete"
    r = ada.post("/api/v1/queue/actions", {"action": "delete", "uids": [uid]})
    assert refusal(r) == (502, "upstream_unexpected")
    assert "Robin failed" in r.json()["message"]
    assert r.json()["unknown"] == 1
    assert AuditEvent.objects.filter(action="robin.queue.delete").exists()


def test_what_cannot_be_audited_is_not_done(ada, robin, monkeypatch):
    uid = robin.seed.queue.select(["READY"])[0].uid
    monkeypatch.setattr(viewset, "audit", raising(OperationalError("away")))
    r = ada.request("DELETE", f"/api/v1/queue/{uid}")
    assert refusal(r) == (503, "store_unavailable")
    assert uid in robin.seed.queue.items
    assert [method for method, _ in robin.client.asked if method == "POST"] == []


@pytest.mark.parametrize(
    "answer", ['{"status":"OK"}', "[]", '{"deletedCount":"1"}', "null", *COUNTS]
)
def test_json_of_another_form(ada, robin, answer):
    robin.client.contexts["/client/queue/delete"] = Context(lambda call: Reply(answer, 200, JSON))
    r = ada.request("DELETE", f"/api/v1/queue/{UNKNOWN}")
    assert (r.status_code, r.json()["code"]) == (502, "upstream_unexpected")


def test_nothing_is_asked_that_robin_mistakes(ada, robin):
    """Of all addresses only those that mean what we mean; nothing of a client's goes as JSON."""
    uid = robin.seed.queue.select()[0].uid
    for method, path in (
        ("POST", f"queue/{uid}/retry"),
        ("POST", f"queue/{uid}/bounce"),
        ("DELETE", f"queue/{uid}"),
        ("GET", f"queue/{UNKNOWN}"),
        ("POST", "queue"),
        ("PUT", f"queue/{uid}"),
        ("POST", "storage"),
        ("GET", "logs"),
        ("GET", "client/send"),
        ("POST", "client/queue"),
    ):
        ada.request(method, f"/api/v1/{path}", json={"mx": ["evil"], "uid": "x"})

    asked = {(method, target.partition("?")[0]) for method, target in robin.client.asked}
    assert asked == {
        ("POST", "/client/queue/retry"), ("POST", "/client/queue/bounce"),
        ("POST", "/client/queue/delete"), ("GET", "/client/queue/list"), ("GET", "/logs"),
    }  # fmt: skip
    assert robin.seed.received == 5127
