from django.db import migrations

PLANS = [
    ("free", 60, 10_000, 7),
    ("team", 600, 200_000, 30),
    ("scale", 6_000, 5_000_000, 90),
]


def seed(apps, schema_editor):
    plan = apps.get_model("accounts", "Plan")
    for name, per_minute, per_day, log_days in PLANS:
        plan.objects.get_or_create(
            name=name,
            defaults={
                "rate_limit_per_minute": per_minute,
                "rate_limit_per_day": per_day,
                "log_days": log_days,
            },
        )


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    # Backwards does nothing: a plan in use cannot be dropped, and an unused one does no harm.
    operations = [migrations.RunPython(seed, migrations.RunPython.noop)]
