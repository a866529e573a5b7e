"""A filter of the admin that few rows match."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("robin", "0006_vacuum_often")]

    operations = [
        AddIndex(
            "refreshfamily",
            models.Index(
                fields=["id"], name="refresh_family_ended", condition=Q(revoked_at__isnull=False)
            ),
        ),
    ]
