"""Tables that grow are looked after before a fifth of them is dead rows."""

from django.db import migrations

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0015_indexes_of_backlogs"),
        ("sessions", "0001_initial"),
    ]
    operations = [
        vacuum_often(
            "accounts_apikey",
            "accounts_auditevent",
            "accounts_idempotencyrecord",
            "accounts_outboxevent",
            "accounts_quotanotice",
            "accounts_scorerollup",
            "accounts_storedtext",
            "accounts_usagebatch",
            "accounts_usagerollup",
            "accounts_user",
            "accounts_workspace",
            "django_admin_log",
            "django_session",
            "usersessions_usersession",
        )
    ]
