"""Users from before the portal get the row by which it knows their e-mail address."""

from django.db import migrations


def add_addresses(apps, schema_editor):
    addresses = apps.get_model("account", "EmailAddress").objects
    users = apps.get_model("accounts", "User").objects.filter(emailaddress=None).exclude(email="")
    for user in users.iterator():
        addresses.create(
            user=user,
            email=user.email,
            verified=user.email_confirmed_at is not None,
            primary=True,
        )


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0006_webhooks"),
        ("account", "0009_emailaddress_unique_primary_email"),
    ]
    operations = [migrations.RunPython(add_addresses, migrations.RunPython.noop)]
