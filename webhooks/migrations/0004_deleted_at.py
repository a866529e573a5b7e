"""Webhooks are deleted and stopped at once; their log follows behind."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0003_per_request")]

    operations = [
        migrations.AddField(
            model_name="webhook",
            name="deleted_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="webhook",
            name="is_closing",
            field=models.BooleanField(
                db_default=False,
                default=False,
                editable=False,
                help_text="What is on its way there is being given up, piece by piece.",
            ),
        ),
    ]
