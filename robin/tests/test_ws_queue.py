"""/ws/queue: who may open a socket, how, and what ends it. Real sessions and hub, a fake Robin."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
import time_machine
from asgiref.testing import ApplicationCommunicator
from django.core.cache import cache
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.core.stores.bus import bus
from robin.access import sessions, tickets
from robin.models import RefreshFamily, RobinAccess
from robin.queue import live
from robin.tests.test_live import FakeRobin, item, until

URL = "/ws/queue"


class Socket:
    """One connection, as a client sees it. Used inside the gateway's loop."""

    def __init__(self, application, path, *, headers=(), subprotocols=(), client_ip="10.4.4.4"):
        path, _, query = path.partition("?")
        self.scope = {
            "type": "websocket",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"host", b"testserver"), *headers],
            "subprotocols": list(subprotocols),
            "client": (client_ip, 50000),
        }
        self._app = ApplicationCommunicator(application, self.scope)
        self.accepted = None
        self.code = None

    async def open(self):
        await self._app.send_input({"type": "websocket.connect"})
        message = await self._next()
        if message["type"] == "websocket.accept":
            self.accepted = message
        return self

    async def _next(self):
        message = await self._app.receive_output(10)
        if message["type"] == "websocket.close":
            self.code = message.get("code", 1000)
            await self._app.send_input({"type": "websocket.disconnect", "code": self.code})
        return message

    async def says(self, kind=None):
        """The next message, or the next of a kind; None when the socket was closed."""
        while True:
            message = await self._next()
            if message["type"] == "websocket.close":
                return None
            body = json.loads(message["text"])
            if kind in (None, body["type"]):
                return body

    async def send(self, text):
        await self._app.send_input({"type": "websocket.receive", "text": text})

    async def closed(self):
        while self.code is None:
            await self._next()
        return self.code

    async def leave(self):
        if self.code is None:
            await self._app.send_input({"type": "websocket.disconnect", "code": 1000})
        await self._app.wait(10)


@pytest.fixture
def robin(gateway, monkeypatch, settings):
    settings.QUEUE_POLL_SECONDS = 0.05
    monkeypatch.setattr(live, "RENEW_SECONDS", 0.05)
    fake = FakeRobin()
    others, live._hub = live._hub, None
    hub = gateway.run(live.open_hub(fake.fetch))
    yield fake
    assert not hub.clients
    gateway.run(live.close_hub())
    live._hub = others


@pytest.fixture
def play(gateway, robin):
    """`play(scenario)`: `scenario(open)` in the gateway's loop; all sockets are left at its end."""

    def play(scenario):
        opened = []

        async def open_socket(path=URL, **more):
            socket = Socket(gateway.application, path, **more)
            opened.append(socket)
            return await socket.open()

        async def main():
            try:
                return await scenario(open_socket)
            finally:
                for socket in opened:
                    await socket.leave()

        return gateway.run(main())

    return play


def bearer(person):
    return {"subprotocols": ["bearer", person.token]}


class TestOpening:
    @pytest.mark.parametrize("how", ["subprotocol", "query", "header", "ticket"])
    @pytest.mark.parametrize("role", ["ROLE_READONLY", "ROLE_ADMIN"])
    def test_with_a_good_token_it_tells(self, member, play, how, role):
        ada = member(role)
        ticket = ada.post("/api/v1/auth/ws-ticket").json()["ticket"]
        more, path = {}, URL
        match how:
            case "subprotocol":
                more = bearer(ada)
            case "query":
                path = f"{URL}?token={ada.token}"
            case "header":
                more = {"headers": [(b"authorization", f"Bearer {ada.token}".encode())]}
            case _:
                path = f"{URL}?ticket={ticket}"

        async def scenario(open_socket):
            socket = await open_socket(path, **more)
            assert (await socket.says())["type"] == "snapshot"
            chosen = socket.accepted["subprotocol"]
            assert chosen == ("bearer" if how == "subprotocol" else None)

        play(scenario)

    @pytest.mark.parametrize(
        "path",
        [
            URL,
            f"{URL}?token=",
            f"{URL}?token=x",
            f"{URL}?ticket=x",
            f"{URL}?token=a.b.c",
            f"{URL}?ticket=%00%ff",
        ],
    )
    def test_without_one_the_page_learns_4401(self, gateway, play, path):
        async def scenario(open_socket):
            assert await (await open_socket(path)).closed() == 4401

        play(scenario)

    def test_an_expired_one_is_4401(self, member, play):
        ada = member()

        async def scenario(open_socket):
            with time_machine.travel(timezone.now() + timedelta(minutes=31), tick=True):
                assert await (await open_socket(**bearer(ada))).closed() == 4401

        play(scenario)

    def test_staff_without_a_role_are_4403(self, member, play):
        root = member(None, is_staff=True)

        async def scenario(open_socket):
            assert await (await open_socket(**bearer(root))).closed() == 4403

        play(scenario)

    @pytest.mark.parametrize(
        ("origin", "may"),
        [
            ("http://testserver", True),
            ("https://ui.example", True),
            ("https://evil.example", False),
            ("https://ui.example.evil.example", False),
            ("http://ui.example", False),
            ("null", False),
            ("", False),
        ],
    )
    def test_a_page_has_to_be_ours_or_named(self, member, play, settings, origin, may):
        settings.CORS_ALLOWED_ORIGINS = ["https://ui.example"]
        ada = member()

        async def scenario(open_socket):
            socket = await open_socket(headers=[(b"origin", origin.encode())], **bearer(ada))
            if may:
                assert (await socket.says())["type"] == "snapshot"
            else:
                assert await socket.closed() == 4403

        play(scenario)

    def test_a_guesser_is_not_even_accepted(self, play, settings):
        settings.RATE_LIMIT_PER_MINUTE = 3

        async def scenario(open_socket):
            sockets = [await open_socket(f"{URL}?token=x{n}") for n in range(4)]
            for socket in sockets:
                await socket.closed()
            assert [s.accepted is not None for s in sockets] == [True] * 3 + [False]

        play(scenario)

    def test_other_addresses_are_refused(self, play):
        async def scenario(open_socket):
            socket = await open_socket("/ws/other")
            assert socket.accepted is None
            assert await socket.closed() == 1000

        play(scenario)

    def test_redis_away_is_no_verdict_on_the_ticket(self, play, monkeypatch):
        def fail(key):
            raise RedisError("away")

        monkeypatch.setattr(tickets, "cache", SimpleNamespace(get=fail))

        async def scenario(open_socket):
            assert await (await open_socket(f"{URL}?ticket=x")).closed() == 1013

        play(scenario)

    def test_the_database_away_is_no_verdict_on_the_token(self, member, play, monkeypatch):
        from django.db import OperationalError

        from robin.access import authentication

        ada = member()

        def fail(ids):
            raise OperationalError("away")

        monkeypatch.setattr(authentication, "look_up", fail)

        async def scenario(open_socket):
            assert await (await open_socket(**bearer(ada))).closed() == 1013

        play(scenario)


class TestTickets:
    def test_one_is_good_once(self, member, play):
        ticket = member().post("/api/v1/auth/ws-ticket").json()["ticket"]

        async def scenario(open_socket):
            path = f"{URL}?ticket={ticket}"
            first, second = await asyncio.gather(open_socket(path), open_socket(path))
            await asyncio.sleep(0)
            codes = [s.code for s in (first, second)]
            messages = [await s.says() for s, code in zip((first, second), codes, strict=True)]
            assert sorted(m is not None for m in messages) == [False, True]

        play(scenario)

    def test_it_says_how_long_and_is_kept_nowhere_in_clear(self, member):
        ada = member()
        r = ada.post("/api/v1/auth/ws-ticket")

        assert r.json()["expiresIn"] == 30
        assert cache.get(f"ws-ticket:{r.json()['ticket']}") is None
        assert r.headers["cache-control"] == "no-store, no-transform"

    def test_it_ends_with_its_session(self, member, play):
        ada = member()
        ticket = ada.post("/api/v1/auth/ws-ticket").json()["ticket"]
        ada.post("/api/v1/auth/logout")

        async def scenario(open_socket):
            assert await (await open_socket(f"{URL}?ticket={ticket}")).closed() == 4401

        play(scenario)

    def test_it_ends_with_the_access_token(self, member, monkeypatch):
        ada = member()
        ticket = ada.post("/api/v1/auth/ws-ticket").json()["ticket"]

        _, valid_until = tickets.redeem(ticket)

        ends = (timezone.now() + timedelta(minutes=30)).timestamp()
        assert abs(valid_until - ends) < 60


class TestEnding:
    def test_a_revoked_session_is_closed_and_others_stay(self, member, play):
        ada, bob = member(), member()
        family = RefreshFamily.objects.get(user=ada.user)

        async def scenario(open_socket):
            one, other = await open_socket(**bearer(ada)), await open_socket(**bearer(bob))
            await one.says(), await other.says()
            revoke = sessions.revoke
            await asyncio.to_thread(revoke, family.pk, because="user", actor=Actor("test"))
            assert await one.closed() == 4401
            assert (await other.says("heartbeat"))["type"] == "heartbeat"

        play(scenario)

    def test_a_user_who_loses_the_role_is_closed(self, member, play):
        ada = member(is_staff=True)

        async def scenario(open_socket):
            socket = await open_socket(**bearer(ada))
            await socket.says()
            await asyncio.to_thread(RobinAccess.objects.all().delete)
            assert await socket.closed() == 4403

        play(scenario)

    def test_one_that_was_revoked_while_it_opened_is_closed(self, member, play, monkeypatch):
        ada = member()
        family = RefreshFamily.objects.get(user=ada.user)
        ada.get("/api/v1/auth/me")  # it is remembered
        RefreshFamily.objects.filter(pk=family.pk).update(revoked_at=timezone.now())  # no message

        async def scenario(open_socket):
            assert await (await open_socket(**bearer(ada))).closed() == 4401

        play(scenario)

    def test_a_process_that_hears_nothing_asks_the_database(
        self, member, play, monkeypatch, settings
    ):
        if not settings.REDIS_URL:
            pytest.skip("without Redis there is one process, which hears itself")
        ada = member()
        family = RefreshFamily.objects.get(user=ada.user)

        async def scenario(open_socket):
            socket = await open_socket(**bearer(ada))
            await socket.says()
            await until(lambda: not live.hub()._to_recheck)
            monkeypatch.setattr(bus, "is_listening", False)
            update = RefreshFamily.objects.filter(pk=family.pk).update
            await asyncio.to_thread(update, revoked_at=timezone.now())
            assert await socket.closed() == 4401

        play(scenario)

    def test_the_token_ends_it(self, member, play, settings):
        ada = member()

        async def scenario(open_socket):
            almost = timezone.now() + timedelta(minutes=29, seconds=59)
            with time_machine.travel(almost, tick=True):
                socket = await open_socket(**bearer(ada))
                assert await socket.closed() == 4401

        play(scenario)

    def test_what_a_client_sends_means_nothing(self, member, play, robin):
        ada = member()

        async def scenario(open_socket):
            socket = await open_socket(**bearer(ada))
            for text in ("{}", "x" * 4000, '{"type": "websocket.disconnect"}'):
                await socket.send(text)
            await socket.says()
            robin.has(item(4))
            assert (await socket.says("diff"))["added"] == [item(4)]

        play(scenario)

    def test_it_resumes_where_it_was(self, member, play, robin):
        ada = member()

        async def scenario(open_socket):
            first = await open_socket(**bearer(ada))
            seq = (await first.says())["seq"]
            robin.has(item(7))
            await first.says("diff")
            second = await open_socket(f"{URL}?since={seq}", **bearer(ada))
            assert (await second.says())["type"] == "diff"
            for odd in ("x", "-1", "9" * 400, "1e3", "%D9%A1"):
                socket = await open_socket(f"{URL}?since={odd}", **bearer(ada))
                assert (await socket.says())["type"] == "snapshot"

        play(scenario)


@pytest.mark.hostile
class TestHowMany:
    def test_one_person_has_only_so_many_and_another_finds_room(self, member, play, settings):
        settings.SOCKETS_PER_USER_MAX = 3
        ada, bert = member("ROLE_READONLY"), member("ROLE_OPERATOR")

        async def scenario(open_socket):
            mine = [await open_socket(**bearer(ada)) for _ in range(3)]
            surplus = await open_socket(**bearer(ada))
            assert await surplus.closed() == live.TOO_MANY
            other = await open_socket(**bearer(bert))
            assert (await other.says())["type"] == "snapshot"
            await mine[0].leave()
            again = await open_socket(**bearer(ada))
            assert (await again.says())["type"] == "snapshot"

        play(scenario)

    def test_a_guesser_of_tickets_gets_no_look_up_for_each_guess(self, play, settings, monkeypatch):
        settings.RATE_LIMIT_PER_MINUTE = 3
        asked = []
        monkeypatch.setattr(tickets, "redeem", lambda text: asked.append(text) or refuse())

        def refuse():
            raise errors.InvalidToken

        async def scenario(open_socket):
            for number in range(8):
                await open_socket(f"{URL}?ticket=guess-{number}")

        play(scenario)

        assert len(asked) == 3

    def test_a_person_is_signed_in_only_so_often(self, member, settings):
        settings.SESSIONS_PER_USER_MAX = 2
        ada = member("ROLE_READONLY", by_hand=True)
        user = RefreshFamily.objects.get().user
        for _ in range(3):
            sessions.of_page(user, None, actor=Actor("ada"))

        standing = RefreshFamily.objects.filter(user=user, revoked_at=None)
        assert standing.count() == 2
        assert ada.get("/api/v1/auth/me").status_code == 401  # the oldest has ended
