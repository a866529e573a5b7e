"""DRF's own ways on both planes: honoured, or refused when the URL is made; never passed over."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.urls import include, path
from rest_framework import routers
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import action
from rest_framework.permissions import AllowAny, BasePermission, IsAuthenticated
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle, BaseThrottle, UserRateThrottle
from rest_framework.views import APIView

from accounts.authentication import APIKeyAuthentication
from accounts.tests.shapes import refusal
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet, DataPlaneViewSet
from robin.access.authentication import JWTAuthentication

pytestmark = pytest.mark.urls(__name__)


class Never(BasePermission):
    message = "Come back with a ticket."

    def has_permission(self, request, view):
        return False


class Full(BaseThrottle):
    def allow_request(self, request, view):
        return False

    def wait(self):
        return 6.2


class HourlyByCaller(UserRateThrottle):
    rate = "1/hour"


class HourlyByAddress(AnonRateThrottle):
    rate = "1/hour"


class Nameless(BaseAuthentication):
    """Knows somebody, but neither scopes nor limits: as DRF's own `SessionAuthentication` does."""

    def authenticate(self, request):
        return object(), None


class Look(ControlPlaneViewSet):
    @endpoint(summary="Look", tags=["test"], scope="detect")
    def look(self, request):
        return reply({"user": str(request.user.pk)})

    @endpoint(summary="Look, whoever you are", tags=["test"], public=True)
    def peek(self, request):
        return reply({"is_known": bool(request.user and request.user.is_authenticated)})


class Fast(DataPlaneViewSet):
    @endpoint(summary="Fast", tags=["test"])
    async def look(self, request):
        return reply({})

    @endpoint(summary="Fast", tags=["test"], public=True)
    async def peek(self, request):
        return reply({})


class Plain(APIView):
    def get(self, request):
        return Response({})


class Routed(ControlPlaneViewSet):
    @action(detail=False, permission_classes=[Never])
    @endpoint(summary="Routed", tags=["test"])
    def closed(self, request):
        return reply({})

    @action(detail=False)
    @endpoint(summary="Routed", tags=["test"])
    def open(self, request):
        return reply({})


class RoutedFast(DataPlaneViewSet):
    @action(detail=False, permission_classes=[Never])
    @endpoint(summary="Routed", tags=["test"])
    async def look(self, request):
        return reply({})


def look(name, **initkwargs):
    return path(f"look/{name}", Look.as_view({"get": "look"}, **initkwargs))


def peek(name, **initkwargs):
    return path(f"peek/{name}", Look.as_view({"get": "peek"}, **initkwargs))


router = routers.SimpleRouter()
router.register("routed", Routed, basename="routed")
urlpatterns = [
    look("default"),
    look("never", permission_classes=[Never]),
    look("signed-in", permission_classes=[IsAuthenticated]),
    look("full", throttle_classes=[Full]),
    look("hourly", throttle_classes=[HourlyByCaller]),
    look("either", authentication_classes=[JWTAuthentication, APIKeyAuthentication]),
    look("nameless", authentication_classes=[Nameless, APIKeyAuthentication]),
    peek("default"),
    peek("never", permission_classes=[Never]),
    peek("signed-in", permission_classes=[IsAuthenticated]),
    peek("full", throttle_classes=[Full]),
    peek("hourly", throttle_classes=[HourlyByAddress]),
    path("plain", Plain.as_view()),
    path("plain/named", Plain.as_view(permission_classes=[IsAuthenticated])),
    *router.urls,
    path("", include("robin.urls")),
]


class TestControlPlane:
    @pytest.mark.parametrize("call", ["look", "peek"])
    def test_a_permission_that_refuses_is_a_403_in_its_own_words(self, gateway, acme_key, call):
        assert gateway.get(f"/{call}/default", key=acme_key).status_code == 200

        answer = gateway.get(f"/{call}/never", key=acme_key)

        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "permission_denied"
        assert answer.json()["detail"] == Never.message

    @pytest.mark.parametrize("call", ["look", "peek"])
    def test_a_throttle_that_refuses_is_a_429_that_says_when(self, gateway, acme_key, call):
        answer = gateway.get(f"/{call}/full", key=acme_key)

        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["code"] == "rate_limited"

    def test_what_is_refused_takes_nothing_of_the_keys_limits(self, gateway, acme_key):
        for name in ("never", "full", "never", "full"):
            gateway.get(f"/look/{name}", key=acme_key)

        answer = gateway.get("/look/default", key=acme_key)

        limit, left = (int(answer.headers[f"x-ratelimit-{n}"]) for n in ("limit", "remaining"))
        assert left == limit - 1

    def test_a_permission_replaces_no_scope(self, gateway, make_key):
        key = make_key(scopes=["batch"])

        answer = gateway.get("/look/signed-in", key=key)

        assert (answer.status_code, answer.json()["code"]) == (403, "scope_denied")

    def test_drfs_own_permission_knows_the_caller(self, gateway, acme_key):
        answer = gateway.get("/look/signed-in", key=acme_key)

        assert answer.json() == {"user": str(acme_key.row.pk)}
        assert gateway.get("/peek/default").json() == {"is_known": False}
        assert gateway.get("/peek/signed-in").status_code == 401

    def test_drfs_own_throttle_counts_by_caller(self, gateway, acme_key, make_key):
        other = make_key()

        first, second, others = (
            gateway.get("/look/hourly", key=key) for key in (acme_key, acme_key, other)
        )

        assert [a.status_code for a in (first, second, others)] == [200, 429, 200]
        assert 0 < int(second.headers["retry-after"]) <= 3600

    def test_drfs_own_throttle_believes_no_forwarded_address(self, gateway):
        answers = [
            gateway.get("/peek/hourly", headers={"X-Forwarded-For": f"192.0.2.{n}"})
            for n in range(2)
        ]

        assert answers[0].status_code == 200
        assert refusal(answers[1]) == (429, "rate_limited")

    def test_authenticators_are_asked_in_turn(self, gateway, acme_key, member):
        token = {"Authorization": f"Bearer {member('ROLE_ADMIN').token}"}

        by_key = gateway.get("/look/either", key=acme_key)
        by_token = gateway.get("/look/either", headers=token)

        assert by_key.status_code == 200
        # Known by the first, which gives no scope 'detect'; the second is not asked any more.
        assert (by_token.status_code, by_token.json()["code"]) == (403, "scope_denied")
        assert refusal(gateway.get("/look/either")) == (401, "missing_api_key")

    def test_an_authenticator_without_scopes_fails_loudly(self, gateway, acme_key):
        assert refusal(gateway.get("/look/nameless", key=acme_key)) == (500, "internal_error")

    def test_a_router_gives_the_permissions_of_an_action(self, gateway, acme_key):
        assert gateway.get("/routed/open/", key=acme_key).status_code == 200
        closed = gateway.get("/routed/closed/", key=acme_key)
        assert refusal(closed) == (403, "permission_denied")

    def test_without_a_router_they_would_be_lost(self):
        with pytest.raises(ImproperlyConfigured, match=r"Give permission_classes to as_view"):
            Routed.as_view({"get": "closed"})

    def test_a_view_that_declares_nothing_is_closed_by_default(self, gateway, acme_key):
        assert refusal(gateway.get("/plain", key=acme_key)) == (403, "permission_denied")
        assert gateway.get("/plain/named", key=acme_key).status_code == 200


class TestDataPlane:
    """No time for any of it on each request, so it is said at start-up."""

    @pytest.mark.parametrize(
        ("initkwargs", "instead"),
        [
            ({"permission_classes": [Never]}, r"\(Never\).*@endpoint\(scope=…\)"),
            ({"permission_classes": [AllowAny, IsAuthenticated]}, r"\(IsAuthenticated\)"),
            ({"throttle_classes": [Full]}, r"\(Full\).*limits are those of the key"),
            (
                {"authentication_classes": [JWTAuthentication, APIKeyAuthentication]},
                "one authenticator, not JWTAuthentication, APIKeyAuthentication",
            ),
            ({"authentication_classes": []}, "look wants a caller"),
            ({"authentication_classes": [Nameless]}, "Nameless has no `async def aauthenticate"),
        ],
    )
    def test_what_it_cannot_honour_is_refused(self, initkwargs, instead):
        actions = {"get": "look"}
        assert Fast.as_view(actions)

        with pytest.raises(ImproperlyConfigured, match=instead):
            Fast.as_view(actions, **initkwargs)
        with pytest.raises(ImproperlyConfigured, match=instead):
            type("Slow", (Fast,), initkwargs).as_view(actions)

    @pytest.mark.parametrize("hook", ["initial", "get_permissions", "check_throttles"])
    def test_a_hook_that_is_never_called_is_refused(self, hook):
        slow = type("Slow", (Fast,), {hook: lambda self, *args: None})

        with pytest.raises(ImproperlyConfigured, match=rf"Slow\.{hook}.*never calls it"):
            slow.as_view({"get": "look"})

    def test_permissions_of_an_action_are_refused_with_a_router_and_without(self):
        router = routers.SimpleRouter()
        router.register("routed", RoutedFast, basename="routed")

        with pytest.raises(ImproperlyConfigured, match=r"\(Never\)"):
            router.urls  # noqa: B018 - it makes the views
        with pytest.raises(ImproperlyConfigured, match=r"Give permission_classes to as_view"):
            RoutedFast.as_view({"get": "look"})

    def test_what_costs_nothing_is_honoured(self):
        assert Fast.as_view({"get": "look"}, permission_classes=[AllowAny], throttle_classes=[])
        assert Fast.as_view({"get": "peek"}, authentication_classes=[])
