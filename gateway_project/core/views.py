"""What every endpoint of the API shares: its declaration, its errors, its answer.

`@endpoint` declares body, answer, scope and cost once; the view validates with that very model and
the OpenAPI document shows it, so the two cannot drift apart. `DataPlaneViewSet` runs it as one
coroutine, `ControlPlaneViewSet` as plain synchronous DRF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import orjson
import pydantic
from django.conf import settings
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from pydantic import BaseModel, ConfigDict, Field
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.viewsets import ViewSet

from gateway_project.core import errors
from gateway_project.core.context import RequestContext, context_of
from gateway_project.core.ratelimit import Decision, Policy, State, get_limiter, ip_policy
from gateway_project.core.telemetry.logging import get_logger

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Model)
JSON = "application/json"
# For answers that hold a secret: kept nowhere, and never compressed beside what a caller can choose
# (BREACH), neither by us (`core/middleware.py`) nor by a proxy.
SECRET_HEADERS = {"Cache-Control": "no-store, no-transform"}
log = get_logger("gateway.views")


class Body(BaseModel):
    """A request body that refuses unknown fields and other types: a typo must not be silent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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
    "This key lacks the scope '{}'. Use a key that has it.",
    (errors.InvalidAPIKey, errors.IPNotAllowed, errors.WorkspaceSuspended),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What `@endpoint` was told. `scope` None: any caller. Costs: units of (minute, day) limits."""

    body: type[BaseModel] | None
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
    body: type[BaseModel] | None = None,
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
            description=description,
            tags=list(tags),
            request=body,
            responses=responses,
            parameters=list(parameters),
        )(function)

    return mark


def reply(
    answer: BaseModel | Mapping[str, Any] | None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    exclude_none: bool = False,
) -> HttpResponse:
    """An answer as JSON; None gives an empty one (for 204)."""
    if answer is None:
        content = b""
    elif isinstance(answer, BaseModel):
        content = answer.__pydantic_serializer__.to_json(answer, exclude_none=exclude_none)
    else:
        content = orjson.dumps(answer, option=orjson.OPT_UTC_Z)
    return HttpResponse(content, content_type=JSON, status=status, headers=headers)


def problem_response(request: Any, error: errors.GatewayError) -> HttpResponse:
    context = context_of(request)
    context.error_code = error.code
    if error.status_code == 401:  # RFC 9110 §11.6.1
        error.headers.setdefault("WWW-Authenticate", 'Bearer realm="gateway"')
    body = errors.problem(error, instance=request.path, request_id=context.request_id)
    return HttpResponse(
        body, content_type=errors.CONTENT_TYPE, status=error.status_code, headers=error.headers
    )


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """DRF's hook: whatever was raised leaves as a problem."""
    return problem_response(context["request"], _known(exc, context["request"]))


def _known(exc: Exception, request: Any) -> errors.GatewayError:
    error = errors.translate(exc)
    if isinstance(error, errors.InternalError):
        known = context_of(request)
        log.error(
            "unhandled_exception",
            request_id=known.request_id,
            correlation_id=known.correlation_id,
            error=type(exc).__name__,
            exc_info=exc,
        )
    return error


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


def _counts_as_failed(error: errors.GatewayError) -> bool:
    return 400 <= error.status_code < 500 and error.status_code != 429


def _note(context: RequestContext, decision: Decision, started: float) -> None:
    context.limiter_seconds += perf_counter() - started
    # The latest decision is the one that matters: the limit of an address replaces the key's.
    context.headers[:] = [(k.lower().encode(), v.encode()) for k, v in decision.headers()]


def _instead_of(
    error: errors.GatewayError, decision: Decision, context: RequestContext
) -> errors.GatewayError:
    """The 429 when the address has failed too often, else the error itself."""
    try:
        decision.raise_if_denied()
    except errors.GatewayError as limited:
        _note(context, decision, perf_counter())
        return limited
    return error


def _check_scope(principal: Principal, declared: Endpoint) -> None:
    if declared.scope is not None and declared.scope not in principal.scopes:
        credential = declared.credential
        raise credential.denied(credential.denied_detail.format(declared.scope))


def _costs(principal: Principal, minute_cost: int, day_cost: int) -> tuple[int, ...]:
    return tuple(
        minute_cost if policy.name == "minute" else day_cost for policy in principal.policies
    )


class _Declared(ViewSet):
    """What both planes share: allowed methods and the declared endpoint of an action."""

    @classmethod
    def declared(cls, action: str) -> Endpoint:
        return cast(Endpoint, getattr(cls, action).endpoint)


class DataPlaneViewSet(_Declared):
    """An endpoint for machines at high rate: one coroutine, no SQL, one Redis trip at most.

    Dispatch: authenticate (`aauthenticate` of the first authentication class) → scope → body →
    limits → action. Actions are `async def name(self, request, …)`; the validated body is
    `self.body`, the caller `self.principal`.
    """

    principal: Any
    body: Any
    context: RequestContext
    day_cost: int
    """Units of the day; from the declaration, unless `prefetch` or `prepare` knows better."""
    states: tuple[State, ...] = ()

    @classmethod
    def as_view(  # type: ignore[override]
        cls, actions: dict[str, str], **initkwargs: Any
    ) -> Callable[..., Any]:
        # ViewSetMixin's own view is a plain function: Django would not await it.
        actions = {"head": actions["get"], **actions} if "get" in actions else dict(actions)
        declared = {name: cls.declared(name) for name in actions.values()}
        authenticators = [klass() for klass in cls.authentication_classes]

        async def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
            self = cls(**initkwargs)
            self.context = context_of(request)
            self.request = request  # type: ignore[assignment]
            self.kwargs = kwargs
            try:
                name = actions.get((request.method or "").lower())
                if name is None:
                    raise errors.MethodNotAllowed(
                        headers={"Allow": ", ".join(m.upper() for m in actions)}
                    )
                return await self._serve(request, name, declared[name], authenticators, kwargs)
            except Exception as exc:  # noqa: BLE001 - the border: all failures leave as problems
                return await self._refuse(request, _known(exc, request))

        view.cls = cls  # type: ignore[attr-defined]
        view.initkwargs = initkwargs  # type: ignore[attr-defined]
        view.actions = actions  # type: ignore[attr-defined]
        view.csrf_exempt = True  # type: ignore[attr-defined]
        return view

    async def _serve(
        self,
        request: HttpRequest,
        name: str,
        declared: Endpoint,
        authenticators: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> HttpResponse:
        if not declared.public:
            self.principal = principal = await authenticators[0].aauthenticate(request)
            if declared.day_cost:
                principal.begin_usage(self.context, len(request.body))
            _check_scope(principal, declared)
            if declared.body is not None:
                self.body = parse(request, declared.body)
            self.day_cost = declared.day_cost
            self.prefetch()
            await self.prepare()
            if principal.policies:
                started = perf_counter()
                decision = await get_limiter().check(
                    principal.policies, _costs(principal, declared.minute_cost, self.day_cost)
                )
                self.states = decision.states
                _note(self.context, decision, started)
                decision.raise_if_denied()
        return cast(HttpResponse, await getattr(self, name)(request, **kwargs))

    def prefetch(self) -> None:
        """Start what the action will need from Redis, so that it leaves with the limiter's call."""

    async def prepare(self) -> None:
        """Refuse what must cost nothing, and find out what the rest costs, before the limits."""

    async def _refuse(self, request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
        if _counts_as_failed(error) and settings.RATE_LIMIT_ENABLED:
            decision = await get_limiter().check((ip_policy(self.context.client_ip),), (1,))
            error = _instead_of(error, decision, self.context)
        return problem_response(request, error)


class ControlPlaneViewSet(_Declared):
    """An endpoint for people and their scripts: plain synchronous DRF, ORM allowed.

    Same declaration, same order and same errors as the data plane.
    """

    principal: Any
    states: tuple[State, ...] = ()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # DRF answers OPTIONS by itself, with an action that nobody declared.
        if not hasattr(getattr(self, self.action or "", None), "endpoint"):
            raise errors.MethodNotAllowed
        declared = self.declared(self.action)
        if declared.public:
            self.limit((ip_policy(context_of(request).client_ip),), 1)
            return
        principal: Any = request.auth
        self.principal = principal
        if principal is None:
            raise declared.credential.missing
        _check_scope(principal, declared)
        if principal.policies and settings.RATE_LIMIT_ENABLED:
            costs = _costs(principal, declared.minute_cost, declared.day_cost)
            self._take(principal.policies, costs)

    def limit(self, policies: tuple[Policy, ...], cost: int) -> None:
        """Take `cost` units of each policy, or raise the 429."""
        if settings.RATE_LIMIT_ENABLED:
            self._take(policies, (cost,) * len(policies))

    def _take(self, policies: tuple[Policy, ...], costs: tuple[int, ...]) -> None:
        started = perf_counter()
        decision = get_limiter().check_sync(policies, costs)
        self.states = decision.states
        _note(context_of(self.request), decision, started)
        decision.raise_if_denied()

    def parsed(self, model: type[M]) -> M:
        """The body; `model` is checked against the declaration, so that the document is true."""
        declared = self.declared(self.action).body
        assert declared is model, f"{self.action} declares {declared}, not {model}"  # noqa: S101
        return parse(self.request._request, model)

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        error = _known(exc, self.request)
        declared = getattr(getattr(self, self.action or "", None), "endpoint", None)
        is_public = declared is not None and declared.public
        if _counts_as_failed(error) and settings.RATE_LIMIT_ENABLED and not is_public:
            context = context_of(self.request)
            decision = get_limiter().check_sync((ip_policy(context.client_ip),), (1,))
            error = _instead_of(error, decision, context)
        if isinstance(error, errors.MethodNotAllowed):
            error.headers["Allow"] = ", ".join(self.allowed_methods)
        return problem_response(self.request, error)


Q = TypeVar("Q", bound=pydantic.BaseModel)


def asked(request: HttpRequest, model: type[Q]) -> Q:
    """The query of the address; raises the 422 that says what is wrong with it."""
    try:
        return model.model_validate(request.GET.dict())
    except pydantic.ValidationError as exc:
        raise errors.from_pydantic(exc, model) from None


PAGING = (
    OpenApiParameter("limit", int, description="1 to 200, default 50."),
    OpenApiParameter("cursor", str, description="From `next`."),
)
"""What `page` reads, for `@endpoint(parameters=…)`."""


def page(
    request: Request, queryset: QuerySet[R], *, ordering: tuple[str, ...]
) -> tuple[list[R], str | None]:
    """One page of `queryset` by cursor, and the absolute URL of the next (None at the end)."""
    pager = CursorPagination()
    pager.ordering = ordering
    pager.page_size = 50
    pager.page_size_query_param = "limit"
    pager.max_page_size = 200
    rows = pager.paginate_queryset(queryset, request) or []
    return list(rows), pager.get_next_link()
