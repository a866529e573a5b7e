"""The outer ring: settings, URLs, ASGI, Celery, checks. Its inner ring is `core`."""

from gateway_project.celery import app as celery_app

__all__ = ["celery_app"]
