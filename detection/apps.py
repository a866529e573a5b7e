from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DetectionConfig(AppConfig):
    """Verdicts on texts: the engine's client, the embedded detector, `/v1/detect`."""

    name = "detection"
    verbose_name = _("Detection")
