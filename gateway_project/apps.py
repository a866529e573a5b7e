from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Commands, system checks and what Celery tells; no models."""

    name = "gateway_project"
    verbose_name = "Gateway"

    def ready(self) -> None:
        from gateway_project import checks, task_signals  # noqa: F401 - registers them
