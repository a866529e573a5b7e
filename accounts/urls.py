from django.urls import path

from accounts.usage.views import RequestViewSet
from accounts.views import (
    AccountViewSet,
    AuditViewSet,
    KeyViewSet,
    LimitsViewSet,
    RegistrationViewSet,
)

urlpatterns = [
    path(
        "auth/register", RegistrationViewSet.as_view({"post": "create"}), name="accounts-register"
    ),
    path("auth/profile", AccountViewSet.as_view({"get": "profile"}), name="accounts-profile"),
    path("auth/rotate-key", AccountViewSet.as_view({"post": "rotate"}), name="accounts-rotate-key"),
    path("auth/revoke", AccountViewSet.as_view({"delete": "revoke"}), name="accounts-revoke"),
    path("v1/limits", LimitsViewSet.as_view({"get": "retrieve"}), name="accounts-limits"),
    path("v1/keys", KeyViewSet.as_view({"get": "list", "post": "create"}), name="accounts-keys"),
    path("v1/audit", AuditViewSet.as_view({"get": "list"}), name="accounts-audit"),
    path("v1/requests", RequestViewSet.as_view({"get": "list"}), name="accounts-requests"),
    path(
        "v1/requests/<uuid:request_id>",
        RequestViewSet.as_view({"get": "retrieve"}),
        name="accounts-request",
    ),
    path(
        "v1/keys/<uuid:id>",
        KeyViewSet.as_view({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="accounts-key",
    ),
]
