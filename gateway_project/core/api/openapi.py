"""Finishing touches to the OpenAPI document that drf-spectacular cannot know of."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension

HEADERS: dict[str, dict[str, Any]] = {
    name: {"description": words, "schema": {"type": kind}}
    for name, kind, words in (
        ("X-Request-ID", "string", "The caller's X-Request-ID when valid, else ours."),
        (
            "RateLimit",
            "string",
            "What is left of each limit (draft-ietf-httpapi-ratelimit-headers-10).",
        ),
        ("RateLimit-Policy", "string", "The limits in force."),
        ("X-RateLimit-Limit", "string", "Of the limit nearest to its end."),
        ("X-RateLimit-Remaining", "string", "Of the limit nearest to its end."),
        ("X-RateLimit-Reset", "string", "Seconds until all of it is back."),
        ("Server-Timing", "string", "Milliseconds spent in gateway, limiter and upstream."),
        ("Retry-After", "integer", "Seconds to wait."),
    )
}
KEYED = [name for name in HEADERS if name != "Retry-After"]


class APIKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "accounts.authentication.APIKeyAuthentication"
    name = ["ApiKey", "BearerKey"]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[str]]]:
        return [{name: []} for name in self.name]  # either of them, not both

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        return [
            {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            {"type": "http", "scheme": "bearer", "bearerFormat": "gw_…"},
        ]


class AccessTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "robin.access.authentication.JWTAuthentication"
    name = "AccessToken"
    match_subclasses = True

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


def finish(result: dict[str, Any], generator: Any, **_: Any) -> dict[str, Any]:
    """Describe the headers that every answer of a keyed endpoint carries, each once."""
    result["components"]["headers"] = HEADERS
    for path in result["paths"].values():
        for operation in path.values():
            names = KEYED if operation.get("security") else ["X-Request-ID"]
            for status, response in operation["responses"].items():
                waits = ["Retry-After"] if status in ("429", "503") else []
                response.setdefault("headers", {}).update(
                    {name: {"$ref": f"#/components/headers/{name}"} for name in [*names, *waits]}
                )
    return result
