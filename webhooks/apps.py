from typing import Any

from celery import signals
from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    """Telling customers: reads the outbox of `accounts.events` and delivers it."""

    name = "webhooks"

    def ready(self) -> None:
        from accounts.events import published

        published.connect(_wake_engine)
        signals.worker_init.connect(_import_sender)


def _wake_engine(**_: Any) -> None:
    """Where one runs in this process; others are woken by beat."""
    from webhooks.delivery import engine

    engine.background.submit_if_running(engine.Engine.wake)


def _import_sender(**_: Any) -> None:
    """Before a worker forks: its children share what sends."""
    from webhooks.delivery import sending  # noqa: F401
