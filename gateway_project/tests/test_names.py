"""Names to addresses: whose fault it is when one is not found, and that nobody waits for others."""

from __future__ import annotations

import asyncio

import pytest

from gateway_project.core.upstream import names
from gateway_project.core.upstream.names import ResolverAway, UnknownName, asked_by

pytestmark = pytest.mark.hostile


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(names, "SECONDS_MAX", 0.3)
    monkeypatch.setattr(names, "PROBE_SECONDS_MAX", 0.3)
    monkeypatch.setattr(names, "_answering", (True, 0.0))


def look_up(host):
    return asyncio.run(names.look_up(host))


def test_both_families_are_asked_for(name_server):
    name_server.resolves("both.example", "192.0.2.1", "2001:db8::1")

    assert set(look_up("both.example")) == {"192.0.2.1", "2001:db8::1"}


@pytest.mark.parametrize("host", ["unknown.example", "bad..example", "-.example"])
def test_a_name_that_is_not_there(name_server, host):
    with pytest.raises(UnknownName):
        look_up(host)


def test_a_name_whose_own_servers_are_silent_is_unknown(name_server, hasty):
    name_server.hangs("hangs.example")

    with pytest.raises(UnknownName):
        look_up("hangs.example")


def test_name_servers_of_ours_that_are_silent_are_away(name_server, hasty):
    name_server.is_silent = True

    with pytest.raises(ResolverAway):
        look_up("there.example")


def test_name_servers_of_ours_that_refuse_are_away(hasty, settings):
    settings.NAME_SERVERS = ["127.0.0.1:1"]

    with pytest.raises(ResolverAway):
        look_up("there.example")


def test_names_that_hang_keep_only_their_own_workspace_waiting(name_server, hasty):
    name_server.hangs("hangs.example")
    name_server.resolves("quick.example", "192.0.2.1")

    async def work():
        async def ask(asker, host):
            with asked_by(asker):
                return await names.look_up(host)

        hanging = [
            asyncio.create_task(ask("acme", "hangs.example")) for _ in range(names.ASKER_MAX)
        ]
        await asyncio.sleep(0)
        late = asyncio.create_task(ask("acme", "quick.example"))
        found = await ask("globex", "quick.example")
        is_waiting = not late.done()
        await asyncio.gather(*hanging, late, return_exceptions=True)
        return found, is_waiting

    assert asyncio.run(work()) == (["192.0.2.1"], True)
