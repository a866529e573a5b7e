"""What an endpoint declares: body, answer, credential, problems; and how a body is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import pydantic
from django.http import HttpRequest
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway_project.core import errors
from gateway_project.core.api.responses import JSON
from gateway_project.core.context import RequestContext
from gateway_project.core.ratelimit import Policy
from gateway_project.core.storable import storable

F = TypeVar("F", bound=Callable[..., Any])


class Asked(BaseModel):
    """What a request says, in its body or its address: each value is one that a store takes.

    The base of every model that `parse` and `asked` validate with, so that no field of any
    endpoint can hold what would be refused only later, behind the answer (`core/storable.py`).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_storable(cls, value: Any) -> Any:
        return storable(value)


M = TypeVar("M", bound=Asked)


class Body(Asked):
    """A request body that refuses unknown fields and other types: a typo must not be silent."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FieldError(BaseModel):
    field: str = Field(description="Dotted path of the field; empty when it is the whole body.")
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldError]


@dataclass(frozen=True, slots=True)
class Credential:
    """What callers of an endpoint show, and what they are told when they show too little."""

    missing: type[errors.GatewayError]
    denied: type[errors.GatewayError]
    denied_detail: str
    """With a place for the scope."""
    others: tuple[type[errors.GatewayError], ...]


API_KEY = Credential(
    errors.MissingAPIKey,
    errors.ScopeDenied,
    "This key lacks the scope '{}'. Use a key that has it; the portal makes one (/app/keys).",
    (errors.InvalidAPIKey, errors.IPNotAllowed, errors.WorkspaceSuspended),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What `@endpoint` was told. `scope` None: any caller. Costs: units of (minute, day) limits."""

    body: type[Asked] | None
    scope: str | None
    public: bool
    minute_cost: int
    day_cost: int
    credential: Credential = API_KEY


class Principal(Protocol):
    """Who calls, as far as limits and scopes go (`accounts.authentication.Caller`)."""

    @property
    def scopes(self) -> frozenset[str]: ...
    @property
    def policies(self) -> tuple[Policy, ...]: ...
    def begin_usage(self, context: RequestContext, request_bytes: int) -> None: ...


def endpoint(
    *,
    summary: str,
    tags: Sequence[str],
    body: type[Asked] | None = None,
    answer: type[BaseModel] | None = None,
    status: int = 200,
    more_answers: Mapping[int, type[BaseModel]] = MappingProxyType({}),
    scope: str | None = None,
    public: bool = False,
    minute_cost: int = 1,
    day_cost: int = 0,
    problems: Sequence[type[errors.GatewayError]] = (),
    parameters: Sequence[OpenApiParameter] = (),
    description: str | None = None,
    credential: Credential = API_KEY,
) -> Callable[[F], F]:
    """Declare an action. Errors that follow from the declaration are documented by themselves."""
    kinds: list[type[errors.GatewayError]] = [errors.RateLimited, errors.InternalError, *problems]
    if not public:
        kinds += [credential.missing, *credential.others, errors.StoreUnavailable]
        kinds += [credential.denied] if scope else []
    if body is not None:
        kinds += [errors.InvalidJSON, errors.UnsupportedMediaType, errors.ValidationFailed]
        kinds += [errors.BodyTooLarge, errors.RequestTimeout]
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status_code, []).append(f"`{kind.code}`: {kind.title}")
    responses: dict[Any, Any] = {
        (code, errors.CONTENT_TYPE): OpenApiResponse(Problem, "; ".join(dict.fromkeys(lines)))
        for code, lines in sorted(by_status.items())
    }
    responses[status] = OpenApiResponse(answer)
    for code, other in more_answers.items():
        responses[code] = OpenApiResponse(other)

    def mark(function: F) -> F:
        function.endpoint = Endpoint(  # type: ignore[attr-defined]
            body, scope, public, minute_cost, day_cost, credential
        )
        return extend_schema(
            summary=summary,
            description=_described(summary, description, scope, credential),
            tags=list(tags),
            request=body,
            responses=responses,
            parameters=list(parameters),
        )(function)

    return mark


def _described(
    summary: str, description: str | None, scope: str | None, credential: Credential
) -> str:
    """Never empty: the document would show the docstring of the view instead."""
    kind = "scope" if credential is API_KEY else "permission"
    needs = f"Needs the {kind} `{scope}`." if scope else ""
    text = " ".join(filter(None, (description, needs)))
    return text or (summary if summary.endswith("?") else f"{summary}.")


def parse(request: HttpRequest, model: type[M]) -> M:
    """The body, validated; raises the 400, 415 or 422 that says what is wrong with it."""
    if not request.body and not any(f.is_required() for f in model.model_fields.values()):
        return model()  # every field is optional, so no body says as much as an empty object
    media_type = request.META.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise errors.UnsupportedMediaType
    try:
        return model.model_validate_json(request.body)
    except pydantic.ValidationError as exc:
        raise errors.from_pydantic(exc, model) from None


def asked(request: HttpRequest, model: type[M]) -> M:
    """The query of the address; raises the 422 that says what is wrong with it."""
    try:
        return model.model_validate(request.GET.dict())
    except pydantic.ValidationError as exc:
        raise errors.from_pydantic(exc, model) from None
