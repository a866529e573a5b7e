"""Pages for people, manners of every answer: headers, ids, compression, forms of a path."""

from __future__ import annotations

import gzip
import logging
import re
import time
from types import SimpleNamespace
from unittest.mock import Mock
from uuid import UUID

import pytest
from django.db import OperationalError

from accounts.tests.shapes import refusal
from gateway_project.core import errors
from gateway_project.core.api.middleware import client_address
from gateway_project.core.api.responses import NDJSON, wants
from gateway_project.core.stores import database
from gateway_project.core.telemetry import health
from gateway_project.system import views

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


class TestLanding:
    def test_it_is_a_page_that_leads_on(self, gateway):
        r = gateway.get("/", headers=HTML)

        assert r.status_code == 200
        assert r.headers["content-type"] == "text/html; charset=utf-8"
        links = set(re.findall(r'href="([^"]+)"', r.text))
        assert {"/docs", "/redoc", "/openapi.json", "/health", "/admin/", "/status"} <= links

    def test_every_link_of_it_answers(self, gateway):
        r = gateway.get("/", headers=HTML)

        links = set(re.findall(r'(?:href|src)="(/[^"]*)"', r.text))
        found = {link: gateway.get(link, headers=HTML).status_code for link in links}
        assert links
        assert {link for link, status in found.items() if status not in (200, 302)} == set()

    def test_it_asks_no_other_host(self, gateway):
        r = gateway.get("/", headers=HTML)

        assert not re.findall(r'(?:href|src)="(?:https?:)?//', r.text)
        assert not re.findall(r"<script(?! src=)|<style| style=| on[a-z]+=", r.text)

    def test_its_commands_name_the_host_that_was_asked(self, gateway):
        r = gateway.get("/", headers={**HTML, "Host": "gateway.example:8443"})

        assert "http://gateway.example:8443/auth/register" in r.text


class TestNotFound:
    def test_people_get_a_page(self, gateway):
        r = gateway.get("/nowhere", headers=HTML)

        assert r.status_code == 404
        assert r.headers["content-type"] == "text/html; charset=utf-8"
        assert "Not found" in r.text
        assert r.headers["x-request-id"] in r.text

    @pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
    def test_programs_get_a_problem(self, gateway, accept):
        r = gateway.get("/nowhere", headers={"Accept": accept})

        assert r.status_code == 404
        assert r.headers["content-type"] == "application/problem+json"
        assert r.json() == {
            "type": "/problems/not_found",
            "title": "Not found",
            "status": 404,
            "detail": errors.NotFound.default_detail,
            "instance": "/nowhere",
            "code": "not_found",
            "request_id": r.headers["x-request-id"],
            "errors": [],
        }

    @pytest.mark.parametrize("path", ["/v1/nowhere", "/auth/nowhere", "/webhooks/nowhere"])
    def test_the_api_answers_problems_whatever_is_accepted(self, gateway, path):
        r = gateway.get(path, headers=HTML)

        assert r.status_code == 404
        assert r.headers["content-type"] == "application/problem+json"

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_other_methods_are_404_too(self, gateway, method):
        r = gateway.request(method, "/v1/nowhere", json={})

        assert r.status_code == 404
        assert r.json()["code"] == "not_found"

    @pytest.mark.parametrize("path", ["/<script>alert(1)</script>", '/"onload="x', "/é"])
    def test_a_strange_path_is_only_a_path(self, gateway, path):
        r = gateway.get(path, headers=HTML)

        assert r.status_code in (400, 404)
        assert "<script>" not in r.text


class TestProblemPages:
    def test_every_code_has_one_for_people(self, gateway):
        for code, kind in errors.registered().items():
            r = gateway.get(f"/problems/{code}", headers=HTML)

            assert r.status_code == 200, code
            assert r.headers["content-type"] == "text/html; charset=utf-8"
            assert f"{kind.status_code} · {code}" in r.text

    def test_every_code_has_one_for_programs(self, gateway):
        for code, kind in errors.registered().items():
            r = gateway.get(f"/problems/{code}")

            assert r.json() == {
                "code": code,
                "title": kind.title,
                "status": kind.status_code,
                "detail": kind.default_detail,
            }

    def test_an_unknown_code_has_none(self, gateway):
        assert refusal(gateway.get("/problems/nonsense")) == (404, "not_found")
        assert refusal(gateway.get("/problems/nonsense", headers=HTML)) == (404, "not_found")

    def test_the_type_of_a_problem_leads_there(self, gateway):
        problem = gateway.get("/v1/limits").json()

        assert gateway.get(problem["type"]).json()["code"] == problem["code"]


class TestSecurityHeaders:
    @pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/admin/login/", "/nowhere"])
    def test_a_page_runs_our_own_scripts_only(self, gateway, path):
        r = gateway.get(path, headers=HTML)

        policy = dict(
            part.strip().split(" ", 1) for part in r.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'self'"
        assert "script-src" not in policy
        assert policy["object-src"] == "'none'"
        assert policy["base-uri"] == "'self'"
        assert policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert r.headers["x-content-type-options"] == "nosniff"
        assert r.headers["referrer-policy"] == "same-origin"

    @pytest.mark.parametrize("path", ["/v1/limits", "/auth/profile", "/health", "/nowhere"])
    def test_an_answer_of_the_api_runs_and_keeps_nothing(self, gateway, acme_key, path):
        r = gateway.get(path, key=acme_key)

        assert r.headers["content-security-policy"] == (
            "default-src 'none'; frame-ancestors 'none'"
        )
        assert r.headers["x-content-type-options"] == "nosniff"
        assert r.headers["referrer-policy"] in ("no-referrer", "same-origin")
        assert r.headers["cache-control"] == "no-store"

    def test_no_header_tells_what_we_are_built_with(self, gateway):
        for path in ("/", "/v1/limits", "/health"):
            headers = gateway.get(path).headers
            assert not {"server", "x-powered-by"} & set(headers)

    @pytest.mark.parametrize("path", ["/", "/v1/limits", "/auth/profile", "/nowhere", "/health"])
    def test_no_header_is_set_twice(self, gateway, acme_key, path):
        r = gateway.get(path, key=acme_key)

        names = [name.lower() for name, _ in r.headers.raw]
        assert len(names) == len(set(names))

    def test_no_other_origin_is_invited(self, gateway, acme_key):
        r = gateway.get("/v1/limits", key=acme_key, headers={"Origin": "https://evil.example"})

        assert not [name for name in r.headers if name.startswith("access-control-")]


class TestHead:
    @pytest.mark.parametrize(
        "path", ["/", "/v1/limits", "/auth/profile", "/health", "/health/live", "/docs", "/nowhere"]
    )
    def test_it_is_get_without_the_body(self, gateway, acme_key, path):
        got = gateway.get(path, key=acme_key, headers={"Accept-Encoding": "identity"})
        r = gateway.request("HEAD", path, key=acme_key, headers={"Accept-Encoding": "identity"})

        assert r.status_code == got.status_code
        assert r.content == b""
        assert r.headers["content-type"] == got.headers["content-type"]
        assert int(r.headers["content-length"]) > 0

    def test_it_is_refused_without_a_body_too(self, gateway):
        r = gateway.request("HEAD", "/v1/limits")

        assert (r.status_code, r.content) == (401, b"")


class TestTrailingSlash:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/limits",
            "/v1/keys",
            "/auth/profile",
            "/health",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/docs",
            "/redoc",
        ],
    )
    def test_both_forms_answer(self, gateway, acme_admin_key, path):
        with_slash, without = (gateway.get(path + end, key=acme_admin_key) for end in ("/", ""))

        assert with_slash.status_code == 200
        assert with_slash.headers["content-type"] == without.headers["content-type"]

    @pytest.mark.parametrize("slashes", ["", "/", "//"])
    def test_a_post_is_never_redirected(self, gateway, engine, acme_admin_key, slashes):
        detect = gateway.post(f"/v1/detect{slashes}", {"text": "Good day."}, key=acme_admin_key)
        key = gateway.post(f"/v1/keys{slashes}", {}, key=acme_admin_key)
        body = {"email": "dana@initech.example", "password": "correct horse battery"}
        register = gateway.post(f"/auth/register{slashes}", body)

        assert detect.json()["decision"] == "allow"
        assert key.json()["status"] == "active"
        assert register.json()["user"]["email"] == body["email"]

    def test_the_query_survives(self, gateway, acme_admin_key, make_key):
        make_key()

        r = gateway.get("/v1/keys/?limit=1", key=acme_admin_key)

        assert len(r.json()["results"]) == 1

    def test_a_missing_path_is_not_redirected_either(self, gateway):
        assert refusal(gateway.post("/nowhere", {})) == (404, "not_found")
        assert refusal(gateway.get("/v1/nowhere/")) == (404, "not_found")


class TestCompression:
    @staticmethod
    def raw(gateway, path, encoding="gzip", **more):
        """The answer before httpx undoes the compression: (headers, body as sent).

        What has its length in its head was read by then, whole, to hold it to the document.
        """

        async def call():
            async with (
                gateway.http() as http,
                http.stream("GET", path, headers={"Accept-Encoding": encoding, **more}) as response,
            ):
                if response.is_stream_consumed:
                    assert "content-encoding" not in response.headers
                    return response.headers, response.content
                chunks = [chunk async for chunk in response.aiter_raw()]
                return response.headers, b"".join(chunks)

        return gateway.run(call())

    @pytest.mark.parametrize("path", ["/", "/openapi.json"])
    def test_a_long_answer_is_compressed(self, gateway, path):
        plain = self.raw(gateway, path, "identity")[1]

        headers, body = self.raw(gateway, path)

        assert len(plain) > 1000
        assert headers["content-encoding"] == "gzip"
        assert int(headers.get("content-length", len(body))) == len(body)
        assert len(body) < len(plain) * 0.6
        assert gzip.decompress(body) == plain

    def test_a_short_answer_is_not(self, gateway):
        headers, body = self.raw(gateway, "/health/live")

        assert "content-encoding" not in headers
        assert len(body) < 1000

    @pytest.mark.parametrize(("size", "compressed"), [(999, False), (1000, True)])
    def test_the_border_is_1000_bytes(self, gateway, monkeypatch, size, compressed):
        body = self.raw(gateway, "/problems/not_found", "identity")[1]
        # The answer's size is fixed; moving the border moves it across.
        monkeypatch.setattr(gateway.application, "gzip_bytes_min", len(body) + 1000 - size)

        headers, _ = self.raw(gateway, "/problems/not_found")

        assert ("content-encoding" in headers) == compressed

    def test_the_border_is_the_products(self, gateway):
        assert gateway.application.gzip_bytes_min == 1000

    @pytest.mark.parametrize("encoding", ["identity", "br", "gzip;q=0", "br, gzip; q=0.0, *"])
    def test_nobody_gets_it_unasked(self, gateway, encoding):
        headers, _ = self.raw(gateway, "/", encoding)

        assert "content-encoding" not in headers
        assert "accept-encoding" in headers["vary"].lower()  # a cache must keep both apart

    @pytest.mark.parametrize("encoding", ["gzip", "br, GZIP;q=0.5", "deflate, gzip;q=1.0"])
    def test_it_is_found_among_others(self, gateway, encoding):
        assert self.raw(gateway, "/", encoding)[0]["content-encoding"] == "gzip"


class TestRequestId:
    @pytest.mark.parametrize("path", ["/v1/limits", "/auth/profile", "/", "/nowhere", "/health"])
    def test_ours_is_a_uuid_of_version_7_and_new_every_time(self, gateway, path):
        ids = [UUID(gateway.get(path).headers["x-request-id"]) for _ in range(3)]

        assert {i.version for i in ids} == {7}
        assert ids == sorted(set(ids))

    @pytest.mark.parametrize("path", ["/v1/limits", "/auth/profile", "/", "/nowhere"])
    @pytest.mark.parametrize("theirs", ["12345678", "order-77.b:c_D", "x" * 128])
    def test_a_valid_one_of_the_caller_is_echoed(self, gateway, path, theirs):
        r = gateway.get(path, headers={"X-Request-ID": theirs})

        assert r.headers["x-request-id"] == theirs

    @pytest.mark.parametrize(
        "theirs",
        [
            "1234567",
            "x" * 129,
            "-starts-with-dash",
            "with space 1",
            'quote"inside',
            "new\\nline12",
            "<script>alert(1)</script>",
            "{{7*7}}abcd",
            "",
        ],
    )
    def test_a_bad_one_is_replaced_by_ours(self, gateway, theirs):
        r = gateway.get("/v1/limits", headers={"X-Request-ID": theirs})

        assert r.headers["x-request-id"] == r.json()["request_id"]
        assert UUID(r.json()["request_id"]).version == 7

    def test_a_bad_one_with_bytes_beyond_ascii_is_replaced_by_ours(self, gateway):
        headers = {"X-Request-ID": "é-umlaut-12345".encode()}

        r = gateway.get("/v1/limits", headers=headers)

        assert UUID(r.headers["x-request-id"]).version == 7

    def test_the_body_has_ours_even_when_theirs_is_echoed(self, gateway):
        r = gateway.get("/v1/limits", headers={"X-Request-ID": "order-12345678"})

        assert r.headers["x-request-id"] == "order-12345678"
        assert UUID(r.json()["request_id"]).version == 7

    def test_the_log_has_both(self, gateway, capsys):
        r = gateway.get("/v1/limits", headers={"X-Request-ID": "order-12345678"})

        output = capsys.readouterr().out
        assert '"correlation_id":"order-12345678"' in output
        assert f'"request_id":"{r.json()["request_id"]}"' in output


class TestServerTiming:
    @pytest.mark.parametrize("path", ["/v1/limits", "/auth/profile", "/", "/health/live"])
    def test_it_names_gateway_limiter_and_upstream(self, gateway, acme_key, path):
        r = gateway.get(path, key=acme_key)

        found = re.fullmatch(
            r"gateway;dur=\d+\.\d\d, limiter;dur=\d+\.\d\d, upstream;dur=\d+\.\d\d",
            r.headers["server-timing"],
        )
        assert found, r.headers["server-timing"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "DELETE"])
def test_documents_are_only_read(gateway, path, method):
    r = gateway.request(method, path)

    assert (r.status_code, r.json()["code"]) == (405, "method_not_allowed")


def test_a_page_that_breaks_is_a_500_whose_cause_is_logged(gateway, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("the cause")

    monkeypatch.setattr("portal.landing.render", broken)

    r = gateway.get("/")

    assert (r.status_code, r.json()["code"]) == (500, "internal_error")
    assert "the cause" not in r.text


def test_a_stack_for_people_shows_no_local_variables():
    from gateway_project.core.telemetry.logging import _console_renderer

    try:
        api_key = "gw_live_SECRET"
        raise ValueError(len(api_key))
    except ValueError:
        text = _console_renderer()(None, "error", {"event": "x", "exc_info": True})

    assert "ValueError: 14" in text
    assert "locals" not in text
    assert "│" not in text


def test_causes_of_errors_are_not_silenced():
    for name in ("django.request", "django.security.csrf", "uvicorn.error"):
        assert logging.getLogger(name).isEnabledFor(logging.ERROR)
    assert not logging.getLogger("django.request").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("forwarded", "taken"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("192.0.2.1, 203.0.113.9:50123", "203.0.113.9"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[fe80::1%eth0]:443", "10.0.0.1"),
        ("[", "10.0.0.1"),
        ("203.0.113.9:", "203.0.113.9"),
        ("fe80::1%eth0", "10.0.0.1"),  # the database's column has no zones
        ("not an address", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_only_an_address_is_taken_from_a_proxy(forwarded, taken):
    assert client_address("10.0.0.1", forwarded, 1) == taken


@pytest.mark.parametrize(("seconds", "status"), [(0, 200), (14 * 60, 200), (15 * 60 + 1, 503)])
def test_readiness_outlives_the_database_as_long_as_known_keys_do(
    gateway, monkeypatch, seconds, status
):
    monkeypatch.setattr(database, "_select_one", Mock(side_effect=OperationalError("gone")))
    monkeypatch.setattr(views, "NEEDED", {"database": health.Probe(views._database)})
    monkeypatch.setattr(database, "trouble_since", time.monotonic() - seconds)

    r = gateway.get("/health/ready")

    assert r.status_code == status
    assert r.json()["status"] == {200: "degraded", 503: "down"}[status]
    assert r.json()["checks"]["database"] == "down"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", 0.0),
        ("*/*", 0.0),
        ("application/x-ndjson", 1.0),
        ("Application/X-NDJSON ; q=0.5", 0.5),
        ("text/html, application/x-ndjson;a=b;Q=0.25", 0.25),
        ("application/x-ndjson;q=0", 0.0),
        ("application/x-ndjson;q=0.000, */*", 0.0),
        ("application/x-ndjsonx", 0.0),
    ],
)
def test_what_accept_names_with_no_quality_is_not_wanted(accept, wanted):
    assert wants(SimpleNamespace(headers={"accept": accept}), NDJSON) == wanted


@pytest.mark.parametrize(
    ("sent", "status"), [("*", 304), ('W/"x", {}', 304), ('W/"x"', 200), ("", 200)]
)
def test_the_document_is_sent_once(gateway, sent, status):
    tag = gateway.get("/openapi.json").headers["etag"]

    r = gateway.get("/openapi.json", headers={"If-None-Match": sent.format(tag)})

    assert r.status_code == status
    assert r.headers["etag"] == tag


def test_a_page_takes_three_turns_of_a_thread(gateway, counted):
    """Django's note that it begins, all middleware with the view, and its end."""
    gateway.get("/terms", headers=HTML)
    counted.hops = 0

    assert gateway.get("/terms", headers=HTML).status_code == 200
    assert counted.hops <= 2 * 3  # each is asked for, and handed to a thread
