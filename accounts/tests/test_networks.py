"""Networks of keys: whoever is in one that is accepted is let in."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.networks import is_inside, network_of
from accounts.tests.shapes import refusal

MAPPED = int(IPv6Address("::ffff:0:0"))
addresses = st.one_of(
    st.ip_addresses(),
    st.integers(0, 2**32 - 1).map(lambda low: IPv6Address(MAPPED + low)),
    st.sampled_from(["::", "::1", "fe80::1", "::ffff:10.1.2.3"]).map(IPv6Address),
)


@given(addresses, st.integers(0, 128))
def test_its_own_addresses_are_inside(address, bits):
    text = f"{address}/{min(bits, address.max_prefixlen)}"
    network, given_ = network_of(text, strict=False), ip_network(text, strict=False)

    assert network_of(str(network)) == network
    assert network.num_addresses == given_.num_addresses
    assert is_inside(str(given_[0]), (network,))
    if given_.prefixlen >= 96 or given_.version == 4:  # else it holds IPv4 in another form as well
        assert is_inside(str(address), (network,))


@pytest.mark.parametrize("text", ["fe80::%eth0", "fe80::%1/64", "", "x", "10.0.0.0/33"])
def test_what_is_none(text):
    with pytest.raises(ValueError, match=r"."):
        network_of(text, strict=False)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_ipv4_in_the_form_of_ipv6_lets_in(gateway, make_key, acme_admin_key, address):
    body = {"allowed_cidrs": ["::ffff:10.0.0.0/104"]}
    made = gateway.post("/v1/keys", body, key=acme_admin_key).json()

    assert made["allowed_cidrs"] == ["10.0.0.0/8"]
    inside = gateway.get("/v1/limits", key=made["key"], client_ip=address)
    outside = gateway.get("/v1/limits", key=made["key"], client_ip="11.1.2.3")
    assert inside.status_code == 200
    assert refusal(outside) == (403, "ip_not_allowed")


@pytest.mark.parametrize(
    ("kept", "is_let_in"),
    [
        (["::ffff:127.0.0.0/104"], True),
        (["fe80::%eth0", "127.0.0.0/8"], True),
        (["fe80::%eth0"], False),
    ],
    ids=["mapped", "zone_and_another", "zone"],
)
def test_keys_that_were_made_before(gateway, make_key, kept, is_let_in):
    key = make_key()
    key.row.allowed_cidrs = kept
    key.row.save()

    answer = gateway.get("/v1/limits", key=key, client_ip="127.0.0.1")
    if is_let_in:
        assert answer.status_code == 200
    else:
        assert refusal(answer) == (403, "ip_not_allowed")
