"""What the installation says of itself: how its parts did by day, incidents as staff tell them."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from gateway_project.core import clock
from gateway_project.core.language import number


class ComponentDay(models.Model):
    """Of one part of the installation, on one day (UTC): samples of each state, a minute apart.

    `state` is the last one, as of `sampled_at`.
    """

    class State(models.TextChoices):
        UP = "up", _("Operational")
        DEGRADED = "degraded", _("Degraded")
        DOWN = "down", _("Down")

    component = models.CharField(max_length=40)
    day = models.DateField()
    up = models.PositiveIntegerField(default=0)
    degraded = models.PositiveIntegerField(default=0)
    down = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=10, choices=State)
    sampled_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["component", "day"], name="component_day_once"),
        ]
        indexes = [models.Index(fields=["day"], name="component_day")]

    def __str__(self) -> str:
        return f"{self.component} on {self.day}"


class Incident(models.Model):
    """What customers notice, or planned work. `components`: their names, as on /status."""

    class Impact(models.TextChoices):
        NOTICE = "notice", _("Notice")
        MINOR = "minor", _("Some calls are affected")
        MAJOR = "major", _("Most calls are affected")
        MAINTENANCE = "maintenance", _("Planned work")

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    title = models.CharField(max_length=120)
    impact = models.CharField(max_length=12, choices=Impact, default=Impact.MINOR)
    components = models.JSONField(default=list, blank=True)
    started_at = models.DateTimeField(default=clock.now, db_default=Now())
    resolved_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-started_at"]
        indexes = [models.Index(fields=["-started_at"], name="incident_started")]

    def __str__(self) -> str:
        return self.title


class IncidentUpdate(models.Model):
    """What was known at a moment; never changed, for readers of the feed have it already."""

    class State(models.TextChoices):
        PLANNED = "planned", _("Planned")
        INVESTIGATING = "investigating", _("Investigating")
        IDENTIFIED = "identified", _("Cause found")
        MONITORING = "monitoring", _("Watching")
        RESOLVED = "resolved", _("Resolved")

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    incident = models.ForeignKey(Incident, on_delete=models.CASCADE, related_name="updates")
    state = models.CharField(max_length=13, choices=State, default=State.INVESTIGATING)
    text = models.TextField(max_length=2000)
    written_by = models.CharField(max_length=254, blank=True, default="", db_default="")
    at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)

    class Meta:
        ordering = ["-at"]

    def __str__(self) -> str:
        return f"{self.state}: {self.text[:40]}"


class StaffAct(models.Model):
    """What a member of staff did to a customer, and why; the customer reads it in their audit.

    With `until` it is undone then, `before` being what was in force; `undone_at` says that it was.
    """

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    workspace = models.ForeignKey(
        "accounts.Workspace", on_delete=models.CASCADE, related_name="staff_acts"
    )
    act = models.CharField(max_length=40)
    target = models.CharField(max_length=100, blank=True, default="")
    reason = models.TextField(max_length=500)
    done_by = models.CharField(max_length=254)
    done_at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)
    until = models.DateTimeField(null=True)
    before = models.JSONField(null=True)
    undone_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["workspace", "-id"], name="staff_act_of"),
            models.Index(
                fields=["until"],
                name="staff_act_due",
                condition=models.Q(undone_at__isnull=True, until__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.act} by {self.done_by}"


class StaffNote(models.Model):
    """What staff want to remember of a customer, who never sees it."""

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    workspace = models.ForeignKey(
        "accounts.Workspace", on_delete=models.CASCADE, related_name="staff_notes"
    )
    text = models.TextField(max_length=2000)
    written_by = models.CharField(max_length=254)
    at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["workspace", "-id"], name="staff_note_of")]

    def __str__(self) -> str:
        return self.text[:40]


class Announcement(models.Model):
    """A banner in the portal, for everybody or for the workspaces of one plan."""

    class Level(models.TextChoices):
        NOTICE = "notice", _("Notice")
        WARN = "warn", _("Warning")

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    text = models.CharField(max_length=300)
    level = models.CharField(max_length=10, choices=Level, default=Level.NOTICE)
    plan = models.ForeignKey(
        "accounts.Plan",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="Empty: everybody.",
    )
    starts_at = models.DateTimeField(default=clock.now, db_default=Now())
    ends_at = models.DateTimeField()

    class Meta:
        ordering = ["-starts_at"]
        indexes = [models.Index(fields=["ends_at"], name="announcement_end")]

    def __str__(self) -> str:
        return self.text


class Mailing(models.Model):
    """An announcement on its way by mail: to each account once, in the order of their ids.

    `after` is the last account whose turn it was, and is written before its mail is sent; `current`
    is that account until it is known what came of it. So a worker may be killed at any moment: the
    mail of one account may then have left or not. That one is `unknown`, and gets none but by staff
    (`again`). Accounts that joined since it began (ids after `last_id`) get none.
    """

    announcement = models.OneToOneField(
        Announcement, on_delete=models.CASCADE, primary_key=True, related_name="mailing"
    )
    subject = models.CharField(max_length=120)
    is_important = models.BooleanField(default=False, db_default=False)
    begun_by = models.CharField(max_length=254)
    begun_at = models.DateTimeField(default=clock.now, db_default=Now())
    last_id = models.UUIDField(default=clock.new_id)
    after = models.UUIDField(null=True)
    current = models.UUIDField(null=True)
    worked_at = models.DateTimeField(null=True)
    total = models.PositiveIntegerField(null=True)
    sent = models.PositiveIntegerField(default=0, db_default=0)
    skipped = models.PositiveIntegerField(default=0, db_default=0)
    refused = models.PositiveIntegerField(default=0, db_default=0)
    unknown = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
    again = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
    finished_at = models.DateTimeField(null=True)
    is_stopped = models.BooleanField(default=False, db_default=False)

    class Meta:
        indexes = [
            models.Index(
                fields=["begun_at"],
                name="mailing_open",
                condition=models.Q(finished_at__isnull=True),
            )
        ]

    def __str__(self) -> str:
        return self.subject

    @property
    def done(self) -> int:
        return self.sent + self.skipped + self.refused + len(self.unknown)


class PlanProposal(models.Model):
    """A change of a plan that waits for a second member of staff (`staff/plans.py`).

    `changes` and `before` are `{column: value}`; `proposer_id` is who may not confirm it.
    """

    class Outcome(models.TextChoices):
        WAITING = "waiting", _("Waiting")
        CONFIRMED = "confirmed", _("Confirmed")
        DECLINED = "declined", _("Declined")

    id = models.UUIDField(primary_key=True, default=clock.new_id, editable=False)
    plan = models.ForeignKey("accounts.Plan", on_delete=models.CASCADE, related_name="+")
    changes = models.JSONField()
    before = models.JSONField()
    reason = models.TextField(max_length=500)
    proposer_id = models.UUIDField()
    proposed_by = models.CharField(max_length=254)
    proposed_at = models.DateTimeField(default=clock.now, db_default=Now())
    expires_at = models.DateTimeField()
    outcome = models.CharField(max_length=10, choices=Outcome, default=Outcome.WAITING)
    decided_by = models.CharField(max_length=254, blank=True, default="", db_default="")
    decided_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["expires_at"],
                name="plan_proposal_waiting",
                condition=models.Q(outcome="waiting"),
            )
        ]

    def __str__(self) -> str:
        return f"{self.plan_id}: {', '.join(self.changes)}"

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """What is changed, from what and to what, as words."""
        return [
            (gettext(name.replace("_", " ")), _shown(self.before.get(name)), _shown(value))
            for name, value in self.changes.items()
        ]


def _shown(value: object) -> str:
    if value is None or value == "":
        return gettext("nothing")
    return number(value) if isinstance(value, int) else str(value)
