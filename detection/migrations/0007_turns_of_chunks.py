from django.db import migrations, models
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Length

UNFINISHED = ["queued", "processing"]


def fill(apps, schema_editor):
    """Of the chunks that wait. All are taken for sent: a sweep sends again what was not."""
    chunks = apps.get_model("detection", "JobChunk").objects.filter(state__in=UNFINISHED)
    job = apps.get_model("detection", "Job").objects.filter(pk=OuterRef("job"))
    chunks.update(
        workspace_id=Subquery(job.values("workspace_id")[:1]),
        turn=Subquery(job.values("created_at")[:1]),
        items_bytes=Length("items"),
    )
    chunks.filter(sent_at=None).update(sent_at=F("turn"))


class Migration(migrations.Migration):
    dependencies = [("detection", "0006_vacuum_often")]

    operations = [
        # Chunks were sent in that order.
        migrations.RemoveIndex("jobchunk", "job_chunk_queued"),
        migrations.AddField(
            "jobchunk",
            "workspace_id",
            models.UUIDField(editable=False, help_text="Its job's.", null=True),
        ),
        migrations.AddField(
            "jobchunk",
            "turn",
            models.DateTimeField(
                editable=False,
                help_text="From when on it goes before others of the workspace.",
                null=True,
            ),
        ),
        migrations.AddField(
            "jobchunk",
            "items_bytes",
            models.PositiveIntegerField(db_default=0, default=0, editable=False),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
        migrations.AddIndex(
            "jobchunk",
            models.Index(
                condition=Q(("sent_at__isnull", True), ("state", "queued")),
                fields=["workspace_id", "turn"],
                name="job_chunk_turn",
            ),
        ),
        migrations.AddIndex(
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
        migrations.AddIndex(
            "jobchunk",
            models.Index(
                condition=Q(("state__in", UNFINISHED)),
                fields=["workspace_id"],
                include=("size", "items_bytes"),
                name="job_chunk_waiting",
            ),
        ),
    ]
