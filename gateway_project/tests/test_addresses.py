"""One subscriber has a whole /64 of IPv6: wherever addresses are counted, it counts as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from accounts.keys import make_key
from accounts.tests.shapes import refusal
from gateway_project.core.ratelimit import network_of
from gateway_project.tests.test_clock import ROOT, modules

pytestmark = pytest.mark.hostile
ENTRIES = {
    "a wrong key on the data plane": lambda gateway, ip: gateway.post(
        "/v1/detect", {"text": "x"}, key=make_key(), client_ip=ip
    ),
    "a wrong key on the control plane": lambda gateway, ip: gateway.get(
        "/v1/keys", key=make_key(), client_ip=ip
    ),
    "no key at all": lambda gateway, ip: gateway.get("/v1/limits", client_ip=ip),
    "a token that is none": lambda gateway, ip: gateway.get(
        "/api/v1/auth/me", headers={"Authorization": "Bearer x.y.z"}, client_ip=ip
    ),
    "a password that is wrong, over HTTP": lambda gateway, ip: gateway.post(
        "/api/v1/auth/login", {"username": "nobody", "password": "wrong"}, client_ip=ip
    ),
    "registering": lambda gateway, ip: gateway.post(
        "/auth/register",
        {"email": f"{ip.replace(':', '.').strip('.')}@x.example", "password": "a good password"},
        client_ip=ip,
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_64_counts_as_one_address(gateway, settings, entry):
    settings.RATE_LIMIT_PER_MINUTE = 10
    call = ENTRIES[entry]
    answers = [call(gateway, f"2001:db8:0:1::{n:x}") for n in range(1, 16)]

    assert answers[0].status_code != 429
    assert refusal(answers[-1]) == (429, "rate_limited")
    assert call(gateway, "2001:db8:0:2::1").status_code != 429
    assert call(gateway, "192.0.2.1").status_code != 429


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:DB8:1:2::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_what_an_address_counts_as(address, counts_as):
    assert network_of(address) == counts_as


def test_no_subject_of_a_limit_is_made_of_an_address_by_itself():
    """Policies of addresses are made in one place, which knows what counts as one."""
    makers = {str(path.relative_to(ROOT)) for path in modules() if "{ip:" in Path(path).read_text()}

    assert makers == {"gateway_project/core/ratelimit.py"}
