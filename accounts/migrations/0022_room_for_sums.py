"""Sums of minutes, hours and days are added to in place."""

from django.db import migrations

from gateway_project.core.stores.migrating import room_for_updates


class Migration(migrations.Migration):
    dependencies = [("accounts", "0021_key_limit_subject")]

    operations = [room_for_updates("accounts_usagerollup", "accounts_scorerollup")]
