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
    ]
