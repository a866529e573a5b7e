"""What every endpoint of the API shares: its declaration, its errors, its answer.

`@endpoint` declares body, answer, scope and cost once; the view validates with that very model and
the OpenAPI document shows it, so the two cannot drift apart. `DataPlaneViewSet` runs it as one
coroutine, `ControlPlaneViewSet` as plain synchronous DRF, where `permission_classes` are asked
after the scope and `throttle_classes` before the limits. What a plane cannot honour of DRF's is
never passed over: `as_view` raises `ImproperlyConfigured`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, Protocol, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.viewsets import ViewSet

from gateway_project.core import errors
from gateway_project.core.api.endpoint import (
    Asked,
    Endpoint,
    M,
    Principal,
    parse,
    refuse_twice_asked,
)
from gateway_project.core.api.permissions import IsDeclared
from gateway_project.core.api.responses import gateway_error, problem_response
from gateway_project.core.context import RequestContext, context_of
from gateway_project.core.ratelimit import (
    Claim,
    Decision,
    Policies,
    Policy,
    State,
    denials,
    free_policy,
    get_limiter,
    ip_policy,
    refusals_policy,
)

Authenticate = Callable[[HttpRequest], Awaitable[Any]]


def _counts_as_failed(error: errors.GatewayError) -> bool:
    return 400 <= error.status_code < 500 and error.status_code != 429


def _note(context: RequestContext, decision: Decision, started: float) -> None:
    context.limiter_seconds += perf_counter() - started
    # The latest decision is the one that matters: the limit of an address replaces the key's.
    context.headers[:] = decision.raw_headers()


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


def _names(classes: Iterable[type]) -> str:
    return ", ".join(one.__name__ for one in classes)


def _costs(principal: Principal, minute_cost: int, day_cost: int) -> tuple[int, ...]:
    policies = principal.policies
    known = policies if isinstance(policies, Policies) else Policies(policies)
    return known.costs(minute_cost, day_cost)


def _refusals(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    return tuple(refusals_policy(policy) for policy in policies if policy.name == "minute")


POLICIES = ("authentication_classes", "permission_classes", "throttle_classes")
# What DRF calls for each request, and the data plane never does.
HOOKS = (
    *("initial", "dispatch", "initialize_request", "finalize_response", "handle_exception"),
    *("perform_authentication", "get_authenticators", "permission_denied", "throttled"),
    *("check_permissions", "get_permissions", "check_throttles", "get_throttles"),
)


class _Declared(ViewSet):
    """What both planes share: allowed methods and the declared endpoint of an action."""

    @classmethod
    def declared(cls, action: str) -> Endpoint:
        return cast(Endpoint, getattr(cls, action).endpoint)

    @classmethod
    def _refuse_unheard(cls, actions: Iterable[str], initkwargs: Mapping[str, Any]) -> None:
        """Only DRF's routers read `@action(permission_classes=…)`, and give it to `as_view`."""
        for action in actions:
            for name in POLICIES:
                if name in getattr(getattr(cls, action), "kwargs", {}) and name not in initkwargs:
                    raise ImproperlyConfigured(
                        f"{cls.__name__}.{action}: @action({name}=…) works only behind a router of "
                        f"DRF's. Give {name} to as_view(…) of its path, or to the class."
                    )


class Repeat(Protocol):
    """A request that may be sent again (`accounts/idempotency.py`)."""

    claim: Claim
    policies: tuple[Policy, ...]
    costs: tuple[int, ...]
    """What it takes besides."""
    states: tuple[State, ...]
    """Of these, once they are known."""

    def answer(self, before: bytes) -> HttpResponse: ...
    def keep(self, answer: HttpResponse) -> None: ...
    def forget(self) -> None: ...


class DataPlaneViewSet(_Declared):
    """An endpoint for machines at high rate: one coroutine, no SQL, one Redis trip at most.

    Dispatch: authenticate (`aauthenticate` of the first authentication class) → scope → refusals
    that are known → body → limits → action. Nothing before the limits asks a store, a name server
    or anybody else. Actions are `async def name(self, request, …)`; the validated body is
    `self.body`, the caller `self.principal`.
    """

    principal: Any = None
    body: Any = None
    context: RequestContext
    minute_cost: int
    day_cost: int
    """Units of the minute and the day; from the declaration, unless `prefetch` knows better."""
    minute_cost_min = 1
    day_cost_min = 1
    """What a body can bring them down to."""
    states: tuple[State, ...] = ()
    _taken = 0

    @classmethod
    def as_view(  # type: ignore[override]
        cls, actions: dict[str, str], **initkwargs: Any
    ) -> Callable[..., Any]:
        # ViewSetMixin's own view is a plain function: Django would not await it.
        actions = {"head": actions["get"], **actions} if "get" in actions else dict(actions)
        declared = {name: cls.declared(name) for name in actions.values()}
        deprecated = {name for name, one in declared.items() if one.deprecations}
        cls._refuse_unheard(declared, initkwargs)
        cls._refuse_what_costs(initkwargs)
        authenticate = cls._authenticator(declared, initkwargs)
        allow = ", ".join(method.upper() for method in actions)

        async def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
            self = cls(**initkwargs)
            self.context = context_of(request)
            self.request = request  # type: ignore[assignment]
            self.kwargs = kwargs
            name = actions.get((request.method or "").lower())
            try:
                if name is None:
                    raise errors.MethodNotAllowed(headers={"Allow": allow})
                answer = await self._serve(request, name, declared[name], authenticate, kwargs)
            except Exception as exc:  # noqa: BLE001 - the border: all failures leave as problems
                answer = await self._refuse(request, gateway_error(exc, request))
            if name in deprecated:
                declared[name].deprecations.note(answer, request, self.body)
            return answer

        view.cls = cls  # type: ignore[attr-defined]
        view.initkwargs = initkwargs  # type: ignore[attr-defined]
        view.actions = actions  # type: ignore[attr-defined]
        view.csrf_exempt = True  # type: ignore[attr-defined]
        return view

    @classmethod
    def _refuse_what_costs(cls, initkwargs: Mapping[str, Any]) -> None:
        """DRF's permissions and throttles are synchronous and mostly ask a store: not here."""
        permissions = initkwargs.get("permission_classes", cls.permission_classes)
        if foreign := [one for one in permissions if one not in (AllowAny, IsDeclared)]:
            raise ImproperlyConfigured(
                f"{cls.__name__}: the data plane runs no permission_classes ({_names(foreign)}). "
                "Say who may call by @endpoint(scope=…), or make it a ControlPlaneViewSet and "
                "take its path from DATA_PLANE in asgi.py."
            )
        if throttles := initkwargs.get("throttle_classes", cls.throttle_classes):
            raise ImproperlyConfigured(
                f"{cls.__name__}: the data plane runs no throttle_classes ({_names(throttles)}). "
                "Its limits are those of the key: say by @endpoint(minute_cost=…, day_cost=…) what "
                "a call takes of them, or make it a ControlPlaneViewSet and take its path from "
                "DATA_PLANE in asgi.py."
            )
        for hook in HOOKS:
            if getattr(cls, hook) is not getattr(DataPlaneViewSet, hook):
                raise ImproperlyConfigured(
                    f"{cls.__name__}.{hook}: the data plane never calls it. Use "
                    "@endpoint(scope=…) or prefetch(), or make it a ControlPlaneViewSet."
                )

    @classmethod
    def _authenticator(
        cls, declared: Mapping[str, Endpoint], initkwargs: Mapping[str, Any]
    ) -> Authenticate | None:
        classes = initkwargs.get("authentication_classes", cls.authentication_classes)
        if len(classes) > 1:
            raise ImproperlyConfigured(
                f"{cls.__name__}: the data plane asks one authenticator, not {_names(classes)}. "
                "Name one in authentication_classes that knows each of their credentials, or make "
                "it a ControlPlaneViewSet."
            )
        if not classes:
            if keyed := [name for name, endpoint in declared.items() if not endpoint.public]:
                raise ImproperlyConfigured(
                    f"{cls.__name__}: {', '.join(keyed)} wants a caller, but "
                    "authentication_classes is empty. Name an authenticator, or say "
                    "@endpoint(public=True)."
                )
            return None
        authenticate: Authenticate | None = getattr(classes[0](), "aauthenticate", None)
        if authenticate is None:
            raise ImproperlyConfigured(
                f"{cls.__name__}: {_names(classes)} has no `async def aauthenticate(request)`, "
                "which the data plane calls. Add it, or make the view a ControlPlaneViewSet."
            )
        return authenticate

    async def _serve(
        self,
        request: HttpRequest,
        name: str,
        declared: Endpoint,
        authenticate: Authenticate | None,
        kwargs: dict[str, Any],
    ) -> HttpResponse:
        if not declared.public:
            assert authenticate is not None  # noqa: S101 - `as_view` has seen to it
            self.principal = principal = await authenticate(request)
            if declared.day_cost:
                self.context.user_agent = request.META.get("HTTP_USER_AGENT", "")
                principal.begin_usage(self.context, len(request.body))
            _check_scope(principal, declared)
            if len(denials):
                self._refuse_again(declared)
            refuse_twice_asked(request)
            if declared.body is not None:
                self.body = self.read(request, declared.body)
            self.minute_cost, self.day_cost = declared.minute_cost, declared.day_cost
            fetching = self.prefetch()
            if fetching is not None:
                await fetching
            if "HTTP_IDEMPOTENCY_KEY" in request.META and declared.is_repeatable:
                return await self._serve_once(request, name, kwargs, self.repeat(request))
            if principal.policies:
                started = perf_counter()
                costs = _costs(principal, self.minute_cost, self.day_cost)
                decision = await get_limiter().check(principal.policies, costs)
                denials.note(principal.policies, costs, decision)
                self._decided(decision, started)
                self._taken = self.day_cost
        return cast(HttpResponse, await getattr(self, name)(request, **kwargs))

    async def _serve_once(
        self, request: HttpRequest, name: str, kwargs: dict[str, Any], repeat: Repeat
    ) -> HttpResponse:
        """The answer, or the one that the same request was given before."""
        started = perf_counter()
        own = self.principal.policies
        costs = _costs(self.principal, self.minute_cost, self.day_cost)
        policies = (*own, *repeat.policies)
        decision, before = await get_limiter().check_once(
            policies, (*costs, *repeat.costs), repeat.claim
        )
        repeat.states = decision.states[len(own) :]
        denials.note(own, costs, decision)
        if decision.denied not in {policy.name for policy in repeat.policies}:
            decision = decision._replace(states=decision.states[: len(own)])
        self._decided(decision, started)
        if before is not None:
            self.context.usage = None  # it is a row already
            return repeat.answer(before)
        self._taken = self.day_cost
        try:
            answer = cast(HttpResponse, await getattr(self, name)(request, **kwargs))
        except Exception:
            repeat.forget()
            raise
        repeat.keep(answer)
        return answer

    def repeat(self, request: HttpRequest) -> Repeat:
        """How the request is known when it is sent again; asked only where `is_repeatable`."""
        raise NotImplementedError

    def _refuse_again(self, declared: Endpoint) -> None:
        """Raise the 429 that is certain whatever the body says."""
        policies = self.principal.policies
        minute_cost = min(declared.minute_cost, self.minute_cost_min)
        day_cost = min(declared.day_cost, self.day_cost_min)
        known = denials.of(policies, _costs(self.principal, minute_cost, day_cost))
        if known is None and declared.body is not None:
            refusals = _refusals(policies)
            known = denials.of(refusals, (1,) * len(refusals))
        if known is not None:
            self._decided(known, perf_counter())

    def _decided(self, decision: Decision, started: float) -> None:
        """Show the decision, and raise its refusal."""
        self.states = decision.states
        _note(self.context, decision, started)
        decision.raise_if_denied()

    def read(self, request: HttpRequest, model: type[Asked]) -> Any:
        """The body, as the action gets it."""
        return parse(request, model)

    def prefetch(self) -> Awaitable[None] | None:
        """Start what the action will need from Redis, so that it leaves with the limiter's call.

        Also the place to find out what the body costs, and to refuse by the body alone what must
        cost nothing. Only where the cost depends on what was done before it is a coroutine: that
        costs a trip more.
        """
        return None

    async def give_back_the_day(self) -> None:
        """It turned out that nothing is done for this request: only its minute was taken."""
        taken, self._taken = self._taken, 0
        if taken:
            policies = self.principal.policies
            decision = await get_limiter().check(policies, _costs(self.principal, 0, -taken))
            self.states = decision.states
            _note(self.context, decision, perf_counter())

    async def _refuse(self, request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
        if 400 <= error.status_code < 499:
            await self.give_back_the_day()
        if _counts_as_failed(error) and settings.RATE_LIMIT_ENABLED:
            # Its address has failed; and a caller that came no further than the body is counted
            # as well, or it could have us read bodies for nothing. Both leave in one trip.
            asked = (ip_policy(self.context.client_ip),)
            decisions = await asyncio.gather(
                get_limiter().check(asked, (1,)),
                *(() if self.states else self._count_unread()),
            )
            denied = next((one for one in decisions if one.denied), decisions[0])
            error = _instead_of(error, denied, self.context)
        return problem_response(request, error)

    def _count_unread(self) -> list[Awaitable[Decision]]:
        """Take one of the bodies that are read of the caller in a minute for nothing."""

        async def count(policy: Policy) -> Decision:
            decision = await get_limiter().check((policy,), (1,))
            denials.note((policy,), (1,), decision)
            return decision

        return [count(one) for one in _refusals(getattr(self.principal, "policies", ()))]


class ControlPlaneViewSet(_Declared):
    """An endpoint for people and their scripts: plain synchronous DRF, ORM allowed.

    Same declaration, same order and same errors as the data plane.
    """

    principal: Any
    body: Any = None
    states: tuple[State, ...] = ()

    @classmethod
    def as_view(  # type: ignore[override]
        cls, actions: dict[str, str], **initkwargs: Any
    ) -> Callable[..., Any]:
        cls._refuse_unheard(actions.values(), initkwargs)
        view: Callable[..., Any] = super().as_view(actions, **initkwargs)  # type: ignore[arg-type]
        return view

    @property
    def allowed_methods(self) -> list[str]:
        # Not OPTIONS, which DRF would answer by itself, with an action that nobody declared.
        return [method for method in super().allowed_methods if method != "OPTIONS"]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if not hasattr(getattr(self, self.action or "", None), "endpoint"):
            raise errors.MethodNotAllowed
        declared = self.declared(self.action)
        if declared.public:
            self.check_permissions(request)
            self.check_throttles(request)
            self.limit((ip_policy(context_of(request).client_ip),), 1)
            refuse_twice_asked(request._request)
            return
        self.principal = principal = self._authenticated(request)
        if principal is None:
            raise declared.credential.missing
        _check_scope(principal, declared)
        self.check_permissions(request)
        self.check_throttles(request)
        if principal.policies and settings.RATE_LIMIT_ENABLED:
            policies = principal.policies
            costs = _costs(principal, declared.minute_cost, declared.day_cost)
            if not any(costs):
                free = tuple(free_policy(one) for one in policies if one.name == "minute")
                policies, costs = (*policies, *free), (*costs, *(1 for _ in free))
            self._take(policies, costs)
        refuse_twice_asked(request._request)

    @staticmethod
    def _authenticated(request: Request) -> Any:
        """What the first authenticator that knew the credential gave as `auth`; None: nobody did.

        An authenticator of DRF's own knows users, but neither scopes nor limits.
        """
        principal = request.auth
        found = request.successful_authenticator
        if found is not None and not hasattr(principal, "policies"):
            raise ImproperlyConfigured(
                f"{type(found).__name__}.authenticate must return (user, auth) where `auth` has "
                "`scopes` and `policies`, as accounts.authentication.Caller has."
            )
        return principal

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
        self.body = body = parse(self.request._request, model)
        return body

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super().finalize_response(request, response, *args, **kwargs)
        declared = getattr(getattr(self, self.action or "", None), "endpoint", None)
        if declared is not None and declared.deprecations:
            declared.deprecations.note(answer, request._request, self.body)
        return answer

    def handle_exception(self, exc: Exception) -> HttpResponse:  # type: ignore[override]
        error = gateway_error(exc, self.request)
        declared = getattr(getattr(self, self.action or "", None), "endpoint", None)
        is_public = declared is not None and declared.public
        if _counts_as_failed(error) and settings.RATE_LIMIT_ENABLED and not is_public:
            context = context_of(self.request)
            decision = get_limiter().check_sync((ip_policy(context.client_ip),), (1,))
            error = _instead_of(error, decision, context)
        if isinstance(error, errors.MethodNotAllowed):
            error.headers["Allow"] = ", ".join(self.allowed_methods)
        return problem_response(self.request, error)
