"""Pages of other origins, compression beside secrets, and security headers."""

from __future__ import annotations

import pytest

UI = "https://ui.example"
# A public route, one that refuses, one that is not there: a page may read them all alike.
PATHS = ["/api/v1/auth/verify", "/api/v1/users", "/api/v1/nothing", "/api/v1/auth/verify/"]


@pytest.fixture
def named(settings):
    settings.CORS_ALLOWED_ORIGINS = [UI]


def allowed(response):
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


@pytest.mark.usefixtures("named")
class TestCORS:
    @pytest.mark.parametrize("path", PATHS)
    def test_a_named_origin_may_read_every_answer(self, gateway, path):
        found = allowed(gateway.get(path, headers={"Origin": UI}))

        assert found["access-control-allow-origin"] == UI
        assert found["access-control-allow-credentials"] == "true"
        assert "Retry-After" in found["access-control-expose-headers"]

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE", "PUT", "POST"])
    def test_a_preflight_is_answered_whatever_the_route(self, gateway, path, method):
        headers = {
            "Origin": UI,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization",
        }
        r = gateway.request("OPTIONS", path, headers=headers)

        found = allowed(r)
        assert r.status_code == 200
        assert found["access-control-allow-origin"] == UI
        assert method in found["access-control-allow-methods"].split(", ")
        assert "authorization" in found["access-control-allow-headers"].split(", ")

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://ui.example",
            "https://ui.example:8443",
            "https://ui.example.evil.example",
            "https://evilui.example",
            "null",
            "https://[",
            "*",
        ],
    )
    def test_others_may_read_nothing(self, gateway, origin):
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
            r = gateway.request(method, PATHS[0], headers=headers)
            assert allowed(r) == {}
            assert "origin" in r.headers["vary"].lower()

    def test_vary_is_sent_also_without_an_origin(self, gateway):
        assert "origin" in gateway.get(PATHS[0]).headers["vary"].lower()

    @pytest.mark.parametrize("path", ["/health", "/v1/limits", "/", "/auth/profile", "/metrics"])
    def test_it_is_for_robins_api_alone(self, gateway, path):
        assert allowed(gateway.get(path, headers={"Origin": UI})) == {}

    def test_the_data_plane_answers_alike(self, gateway, monkeypatch):
        from gateway_project import asgi

        # Unknown there, and so refused by the server layer, before there is a request of Django's.
        monkeypatch.setattr(asgi, "DATA_PLANE", frozenset({"/api/v1/on-the-data-plane"}))

        r = gateway.get("/api/v1/on-the-data-plane", headers={"Origin": UI})

        assert r.status_code == 404
        assert allowed(r)["access-control-allow-origin"] == UI


class TestBREACH:
    """A secret is never compressed beside what a caller can choose."""

    def test_an_answer_with_a_token_is_not_compressed(self, gateway, member):
        ada = member(signed_in=False)

        r = ada.sign_in(headers={"Accept-Encoding": "gzip"})

        assert len(r.content) >= gateway.application.gzip_bytes_min  # it would have been
        assert "content-encoding" not in r.headers
        assert r.headers["cache-control"] == "no-store, no-transform"

    def test_nor_is_one_with_an_api_key(self, gateway, acme_admin_key, monkeypatch):
        monkeypatch.setattr(gateway.application, "gzip_bytes_min", 10)
        body = {"name": "new"}
        r = gateway.post("/v1/keys", body, key=acme_admin_key, headers={"Accept-Encoding": "gzip"})

        assert r.status_code == 201
        assert "content-encoding" not in r.headers

    def test_others_are(self, gateway, member, monkeypatch):
        monkeypatch.setattr(gateway.application, "gzip_bytes_min", 10)

        r = member(by_hand=True).get("/api/v1/users", headers={"Accept-Encoding": "gzip"})

        assert r.headers["content-encoding"] == "gzip"


class TestSecurityHeaders:
    @pytest.mark.parametrize("path", ["/api/v1/auth/verify", "/api/v1/nothing", "/health"])
    def test_every_answer_has_them(self, gateway, path):
        headers = gateway.get(path).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] in ("no-referrer", "same-origin")
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]

    def test_strict_transport_where_there_is_tls(self, gateway):
        from gateway_project.core.api.middleware import RequestMiddleware

        wrapped = RequestMiddleware(gateway.application.app, hsts_seconds=600)

        for headers in (wrapped.api_headers, wrapped.page_headers):
            assert (b"strict-transport-security", b"max-age=600; includeSubDomains") in headers
        assert "strict-transport-security" not in gateway.get("/health").headers
