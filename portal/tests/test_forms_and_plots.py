"""What people type in the pages, and what plots are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django import forms
from django.test.html import parse_html
from django.utils import timezone

from accounts.models import ApiKey, Plan
from portal import plots
from portal.forms import KeyForm, LongSelect, RevokeForm

PLAN = Plan(name="free", rate_limit_per_minute=60, rate_limit_per_day=10_000)
GOOD = {
    "name": "Shop",
    "scopes": ["detect"],
    "rate_limit_per_minute": "10",
    "rate_limit_per_day": "100",
}
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_networks_are_one_a_line():
    form = KeyForm(PLAN, {**GOOD, "allowed_cidrs": " 203.0.113.0/24 \n\n2001:db8::/32"})

    assert form.is_valid(), form.errors
    assert form.cleaned_data["allowed_cidrs"] == ["203.0.113.0/24", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "two\r\nlines"),
        ("owner", "two\u2029lines"),
        ("scopes", []),
        ("scopes", ["root"]),
        ("allowed_cidrs", "203.0.113.7/24"),
        ("allowed_cidrs", "\n".join(f"10.0.{n}.0/24" for n in range(51))),
        ("expires_at", "2020-01-01T00:00"),
        ("rate_limit_per_minute", "0"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(field, value):
    form = KeyForm(PLAN, {**GOOD, field: value})

    assert list(form.errors) == [field]


@pytest.mark.parametrize(("typed", "right"), [("Shop", True), ("shop", False), ("", False)])
def test_revoking_needs_the_name_as_it_is(typed, right):
    assert RevokeForm(ApiKey(name="Shop"), {"name": typed}).is_valid() is right


def test_a_plot_has_a_column_for_hours_without_requests():
    times = plots.buckets(NOON - timedelta(hours=3), NOON, "hour")
    series = {times[1]: {"requests": 1200, "flagged": 200, "errors": 100}}

    plot = plots.requests_plot(times, series, "hour")

    assert [len(column.pieces) for column in plot.columns] == [0, 3, 0, 0]
    assert plot.columns[1].title == ("01 May 10:00 UTC: 1,200 requests, 200 flagged, 100 errors")
    assert [level.text for level in plot.levels] == ["2,000", "1,000", "0"]


def test_a_drawing_is_of_what_it_counts_and_its_words_stay_words():
    comparison = plots.comparison_plot([NOON], {NOON: {"agreed": 3}}, '<b>"5 & \u202e')
    linked = plots.requests_plot(
        [NOON], {NOON: {"requests": 1, "flagged": 0, "errors": 0}}, "hour", lambda *_: '/"<b>?a=1&b'
    )

    assert "&lt;b&gt;&quot;5 &amp; \u202e" in comparison.shapes
    assert "<b>" not in comparison.shapes + linked.shapes
    assert ' data-url="/&quot;&lt;b&gt;?a=1&amp;b"' in linked.shapes
    assert linked.shapes.count("<rect") == 2  # one of the count, and what a pointer meets


def test_a_long_list_is_the_plain_one():
    options = {"required": False, "choices": [("", "Any"), ('"<b>', "<i>&"), ("5", "five")]}
    plain, long = (
        forms.ChoiceField(**options, widget=widget(attrs={"id": "id_key"})).widget
        for widget in (forms.Select, LongSelect)
    )

    assert parse_html(long.render("key", "5")) == parse_html(plain.render("key", "5"))
    assert "&lt;i&gt;&amp;" in long.render("key", "5")


def test_latency_is_in_milliseconds():
    times = [NOON]
    latency = [0] * 15
    latency[5] = 10  # 20 to 50 ms

    plot = plots.latency_plot(times, {NOON: {"latency": latency}}, "minute")

    assert plot.columns[0].title == "12:00 UTC: p95 48.5 ms"
    assert plot.levels[0].text == "50 ms"


@pytest.mark.parametrize("most", [1, 3, 5, 7, 50, 999])
def test_counts_have_whole_ticks(most):
    times = [NOON]
    series = {NOON: {"requests": most, "flagged": 0, "errors": 0}}

    plot = plots.requests_plot(times, series, "hour")

    assert all("." not in level.text for level in plot.levels)


def test_nothing_is_no_axis():
    times = plots.buckets(NOON - timedelta(hours=3), NOON, "hour")

    assert plots.requests_plot(times, {}, "hour").is_empty


def test_a_page_has_one_clock():
    times = [NOON]
    with timezone.override("Asia/Tokyo"):
        hours = plots.requests_plot(times, {}, "hour")
        days = plots.requests_plot(times, {}, "day")

    assert hours.times == ["01 May 21:00"]
    assert hours.columns[0].title.startswith("01 May 21:00 Asia/Tokyo: ")
    # The sums of a day are UTC's, and it is said.
    assert days.columns[0].title.startswith("01 May (UTC): ")
