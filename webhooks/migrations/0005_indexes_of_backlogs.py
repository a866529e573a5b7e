"""Indexes for claims, counts and filters among millions of deliveries, built beside the traffic."""

from django.db import migrations, models
from django.db.models import Q

from gateway_project.core.stores.migrating import AddIndex, RemoveIndex


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("webhooks", "0004_deleted_at")]

    operations = [
        AddIndex(
            "webhook",
            models.Index(fields=["id"], name="webhook_closing", condition=Q(is_closing=True)),
        ),
        AddIndex(
            "webhook",
            models.Index(
                fields=["id"], name="webhook_deleted", condition=Q(deleted_at__isnull=False)
            ),
        ),
        AddIndex(
            "webhookdelivery",
            models.Index(
                fields=["webhook", "next_attempt_at"],
                name="webhook_delivery_pending",
                condition=Q(status="pending"),
            ),
        ),
        AddIndex(
            "webhookdelivery",
            models.Index(
                fields=["webhook", "lane", "next_attempt_at"],
                name="webhook_delivery_lane",
                condition=Q(status="pending") & ~Q(lane=""),
            ),
        ),
        AddIndex(
            "webhookdelivery",
            models.Index(
                fields=["webhook", "-created_at"],
                name="webhook_delivery_failed",
                condition=Q(status="failed"),
            ),
        ),
        AddIndex(
            "webhookdelivery",
            models.Index(
                fields=["webhook", "-created_at"],
                name="webhook_delivery_made",
                include=["status", "event_type"],
            ),
        ),
        RemoveIndex("webhookdelivery", "webhook_delivery_log"),
        AddIndex(
            "webhooknotice", models.Index(fields=["created_at"], name="webhook_notice_time")
        ),
    ]
