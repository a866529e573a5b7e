"""Addresses of Robin's API. Names and methods are those that Robin UI calls."""

from django.urls import path

from robin.access.views import (
    SessionViewSet,
    SignInViewSet,
    UserSessionViewSet,
    UserViewSet,
)
from robin.blocklist.views import BlocklistViewSet
from robin.config.scanner_views import ScannerViewSet
from robin.config.views import ConfigViewSet
from robin.health.views import RobinHealthViewSet
from robin.logs.views import LogViewSet
from robin.metrics.views import MetricsViewSet
from robin.queue.views import QueueViewSet
from robin.storage.views import StorageViewSet

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
    path(
        "api/v1/users/<str:username>/sessions",
        UserSessionViewSet.as_view({"get": "sessions"}),
        name="robin-user-sessions",
    ),
    path(
        "api/v1/users/<str:username>/sessions/<uuid:session_id>",
        UserSessionViewSet.as_view({"delete": "end"}),
        name="robin-user-session",
    ),
    path("api/v1/health", RobinHealthViewSet.as_view({"get": "health"}), name="robin-health"),
    path(
        "api/v1/health/aggregate",
        RobinHealthViewSet.as_view({"get": "health"}),
        name="robin-health-aggregate",
    ),
    path("api/v1/queue", QueueViewSet.as_view({"get": "list"}), name="robin-queue"),
    path("api/v1/queue/json", QueueViewSet.as_view({"get": "list_all"}), name="robin-queue-json"),
    path("api/v1/queue/stats", QueueViewSet.as_view({"get": "stats"}), name="robin-queue-stats"),
    path(
        "api/v1/queue/actions",
        QueueViewSet.as_view({"post": "actions"}),
        name="robin-queue-actions",
    ),
    path(
        "api/v1/queue/actions/<uuid:job_id>",
        QueueViewSet.as_view({"get": "job", "delete": "cancel"}),
        name="robin-queue-action",
    ),
    path("api/v1/queue/pause", QueueViewSet.as_view({"post": "hold"}), name="robin-queue-pause"),
    path("api/v1/queue/resume", QueueViewSet.as_view({"post": "hold"}), name="robin-queue-resume"),
    path(
        "api/v1/queue/<str:uid>",
        QueueViewSet.as_view({"get": "item", "delete": "destroy"}),
        name="robin-queue-item",
    ),
    path(
        "api/v1/queue/<str:uid>/retry",
        QueueViewSet.as_view({"post": "retry"}),
        name="robin-queue-item-retry",
    ),
    path(
        "api/v1/queue/<str:uid>/bounce",
        QueueViewSet.as_view({"post": "bounce"}),
        name="robin-queue-item-bounce",
    ),
    path(
        "api/v1/queue/<str:uid>/pause",
        QueueViewSet.as_view({"post": "pause_item"}),
        name="robin-queue-item-pause",
    ),
    path(
        "api/v1/queue/<str:uid>/resume",
        QueueViewSet.as_view({"post": "resume_item"}),
        name="robin-queue-item-resume",
    ),
    path("api/v1/storage", StorageViewSet.as_view({"get": "browse"}), name="robin-storage"),
    path("api/v1/storage/file", StorageViewSet.as_view({"get": "file"}), name="robin-storage-file"),
    path("api/v1/storage/raw", StorageViewSet.as_view({"get": "raw"}), name="robin-storage-raw"),
    path(
        "api/v1/logs",
        LogViewSet.as_view({"get": "list", "delete": "destroy"}),
        name="robin-logs",
    ),
    path("api/v1/logs/loggers", LogViewSet.as_view({"get": "loggers"}), name="robin-logs-loggers"),
    path("api/v1/logs/export", LogViewSet.as_view({"get": "export"}), name="robin-logs-export"),
    path("api/v1/config", ConfigViewSet.as_view({"get": "show"}), name="robin-config"),
    path(
        "api/v1/config/reload",
        ConfigViewSet.as_view({"post": "reload"}),
        name="robin-config-reload",
    ),
    path(
        "api/v1/config/<str:section>",
        ConfigViewSet.as_view({"get": "section", "put": "save"}),
        name="robin-config-section",
    ),
    path(
        "api/v1/blocklist",
        BlocklistViewSet.as_view({"get": "list", "post": "create"}),
        name="robin-blocklist",
    ),
    path(
        "api/v1/blocklist/import",
        BlocklistViewSet.as_view({"post": "import_file"}),
        name="robin-blocklist-import",
    ),
    path(
        "api/v1/blocklist/export",
        BlocklistViewSet.as_view({"get": "export"}),
        name="robin-blocklist-export",
    ),
    path(
        "api/v1/blocklist/<uuid:id>",
        BlocklistViewSet.as_view({"patch": "partial_update", "delete": "destroy"}),
        name="robin-blocklist-entry",
    ),
    path(
        "api/v1/scanners/<str:scanner>/status",
        ScannerViewSet.as_view({"get": "status"}),
        name="robin-scanner-status",
    ),
    path(
        "api/v1/scanners/<str:scanner>/test",
        ScannerViewSet.as_view({"post": "test"}),
        name="robin-scanner-test",
    ),
    path("api/v1/metrics", MetricsViewSet.as_view({"get": "list"}), name="robin-metrics"),
    path(
        "api/v1/metrics/system",
        MetricsViewSet.as_view({"get": "system"}),
        name="robin-metrics-system",
    ),
    path(
        "api/v1/metrics/queue",
        MetricsViewSet.as_view({"get": "queue"}),
        name="robin-metrics-queue",
    ),
    path(
        "api/v1/metrics/export",
        MetricsViewSet.as_view({"get": "export"}),
        name="robin-metrics-export",
    ),
]
