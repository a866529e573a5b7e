"""Every failure that leaves this gateway, in one tree.

    GatewayError
    ├── BadRequest               400  not HTTP as we accept it (host, headers, path)
    ├── InvalidJSON              400  the body is not JSON
    ├── NoSession                400  nobody is signed in: no refresh cookie came
    ├── MissingAPIKey            401  no key was sent
    ├── InvalidAPIKey            401  malformed, unknown, revoked or expired (never says which)
    ├── MissingToken             401  no access token was sent
    ├── InvalidToken             401  malformed, forged, expired or revoked (never says which)
    ├── SignInRefused            401  wrong name, wrong password or no access (never says which)
    ├── SecondFactorRequired     401  the password is right, a code has to come with it
    ├── ScopeDenied              403  the key lacks the scope
    ├── IPNotAllowed             403  the key is bound to other networks
    ├── WorkspaceSuspended       403  staff stopped the key's workspace
    ├── PolicyLocked             403  the key's policy does not let a request change that
    ├── CSRFFailed               403  a browser form without its token
    ├── PermissionDenied         403  anything else that is forbidden
    ├── NotFound                 404  no such thing, or another tenant's
    ├── MethodNotAllowed         405
    ├── NotAcceptable            406
    ├── RequestTimeout           408  the body came too slowly
    ├── Conflict                 409  the thing is not in a state for that
    ├── EmailTaken               409
    ├── TooMany                  409  the workspace has as many of these as its plan gives
    ├── IdempotencyInProgress    409  the first call with this Idempotency-Key is being served
    ├── IdempotencyExpired       409  its answer held a secret, and was kept for an hour
    ├── IdempotencyMismatch      422  the Idempotency-Key belongs to another request
    ├── PreconditionFailed       412  If-Match names another version
    ├── BodyTooLarge             413
    ├── AddressTooLong           414
    ├── UnsupportedMediaType     415
    ├── ExpectationFailed        417  an `Expect` that nobody here can meet
    ├── ValidationFailed         422  fields are wrong, each named in `errors`
    ├── BatchOverLimit           422  more items than the day's limit lets through at any time
    ├── FailOpenForbidden        403  the key's policy does not allow failing open
    ├── UpgradeRequired          426  a WebSocket was asked for as if it were a page
    ├── RateLimited              429  too many in the minute
    ├── QuotaExceeded            429  the day's quota is used up
    ├── HeadersTooLarge          431  too many headers, or too large ones
    ├── InternalError            500
    ├── StoreUnavailable         503  database or Redis away
    ├── NotImplementedHere       501  a method or transfer coding that this server does not know
    ├── NotPossible              501  Robin has no way to do that
    ├── UpstreamUnexpected       502  Robin answered something else than was asked for
    ├── UpstreamUnavailable      503  Robin is away, busy, or left alone by its circuit breaker
    ├── UpstreamTimedOut         504  Robin was too slow
    ├── GuardrailUnavailable     503  no verdict for LiteLLM: limits, a slow body, our own faults
    ├── DetectionUnavailable     503  only when the caller chose to fail closed
    ├── DetectionTimeout         504  only when the caller chose to fail closed
    └── VersionNotSupported      505  neither HTTP/1.1 nor HTTP/1.0

`problem()` is the one place that writes the RFC 9457 body; DRF, Django's own handlers and the
ASGI layer all call it, so that a client needs one error parser. Codes are public and never
renamed; `docs/errors.md` explains each and a test holds both together.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson
import pydantic
from django import db
from django.core import exceptions as django_exceptions
from django.http import Http404
from django.http.multipartparser import MultiPartParserError
from redis.exceptions import RedisError
from rest_framework import exceptions as drf
from rest_framework import status as http

from gateway_project.core.sentences import Sentence

CONTENT_TYPE = "application/problem+json"
FOREIGN_HOST = (
    "The gateway does not answer by this host name. Use the one of its address, or have who runs "
    "it add this one to ALLOWED_HOSTS."
)
ROBIN_PREFIX = "/api/v1/"
FIELDS_MAX = 1000  # Django's own, DATA_UPLOAD_MAX_NUMBER_FIELDS


class GatewayError(drf.APIException):
    """A refusal with a stable `code`.

    `detail` is for people and says what to do next. `errors` names the fields at fault as
    `{"field", "message"}`. `headers` go onto the answer.
    """

    status_code: int = http.HTTP_500_INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    default_detail: str = "Something went wrong on our side. Try again."

    def __init__(
        self,
        detail: str | Sentence | None = None,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        sentence = detail or self.default_detail
        self.sentence = sentence if isinstance(sentence, Sentence) else Sentence(sentence)
        super().__init__(str(self.sentence), self.code)
        self.more: dict[str, Any] = {}
        """Members of the problem beside those that all have (RFC 9457, §3.2)."""
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def for_people(self) -> str:
        """`detail` in the language of the page; on `detail` itself programs rely."""
        return self.sentence.translated()

    @property
    def sentences(self) -> list[str]:
        """What is wrong with each field, with its name before it."""
        return [f"{error['field']}: {error['message']}".lstrip(": ") for error in self.errors]


class BadRequest(GatewayError):
    status_code = 400
    code = "bad_request"
    title = "Bad request"
    default_detail = "The request is not acceptable as it is. Check host name, headers and path."


class BrokenForm(BadRequest):
    default_detail = (
        "The form could not be read: its parts are not as its Content-Type says. Send it as "
        "multipart/form-data with its boundary, or as application/x-www-form-urlencoded."
    )


class TooManyFields(BadRequest):
    default_detail = "The query, or the form, has more than 1,000 fields or files. Send fewer."


class InvalidJSON(GatewayError):
    status_code = 400
    code = "invalid_json"
    title = "Body is not JSON"
    default_detail = "The body could not be read as JSON. Send one JSON object, encoded as UTF-8."


class NoSession(GatewayError):
    """No 401: Robin UI takes each for the end of a session, and forgets the page asked for."""

    status_code = 400
    code = "no_session"
    title = "Nobody is signed in"
    default_detail = "There is no refresh cookie. Sign in: POST /api/v1/auth/login sets it."


class MissingAPIKey(GatewayError):
    status_code = 401
    code = "missing_api_key"
    title = "API key missing"
    default_detail = (
        "Send your API key in the X-API-Key header, or as 'Authorization: Bearer gw_…'. "
        "POST /auth/register makes one."
    )


class InvalidAPIKey(GatewayError):
    status_code = 401
    code = "invalid_api_key"
    title = "API key not accepted"
    default_detail = (
        "This API key is not valid. Check that it was copied whole; if it was revoked or has "
        "expired, make a new one."
    )


class MissingToken(GatewayError):
    status_code = 401
    code = "missing_token"
    title = "Access token missing"
    default_detail = (
        "Send an access token as 'Authorization: Bearer …'. POST /api/v1/auth/login gives one."
    )


class InvalidToken(GatewayError):
    status_code = 401
    code = "invalid_token"
    title = "Token not accepted"
    default_detail = "This token is not valid, or no longer. Refresh it, or sign in again."


class SignInRefused(GatewayError):
    status_code = 401
    code = "sign_in_refused"
    title = "Sign-in refused"
    default_detail = "User name or password is wrong. Check both, or ask an administrator."


class SecondFactorRequired(GatewayError):
    status_code = 401
    code = "second_factor_required"
    title = "Code missing"
    default_detail = (
        "This account has a second factor. Type the code of your app behind the password, with a "
        "blank between them."
    )


class ScopeDenied(GatewayError):
    status_code = 403
    code = "scope_denied"
    title = "Scope missing"
    default_detail = "This key may not do that. Use a key that has the needed scope."


class IPNotAllowed(GatewayError):
    status_code = 403
    code = "ip_not_allowed"
    title = "Network not allowed"
    default_detail = (
        "This key is bound to certain networks and your address is outside them. "
        "Call from there, or change the key's allowed_cidrs."
    )


class WorkspaceSuspended(GatewayError):
    status_code = 403
    code = "workspace_suspended"
    title = "Workspace suspended"
    default_detail = (
        "This key is valid, but its workspace was suspended by the operators of this gateway. "
        "Its owners can ask them why and have it reinstated."
    )


class FailOpenForbidden(GatewayError):
    status_code = 403
    code = "fail_open_forbidden"
    title = "Failing open is not allowed"
    default_detail = (
        "on_unavailable 'fail_open' needs a policy that allows it. Use 'fallback' or 'fail_closed'."
    )


class PolicyLocked(GatewayError):
    status_code = 403
    code = "policy_locked"
    title = "Locked by the key's policy"
    default_detail = "This key's policy does not let a request change that. Leave it out."


class CSRFFailed(GatewayError):
    status_code = 403
    code = "csrf_failed"
    title = "Form expired"
    default_detail = "The form's protection token is missing or old. Reload the page and try again."


class PermissionDenied(GatewayError):
    status_code = 403
    code = "permission_denied"
    title = "Not allowed"
    default_detail = "You may not do that. Ask somebody who may, or for the right to."


class NotFound(GatewayError):
    status_code = 404
    code = "not_found"
    title = "Not found"
    default_detail = "There is nothing here. Check the address: /docs lists every endpoint."


class MethodNotAllowed(GatewayError):
    status_code = 405
    code = "method_not_allowed"
    title = "Method not allowed"
    default_detail = (
        "This address does not answer that method. The Allow header lists those it does."
    )


class NotAcceptable(GatewayError):
    status_code = 406
    code = "not_acceptable"
    title = "Not acceptable"
    default_detail = "This API answers application/json only. Change the Accept header."


class RequestTimeout(GatewayError):
    status_code = 408
    code = "request_timeout"
    title = "Body came too slowly"
    default_detail = "The body did not arrive in time. Send it again in one go."


class Conflict(GatewayError):
    status_code = 409
    code = "conflict"
    title = "Conflict"
    default_detail = "This is no longer in a state for that. Read it again and decide anew."


class EmailTaken(GatewayError):
    status_code = 409
    code = "email_taken"
    title = "E-mail already registered"
    default_detail = "An account with this e-mail exists. Sign in, or register another address."


class TooMany(GatewayError):
    status_code = 409
    code = "too_many"
    title = "As many as the plan gives"
    default_detail = (
        "This workspace has as many of these as its plan gives. Remove one that is not needed."
    )


class IdempotencyInProgress(GatewayError):
    status_code = 409
    code = "idempotency_in_progress"
    title = "First call still running"
    default_detail = (
        "A request with this Idempotency-Key is being served right now. Send it again in a second: "
        "it will be given the same answer."
    )

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class IdempotencyExpired(GatewayError):
    status_code = 409
    code = "idempotency_expired"
    title = "Answer no longer kept"
    default_detail = (
        "This was done, more than an hour ago. Its answer held a secret, which is not kept any "
        "longer. Revoke or rotate what was made, with a new Idempotency-Key, to get a secret anew."
    )


class IdempotencyMismatch(GatewayError):
    status_code = 422
    code = "idempotency_mismatch"
    title = "Idempotency-Key used before"
    default_detail = (
        "This Idempotency-Key belongs to another request of the last 24 hours. Use a new key for a "
        "new request; to repeat the old one send exactly its body."
    )


class PreconditionFailed(GatewayError):
    status_code = 412
    code = "precondition_failed"
    title = "Changed meanwhile"
    default_detail = "This was changed since it was read. Read it again, and decide anew."


class BodyTooLarge(GatewayError):
    status_code = 413
    code = "body_too_large"
    title = "Body too large"
    default_detail = "The body is too large. Split the text into several requests."


class AddressTooLong(GatewayError):
    status_code = 414
    code = "address_too_long"
    title = "Address too long"
    default_detail = "The address is too long. Send less in its query, or in several requests."


class UnsupportedMediaType(GatewayError):
    status_code = 415
    code = "unsupported_media_type"
    title = "Content type not supported"
    default_detail = "Send JSON with the header 'Content-Type: application/json'."


class ExpectationFailed(GatewayError):
    status_code = 417
    code = "expectation_failed"
    title = "Expectation not met"
    default_detail = "Of 'Expect' only '100-continue' is met here. Leave the header out."


class UpgradeRequired(GatewayError):
    status_code = 426
    code = "upgrade_required"
    title = "WebSocket expected"
    default_detail = (
        "This address speaks WebSocket (RFC 6455, version 13). Use a WebSocket client, and have "
        "proxies pass 'Upgrade' and 'Connection' on."
    )

    def __init__(self, detail: str | Sentence | None = None) -> None:
        super().__init__(
            detail,
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
            },
        )


class ValidationFailed(GatewayError):
    status_code = 422
    code = "validation_error"
    title = "Request not valid"
    default_detail = "Some fields are not valid; 'errors' names each. Mend them and send again."


class BatchOverLimit(GatewayError):
    """Not a 429: waiting does not help."""

    status_code = 422
    code = "batch_over_limit"
    title = "Batch larger than the limit"
    default_detail = (
        "The batch has more items than this key may send in a whole day. Split it, or ask for a "
        "higher limit."
    )


class RateLimited(GatewayError):
    status_code = 429
    code = "rate_limited"
    title = "Too many requests"
    default_detail = "The rate limit is reached. Wait for the seconds in Retry-After and try again."


class QuotaExceeded(GatewayError):
    status_code = 429
    code = "quota_exceeded"
    title = "Quota used up"
    default_detail = "The day's quota is used up. It starts anew at midnight UTC (see Retry-After)."


class HeadersTooLarge(GatewayError):
    status_code = 431
    code = "headers_too_large"
    title = "Headers too large"
    default_detail = "The headers are too many, or too large. Send fewer; cookies count as well."


class InternalError(GatewayError):
    default_detail = (
        "Something went wrong on our side and has been logged. Try again; if it stays, report the "
        "request_id."
    )


class StoreUnavailable(GatewayError):
    status_code = 503
    code = "store_unavailable"
    title = "Store unavailable"
    default_detail = (
        "A store that this request needs is away. Your key may be fine: try again shortly."
    )

    def __init__(
        self,
        detail: str | Sentence | None = None,
        *,
        retry_after_seconds: int = 5,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        again = {"Retry-After": str(retry_after_seconds)}
        super().__init__(detail, headers={**again, **(headers or {})})


class NotImplementedHere(GatewayError):
    status_code = 501
    code = "not_implemented"
    title = "Not implemented"
    default_detail = "This server does not know that method. See /docs for every endpoint."


class NotPossible(GatewayError):
    status_code = 501
    code = "not_possible"
    title = "Not possible with Robin"
    default_detail = "The mail server offers no way to do that. Do it on its own machine."


class UpstreamUnexpected(GatewayError):
    status_code = 502
    code = "upstream_unexpected"
    title = "Unexpected answer from Robin"
    default_detail = (
        "Robin returned an unexpected page. Check that the configured addresses and credentials "
        "are those of its two APIs."
    )


class UpstreamUnavailable(GatewayError):
    status_code = 503
    code = "upstream_unavailable"
    title = "Robin unavailable"
    default_detail = "The mail server does not answer. Try again shortly."

    def __init__(
        self, detail: str | Sentence | None = None, *, retry_after_seconds: int = 5
    ) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


class UpstreamTimedOut(GatewayError):
    status_code = 504
    code = "upstream_timeout"
    title = "Robin took too long"
    default_detail = "The mail server did not answer in time. Try again, or ask for less."


class DetectionUnavailable(GatewayError):
    status_code = 503
    code = "detection_unavailable"
    title = "Detection engine unavailable"
    default_detail = (
        "The detection engine is unavailable and the request chose fail_closed. Try again shortly, "
        "or allow the fallback with on_unavailable: 'fallback'."
    )


class DetectionTimeout(GatewayError):
    status_code = 504
    code = "detection_timeout"
    title = "Detection took too long"
    default_detail = (
        "The detection engine did not answer within timeout_seconds and the request chose "
        "fail_closed. Allow more time, or the fallback with on_unavailable: 'fallback'."
    )


class GuardrailUnavailable(GatewayError):
    """What the LiteLLM endpoint says where others say 408, 429 or 500.

    LiteLLM takes 502, 503 and 504 for a guardrail that is away, and only then asks its operator's
    `unreachable_fallback`.
    """

    status_code = 503
    code = "guardrail_unavailable"
    title = "No verdict for LiteLLM"
    default_detail = "There is no verdict at this moment. Send it again shortly."


class VersionNotSupported(GatewayError):
    status_code = 505
    code = "version_not_supported"
    title = "HTTP version not supported"
    default_detail = "Send HTTP/1.1, or HTTP/1.0."


def registered() -> dict[str, type[GatewayError]]:
    """Every public error code with its class, the source of `docs/errors.md`."""

    def walk(cls: type[GatewayError]) -> list[type[GatewayError]]:
        return [cls, *(sub for child in cls.__subclasses__() for sub in walk(child))]

    found: dict[str, type[GatewayError]] = {}
    for cls in walk(GatewayError)[1:]:
        found.setdefault(cls.code, cls)  # not a narrower one, with a detail of its own
    return found


def problem(error: GatewayError, *, instance: str, request_id: str) -> bytes:
    """The RFC 9457 body of `error`, as bytes of JSON.

    Under `/api/v1` it says `message` as well, which is what Robin UI shows to people.
    """
    body: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status_code,
        "detail": str(error.detail),
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
        "errors": error.errors,
    }
    body |= error.more
    if instance.startswith(ROBIN_PREFIX):
        body["message"] = body["detail"]
    return orjson.dumps(body)


def from_pydantic(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel] | None = None
) -> GatewayError:
    """Say what Pydantic found wrong, without ever repeating the caller's values.

    For an unknown field, the fields that `model` knows at that place are listed.
    """
    fields: list[dict[str, str]] = []
    for item in error.errors(include_url=False, include_input=False):
        kind = item["type"]
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            message = "unknown field" + (f"; known here: {', '.join(known)}" if known else "")
        elif kind in ("uuid_parsing", "uuid_type"):
            message = "not a UUID"
        elif kind == "string_too_long":
            most = item["ctx"]["max_length"]
            message = f"has more than {most:,} characters; shorten it, or send it in parts"
        fields.append({"field": field, "message": message[:1].lower() + message[1:]})
    return ValidationFailed(errors=fields)


def _fields_at(model: Any, path: Sequence[int | str]) -> list[str]:
    """The field names of the model that `path` leads to, through lists and optional values."""
    for part in path:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        candidates = [field.annotation]
        model = None
        while candidates and model is None:
            candidate = candidates.pop()
            if hasattr(candidate, "model_fields"):
                model = candidate
            candidates += typing.get_args(candidate)
    return sorted(getattr(model, "model_fields", {}))


def translate(exc: Exception) -> GatewayError:
    """Our error for a foreign one, most specific first; anything unknown is an InternalError.

    Pydantic's and the ORM's "does not exist" are unknown on purpose: where a caller's input may
    cause them the view says so itself, so here they are bugs of ours.
    """
    if isinstance(exc, GatewayError):
        return exc
    if isinstance(exc, db.OperationalError | db.InterfaceError | RedisError):
        return StoreUnavailable()
    if isinstance(exc, db.DataError):
        return ValidationFailed(
            "A value of this request is one that the store does not take. Send text of Unicode "
            "without NUL, and integers within 64 bits."
        )
    if isinstance(exc, Http404 | drf.NotFound):
        return NotFound()
    if isinstance(exc, drf.MethodNotAllowed):
        return MethodNotAllowed()
    if isinstance(exc, drf.UnsupportedMediaType):
        return UnsupportedMediaType()
    if isinstance(exc, drf.NotAcceptable):
        return NotAcceptable()
    if isinstance(exc, drf.ParseError):
        return InvalidJSON()
    if isinstance(exc, MultiPartParserError | django_exceptions.BadRequest):
        return BrokenForm()
    if isinstance(exc, drf.ValidationError):
        return ValidationFailed(errors=_drf_fields(exc.detail))
    if isinstance(exc, drf.Throttled):
        wait = math.ceil(getattr(exc, "wait", None) or 1)
        return RateLimited(headers={"Retry-After": str(wait)})
    if isinstance(exc, drf.NotAuthenticated | drf.AuthenticationFailed):
        return MissingAPIKey()
    if isinstance(exc, django_exceptions.RequestDataTooBig):
        return BodyTooLarge()
    if isinstance(exc, django_exceptions.DisallowedHost):
        return BadRequest(FOREIGN_HOST)
    if isinstance(exc, django_exceptions.TooManyFieldsSent | django_exceptions.TooManyFilesSent):
        return TooManyFields()
    if isinstance(exc, django_exceptions.SuspiciousOperation):
        return BadRequest()
    if isinstance(exc, drf.PermissionDenied):
        # DRF's own sentence says no more than ours; that of a permission says what is wanted.
        own = exc.detail == drf.PermissionDenied.default_detail
        return PermissionDenied(None if own else str(exc.detail))
    if isinstance(exc, django_exceptions.PermissionDenied):
        return PermissionDenied()
    return InternalError()


def _drf_fields(detail: Any, prefix: str = "") -> list[dict[str, str]]:
    if isinstance(detail, Mapping):
        items = [_drf_fields(v, f"{prefix}.{k}".strip(".")) for k, v in detail.items()]
        return [field for item in items for field in item]
    if isinstance(detail, Sequence) and not isinstance(detail, str):
        return [field for item in detail for field in _drf_fields(item, prefix)]
    return [{"field": prefix, "message": str(detail)}]
