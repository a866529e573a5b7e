from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    """Telling customers: will read the outbox of `accounts.events` and deliver it."""

    name = "webhooks"
