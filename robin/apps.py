from django.apps import AppConfig


class RobinConfig(AppConfig):
    """The Robin mail server, opened safely to its web UI: will own `/api/v1` and `/ws/queue`."""

    name = "robin"
