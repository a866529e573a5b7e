"""Which names are ours, and the one that stands in links.

`Host` is the caller's word. It is compared with the names that the operators wrote down, and what
goes into links of answers, pages and mails is what they wrote.
"""

from __future__ import annotations

from functools import lru_cache

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http.request import validate_host
from django.utils.encoding import iri_to_uri

from gateway_project.core.context import Scope
from gateway_project.server.heads import HOST


def is_ours(scope: Scope) -> bool:
    """Whether the request is for a name of `ALLOWED_HOSTS`; HTTP/1.0 may name none."""
    host: str = scope["gateway"].host or (scope.get("server") or ("",))[0]
    return _is_ours(host, tuple(settings.ALLOWED_HOSTS))


@lru_cache(maxsize=256)
def _is_ours(host: str, allowed: tuple[str, ...]) -> bool:
    domain, _ = _split(host)
    return bool(domain) and validate_host(domain, list(allowed))


def _split(host: str) -> tuple[str, str]:
    """Name and port, by the rule for heads of requests; Django's takes no `_`."""
    found = HOST.fullmatch(host.lower().encode())
    if found is None:
        return "", ""
    return found[1].decode().removesuffix("."), (found[2] or b"").decode()


def public_url(request: ASGIRequest) -> str:
    """What links to this installation begin with: `https://gateway.example`.

    `PUBLIC_URL`, else the name of `ALLOWED_HOSTS` by which the caller came, else where the server
    listens.
    """
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL)
    domain, port = _split(request.get_host())
    own = f":{settings.PORT}"
    if domain in settings.ALLOWED_HOSTS:
        return f"{request.scheme}://{domain}{own if port == str(settings.PORT) else ''}"
    return f"{request.scheme}://{settings.HOST}{own}"


class Request(ASGIRequest):
    """Django's, with links that do not come from the caller, and one rule for whom it is asked."""

    def get_host(self) -> str:
        host: str = self._get_raw_host()  # type: ignore[attr-defined]  # of Django, without stubs
        if not _is_ours(host, tuple(settings.ALLOWED_HOSTS)):
            raise DisallowedHost
        return host

    def build_absolute_uri(self, location: str | None = None) -> str:
        """`location` is a path, or begins with `?`; None: this very page."""
        path = self.get_full_path() if location is None else str(location)
        if path.startswith("?"):
            path = self.path + path
        return iri_to_uri(public_url(self) + path)
