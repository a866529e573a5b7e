"""Keys that share counters are found by them."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0020_index_of_turns")]

    operations = [
        AddIndex(
            "apikey",
            models.Index(
                fields=["limit_subject"],
                name="key_limit_subject",
                condition=Q(limit_subject__isnull=False),
            ),
        ),
    ]
