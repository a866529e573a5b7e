from django.apps import AppConfig


class PortalConfig(AppConfig):
    """The site: pages for people. Nobody imports it."""

    name = "portal"
