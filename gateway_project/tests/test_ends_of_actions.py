"""Acts of staff that end, in every order: what is in force, and what is when all have ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations, product

import pytest
import time_machine

from accounts import moderation, services
from accounts.models import User, Workspace
from accounts.services import Actor
from conftest import make_workspace
from gateway_project import tasks
from gateway_project.core import errors
from gateway_project.staff import actions
from portal.models import StaffAct

ACTOR = Actor("ann@gateway.example")
MONDAY = datetime(2027, 3, 8, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def at(day: float):
    return time_machine.travel(MONDAY + day * DAY, tick=False)


def do(name: str, workspace: Workspace, **values):
    until = values.pop("until", None)
    ends = MONDAY + until * DAY if until else None
    form = {"reason": "they asked for it", "until": ends, **values}
    actions.do(actions.ACTIONS[name], actions.Call(workspace, form, ACTOR, None))


class TestLimits:
    LIMITS = (200, 500, 200)
    ENDS = (4, 5, 6, None)

    def test_the_newest_that_has_not_ended_is_in_force(self, acme):
        """Whatever ends first: each of three acts ends on one of three days, or never."""
        wrong = []
        for ends in product(self.ENDS, repeat=3):
            StaffAct.objects.all().delete()
            Workspace.objects.filter(pk=acme.pk).update(rate_limit_per_day=100)
            for day, (limit, until) in enumerate(zip(self.LIMITS, ends, strict=True)):
                with at(day):
                    do("raise_limits", acme, per_day=limit, until=until)
            for day in (3.5, 4.5, 5.5, 6.5):
                with at(day):
                    tasks.undo_acts()
                acme.refresh_from_db()
                left = [
                    limit
                    for limit, until in zip(self.LIMITS, ends, strict=True)
                    if until is None or until > day
                ]
                if acme.rate_limit_per_day != [100, *left][-1]:
                    wrong.append((ends, day, acme.rate_limit_per_day))

        assert wrong == []

    def test_what_somebody_set_between_two_is_what_was_before(self, acme):
        with at(0):
            do("raise_limits", acme, per_day=200, until=4)
            moderation.change_workspace(acme, {"rate_limit_per_day": 300}, actor=ACTOR)
            do("raise_limits", acme, per_day=500, until=5)
        for day in (4.5, 5.5):
            with at(day):
                tasks.undo_acts()
        acme.refresh_from_db()

        assert acme.rate_limit_per_day == 300

    def test_one_limit_is_nothing_to_the_other(self, acme):
        with at(0):
            do("raise_limits", acme, per_day=200, until=4)
            do("raise_limits", acme, per_minute=500, until=5)
        with at(4.5):
            tasks.undo_acts()
        acme.refresh_from_db()

        assert (acme.rate_limit_per_day, acme.rate_limit_per_minute) == (None, 500)


class TestSuspensions:
    """By staff at the desk until a time, by staff in the admin's lists, and by an owner who asks
    for the deletion."""

    STEPS = ("until", "suspend", "reinstate", "ask", "undo", "later")

    @pytest.mark.hostile
    @pytest.mark.parametrize("last", ["undo", "later"])
    def test_the_keys_work_if_nobody_holds_them(self, gateway, last):
        user = User.objects.create_user("dora@new.example")
        workspace, wrong = make_workspace("new", user), []
        before = [step for step in self.STEPS if step != last]
        for steps in (*permutations(before, 3), *permutations(before, 2)):
            steps = (*steps, last)
            StaffAct.objects.all().delete()
            Workspace.objects.update(suspended_at=None, deletes_at=None)
            User.objects.update(deletes_at=None)
            workspace.refresh_from_db()
            by_staff = by_owner = False
            ends = False
            for hour, step in enumerate(steps):
                with at(hour / 24 + (2 if "later" in steps[: hour + 1] else 0)):
                    self.take(step, workspace, user)
                if step in ("suspend", "until") and not by_staff:
                    by_staff, ends = True, step == "until"
                elif step == "reinstate" or (step == "later" and ends):
                    by_staff = ends = False
                elif step in ("ask", "undo"):
                    by_owner = step == "ask"
                workspace.refresh_from_db()
                if (workspace.suspended_at is None) is (by_staff or by_owner):
                    wrong.append(steps[: hour + 1])

        assert wrong == []

    def take(self, step, workspace, user):
        try:
            if step == "until":
                do("suspend", workspace, until=1)
            elif step == "reinstate":
                moderation.reinstate_workspace(workspace, actor=ACTOR)
            elif step == "suspend":
                moderation.suspend_workspace(workspace, actor=ACTOR)
            elif step == "ask":
                services.ask_deletion(user, actor=ACTOR)
            elif step == "undo":
                services.undo_deletion(user, actor=ACTOR)
            else:
                tasks.undo_acts()
        except errors.Conflict:
            pass  # it is suspended already
