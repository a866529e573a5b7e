"""What staff say to everybody, and why a workspace is suspended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import template
from django.db.models import Q

from accounts.models import Workspace
from gateway_project.core import clock
from portal.models import Announcement, StaffAct

register = template.Library()
SHOWN_MAX = 3


@register.simple_tag
def announcements_for(member: Any) -> Iterable[Announcement]:
    """Those of this moment, the newest first; none without a workspace."""
    if not member:
        return ()
    now = clock.now()
    running = Announcement.objects.filter(starts_at__lte=now, ends_at__gt=now)
    return running.filter(Q(plan=None) | Q(plan=member.workspace.plan_id))[:SHOWN_MAX]


@register.simple_tag
def suspension(workspace: Workspace) -> str:
    """The reason that staff gave last; empty: none."""
    found = StaffAct.objects.filter(workspace=workspace, act="suspend").first()
    return found.reason if found else ""
