"""An index for whose events go out next, built beside the traffic."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0019_limits_of_workspaces")]

    operations = [
        AddIndex(
            "outboxevent",
            models.Index(
                condition=Q(("published_at", None)),
                fields=["workspace", "created_at"],
                name="outbox_turn",
            ),
        ),
    ]
