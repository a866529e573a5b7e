"""Indexes for looking for lost chunks and for deleting keys, built beside the traffic."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("detection", "0004_chunk_sent_at")]

    operations = [
        AddIndex(
            "jobchunk",
            models.Index(fields=["sent_at"], name="job_chunk_unsent", condition=Q(state="queued")),
        ),
        AddIndex(
            "policyversion", models.Index(fields=["api_key"], name="policy_version_key")
        ),
    ]
