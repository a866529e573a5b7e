"""What the vectors do not say: settings, texts of all kinds, batches, the cache."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from random import Random

import httpx
import pytest

from gateway_guard import AsyncClient, Client, LocalCache, errors, webhooks

from .replay import address, replaying

VERDICT = {
    "request_id": "1",
    "is_malicious": False,
    "confidence": 0.1,
    "decision": "allow",
    "status": "complete",
}
OK = {"status": 200, "headers": {"content-type": "application/json"}, "body": VERDICT}


def client_of(server, **settings):
    return Client("gw_live_x", base_url=address(server), **settings)


def test_without_a_key_it_says_where_one_is_looked_for(monkeypatch):
    monkeypatch.delenv("GATEWAY_API_KEY", raising=False)

    with pytest.raises(ValueError, match="GATEWAY_API_KEY"):
        Client()


@pytest.mark.parametrize("url", ["gateway.example.com", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match="must be like https"):
        Client("k", base_url=url)


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "💥" * 10_000, "a" * 10_000_000])
def test_whatever_the_text_is_it_arrives_or_the_gateway_says_why_not(text):
    with replaying([OK]) as server, client_of(server) as client:
        client.detect(text)

    _, _, body = server.seen[0]
    assert json.loads(body.decode("utf-8", "surrogatepass")) == {"text": text}


def test_a_key_is_in_no_repr():
    client = Client("gw_live_secret", base_url="http://127.0.0.1:1")

    assert "gw_live_secret" not in repr(client)


def test_what_is_configured_is_sent_under_the_names_of_the_api():
    with replaying([OK]) as server, client_of(server) as client:
        client.detect(
            "x", content_type="document", threshold=0.4, mode="monitor", detailed=True,
            use_cache=False, on_unavailable="fail_closed", metadata={"a": 1},
        )  # fmt: skip

    assert json.loads(server.seen[0][2]) == {
        "text": "x",
        "config": {
            "content_type": "document",
            "confidence_threshold": 0.4,
            "mode": "monitor",
            "detailed_response": True,
            "use_cache": False,
            "on_unavailable": "fail_closed",
        },
        "metadata": {"a": 1},
    }


def test_a_cache_asks_once_and_says_so():
    with replaying([OK]) as server, client_of(server, cache=LocalCache()) as client:
        first, second, other = client.detect("x"), client.detect("x"), client.detect("y")

    assert len(server.seen) == 2
    assert [found.meta.from_cache for found in (first, second, other)] == [False, True, False]
    assert second.cached


def test_a_cache_keeps_so_many_and_no_verdict_of_an_outage():
    degraded = {**OK, "body": {**VERDICT, "status": "degraded"}}
    cache = LocalCache(items_max=1)
    with replaying([degraded, OK]) as server, client_of(server, cache=cache) as client:
        for text in ("x", "x", "y", "x"):
            client.detect(text)

    assert len(server.seen) == 4


def test_ids_of_a_batch_are_made_up_and_never_twice():
    results = [{"id": one, "status": "ok", "result": VERDICT} for one in ("0", "mine")]
    with replaying([{**OK, "body": {"results": results}}]) as server, client_of(server) as client:
        results = client.batches.create(["x", {"id": "mine", "text": "y"}])
        with pytest.raises(ValueError, match="same id"):
            client.batches.create([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])

    sent = json.loads(server.seen[0][2])["requests"]
    assert [item["id"] for item in sent] == ["0", "mine"]
    assert results[0].result.decision == "allow"


def test_a_host_that_an_answer_names_is_not_followed():
    page = {**OK, "body": {"results": [], "next": "http://elsewhere.example/v1/keys?cursor=2"}}
    last = {**OK, "body": {"results": [], "next": None}}
    with replaying([page, last]) as server, client_of(server) as client:
        raw = client.raw("POST", "http://elsewhere.example/v1/keys?cursor=2")

    assert raw.json()["results"] == []
    assert len(server.seen) == 1  # here, not there


def test_a_client_that_follows_redirects_is_not_let():
    """On the way DELETE becomes GET, and the answer to that is fine."""
    moved = {"status": 301, "headers": {"location": "/v1/keys/1"}, "text": ""}
    with (
        replaying([moved, OK]) as server,
        httpx.Client(follow_redirects=True) as http,
        client_of(server, http_client=http) as client,
        pytest.raises(errors.InvalidResponseError, match="is base_url right"),
    ):
        client.keys.revoke("1")

    assert len(server.seen) == 1


@pytest.mark.parametrize("key", ["a\nb", " a", "ü", ""])
def test_a_header_that_cannot_be_sent_fails_open_of_nothing(key):
    with (
        replaying([OK]) as server,
        client_of(server, fail_open=True) as client,
        pytest.raises(ValueError, match="Idempotency-Key cannot be sent"),
    ):
        client.detect("x", idempotency_key=key)

    assert server.seen == []


@pytest.mark.parametrize("path", ["v1/limits", "@elsewhere.example/", "", "http://[", "/a\x00"])
def test_a_path_that_would_lead_elsewhere_is_asked_of_nobody(path):
    with replaying([OK]) as server, client_of(server) as client, pytest.raises(ValueError):
        client.raw("GET", path)

    assert server.seen == []


def noise(random, size):
    """Bytes of all kinds, and those that parsers stumble over."""
    pieces = (
        b"9" * 400,
        "²".encode("latin-1"),
        b"{",
        b"[",
        b'"code":',
        b"null",
        b"\\ud800",
        b"-0001",
    )
    return b"".join(
        random.choice([random.choice(pieces), bytes([random.randrange(256)])])
        for _ in range(random.randrange(size))
    )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_answers_nothing_but_a_gateway_error_is_raised(seed):
    random = Random(seed)
    names = (
        *("retry-after", "ratelimit", "ratelimit-policy", "location", "content-encoding"),
        *("content-type", "x-request-id", "idempotency-replayed", "date"),
    )

    class Stream(httpx.SyncByteStream):
        def __init__(self, content):
            self.content = content

        def __iter__(self):
            yield self.content

    def answer(request):
        status = random.choice([200, 201, 204, 301, 304, 400, 404, 429, 500, 503, 599, 999])
        code = b'{"code": "rate_limited", "errors": [' + noise(random, 3) + b"]}"
        bodies = (json.dumps(VERDICT).encode(), code, noise(random, 50), noise(random, 50))
        headers = {name: noise(random, 4) for name in random.sample(names, 3)}
        content = random.choice(bodies)
        cut = random.choice([len(content), random.randrange(len(content) + 1)])
        return httpx.Response(status, headers=headers, stream=Stream(content[:cut]))

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as http,
        Client("x", base_url="http://g.example", http_client=http, max_retries=0) as client,
    ):
        for _ in range(50):
            for ask in (lambda: client.detect("x"), lambda: client.keys.revoke("1")):
                with suppress(errors.GatewayError):
                    ask()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_receiver_gets_it_is_not_trusted(seed):
    random = Random(seed)
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    for _ in range(200):
        headers = {name: noise(random, 4).decode("latin-1") for name in names}
        body = random.choice([noise(random, 20), "\ud800"])
        with pytest.raises(errors.WebhookVerificationError):
            webhooks.verify(body, headers, "whsec_" + "A" * 32)


def test_both_clients_can_do_the_same():
    for name, made in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            source = {"close": "aclose"}.get(name, name)
            signature = inspect.signature(getattr(AsyncClient, source))
            assert [*inspect.signature(made).parameters] == [*signature.parameters], name


def test_an_error_reads_like_help():
    refusal = {
        "status": 422,
        "headers": {"content-type": "application/problem+json"},
        "body": {
            "code": "validation_error",
            "detail": "Some fields are not valid.",
            "request_id": "01a2",
            "errors": [{"field": "text", "message": "too long"}],
        },
    }
    with (
        replaying([refusal]) as server,
        client_of(server) as client,
        pytest.raises(errors.ValidationError) as caught,
    ):
        client.detect("x")

    assert str(caught.value).splitlines() == [
        "422 validation_error: Some fields are not valid.",
        "  text: too long",
        "  request_id: 01a2",
    ]
