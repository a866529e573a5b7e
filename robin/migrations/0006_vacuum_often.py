"""Tables that grow are looked after before a fifth of them is dead rows."""

from django.db import migrations

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [("robin", "0005_dead_items")]
    operations = [
        vacuum_often("robin_metricsample", "robin_refreshfamily", "robin_refreshtoken")
    ]
