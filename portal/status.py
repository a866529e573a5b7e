"""The status page: what works, the last 90 days, incidents as staff tell them, and their feed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib.syndication.views import Feed
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.feedgenerator import Atom1Feed
from django.utils.translation import gettext

from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from portal import availability
from portal.availability import State
from portal.models import Incident, IncidentUpdate

UPDATES_MAX = 50
INCIDENTS_MAX = 100


@require_safe
def status(request: HttpRequest) -> HttpResponse:
    since = clock.now() - timedelta(days=availability.DAYS)
    incidents = list(
        Incident.objects.filter(started_at__gte=since).prefetch_related("updates")[:INCIDENTS_MAX]
    )
    components = availability.components()
    now = clock.now()
    is_ahead = [one for one in incidents if one.resolved_at is None and one.started_at > now]
    is_open = [one for one in incidents if one.resolved_at is None and one.started_at <= now]
    facts = {
        "components": components,
        "summary": _summary(components, is_open),
        "open": is_open,
        "planned": is_ahead,
        "past": [one for one in incidents if one.resolved_at is not None],
        "days": availability.DAYS,
    }
    return render(request, "portal/status.html", facts)


def _summary(
    components: Iterable[availability.Component], incidents: Iterable[Incident]
) -> tuple[str, str]:
    """`(badge, sentence)` of this moment."""
    states = [component.state for component in components]
    if not states or "" in states:
        return "", gettext("Nobody has looked for five minutes.")
    if State.DOWN in states or any(one.impact == Incident.Impact.MAJOR for one in incidents):
        return "bad", gettext("Something is down.")
    if State.DEGRADED in states or any(incidents):
        return "warn", gettext("Something is not as it should be.")
    return "good", gettext("Everything works.")


class Updates(Feed):  # type: ignore[type-arg]
    """Each update of an incident is an entry of its own."""

    feed_type = Atom1Feed
    title = "Status of this gateway"
    subtitle = "Incidents and planned work"

    def link(self) -> str:
        return reverse("portal-status")

    def items(self) -> Iterable[IncidentUpdate]:
        return IncidentUpdate.objects.select_related("incident")[:UPDATES_MAX]

    def item_title(self, item: Any) -> str:
        return f"{item.incident.title}: {item.get_state_display()}"

    def item_description(self, item: Any) -> str:
        return str(item.text)

    def item_link(self, item: Any) -> str:
        return f"{reverse('portal-status')}#{item.incident_id}"

    def item_guid(self, item: Any) -> str:
        return f"urn:uuid:{item.pk}"

    def item_pubdate(self, item: Any) -> datetime:
        at: datetime = item.at
        return at

    item_updateddate = item_pubdate


@require_safe
def feed(request: HttpRequest) -> HttpResponse:
    return Updates()(request)
