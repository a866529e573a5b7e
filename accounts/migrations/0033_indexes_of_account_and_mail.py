"""Indexes of what is looked for behind the requests, built beside the traffic."""

from django.db import migrations, models

from gateway_project.core.stores.migrating import AddIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0032_account_and_mail")]

    operations = [
        AddIndex("apikey", models.Index(condition=models.Q(('grace_until__isnull', False), ('revoked_at', None)), fields=['grace_until'], name='key_grace')),
        AddIndex("membership", models.Index(fields=['digest_at', 'id'], name='membership_digest')),
        AddIndex("user", models.Index(condition=models.Q(('deletes_at__isnull', False)), fields=['deletes_at'], name='user_deletes')),
    ]
