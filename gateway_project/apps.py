from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Commands and system checks; no models."""

    name = "gateway_project"
    verbose_name = "Gateway"

    def ready(self) -> None:
        from gateway_project import checks  # noqa: F401 - registers them
