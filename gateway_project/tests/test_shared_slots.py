"""The control plane's places, which callers of one network share with nobody else's."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from gateway_project.core.api import slots as module
from gateway_project.core.api.slots import SharedSlots
from gateway_project.core.context import RequestContext


class Plane:
    """An application that begins to answer when it is told to."""

    def __init__(self):
        self.inside = []
        self.going = asyncio.Event()
        self.ending = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.inside.append(scope["gateway"].client_ip)
        if scope["path"] == "/waits-for-others":
            scope["gateway"].let_go()
        shown = dict(scope["headers"]).get(b"x-api-key", b"").decode()
        if shown:
            scope["gateway"].workspace = shown.partition(".")[0]
        await self.going.wait()
        if scope["path"] == "/fails":
            raise RuntimeError("as told")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.ending.wait()
        await send({"type": "http.response.body", "body": b""})


def begin(slots, client_ip, path="/", headers=()):
    """A request under way; its task gives the messages that were sent."""

    async def call():
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        scope["gateway"] = RequestContext(client_ip, None, None)
        await slots(scope, receive, send)
        return sent

    return asyncio.create_task(call())


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_network_has_its_places_and_others_theirs():
    async def scenario():
        plane = Plane()
        slots = SharedSlots(plane, slots=2)
        tasks = [begin(slots, f"2001:db8::{n}") for n in range(5)]
        await settled()
        of_one = list(plane.inside)
        tasks.append(begin(slots, "192.0.2.1"))
        await settled()
        of_another = plane.inside[len(of_one) :]
        plane.going.set()
        plane.ending.set()
        answers = await asyncio.gather(*tasks)
        return of_one, of_another, [sent[0]["status"] for sent in answers]

    of_one, of_another, statuses = asyncio.run(scenario())

    assert len(of_one) == 2
    assert of_another == ["192.0.2.1"]
    assert statuses == [200] * 6


def test_a_place_is_free_when_the_answer_begins_fails_or_waits_for_others():
    async def scenario():
        found = {}
        for path in ("/", "/fails", "/waits-for-others"):
            plane = Plane()
            slots = SharedSlots(plane, slots=1)
            first = begin(slots, "192.0.2.1", path)
            await settled()
            if path != "/waits-for-others":
                plane.going.set()
            await settled()
            second = begin(slots, "192.0.2.1")
            await settled()
            found[path] = len(plane.inside)
            plane.going.set()
            plane.ending.set()
            with suppress(RuntimeError):
                await first
            await second
            third = begin(slots, "192.0.2.1"), begin(slots, "192.0.2.1")
            await asyncio.gather(*third)
            found[f"{path} again"] = slots._slots.of("192.0.2.1")._value
        return found

    found = asyncio.run(scenario())

    assert found == {
        "/": 2,
        "/fails": 2,
        "/waits-for-others": 2,
        "/ again": 1,
        "/fails again": 1,
        "/waits-for-others again": 1,
    }


def test_waiting_too_long_is_refused_and_takes_no_place():
    async def scenario():
        plane = Plane()
        slots = SharedSlots(plane, slots=1, seconds_max=0.01)
        first = begin(slots, "192.0.2.1")
        await settled()
        refused = await begin(slots, "192.0.2.1")
        plane.going.set()
        plane.ending.set()
        await first
        return refused, await begin(slots, "192.0.2.1"), len(plane.inside)

    refused, after, inside = asyncio.run(scenario())

    assert refused[0]["status"] == 503
    assert dict(refused[0]["headers"])[b"retry-after"] == b"1"
    assert json.loads(refused[1]["body"])["code"] == "store_unavailable"
    assert "send this one again in a moment" in json.loads(refused[1]["body"])["detail"]
    assert (after[0]["status"], inside) == (200, 2)


def test_one_workspace_has_its_places_whatever_networks_and_keys_it_has():
    async def scenario():
        plane = Plane()
        slots = SharedSlots(plane, slots=2)

        def call(number, key):
            return begin(slots, f"192.0.2.{number}", headers=[(b"x-api-key", key)])

        plane.going.set(), plane.ending.set()
        await asyncio.gather(call(1, b"acme.1"), call(2, b"acme.2"))
        plane.going.clear(), plane.inside.clear()
        tasks = [call(n, b"acme.%d" % (1 + n % 2)) for n in range(6)]
        await settled()
        of_one = len(plane.inside)
        tasks.append(call(1, b"globex.1"))
        await settled()
        of_all = len(plane.inside)
        plane.going.set()
        return of_one, of_all, [sent[0]["status"] for sent in await asyncio.gather(*tasks)]

    assert asyncio.run(scenario()) == (2, 3, [200] * 7)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"cookie", b"a=1; sessionid=x; b=2"), (b"cookie", b"sessionid=x")),
        ((b"authorization", b"Bearer x"), (b"authorization", b"Bearer x")),
    ],
    ids=["session", "token"],
)
def test_what_shows_the_same_is_the_same(one, other):
    shown = [module._shown({"headers": [header]}) for header in (one, other)]

    assert shown[0] == shown[1] != ""
    assert module._shown({"headers": [(b"cookie", b"xsessionid=x; theme=dark")]}) == ""
