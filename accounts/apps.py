from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Tenants, their people, plans, keys, usage and audit trail."""

    name = "accounts"
    default_auto_field = "django.db.models.BigAutoField"
