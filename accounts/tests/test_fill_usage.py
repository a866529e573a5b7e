"""manage.py fill_usage, on a small scale."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from accounts.models import ApiKey, UsageLog, UsageRollup
from accounts.usage import rollups

pytestmark = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="needs PostgreSQL: `make test` starts it"
)


def test_it_fills_an_empty_database_and_times_what_pages_read(gateway, capsys):
    call_command("fill_usage", rows=2000, keys=3, days=4, explain=True)

    said = capsys.readouterr().out
    day_sums = UsageRollup.objects.filter(period="day", subject_id=rollups.EVERYTHING)
    assert UsageLog.objects.count() == sum(s.requests for s in day_sums) == 2000
    assert ApiKey.objects.count() == 3
    assert {s.bucket.date() for s in day_sums} == {
        at.date() for at in UsageLog.objects.values_list("created_at", flat=True)
    }
    assert "profile of a key, 30 days" in said
    assert "usage_rollup" in said


def test_it_touches_no_real_usage(gateway):
    call_command("fill_usage", rows=10, keys=1, days=1)

    with pytest.raises(CommandError, match="has usage already"):
        call_command("fill_usage", rows=10, keys=1, days=1)
