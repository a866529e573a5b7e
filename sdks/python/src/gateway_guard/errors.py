"""What can go wrong. Each problem `code` of the API has a class; catch the base that you need.

GatewayError
├── APIConnectionError        nobody answered, or the connection broke
│   └── APITimeoutError       not within the deadline
├── InvalidResponseError      not the gateway's: a proxy's page or redirect, half JSON
├── WebhookVerificationError
├── BatchFailed               a job ended as `failed` or `cancelled`
├── Blocked                   a guard found an attack in a text
└── APIError                  the gateway refused; `code`, `detail`, `request_id`, `errors`
    ├── BadRequestError           400, 405, 406, 413, 415
    ├── AuthenticationError       401
    ├── PermissionDeniedError     403
    ├── NotFoundError             404
    ├── ConflictError             409, 412
    ├── ValidationError           422
    ├── RateLimitError            429
    └── ServerError               5xx
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional


class GatewayError(Exception):
    """Anything that this library raises by itself."""


class APIConnectionError(GatewayError):
    """The gateway could not be reached, or went away; `__cause__` says how."""


class APITimeoutError(APIConnectionError):
    """No answer within the call's deadline (`timeout`)."""


class InvalidResponseError(GatewayError):
    """What answered is not this API: a proxy's page or redirect, half an answer, other JSON."""

    def __init__(
        self, message: str, *, status: int, body: bytes, retry_after: Optional[float] = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


class WebhookVerificationError(GatewayError):
    """Do not trust this event: it was signed with another secret, changed, or sent long ago."""


class BatchFailed(GatewayError):
    """The job ended without the results that were waited for; `job` is its last state."""

    def __init__(self, message: str, *, job: Any) -> None:
        super().__init__(message)
        self.job = job


class Blocked(GatewayError):
    """A guard's text is an attack: leave it out, and go on without it or not at all.

    `detection` is the verdict. `content_type` and `where` say which text it was; the text itself is
    in no message. Was it none? `client.feedback(error.request_id, "false_positive")`.
    """

    def __init__(self, detection: Any, *, content_type: str, where: str) -> None:
        kinds = ", ".join(detection.threat_types) or "a text on this key's deny list"
        super().__init__(
            f"Prompt injection in {where}: {kinds} (request {detection.request_id}). Do not hand "
            "it to the model. If it is harmless, send feedback 'false_positive' on that request."
        )
        self.detection = detection
        self.content_type = content_type
        self.where = where
        self.request_id: str = detection.request_id


class FieldError(NamedTuple):
    """A field at fault: a dotted path into the body, empty when all of it is meant."""

    field: str
    message: str


class APIError(GatewayError):
    """A problem (RFC 9457) as the gateway told it. Decide by the class, or by `code`."""

    code = ""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str,
        title: str = "",
        request_id: str = "",
        errors: tuple[FieldError, ...] = (),
        retry_after: Optional[float] = None,
        body: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__(detail or title or code)
        self.status = status
        self.code = code
        self.detail = detail
        self.title = title
        self.request_id = request_id
        self.errors = errors
        self.retry_after = retry_after
        self.body = dict(body or {})

    def __str__(self) -> str:
        lines = [f"{self.status} {self.code}: {self.detail}"]
        lines += [f"  {error.field or 'body'}: {error.message}" for error in self.errors]
        if self.request_id:
            lines.append(f"  request_id: {self.request_id}")
        return "\n".join(lines)


class BadRequestError(APIError):
    """The request cannot be understood as it is."""


class AuthenticationError(APIError):
    """No key, or not one that works."""


class PermissionDeniedError(APIError):
    """The key is fine, but may not do that."""


class NotFoundError(APIError):
    """Nothing there, or another workspace's."""


class ConflictError(APIError):
    """Not in a state for that."""


class ValidationError(APIError):
    """Fields are wrong; `errors` names each."""


class RateLimitError(APIError):
    """A limit is used up; `retry_after` is in seconds."""


class ServerError(APIError):
    """The gateway's fault, or of what stands behind it."""


# fmt: off
class InvalidJSON(BadRequestError): code = "invalid_json"
class MethodNotAllowed(BadRequestError): code = "method_not_allowed"
class NotAcceptable(BadRequestError): code = "not_acceptable"
class BodyTooLarge(BadRequestError): code = "body_too_large"
class UnsupportedMediaType(BadRequestError): code = "unsupported_media_type"
class RequestTimeout(BadRequestError): code = "request_timeout"
class MissingAPIKey(AuthenticationError): code = "missing_api_key"
class InvalidAPIKey(AuthenticationError): code = "invalid_api_key"
class ScopeDenied(PermissionDeniedError): code = "scope_denied"
class IPNotAllowed(PermissionDeniedError): code = "ip_not_allowed"
class WorkspaceSuspended(PermissionDeniedError): code = "workspace_suspended"
class FailOpenForbidden(PermissionDeniedError): code = "fail_open_forbidden"
class PolicyLocked(PermissionDeniedError): code = "policy_locked"
class EmailTaken(ConflictError): code = "email_taken"
class TooMany(ConflictError): code = "too_many"
class IdempotencyInProgress(ConflictError): code = "idempotency_in_progress"
class PreconditionFailed(ConflictError): code = "precondition_failed"
class IdempotencyMismatch(ValidationError): code = "idempotency_mismatch"
class BatchOverLimit(ValidationError): code = "batch_over_limit"
class RateLimited(RateLimitError): code = "rate_limited"
class QuotaExceeded(RateLimitError): code = "quota_exceeded"
class InternalError(ServerError): code = "internal_error"
class StoreUnavailable(ServerError): code = "store_unavailable"
class DetectionUnavailable(ServerError): code = "detection_unavailable"
class DetectionTimeout(ServerError): code = "detection_timeout"
# fmt: on

GENERAL: dict[str, type[APIError]] = {
    "bad_request": BadRequestError,
    "permission_denied": PermissionDeniedError,
    "not_found": NotFoundError,
    "conflict": ConflictError,
    "validation_error": ValidationError,
}
"""Codes that say no more than the class of their status."""


def _known(base: type[APIError]) -> list[type[APIError]]:
    return [base, *(sub for child in base.__subclasses__() for sub in _known(child))]


BY_CODE: dict[str, type[APIError]] = {
    **GENERAL,
    **{cls.code: cls for cls in _known(APIError) if cls.code},
}
BY_STATUS: dict[int, type[APIError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    422: ValidationError,
    429: RateLimitError,
}


def class_for(status: int, code: str) -> type[APIError]:
    """Of a code that this version does not know: what its status says."""
    known = BY_CODE.get(code)
    if known is not None:
        return known
    return BY_STATUS.get(status, ServerError if status >= 500 else BadRequestError)
