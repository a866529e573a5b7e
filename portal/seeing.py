"""Members of staff who see a workspace as its members do: read-only, for a while, and told of it.

It begins on the customer's page of the admin (`gateway_project/staff/desk.py`), with a reason, and
is a line in the workspace's audit trail.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.http import HttpRequest
from django.utils.dateparse import parse_datetime

from accounts.models import Workspace
from accounts.roles import rights_of
from gateway_project.core import clock

SEEN = "seen_workspace"
LASTS = timedelta(minutes=15)
# Files take more away than a look needs.
NOT_SHOWN = ("export", "file", "download")


class Seen(NamedTuple):
    workspace: Workspace
    until: Any


def begin(request: HttpRequest, workspace: Workspace) -> None:
    until = clock.now() + LASTS
    request.session[SEEN] = [str(workspace.pk), until.isoformat()]


def end(request: HttpRequest) -> UUID | None:
    """Which workspace it was."""
    found = request.session.pop(SEEN, None)
    return UUID(found[0]) if found else None


def current(request: HttpRequest) -> Seen | None:
    """What this member of staff sees just now; None: they are themselves."""
    found = request.session.get(SEEN)
    if found is None or "see_as" not in rights_of(request.user):
        return None
    until = parse_datetime(found[1])
    if until is None or until <= clock.now():
        request.session.pop(SEEN, None)
        return None
    workspace = Workspace.objects.select_related("plan").filter(pk=found[0]).first()
    return Seen(workspace, until) if workspace is not None else None
