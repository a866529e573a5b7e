"""One clock for a page: the reader's zone, or UTC, which `portal.js` leaves in cookies.

All times of a page are written by `{% when %}`, its charts are marked and its filters are read in
that zone, and the foot of the page names it. Days of charts are the days of limits and sums: UTC's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from gateway_project.core import clock
from gateway_project.core.language import dated

ZONE_COOKIE, CLOCK_COOKIE = "zone", "clock"
PAGES = ("/app/", "/accounts/", "/guides/", "/status")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")


class ReadersClock:
    """Pages for people are in the zone of their reader; the API and the admin know UTC only."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path.startswith(PAGES):
            return self._get_response(request)
        with timezone.override(zone_of(request)):
            return self._get_response(request)


def zone_of(request: HttpRequest) -> ZoneInfo:
    """Whatever a cookie says, it is a zone."""
    name = request.COOKIES.get(ZONE_COOKIE, "")
    if request.COOKIES.get(CLOCK_COOKIE) == "utc" or len(name) > 64 or not NAME.fullmatch(name):
        return ZoneInfo("UTC")
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        return ZoneInfo("UTC")


def zone_name() -> str:
    """Of this page: `Europe/Berlin`, `UTC`."""
    return timezone.get_current_timezone_name()


def zone_at(at: datetime) -> str:
    """The zone's name; in the hour that clocks show twice, which of the two it is (`CEST`)."""
    return shown_twice(timezone.localtime(at)) or zone_name()


def shown_twice(here: datetime) -> str:
    """Which of the two hours it is that clocks there show twice; nothing for all others."""
    if here.utcoffset() == here.replace(fold=1 - here.fold).utcoffset():
        return ""
    return here.tzname() or ""


def in_field(at: datetime) -> str:
    """As a browser writes a moment that it asks for."""
    return f"{timezone.localtime(at):%Y-%m-%dT%H:%M}"


def in_query(at: datetime) -> str:
    """For a link to a filter: with the offset, since a clock shows one hour of the year twice."""
    return timezone.localtime(at).isoformat(timespec="minutes")


def written(at: datetime, form: str = "minute") -> str:
    """`29 Nov 12:29` in the zone of the page; the year only where it is another one."""
    here = timezone.localtime(at)
    is_this_year = here.year == timezone.localtime(clock.now()).year
    text = dated(here, form if is_this_year else f"{form} of year")
    return text if zone_at(at) == zone_name() or form == "day" else f"{text} {zone_at(at)}"


def in_utc(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
