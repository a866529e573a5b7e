"""What is known of Robin's queue changes with it, and is looked after as often."""

from django.db import migrations

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [("robin", "0008_seen_items")]
    operations = [vacuum_often("robin_queuejob", "robin_seenitem")]
