"""What the gateway sees of a request: for the doctor alone, who asks through every proxy.

The question is signed with `SECRET_KEY` and good for a minute; anybody else finds nothing here.
"""

from __future__ import annotations

from secrets import token_hex

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from gateway_project.core import errors
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.context import context_of

PATH = "/health/seen"
SECONDS = 60
SCHEME = "Doctor "
HEADERS = ("x-api-key", "idempotency-key", "prefer", "if-match")
"""Of clients, which a proxy has to pass on."""


def _signer() -> signing.TimestampSigner:
    return signing.TimestampSigner(salt="gateway.doctor")


def question() -> str:
    """Who asks `PATH` with this as `Authorization: Doctor …` is answered."""
    return _signer().sign(token_hex(8))


@csrf_exempt  # a POST is a 404, as everything without the signature
def seen(request: HttpRequest) -> HttpResponse:
    given = request.headers.get("authorization", "")
    try:
        if request.method != "GET" or not given.startswith(SCHEME):
            raise signing.BadSignature
        _signer().unsign(given.removeprefix(SCHEME), max_age=SECONDS)
    except signing.BadSignature:
        return refuse(request, errors.NotFound())
    entries = request.headers.get("x-forwarded-for", "").split(",")
    return JsonResponse(
        {
            "client_ip": context_of(request).client_ip,
            "forwarded_for": [entry.strip() for entry in entries if entry.strip()],
            "trusted_proxy_hops": settings.TRUSTED_PROXY_HOPS,
            "scheme": request.scheme,
            "host": request.get_host(),
            "headers": [name for name in HEADERS if name in request.headers],
        }
    )
