"""Tables that grow are looked after before a fifth of them is dead rows."""

from django.db import migrations

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):
    dependencies = [("detection", "0005_indexes_of_backlogs")]
    operations = [
        vacuum_often(
            "detection_feedback", "detection_job", "detection_jobchunk", "detection_policyversion"
        )
    ]
