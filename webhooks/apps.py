from typing import Any

from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    """Telling customers: reads the outbox of `accounts.events` and delivers it."""

    name = "webhooks"

    def ready(self) -> None:
        from accounts.events import published

        published.connect(_wake_engine)


def _wake_engine(**_: Any) -> None:
    """Where one runs in this process; others are woken by beat."""
    from webhooks.delivery import engine

    engine.background.submit_if_running(engine.Engine.wake)
