"""Indexes for what looks for few rows among many, built beside the traffic."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex, on_postgresql


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("accounts", "0014_deleted_at"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("usersessions", "0001_initial"),
    ]

    operations = [
        AddIndex(
            "user",
            models.Index(fields=["id"], name="user_deleted", condition=Q(deleted_at__isnull=False)),
        ),
        AddIndex(
            "workspace",
            models.Index(
                fields=["id"], name="workspace_deleted", condition=Q(deleted_at__isnull=False)
            ),
        ),
        AddIndex(
            "workspace",
            models.Index(
                fields=["id"], name="workspace_robin", condition=Q(is_robin_operator=True)
            ),
        ),
        AddIndex(
            "apikey",
            models.Index(
                fields=["expires_at"],
                name="key_expiring",
                condition=Q(expires_at__isnull=False, revoked_at=None, is_session=False),
            ),
        ),
        AddIndex(
            "apikey",
            models.Index(fields=["expires_at"], name="key_session", condition=Q(is_session=True)),
        ),
        AddIndex(
            "storedtext", models.Index(fields=["workspace_id"], name="stored_text_workspace")
        ),
        AddIndex(
            "outboxevent",
            models.Index(
                fields=["created_at"],
                name="outbox_published",
                condition=Q(published_at__isnull=False),
            ),
        ),
        AddIndex(
            "outboxevent",
            models.Index(fields=["workspace", "created_at"], name="outbox_workspace_time"),
        ),
        migrations.AlterField(  # the index above begins with it
            model_name="outboxevent",
            name="workspace",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="outbox",
                to="accounts.workspace",
            ),
        ),
        on_postgresql(
            "CREATE INDEX CONCURRENTLY admin_log_person "
            "ON django_admin_log (user_id, action_time DESC)",
            "DROP INDEX CONCURRENTLY IF EXISTS admin_log_person",
        ),
        on_postgresql(
            "CREATE INDEX CONCURRENTLY admin_log_time ON django_admin_log (action_time)",
            "DROP INDEX CONCURRENTLY IF EXISTS admin_log_time",
        ),
        on_postgresql(
            "CREATE INDEX CONCURRENTLY usersession_time ON usersessions_usersession (created_at)",
            "DROP INDEX CONCURRENTLY IF EXISTS usersession_time",
        ),
    ]
