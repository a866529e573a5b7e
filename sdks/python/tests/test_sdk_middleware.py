"""Middleware of web frameworks. Starlette's and FastAPI's own applications are tried where they are
installed; any ASGI application is one."""

from __future__ import annotations

import asyncio
import base64
import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from gateway_guard.chats import Text
from gateway_guard.integrations._http import fields
from gateway_guard.integrations.starlette import GuardMiddleware

from .fakes import ATTACK

JSON = {"content-type": "application/json"}
BODIES = json.loads((Path(__file__).resolve().parents[2] / "vectors/bodies.json").read_text())
HAS_STARLETTE = importlib.util.find_spec("starlette") is not None
OTHER_METHODS = ("PUT", "PATCH", "DELETE", "GET", "QUERY")
SPELLINGS = ("/chat", "/CHAT", "/chat/", "//chat", "/chat//", "/%63hat", "/chat/7", "/Chat/7")


def content_of(case):
    return base64.b64decode(case["base64"]) if "base64" in case else case["body"].encode()


def listening(found):
    """Takes the field `message`, and has nothing judged."""

    def extract(body):
        found.extend(fields("message")(body))
        return []

    return extract


def as_expected(case, status, found):
    if "refused" in case:
        return (status, found) == (case["refused"], [])
    kinds = sorted((one.content_type, one.text) for one in found)
    return status == 200 and kinds == [("user_input", text) for text in sorted(case["texts"])]


async def echo(scope, receive, send):
    """Answers with the body that it got."""
    content, more = b"", True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
    verdicts = [one.decision for one in scope.get("state", {}).get("gateway_guard", ())]
    head = [(b"content-type", b"application/json"), (b"x-verdicts", ",".join(verdicts).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": content})


def call(make_aguard, body, *, headers=JSON, method="POST", path="/chat", chunks=1, app=echo,
         fail_open=False, **options):  # fmt: skip
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(content) // chunks) or 1
    pieces = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": n < len(pieces) - 1}
        for n, piece in enumerate(pieces)
    ]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def run():
        guard = make_aguard(fail_open=fail_open)
        async with guard.client:
            scope = {
                "type": "http", "method": method, "path": path, "raw_path": path.encode(),
                "query_string": b"", "http_version": "1.1", "scheme": "http",
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            }  # fmt: skip
            await GuardMiddleware(app, guard, **options)(scope, receive, send)

    asyncio.run(run())
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.mark.parametrize("chunks", [1, 7])
def test_a_body_passes_as_it_came_and_the_verdicts_are_known(gateway, make_aguard, chunks):
    body = {"message": "When does it open?", "password": "is not looked at"}
    status, head, content = call(make_aguard, body, chunks=chunks)

    assert (status, json.loads(content), head["x-verdicts"]) == (200, body, "allow")
    assert gateway.asked == [("user_input", "When does it open?")]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"message": ATTACK}, "a message"),
        ({"messages": [{"role": "user", "content": ATTACK}]}, "a message"),
        ({"messages": [{"role": "system", "content": ATTACK}]}, "a message"),
        ([{"role": "user", "content": ATTACK}], "a message"),
    ],
)
def test_an_attack_is_a_problem_and_never_reaches_the_application(make_aguard, body, where):
    status, head, content = call(make_aguard, body)

    assert (status, head["content-type"]) == (403, "application/problem+json")
    problem = json.loads(content)
    assert problem["code"] == "prompt_injection"
    assert problem["detail"].startswith(f"Prompt injection in {where}: ")
    assert ATTACK not in problem["detail"]


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case["what"])
def test_what_of_a_body_is_judged(make_aguard, case):
    found = []
    headers = {"content-type": case["type"]} if case["type"] else {}
    status, _, content = call(
        make_aguard, content_of(case), headers=headers, extract=listening(found)
    )

    is_form = case["what"].startswith("a form of several parts")
    if is_form and not HAS_STARLETTE:
        assert (status, found) == (415, [])
        return
    assert as_expected(case, status, found), (status, found)
    assert status != 200 or content == content_of(case)


def test_of_two_types_the_first_counts_as_it_does_for_the_application(make_aguard):
    scope = {"type": "http", "path": "/", "headers": []}
    found = []

    async def run():
        guard = make_aguard()
        async with guard.client:
            scope["headers"] = [
                (b"content-type", b"application/x-www-form-urlencoded"),
                (b"content-type", b"application/octet-stream"),
            ]

            async def receive():
                return {"type": "http.request", "body": b"message=%49gnore"}

            async def send(message):
                pass

            app = GuardMiddleware(echo, guard, extract=listening(found))
            await app({**scope, "method": "POST"}, receive, send)

    asyncio.run(run())

    assert [one.text for one in found] == ["Ignore"]


UNREADABLE = {"fields": b"a=1&" * 1_100, "depth": b"[" * 100_000, "gzip": gzip.compress(b"{}")}
UNREADABLE["texts"] = json.dumps([*map(str, range(1_001))]).encode()


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused_and_no_fault(make_aguard, body):
    kind = "application/x-www-form-urlencoded" if body[:1] == b"a" else "application/json"
    coding = {"content-encoding": "gzip"} if body[:1] == b"\x1f" else {}
    status, head, content = call(make_aguard, body, headers={"content-type": kind, **coding})

    assert status in (400, 415)
    assert head["content-type"] == "application/problem+json"
    assert json.loads(content)["code"] == "body_not_readable"


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_no_method_passes_unjudged(make_aguard, method):
    assert call(make_aguard, {"message": ATTACK}, method=method)[0] == 403


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_passes_unjudged(make_aguard, path):
    assert call(make_aguard, {"message": ATTACK}, path=path, paths=("/chat/",))[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", "/chat", b"", {}),
        ("POST", "/other", {"message": ATTACK}, JSON),
        ("POST", "/chatter", {"message": ATTACK}, JSON),
        ("POST", "/chat", b"\x89PNG\0" + ATTACK.encode(), {"content-type": "image/png"}),
    ],
)
def test_what_is_not_meant_passes(gateway, make_aguard, method, path, body, headers):
    status, _, _ = call(
        make_aguard, body, method=method, path=path, headers=headers, paths=("/chat/",)
    )

    assert status == 200
    assert gateway.asked == []


def test_without_a_verdict_it_is_503_or_passes_and_says_so(gateway, make_aguard):
    gateway.is_away = True

    status, head, content = call(make_aguard, {"message": ATTACK})
    assert (status, json.loads(content)["code"]) == (503, "no_verdict")
    status, head, _ = call(make_aguard, {"message": ATTACK}, fail_open=True)
    assert (status, head["gateway-guard"]) == (200, "failed-open")


def test_a_large_body_is_refused(make_aguard):
    status, _, content = call(make_aguard, {"message": "x" * 2_000}, bytes_max=1_000, chunks=4)

    assert (status, json.loads(content)["code"]) == (413, "body_too_large")


def test_what_is_extracted_is_for_the_caller_to_say(gateway, make_aguard):
    call(
        make_aguard,
        {"page": "a page", "message": "x"},
        extract=lambda body: [Text(body["page"], "document")],
    )

    assert gateway.asked == [("document", "a page")]


def test_starlette_and_fastapi(gateway, make_aguard):
    starlette = pytest.importorskip("starlette", reason="needs starlette: `make sdk-test`")
    testclient = pytest.importorskip("starlette.testclient", exc_type=Exception)
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def chat(request):
        found = [one.decision for one in request.state.gateway_guard]
        return JSONResponse({"got": await request.json(), "verdicts": found})

    apps = [Starlette(routes=[Route("/chat", chat, methods=["POST"])])]
    try:
        import fastapi
    except ImportError:
        pass
    else:
        app = fastapi.FastAPI()

        async def fast_chat(body: dict, request: fastapi.Request):
            return {"got": body, "verdicts": [v.decision for v in request.state.gateway_guard]}

        fast_chat.__annotations__ = {"body": dict, "request": fastapi.Request}
        app.post("/chat")(fast_chat)
        apps.append(app)
    for app in apps:
        app.add_middleware(GuardMiddleware, guard=make_aguard(), paths=("/chat",))
        with testclient.TestClient(app) as client:
            r = client.post("/chat", json={"message": "hello"})
            assert r.json() == {"got": {"message": "hello"}, "verdicts": ["allow"]}, starlette
            r = client.post("/chat", json={"message": ATTACK})
            assert (r.status_code, r.json()["code"]) == (403, "prompt_injection")


HIDDEN = json.dumps({"message": ATTACK}).replace("I", "\\u0049")
WAYS = {
    "JSON": {"json": {"message": ATTACK}},
    "JSON, escaped": {"content": HIDDEN, "headers": JSON},
    "JSON as a text": {"content": HIDDEN, "headers": {"content-type": "text/plain"}},
    "JSON as a file": {"content": HIDDEN, "headers": {"content-type": "application/octet-stream"}},
    "JSON as nothing": {"content": HIDDEN},
    "JSON as a form": {
        "content": HIDDEN,
        "headers": {"content-type": "application/x-www-form-urlencoded"},
    },
    "JSON as a form of several parts": {
        "content": HIDDEN,
        "headers": {"content-type": "multipart/form-data; boundary=b"},
    },
    "JSON in UTF-16": {"content": HIDDEN.encode("utf-16"), "headers": JSON},
    "JSON in UTF-32 as a file": {"content": HIDDEN.encode("utf-32")},
    "a bare string": {"json": ATTACK},
    "a system's role": {"json": {"message": {"role": "system", "content": ATTACK}}},
    "a form": {"data": {"message": ATTACK}},
    "a form of several parts": {"data": {"message": ATTACK}, "files": {"other": b"x"}},
    "a file": {"files": {"message": ("a.txt", ATTACK.encode(), "text/plain")}},
}


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_starlette_and_fastapi_read_a_body_it_was_judged(make_aguard, way):
    pytest.importorskip("starlette", reason="needs starlette: `make sdk-test`")
    testclient = pytest.importorskip("starlette.testclient", exc_type=Exception)
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse

    reached = []

    async def json_of(request):
        reached.append(await request.json())
        return PlainTextResponse("read")

    async def form_of(request):
        form = await request.form()
        reached.append({name: str(value) for name, value in form.multi_items()})
        return PlainTextResponse("read")

    async def body_of(request):
        reached.append(await request.body())
        return PlainTextResponse("read")

    for handler in (json_of, form_of, body_of):
        app = Starlette()
        app.add_route("/chat", handler, methods=["POST"])
        app.add_middleware(GuardMiddleware, guard=make_aguard(), paths=("/chat",))
        with testclient.TestClient(app, raise_server_exceptions=False) as client:
            assert client.post("/chat", **WAYS[way]).status_code == 403
            mounted = testclient.TestClient(app, root_path="/api")
            assert mounted.post("/chat", **WAYS[way]).status_code == 403
    assert reached == []


# -- Django ----------------------------------------------------------------------------------------


@pytest.fixture
def django_call(gateway, settings_of_django):
    from django.http import JsonResponse
    from django.test import RequestFactory

    from gateway_guard.integrations.django import GuardMiddleware as DjangoGuard

    def run(is_async=False, body=None, path="/chat", *, kind="application/json", method="POST",
            **own):  # fmt: skip
        settings_of_django(
            {"url": gateway.url, "api_key": "gw_live_x", "paths": ["/chat"], "timeout": 5, **own}
        )

        def view(request):
            found = [one.decision for one in request.gateway_guard]
            got = request.body.decode("utf-8", "replace")
            return JsonResponse({"got": got, "verdicts": found})

        async def aview(request):
            return view(request)

        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        request = RequestFactory().generic(method, "/", body, content_type=kind)
        request.path = request.path_info = path
        middleware = DjangoGuard(aview if is_async else view)
        if not is_async:
            with middleware._guard.client:
                return middleware(request)

        async def served():
            async with middleware._guard.client:
                return await middleware(request)

        return asyncio.run(served())

    return run


@pytest.fixture
def settings_of_django(monkeypatch):
    """Ours, where the whole project's tests run; else bare ones."""
    django = pytest.importorskip("django", reason="needs Django: `make sdk-test`")
    from django.conf import settings

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"])
        django.setup()
    return lambda own: monkeypatch.setattr(settings, "GATEWAY_GUARD", own, raising=False)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
class TestDjango:
    def test_a_body_passes_and_the_verdicts_are_known(self, django_call, is_async):
        r = django_call(is_async, {"message": "hello"})

        assert json.loads(r.content) == {"got": '{"message": "hello"}', "verdicts": ["allow"]}

    def test_an_attack_is_a_problem(self, django_call, is_async):
        r = django_call(is_async, {"messages": [{"role": "system", "content": ATTACK}]})

        assert (r.status_code, r["content-type"]) == (403, "application/problem+json")
        assert json.loads(r.content)["detail"].startswith("Prompt injection in a message")

    def test_elsewhere_nothing_is_asked(self, gateway, django_call, is_async):
        r = django_call(is_async, {"message": ATTACK}, path="/other")

        assert (r.status_code, gateway.asked) == (200, [])

    def test_without_a_verdict(self, gateway, django_call, is_async, monkeypatch):
        monkeypatch.setattr("gateway_guard._core.DEFAULT_RETRIES", 0)
        gateway.is_away = True
        assert django_call(is_async, {"message": ATTACK}).status_code == 503
        r = django_call(is_async, {"message": ATTACK}, fail_open=True)
        assert (r.status_code, r["gateway-guard"]) == (200, "failed-open")

    def test_a_large_body_and_a_setting_that_nobody_knows(self, django_call, is_async):
        assert django_call(is_async, {"message": "x" * 99}, bytes_max=50).status_code == 413
        with pytest.raises(ValueError, match="knows no path"):
            django_call(is_async, {"message": "x"}, path_=["/chat"])


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("case", BODIES, ids=lambda case: case["what"])
def test_what_of_a_body_is_judged_before_django(django_call, case, method):
    from django.http.multipartparser import MultiPartParserError

    found = []
    options = {"kind": case["type"], "method": method, "extract": listening(found)}
    try:
        status = django_call(body=content_of(case), **options).status_code
    except MultiPartParserError:  # which Django answers by itself
        status = 400

    assert as_expected(case, status, found), (status, found)


@pytest.mark.parametrize("method", OTHER_METHODS)
@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_and_no_method_passes_django_unjudged(django_call, path, method):
    assert django_call(body={"message": ATTACK}, path=path, method=method).status_code == 403


def test_who_sends_a_form_to_a_view_that_reads_json_makes_no_fault(django_call):
    body = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--b--\r\n'
    r = django_call(body=body, kind="multipart/form-data; boundary=b")

    assert json.loads(r.content)["got"] == body.decode()
