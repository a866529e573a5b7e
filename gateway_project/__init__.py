"""The outer ring: settings, URLs, ASGI, Celery, checks. Its inner ring is `core`."""

__version__ = "0.1.0"  # the one place; pyproject.toml and the settings read it here

from gateway_project.celery import app as celery_app

__all__ = ["__version__", "celery_app"]
