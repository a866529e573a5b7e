from django.apps import AppConfig
from django.conf import settings


class RobinConfig(AppConfig):
    """The Robin mail server, opened safely to its web UI: owns `/api/v1` and `/ws/queue`."""

    name = "robin"

    def ready(self) -> None:
        from robin.queue import live, services

        if settings.ROBIN_CLIENT_API_URL:
            live.fetch_queue = services.fetch_queue
