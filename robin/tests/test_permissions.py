"""Which role reads Robin's log is a setting; all else follows from the role."""

from __future__ import annotations

import pytest

from accounts.tests.shapes import refusal
from robin.permissions import Role, permissions_of


@pytest.mark.parametrize("role", Role.values)
def test_the_log_is_given_by_itself(member, robin, settings, role):
    person = member(role, by_hand=True)
    may = role != "ROLE_READONLY"

    assert ("VIEW_LOGS" in permissions_of(role)) is may
    answer = person.get("/api/v1/logs")
    assert answer.status_code == 200 if may else refusal(answer) == (403, "permission_denied")
    assert ("VIEW_LOGS" in person.get("/api/v1/auth/me").json()["permissions"]) is may

    settings.ROBIN_LOG_ROLES = ["ROLE_READONLY"]
    assert ("VIEW_LOGS" in permissions_of(role)) is (not may)
