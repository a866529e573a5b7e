from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps

# The first application that Django loads: before any other can declare a metric, it is settled
# where they are written.
from gateway_project.core.telemetry import metrics  # noqa: F401


class GatewayConfig(AppConfig):
    """Commands, system checks and what Celery tells; no models."""

    default = True
    name = "gateway_project"
    verbose_name = "Gateway"

    def ready(self) -> None:
        from gateway_project import checks  # noqa: F401 - registers them
        from gateway_project.worker import signals  # noqa: F401 - registers them


class StaffAdminConfig(admin_apps.AdminConfig):
    """Django's admin with our site: first page, breakers."""

    default = False
    default_site = "gateway_project.staff.site.StaffSite"
