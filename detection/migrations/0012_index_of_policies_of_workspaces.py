"""Indexes of what is looked for behind the requests, built beside the traffic."""

from django.db import migrations, models

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("detection", "0011_budgets_and_defaults")]

    operations = [
        AddIndex("policyversion", models.Index(condition=models.Q(('workspace__isnull', False)), fields=['workspace'], name='policy_version_workspace')),
    ]
