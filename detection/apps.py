from django.apps import AppConfig


class DetectionConfig(AppConfig):
    """Verdicts on texts: the engine's client, the embedded detector, `/v1/detect`."""

    name = "detection"
