"""What an endpoint declares: body, answer, credential, problems; and how a body is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import pydantic
from django.http import HttpRequest
from drf_spectacular.utils import OpenApiParameter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway_project.core import errors
from gateway_project.core.api import json_body
from gateway_project.core.api.deprecation import NONE, Deprecation, Deprecations, fields_of
from gateway_project.core.api.fields import IdText
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
    """RFC 9457. Decide by `code`, which is stable; `detail` is for people."""

    type: str = Field(description="Leads to a page about the code.")
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do next.")
    instance: str
    code: str = Field(description="One of docs/errors.md; there may be new ones.")
    request_id: IdText
    errors: list[FieldError]
    message: str | None = Field(None, description="Under `/api/v1` only: the same as `detail`.")


@dataclass(frozen=True, slots=True)
class Credential:
    """What callers of an endpoint show, and what they are told when they show too little."""

    missing: type[errors.GatewayError]
    denied: type[errors.GatewayError]
    denied_detail: str
    """With a place for the scope."""
    others: tuple[type[errors.GatewayError], ...]
    schemes: Mapping[str, Mapping[str, str]]
    """OpenAPI's security schemes by name; either of them will do."""
    scopes_are: str = "permission"
    """What a scope is called in the document."""


API_KEY = Credential(
    errors.MissingAPIKey,
    errors.ScopeDenied,
    "This key lacks the scope '{}'. Use a key that has it; the portal makes one (/app/keys).",
    (errors.InvalidAPIKey, errors.IPNotAllowed, errors.WorkspaceSuspended),
    {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "BearerKey": {"type": "http", "scheme": "bearer", "bearerFormat": "gw_…"},
    },
    "scope",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent under one status: a type for each media type, and headers by their names.

    No type at all: the body is empty. `core/api/openapi.py` describes the headers.
    """

    content: Mapping[str, Any]
    headers: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: Any, **headers: Any) -> Answer:
        return cls({} if kind is None else {JSON: kind}, **headers)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What `@endpoint` was told: what the planes serve by, and what the document says.

    `scope` None: any caller. Costs: units of (minute, day) limits.
    """

    operation: str | Mapping[str, str]
    """Its name in generated clients; by path, where one action answers several."""
    summary: str
    description: str
    tags: tuple[str, ...]
    body: type[Asked] | None
    takes: Mapping[str, Any]
    """Media types and types of a body that the view reads by itself."""
    query: type[Asked] | None
    parameters: tuple[OpenApiParameter, ...]
    answers: Mapping[int, Answer]
    problems: tuple[type[errors.GatewayError], ...]
    scope: str | None
    public: bool
    minute_cost: int
    day_cost: int
    credential: Credential = API_KEY
    deprecations: Deprecations = NONE

    @property
    def is_repeatable(self) -> bool:
        """Whether it says that the same `Idempotency-Key` again has no second effect."""
        return any(parameter.name == "Idempotency-Key" for parameter in self.parameters)


class Principal(Protocol):
    """Who calls, as far as limits and scopes go (`accounts.authentication.Caller`)."""

    @property
    def scopes(self) -> frozenset[str]: ...
    @property
    def policies(self) -> tuple[Policy, ...]: ...
    def begin_usage(self, context: RequestContext, request_bytes: int) -> None: ...


# The edge refuses these before it knows which operation is meant (`core/api/middleware.py`,
# `core/api/bodies.py`), and the last is nobody's intention.
OF_ALL = (
    *(errors.BadRequest, errors.ValidationFailed, errors.BodyTooLarge, errors.RequestTimeout),
    *(errors.RateLimited, errors.InternalError, errors.StoreUnavailable),
)


def endpoint(
    *,
    summary: str,
    tags: Sequence[str],
    operation: str | Mapping[str, str] = "",
    body: type[Asked] | None = None,
    takes: Mapping[str, Any] = MappingProxyType({}),
    query: type[Asked] | None = None,
    answer: Any = None,
    status: int = 200,
    media_types: Mapping[str, Any] = MappingProxyType({}),
    headers: Sequence[str] = (),
    more_answers: Mapping[int, Any] = MappingProxyType({}),
    scope: str | None = None,
    public: bool = False,
    minute_cost: int = 1,
    day_cost: int = 0,
    problems: Sequence[type[errors.GatewayError]] = (),
    parameters: Sequence[OpenApiParameter] = (),
    description: str | None = None,
    credential: Credential = API_KEY,
    deprecated: Deprecation | None = None,
) -> Callable[[F], F]:
    """Declare an action. Errors that follow from the declaration are documented by themselves.

    `answer` (of JSON), `media_types` (the one that comes unasked first) and `headers` are those of
    `status`; values of `more_answers` are types of JSON, or an `Answer`. What is `deprecated`, and
    which fields are, `core/api/deprecation.py` says in headers.
    """
    kinds: list[type[errors.GatewayError]] = [*OF_ALL, *problems]
    if not public:
        kinds += [credential.missing, *credential.others]
        kinds += [credential.denied] if scope else []
    if body is not None or takes:
        kinds += [errors.InvalidJSON, errors.UnsupportedMediaType]
    main = Answer({**Answer.of(answer).content, **media_types}, tuple(headers))
    others = {
        code: other if isinstance(other, Answer) else Answer.of(other)
        for code, other in more_answers.items()
    }

    def mark(function: F) -> F:
        function.endpoint = Endpoint(  # type: ignore[attr-defined]
            operation or function.__name__,
            summary,
            _described(summary, description, scope, credential),
            tuple(tags),
            body,
            takes,
            query,
            tuple(parameters),
            {status: main, **others},
            tuple(dict.fromkeys(kinds)),
            scope,
            public,
            minute_cost,
            day_cost,
            credential,
            Deprecations(deprecated, fields_of(body), fields_of(query)),
        )
        return function

    return mark


def _described(
    summary: str, description: str | None, scope: str | None, credential: Credential
) -> str:
    """Never empty: who reads an operation alone is told what it does."""
    needs = f"Needs the {credential.scopes_are} `{scope}`." if scope else ""
    text = " ".join(filter(None, (description, needs)))
    return text or (summary if summary.endswith("?") else f"{summary}.")


def parse(request: HttpRequest, model: type[M]) -> M:
    """The body, validated; raises the 400, 415 or 422 that says what is wrong with it."""
    if not request.body and not any(f.is_required() for f in model.model_fields.values()):
        with suppress(pydantic.ValidationError):  # unless it wants one of several
            return model()  # every field is optional: no body says as much as an empty object
    media_type = request.META.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise errors.UnsupportedMediaType
    return json_body.validated(request.body, model)


def refuse_twice_asked(request: HttpRequest) -> None:
    """Raise the 422 of a query that has a name twice: readers differ in which of them counts."""
    if "&" not in request.META.get("QUERY_STRING", ""):
        return
    twice = [name for name, values in request.GET.lists() if len(values) > 1]
    if twice:
        message = "stands more than once in the query; send it once"
        raise errors.ValidationFailed(errors=[{"field": n, "message": message} for n in twice])


def asked(request: HttpRequest, model: type[M]) -> M:
    """The query of the address; raises the 422 that says what is wrong with it."""
    try:
        return model.model_validate(request.GET.dict())
    except pydantic.ValidationError as exc:
        raise errors.from_pydantic(exc, model) from None
