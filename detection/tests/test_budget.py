"""A budget of false alarms: the threshold that holds it, and what is said when traffic changes."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.core import mail
from django.utils import timezone

from accounts.models import AuditEvent, ScoreRollup
from accounts.services import Actor, rotate_key
from accounts.usage import reports
from detection.evaluation import budget
from detection.evaluation.budget import Fitted, Texts, fit, needed, stability_of
from detection.models import FalseAlarmBudget

ACTOR = Actor("test")


def counts(**at: int) -> list[int]:
    """`counts(s10=5)`: five texts with a score of 0.10."""
    found = [0] * 100
    for name, count in at.items():
        found[int(name[1:])] = count
    return found


class TestFit:
    def test_the_least_threshold_within_the_budget(self):
        texts = Texts(counts(s5=90, s40=9, s80=1), counts(s50=10, s95=10))
        one, two, ten = (fit(texts, share) for share in (0.005, 0.01, 0.1))

        assert (one.threshold, one.alarms, one.found) == (0.81, 0, 10)
        assert (two.threshold, two.alarms, two.found) == (0.41, 1, 20)
        assert (ten.threshold, ten.alarms) == (0.06, 10)

    def test_a_larger_budget_never_has_a_higher_threshold(self):
        texts = Texts([100 - at for at in range(100)], counts())
        thresholds = [fit(texts, share).threshold for share in budget.CHOICES]

        assert thresholds == sorted(thresholds, reverse=True)

    def test_what_no_threshold_holds_is_reported(self):
        assert fit(Texts(counts(s99=5), counts()), 0.01) is None
        assert fit(Texts(counts(), counts(s50=5)), 0.01) is None  # nothing to fit it on

    def test_few_texts_are_an_estimate_and_many_are_sure(self):
        few, many = (fit(Texts(counts(s5=n), counts()), 0.01) for n in (50, 400))

        assert not few.is_sure
        assert many.is_sure
        assert few.rate.high > 0.01 > many.rate.high
        assert few.recall is None

    def test_how_many_it_takes(self):
        assert needed(0.01) == 299  # the rule of three: 300
        assert needed(0.05) == 59


class TestDrift:
    @pytest.fixture
    def held(self, acme, acme_key):
        scores(acme_key, timezone.now(), s5=980, s90=20)
        return budget.keep(acme_key.row, "user_input", Fitted(0.02, 0.6, 2, 200, 9, 10), "uploaded")

    def later(self, days=40):
        return time_machine.travel(timezone.now() + timedelta(days=days), tick=False)

    def test_more_flagged_than_then_is_reported_once(self, held, acme, acme_key, alice):
        with self.later():
            scores(acme_key, timezone.now(), s5=700, s90=300)
            sent = [budget.check(), budget.check()]
        held.refresh_from_db()
        [message] = mail.outbox

        assert sent == [1, 0]
        assert held.drift["flagged"] == pytest.approx(0.3)
        assert held.drift["flagged_before"] == pytest.approx(0.02)
        assert held.told_at is not None
        assert message.to == [alice.email]
        assert "30.0%" in message.body
        assert AuditEvent.objects.filter(action="policy.drifted", workspace=acme).count() == 1

    def test_other_scores_below_the_threshold_count_too(self, held, acme_key):
        with self.later():
            scores(acme_key, timezone.now(), s45=980, s90=20)
            assert budget.check() == 1

    @pytest.mark.parametrize("now", [{"s5": 975, "s90": 25}, {"s90": 100}, {}])
    def test_the_same_or_too_little_says_nothing(self, held, acme_key, now):
        with self.later():
            scores(acme_key, timezone.now(), **now)
            assert budget.check() == 0
        assert mail.outbox == []

    def test_it_is_over_when_the_traffic_is_as_it_was(self, held, acme_key):
        with self.later(40):
            scores(acme_key, timezone.now(), s90=1000)
            budget.check()
        with self.later(60):
            scores(acme_key, timezone.now(), s5=980, s90=20)
            budget.check()
        held.refresh_from_db()

        assert held.drifted_at is None

    def test_a_successor_is_looked_at_instead(self, held, acme_key):
        successor, _ = rotate_key(acme_key.row, grace_seconds=0, actor=ACTOR)
        with self.later():
            scores(successor, timezone.now(), s90=1000)
            assert budget.check() == 1
        held.refresh_from_db()
        assert held.api_key_id == successor.pk

    def test_fitting_anew_begins_again(self, held, acme_key):
        with self.later():
            scores(acme_key, timezone.now(), s90=1000)
            budget.check()
            again = Fitted(0.02, 0.95, 0, 200, 9, 10)
            budget.keep(acme_key.row, "user_input", again, "traffic")
        kept = FalseAlarmBudget.objects.get()

        assert (kept.threshold, kept.drifted_at, kept.drift) == (0.95, None, {})


def test_equal_distributions_are_stable_and_others_are_not():
    one = counts(s5=900, s50=100)

    assert stability_of(one, [2 * n for n in one]) < 0.01
    assert stability_of(one, counts(s5=100, s50=900)) > budget.STABILITY_MAX


def scores(key, at, **wanted):
    pk = getattr(key, "row", key).pk
    ScoreRollup.objects.bulk_create(
        ScoreRollup(
            period="day", bucket=reports.floor(at, "day"), subject_id=pk, bin=number, count=count
        )
        for number, count in enumerate(counts(**wanted))
        if count
    )
