"""Every address of the gateway. Order matters: the product's JSON comes before the admin's site."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from django_ratelimit.decorators import ratelimit
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView

from gateway_project import views
from gateway_project.core import openapi  # noqa: F401 - drf-spectacular finds the key schemes there

handler400 = "gateway_project.core.control_plane.bad_request"
handler403 = "gateway_project.core.control_plane.permission_denied"
handler404 = "gateway_project.core.control_plane.not_found"
handler500 = "gateway_project.core.control_plane.server_error"

admin.site.site_header = admin.site.site_title = "Gateway"
admin.site.index_title = "Administration"
admin.site.login = ratelimit(  # type: ignore[method-assign]
    key="ip", rate=f"{settings.LOGIN_RATE_LIMIT_PER_MINUTE}/m", method="POST"
)(admin.site.login)

# DRF would answer OPTIONS with a description of the view, which these have none of.
READ: Any = {"http_method_names": ["get", "head"]}

urlpatterns = [
    path("", include("accounts.urls")),
    path("", include("detection.urls")),
    path("", include("webhooks.urls")),
    path("health", views.HealthViewSet.as_view({"get": "health"}), name="system-health"),
    path("health/live", views.HealthViewSet.as_view({"get": "live"}), name="system-live"),
    path("health/ready", views.HealthViewSet.as_view({"get": "ready"}), name="system-ready"),
    path("metrics", views.metrics, name="system-metrics"),
    path("openapi.json", views.OpenAPIView.as_view(**READ), name="system-openapi"),
    path(
        "docs",
        SpectacularSwaggerSplitView.as_view(url_name="system-openapi", **READ),
        name="system-docs",
    ),
    path(
        "redoc",
        SpectacularRedocView.as_view(
            url_name="system-openapi", template_name="portal/redoc.html", **READ
        ),
        name="system-redoc",
    ),
    path("problems/<slug:code>", views.problem_page, name="system-problem"),
    path("admin/", admin.site.urls),
    re_path(r"^admin$", RedirectView.as_view(url="/admin/"), name="system-admin"),
    path("", views.landing, name="portal-landing"),
]
