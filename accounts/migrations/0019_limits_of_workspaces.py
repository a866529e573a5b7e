from django.db import migrations, models


def give_more_keys(apps, schema_editor):
    apps.get_model("accounts", "Plan").objects.filter(name="scale").update(keys_max=1_000)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0018_parked")]

    operations = [
        migrations.AddField(
            "plan",
            "workspace_rate_limit_per_minute",
            models.PositiveIntegerField(
                blank=True,
                help_text="Of all keys of a workspace together; empty: 5 keys' minutes.",
                null=True,
            ),
        ),
        migrations.AddField(
            "plan",
            "keys_max",
            models.PositiveIntegerField(
                blank=True, db_default=100, default=100, help_text="Keys that a workspace may have in use."
            ),
        ),
        migrations.AddField(
            "plan",
            "webhooks_max",
            models.PositiveIntegerField(
                blank=True, db_default=100, default=100, help_text="Webhooks that a workspace may have."
            ),
        ),
        migrations.AddField(
            "plan",
            "waiting_items_max",
            models.PositiveIntegerField(
                blank=True, db_default=50_000,
                default=50_000,
                help_text="Of a workspace's jobs that are not finished.",
            ),
        ),
        migrations.AddField(
            "plan",
            "waiting_bytes_max",
            models.PositiveBigIntegerField(
                blank=True, db_default=256 << 20,
                default=256 << 20,
                help_text="The same, as they are stored.",
            ),
        ),
        migrations.AddField(
            "workspace",
            "rate_limit_per_minute",
            models.PositiveIntegerField(
                blank=True,
                help_text="Of all its keys together, instead of the plan's; empty: the plan's.",
                null=True,
            ),
        ),
        migrations.RunPython(give_more_keys, migrations.RunPython.noop),
    ]
