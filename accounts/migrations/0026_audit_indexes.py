"""Indexes for reading and sealing the audit trail, built beside the traffic."""

from django.db import migrations, models

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0025_audit_chain")]

    operations = [
        AddIndex(
            "auditevent",
            models.Index(condition=models.Q(('number', None)), fields=['id'], name='audit_unsealed'),
        ),
        AddIndex(
            "auditevent",
            models.Index(fields=['workspace', '-at', '-id'], name='audit_workspace_time'),
        ),
        AddIndex(
            "auditevent",
            models.Index(condition=models.Q(('number__isnull', False)), fields=['workspace', 'number'], name='audit_chain'),
        ),
    ]
