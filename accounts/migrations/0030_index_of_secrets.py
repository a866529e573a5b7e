"""An index for the secrets in remembered answers that are to be erased, built beside the traffic."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0029_answers_with_secrets")]

    operations = [
        AddIndex(
            "idempotencyrecord",
            models.Index(
                condition=Q(("holds_secret", True), models.Q(("body", ""), _negated=True)),
                fields=["created_at"],
                name="idempotency_secrets",
            ),
        ),
    ]
