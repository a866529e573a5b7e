"""An index for the desk: the beginning of a workspace's name, however it is written."""

from django.db import migrations

from gateway_project.core.stores.migrating import on_postgresql


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0038_forgotten_audit_rows")]

    operations = [
        on_postgresql(
            "CREATE INDEX CONCURRENTLY workspace_named "
            "ON accounts_workspace (UPPER(name::text) text_pattern_ops)",
            "DROP INDEX CONCURRENTLY IF EXISTS workspace_named",
        ),
    ]
