from django.urls import path

from webhooks.views import CatalogueViewSet, InboxViewSet, WebhookViewSet

urlpatterns = [
    path("webhooks/register", WebhookViewSet.as_view({"post": "create"}), name="webhooks-register"),
    path("webhooks/list", WebhookViewSet.as_view({"get": "list"}), name="webhooks-list"),
    path("webhooks/test", WebhookViewSet.as_view({"post": "test"}), name="webhooks-test"),
    path(
        "webhooks/per-request",
        WebhookViewSet.as_view({"get": "per_request"}),
        name="webhooks-per-request",
    ),
    path("webhooks/events", CatalogueViewSet.as_view({"get": "list"}), name="webhooks-events"),
    path(
        "webhooks/<uuid:id>",
        WebhookViewSet.as_view({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="webhooks-webhook",
    ),
    path(
        "webhooks/<uuid:id>/rotate-secret",
        WebhookViewSet.as_view({"post": "rotate_secret"}),
        name="webhooks-rotate-secret",
    ),
    path(
        "webhooks/<uuid:id>/deliveries",
        WebhookViewSet.as_view({"get": "deliveries"}),
        name="webhooks-deliveries",
    ),
    path(
        "webhooks/<uuid:id>/recover",
        WebhookViewSet.as_view({"post": "recover"}),
        name="webhooks-recover",
    ),
    path(
        "webhooks/deliveries/<uuid:id>",
        WebhookViewSet.as_view({"get": "delivery"}),
        name="webhooks-delivery",
    ),
    path(
        "webhooks/deliveries/<uuid:id>/resend",
        WebhookViewSet.as_view({"post": "resend"}),
        name="webhooks-resend",
    ),
    path("inbox/<str:token>", InboxViewSet.as_view({"post": "receive"}), name="webhooks-inbox"),
]
