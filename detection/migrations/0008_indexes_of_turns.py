"""Indexes for whose chunk is sent next, built beside the traffic; the old order's goes."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex, RemoveIndex

UNFINISHED = ["queued", "processing"]


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("detection", "0007_turns_of_chunks")]

    operations = [
        AddIndex(
            "jobchunk",
            models.Index(
                condition=Q(("sent_at__isnull", True), ("state", "queued")),
                fields=["workspace_id", "turn"],
                name="job_chunk_turn",
            ),
        ),
        AddIndex(
            "jobchunk",
            models.Index(
                condition=Q(
                    ("state", "processing"),
                    Q(("sent_at__isnull", False), ("state", "queued")),
                    _connector="OR",
                ),
                fields=["workspace_id", "sent_at"],
                name="job_chunk_in_flight",
            ),
        ),
        AddIndex(
            "jobchunk",
            models.Index(
                condition=Q(("state__in", UNFINISHED)),
                fields=["workspace_id"],
                include=("size", "items_bytes"),
                name="job_chunk_waiting",
            ),
        ),
        RemoveIndex("jobchunk", "job_chunk_queued"),
    ]
