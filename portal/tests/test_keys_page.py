"""/app/keys: as many keys as the plan gives."""

import pytest

from accounts.models import ApiKey, Plan

FORM = {
    "name": "one more",
    "scopes": ["detect"],
    "rate_limit_per_minute": 5,
    "rate_limit_per_day": 5,
}


@pytest.mark.hostile
def test_one_more_is_refused_on_the_form(owner, make_key):
    Plan.objects.update(keys_max=2)
    make_key()

    first, second = (owner.post("/app/keys", FORM) for _ in range(2))

    assert owner.get(first["Location"]).context["made"].name == "one more"
    assert "gives a workspace 2 keys" in second.context["form"].non_field_errors()[0]
    assert "gives a workspace 2 keys" in second.content.decode()
    assert ApiKey.objects.count() == 2
