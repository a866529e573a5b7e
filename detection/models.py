"""What the detection API keeps."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from accounts.models import Workspace, new_id

# -- Feedback -------------------------------------------------------------------------------------


class Feedback(models.Model):
    """What a workspace says of one verdict of its own; the last word counts.

    The verdict's columns are copied from the usage log, which forgets sooner. `api_key_id` is the
    key that asked for the verdict, whoever gave the feedback.
    """

    class Verdict(models.TextChoices):
        FALSE_POSITIVE = "false_positive"
        FALSE_NEGATIVE = "false_negative"
        CORRECT = "correct"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(
        Workspace, on_delete=models.CASCADE, related_name="feedback", db_index=False
    )
    request_id = models.UUIDField()
    api_key_id = models.UUIDField()
    verdict = models.CharField(max_length=14, choices=Verdict)
    note = models.CharField(max_length=1000, blank=True, default="")
    confidence = models.FloatField()
    is_malicious = models.BooleanField()
    decision = models.CharField(max_length=10)
    source = models.CharField(max_length=10)
    created_at = models.DateTimeField(default=timezone.now, help_text="Of the last word.")

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "feedback"
        constraints = [
            models.UniqueConstraint(fields=["workspace", "request_id"], name="feedback_once"),
        ]
        indexes = [
            models.Index(fields=["workspace", "-created_at"], name="feedback_workspace_time"),
            models.Index(fields=["api_key_id", "-created_at"], name="feedback_key_time"),
            models.Index(fields=["request_id"], name="feedback_request"),
            models.Index(fields=["-created_at", "-id"], name="feedback_time"),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} of {self.request_id}"

    @property
    def label(self) -> int:
        """What the text really is, as `manage.py evaluate` reads it: 1 is an attack."""
        if self.verdict == self.Verdict.CORRECT:
            return int(self.is_malicious)
        return int(self.verdict == self.Verdict.FALSE_NEGATIVE)
