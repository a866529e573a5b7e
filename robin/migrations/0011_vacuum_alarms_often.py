"""What was told of alarms grows, and is forgotten from its beginning."""

from django.db import migrations

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [("robin", "0010_alarms")]
    operations = [vacuum_often("robin_alarmnotice")]
