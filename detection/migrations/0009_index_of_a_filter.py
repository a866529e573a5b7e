"""A filter of the admin that few rows match."""

from django.db import migrations, models

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("detection", "0008_indexes_of_turns")]

    operations = [
        AddIndex(
            "feedback",
            models.Index(
                fields=["verdict", "-created_at", "-id"], name="feedback_verdict_time"
            ),
        ),
    ]
