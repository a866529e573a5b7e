"""Rows whose sums are made a little later, many at once."""

from django.db import migrations, models

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [("accounts", "0035_language")]

    operations = [
        migrations.CreateModel(
            name="UnsummedUsage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("part", models.PositiveSmallIntegerField()),
                ("created_at", models.DateTimeField()),
                ("api_key_id", models.UUIDField()),
                ("workspace_id", models.UUIDField()),
                ("endpoint", models.CharField(max_length=64)),
                ("http_status", models.PositiveSmallIntegerField()),
                ("status", models.CharField(max_length=10)),
                ("is_malicious", models.BooleanField(null=True)),
                ("cached", models.BooleanField()),
                ("request_size", models.PositiveIntegerField()),
                ("response_time_ms", models.FloatField()),
                ("confidence", models.FloatField(null=True)),
            ],
        ),
        vacuum_often("accounts_unsummedusage"),
    ]
