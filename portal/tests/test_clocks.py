"""One clock for a page, also on days of 23 and of 25 hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.utils import timezone

from accounts.models import new_id
from accounts.tests.shapes import logged
from portal import clocks, plots
from portal.forms import MomentField

BERLIN = "Europe/Berlin"
# Clocks go back from 3:00 to 2:00 there, at 01:00 UTC; and forward from 2:00 to 3:00.
LONG, SHORT = datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 3, 29, tzinfo=UTC)


@pytest.fixture
def berlin():
    with timezone.override(BERLIN):
        yield


def hours_of(day: datetime) -> list[datetime]:
    """From one midnight of Berlin to the next."""
    begins, ends = (
        timezone.make_aware(day.replace(tzinfo=None) + timedelta(days=n)).astimezone(UTC)
        for n in (0, 1)
    )
    return [at for at in plots.buckets(begins, ends, "hour") if at < ends]


@pytest.mark.parametrize(("day", "hours"), [(LONG, 25), (SHORT, 23)])
def test_each_hour_of_such_a_day_is_a_column_of_its_own(berlin, day, hours):
    times = hours_of(day)
    titles = set(plots.marked(times, "hour"))

    assert len(times) == hours
    assert len(titles) == hours  # no two say the same


def test_the_hour_that_comes_twice_says_which_it_is(berlin):
    first, second = LONG, LONG + timedelta(hours=1)

    assert clocks.written(first) == "25 Oct 02:00 CEST" or "2026" in clocks.written(first)
    assert clocks.written(first).endswith("02:00 CEST")
    assert clocks.written(second).endswith("02:00 CET")
    assert clocks.written(second + timedelta(hours=1)).endswith("03:00")


@pytest.mark.parametrize("hour", range(-2, 5))
def test_a_link_to_a_filter_means_the_very_moment(berlin, hour):
    at = LONG + timedelta(hours=hour)

    assert MomentField().clean(clocks.in_query(at)) == at


def test_what_a_person_types_is_never_refused_and_loses_nothing(berlin):
    begin, end = MomentField(), MomentField(is_end=True)

    assert begin.clean("2026-10-25T02:30") == LONG + timedelta(minutes=30)
    assert end.clean("2026-10-25T02:30") == LONG + timedelta(minutes=90)
    assert begin.clean("2026-03-29T02:30") == SHORT + timedelta(minutes=90)  # 3:30, for 2:30


@pytest.mark.parametrize("text", ["2026-02-30T00:00", "9999-12-31T23:59-23:59", "soon", "24:00"])
def test_an_impossible_time_is_named(berlin, text):
    with pytest.raises(Exception, match="valid date/time"):
        MomentField().clean(text)


def test_a_field_shows_what_a_link_brought(berlin):
    assert MomentField().prepare_value("2026-10-25T02:00+01:00") == "2026-10-25T02:00"
    assert MomentField().prepare_value("2026-10-25T02:00") == "2026-10-25T02:00"


def test_a_column_of_the_long_day_leads_to_its_rows_alone(owner, acme, acme_key):
    owner.cookies["zone"] = BERLIN
    with time_machine.travel(LONG + timedelta(hours=5)):
        ids = [add(acme, acme_key, LONG + timedelta(hours=n, minutes=10)) for n in range(3)]
        page = owner.get("/app/requests?since=2026-10-25T00:00%2B02:00")
        links = [column.url for column in page.context["plot"].columns if column.url]
        found = [[row.request_id for row, _ in owner.get(f"/app/requests{link}").context["rows"]]
                 for link in links]  # fmt: skip

    assert found == [[one] for one in ids]
    assert all("+02:00" in v or "+01:00" in v for link in links
               for v in parse_qs(urlsplit(link).query)["since"])  # fmt: skip


def add(acme, acme_key, at):
    return logged(
        {
            "request_id": new_id(),
            "api_key_id": acme_key.row.pk,
            "workspace_id": acme.pk,
            "endpoint": "/v1/detect",
            "http_status": 200,
            "request_size": 120,
            "response_time_ms": 12.0,
            "decision": "allow",
            "is_malicious": False,
            "confidence": 0.02,
            "created_at": at,
        }
    ).request_id
