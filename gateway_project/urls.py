"""Every address of the gateway. Order matters: the product's JSON comes before the admin's site."""

from typing import Any

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from gateway_project.staff.views import StaffViewSet
from gateway_project.system import seen, views
from portal.reference import pages

handler400 = "gateway_project.core.api.error_pages.bad_request"
handler403 = "gateway_project.core.api.error_pages.permission_denied"
handler404 = "gateway_project.core.api.error_pages.not_found"
handler429 = "gateway_project.core.api.error_pages.too_many_requests"  # allauth's, not Django's
handler500 = "gateway_project.core.api.error_pages.server_error"

admin.site.site_header = admin.site.site_title = "Gateway"
admin.site.index_title = "Administration"
# One sign-in for all, with its second factor and its lock-out.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]

# DRF would answer OPTIONS with a description of the view, which these have none of.
READ: Any = {"http_method_names": ["get", "head"]}

urlpatterns = [
    path("", include("accounts.urls")),
    path("", include("detection.urls")),
    path("", include("robin.urls")),
    path("", include("webhooks.urls")),
    path("health", views.HealthViewSet.as_view({"get": "health"}), name="system-health"),
    path("health/live", views.HealthViewSet.as_view({"get": "live"}), name="system-live"),
    path("health/ready", views.HealthViewSet.as_view({"get": "ready"}), name="system-ready"),
    path(seen.PATH[1:], seen.seen, name="system-seen"),
    path("metrics", views.metrics, name="system-metrics"),
    path("openapi.json", views.openapi_document, name="system-openapi"),
    path("docs", pages.overview, name="system-docs"),
    path("docs/errors", pages.problem_list, name="docs-problems"),
    path("docs/search", pages.search, name="docs-search"),
    path("docs/<slug:slug>", pages.group, name="docs-group"),
    path("redoc", pages.whole, name="system-redoc"),
    path("problems/<slug:code>", views.problem_page, name="system-problem"),
    path("admin/stats", StaffViewSet.as_view({"get": "stats"}), name="staff-stats"),
    path("admin/users", StaffViewSet.as_view({"get": "users"}), name="staff-users"),
    path(
        "admin/usage/<str:api_key_id>",
        StaffViewSet.as_view({"get": "usage"}),
        name="staff-usage",
    ),
    path("admin/", admin.site.urls),
    re_path(r"^admin$", RedirectView.as_view(url="/admin/", **READ), name="system-admin"),
    path("", include("portal.urls")),
]
