"""Addresses of Robin's API. Names and methods are those that Robin UI calls."""

from django.urls import path

from robin.account_views import SessionViewSet, SignInViewSet, UserViewSet

urlpatterns = [
    path("api/v1/auth/login", SignInViewSet.as_view({"post": "login"}), name="robin-auth-login"),
    path(
        "api/v1/auth/refresh",
        SignInViewSet.as_view({"post": "refresh"}),
        name="robin-auth-refresh",
    ),
    path("api/v1/auth/logout", SignInViewSet.as_view({"post": "logout"}), name="robin-auth-logout"),
    path("api/v1/auth/verify", SignInViewSet.as_view({"get": "verify"}), name="robin-auth-verify"),
    path("api/v1/auth/me", SessionViewSet.as_view({"get": "me"}), name="robin-auth-me"),
    path(
        "api/v1/auth/ws-ticket",
        SessionViewSet.as_view({"post": "ws_ticket"}),
        name="robin-auth-ws-ticket",
    ),
    path(
        "api/v1/users", UserViewSet.as_view({"get": "list", "post": "create"}), name="robin-users"
    ),
    path(
        "api/v1/users/<str:username>",
        UserViewSet.as_view({"put": "update", "delete": "destroy"}),
        name="robin-user",
    ),
]
