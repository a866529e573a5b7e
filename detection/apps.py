from typing import Any

from celery import signals
from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DetectionConfig(AppConfig):
    """Verdicts on texts: the engine's client, the embedded detector, `/v1/detect`."""

    name = "detection"
    verbose_name = _("Detection")

    def ready(self) -> None:
        signals.worker_init.connect(_read_weights)


def _read_weights(**_: Any) -> None:
    """Before a worker forks: its children share them."""
    from detection import embedded

    embedded.load()
