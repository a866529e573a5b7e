"""What the detection API keeps: texts that wait, and what customers say of verdicts."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import ApiKey, AppendOnly, Workspace, new_id
from gateway_project.core import clock

TEXT_CHARS_MAX = 10_000
"""Of a text that customers send for detection."""
ITEMS_MAX = 1000
"""Of a batch."""


class Job(models.Model):
    """A batch that is worked on behind its request, or a single text (`async`).

    Its items lie in chunks. `id` is the `batch_id`, or the `request_id` of the single text.
    """

    class Kind(models.TextChoices):
        BATCH = "batch"
        ASYNC = "async"

    class Status(models.TextChoices):
        QUEUED = "queued"
        PROCESSING = "processing"
        COMPLETE = "complete"
        PARTIAL = "partial"  # some items failed
        FAILED = "failed"  # all did
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.BATCH)
    workspace = models.ForeignKey(
        Workspace, on_delete=models.CASCADE, related_name="jobs", db_index=False
    )
    api_key_id = models.UUIDField()
    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED)
    total = models.PositiveIntegerField()
    succeeded = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    flagged = models.PositiveIntegerField(default=0)
    webhook_url = models.CharField(max_length=2048, blank=True, default="")
    metadata = models.JSONField(null=True, blank=True)
    request_id = models.CharField(max_length=36)
    correlation_id = models.CharField(max_length=128, blank=True, default="")
    traceparent = models.CharField(
        max_length=55,
        blank=True,
        default="",
        db_default="",
        help_text="The span of its request (W3C Trace Context), for all that follows from it.",
    )
    client_ip = models.CharField(max_length=45, blank=True, default="")
    created_at = models.DateTimeField(default=clock.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(help_text="Results can be read until then.")

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["workspace", "-created_at"], name="job_workspace_time"),
            models.Index(fields=["-created_at"], name="job_time"),
            models.Index(fields=["expires_at"], name="job_expiry"),
            models.Index(fields=["created_at"], name="job_running", condition=Q(finished_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.total}: {self.status}"

    @property
    def is_over(self) -> bool:
        return self.finished_at is not None

    @property
    def done(self) -> int:
        return self.succeeded + self.failed


# Of chunks: what waits for its turn to be sent, what is with the workers or on its way to them, and
# all whose texts are still there. `sent_at` of those that old processes made is never empty.
UNSENT = Q(state="queued", sent_at__isnull=True)
IN_FLIGHT = Q(state="processing") | Q(state="queued", sent_at__isnull=False)
UNFINISHED = Q(state__in=["queued", "processing"])


class JobChunk(models.Model):
    """Some items of a job that are judged together, as one task.

    The run of that task which claims it (`worker`) holds it until `leased_until` and moves that on
    while it lives, so that another takes over when it dies. The texts are gone once the results are
    there.
    """

    class State(models.TextChoices):
        QUEUED = "queued"
        PROCESSING = "processing"
        DONE = "done"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="chunks", db_index=False)
    number = models.PositiveSmallIntegerField()
    first = models.PositiveIntegerField(help_text="Position of its first item in the job.")
    size = models.PositiveSmallIntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    items = models.TextField(
        blank=True, default="", help_text="Encrypted JSON of what is to be judged."
    )
    results = models.TextField(blank=True, default="", help_text="A line of JSON for each item.")
    worker = models.UUIDField(null=True, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    sent_at = models.DateTimeField(null=True, blank=True, help_text="When its task was sent last.")
    workspace_id = models.UUIDField(null=True, editable=False, help_text="Its job's.")
    turn = models.DateTimeField(
        null=True, editable=False, help_text="From when on it goes before others of the workspace."
    )
    items_bytes = models.PositiveIntegerField(default=0, db_default=0, editable=False)

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["job", "number"], name="job_chunk_once"),
        ]
        indexes = [
            models.Index(fields=["sent_at"], name="job_chunk_unsent", condition=Q(state="queued")),
            models.Index(
                fields=["leased_until"], name="job_chunk_leased", condition=Q(state="processing")
            ),
            models.Index(fields=["workspace_id", "turn"], name="job_chunk_turn", condition=UNSENT),
            models.Index(
                fields=["workspace_id", "sent_at"], name="job_chunk_in_flight", condition=IN_FLIGHT
            ),
            models.Index(
                fields=["workspace_id"],
                name="job_chunk_waiting",
                condition=UNFINISHED,
                include=["size", "items_bytes"],
            ),
        ]

    def __str__(self) -> str:
        return f"chunk {self.number} of {self.job_id}: {self.state}"


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
    content_type = models.CharField(
        max_length=16, default="user_input", db_default="user_input", help_text="Of the text."
    )
    created_at = models.DateTimeField(default=clock.now, help_text="Of the last word.")

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
            models.Index(fields=["verdict", "-created_at", "-id"], name="feedback_verdict_time"),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} of {self.request_id}"

    @property
    def label(self) -> int:
        """What the text really is, as `manage.py evaluate` reads it: 1 is an attack."""
        if self.verdict == self.Verdict.CORRECT:
            return int(self.is_malicious)
        return int(self.verdict == self.Verdict.FALSE_NEGATIVE)


class PolicyVersion(AppendOnly):
    """A state that a key's policy had, or the one of a workspace for keys without their own. What
    is in force is repeated on the key, or on the workspace."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    subject_id = models.UUIDField(
        help_text="A key, or the first of those that replaced it; or a workspace."
    )
    version = models.PositiveIntegerField()
    api_key = models.ForeignKey(
        ApiKey, on_delete=models.CASCADE, null=True, related_name="policy_versions", db_index=False
    )
    workspace = models.ForeignKey(
        Workspace,
        on_delete=models.CASCADE,
        null=True,
        related_name="policy_versions",
        db_index=False,
        db_constraint=False,  # adding one would lock both tables
        help_text="Of its own policy; empty: of a key's.",
    )
    policy = models.JSONField()
    actor = models.CharField(max_length=254)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["subject_id", "version"], name="policy_version_once"),
        ]
        indexes = [
            models.Index(fields=["-created_at"], name="policy_version_time"),
            models.Index(fields=["api_key"], name="policy_version_key"),
            models.Index(
                fields=["workspace"],
                name="policy_version_workspace",
                condition=Q(workspace__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"version {self.version} of {self.subject_id}"


class FalseAlarmBudget(models.Model):
    """The share of harmless traffic that may be flagged, of a key and its successors, for texts of
    one type; what its threshold was fitted on; and whether the traffic has drifted since.

    `baseline` counts the key's verdicts on such texts by hundredths of the score, as of then.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="budgets")
    subject_id = models.UUIDField(help_text="A key, or the first of those that replaced it.")
    api_key_id = models.UUIDField()
    content_type = models.CharField(max_length=16)
    budget = models.FloatField()
    threshold = models.FloatField()
    basis = models.CharField(max_length=10, help_text="The harmless texts: whose they were.")
    harmless = models.PositiveIntegerField()
    alarms = models.PositiveIntegerField()
    baseline = models.JSONField()
    drift = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))
    created_at = models.DateTimeField(default=clock.now, editable=False)
    checked_at = models.DateTimeField(null=True)
    drifted_at = models.DateTimeField(null=True)
    told_at = models.DateTimeField(null=True)
    untold = models.JSONField(
        null=True, help_text="The addresses that the mail has not reached yet; empty: all."
    )

    class Meta:
        ordering = ["content_type"]
        constraints = [
            models.UniqueConstraint(fields=["subject_id", "content_type"], name="budget_once"),
        ]
        indexes = [
            models.Index(fields=["checked_at"], name="budget_checked"),
            models.Index(
                fields=["drifted_at"],
                name="budget_untold",
                condition=Q(drifted_at__isnull=False, told_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.budget:.1%} of {self.subject_id}"


class EngineDay(models.Model):
    """What one engine did for one key on one day (UTC), where that is counted: calls that have a
    price, and texts seen as a shadow behind the answers of `compared_to`."""

    class Role(models.TextChoices):
        PAID = "paid"
        SHADOW = "shadow"

    id = models.BigAutoField(primary_key=True)
    day = models.DateField()
    api_key_id = models.UUIDField()
    workspace_id = models.UUIDField()
    engine = models.CharField(max_length=32)
    compared_to = models.CharField(max_length=32, blank=True, default="", db_default="")
    role = models.CharField(max_length=6, choices=Role)
    calls = models.BigIntegerField(default=0, db_default=0)
    failed = models.BigIntegerField(default=0, db_default=0)
    skipped = models.BigIntegerField(
        default=0, db_default=0, help_text="Not asked, since the gateway had enough to do."
    )
    agreed = models.BigIntegerField(default=0, db_default=0)
    only_own = models.BigIntegerField(
        default=0, db_default=0, help_text="Malicious by the answer, and not by the shadow."
    )
    only_shadow = models.BigIntegerField(default=0, db_default=0)
    milliseconds = models.FloatField(default=0, db_default=0)
    own_milliseconds = models.FloatField(default=0, db_default=0)
    tokens_in = models.BigIntegerField(default=0, db_default=0)
    tokens_out = models.BigIntegerField(default=0, db_default=0)
    cost = models.FloatField(default=0, db_default=0)

    class Meta:
        ordering = ["-day"]
        constraints = [
            models.UniqueConstraint(
                fields=["api_key_id", "day", "engine", "compared_to", "role"],
                name="engine_day_once",
            ),
        ]
        indexes = [models.Index(fields=["day"], name="engine_day_day")]

    def __str__(self) -> str:
        return f"{self.role} {self.engine} on {self.day}"


class Disagreement(models.Model):
    """A text that an answer and a shadow engine judge differently. The text is not kept here: the
    log has it where the key's policy stores texts."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    api_key_id = models.UUIDField()
    workspace_id = models.UUIDField()
    request_id = models.UUIDField()
    engine = models.CharField(max_length=32)
    compared_to = models.CharField(max_length=32)
    content_type = models.CharField(max_length=16)
    own_score = models.FloatField()
    shadow_score = models.FloatField()
    is_malicious = models.BooleanField(help_text="By the answer.")
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["api_key_id", "-created_at"], name="disagreement_key_time"),
            models.Index(fields=["created_at"], name="disagreement_time"),
        ]

    def __str__(self) -> str:
        return f"{self.compared_to} and {self.engine} of {self.request_id}"
