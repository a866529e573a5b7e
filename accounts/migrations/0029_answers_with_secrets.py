"""Answers that hold a secret are remembered too, encrypted and for an hour."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0028_why")]

    operations = [
        migrations.AddField(
            "idempotencyrecord",
            "holds_secret",
            models.BooleanField(db_default=False, default=False),
        ),
    ]
