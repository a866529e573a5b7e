from django.db import migrations, models
import accounts.models
import django.db.models.deletion
import django.db.models.functions.datetime
import gateway_project.core.clock

from gateway_project.core.stores.migrating import vacuum_often


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0017_columns_default_in_the_database'),
    ]

    operations = [
        migrations.CreateModel(
            name='Parked',
            fields=[
                ('id', models.UUIDField(default=accounts.models.new_id, editable=False, primary_key=True, serialize=False)),
                ('kind', models.CharField(max_length=40)),
                ('origin', models.CharField(max_length=100)),
                ('error', models.CharField(max_length=300)),
                ('payload', models.TextField(blank=True, db_default='', default='')),
                ('payload_bytes', models.PositiveBigIntegerField(db_default=0, default=0)),
                ('attempts', models.PositiveSmallIntegerField(db_default=0, default=0, help_text='How often it was run again, in vain.')),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), default=gateway_project.core.clock.now, editable=False)),
                ('workspace', models.ForeignKey(db_constraint=False, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='parked', to='accounts.workspace')),
            ],
            options={
                'verbose_name_plural': 'parked',
                'ordering': ['-id'],
                'indexes': [models.Index(fields=['kind', '-id'], name='parked_kind'), models.Index(fields=['created_at'], name='parked_time')],
            },
        ),
        vacuum_often("accounts_parked"),
    ]
