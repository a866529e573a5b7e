"""Robin's people: `member("ROLE_ADMIN")` makes one, signed in as a client would."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import count

import pytest
from django.utils import timezone

from accounts.models import User
from gateway_project.tests.loop_thread import LoopThread
from robin.access.tokens import Access
from robin.models import RefreshFamily, RobinAccess
from robin.queue import scan
from robin.standin.robin import Robin
from robin.upstream import client

PASSWORD = "a good long password"
LOGIN = "/api/v1/auth/login"
REFRESH = "/api/v1/auth/refresh"


class Person:
    """A user, with the answer of their sign-in: `ada.get("/api/v1/auth/me")`."""

    def __init__(self, gateway, user, client_ip):
        self.gateway, self.user, self.client_ip = gateway, user, client_ip

    def sign_in(self, password=PASSWORD, **more):
        self.login = self.gateway.post(
            LOGIN,
            {"username": self.user.email, "password": password},
            client_ip=self.client_ip,
            **more,
        )
        if self.login.status_code == 200:
            self.token = self.login.json()["tokens"]["accessToken"]
            self.cookie = self.login.cookies["refreshToken"]
        return self.login

    def enter(self):
        """The same without the door: sign-ins take a password hash each."""
        now = timezone.now()
        family = RefreshFamily.objects.create(
            user=self.user,
            password_stamp=self.user.get_session_auth_hash(),
            created_at=now,
            expires_at=now + timedelta(days=7),
        )
        self.token = str(Access.of(self.user, None, family.pk))

    @property
    def bearer(self):
        return {"Authorization": f"Bearer {self.token}"}

    def request(self, method, path, **more):
        more.setdefault("headers", {}).update(self.bearer)
        return self.gateway.request(method, path, client_ip=self.client_ip, **more)

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, json=None, **more):
        return self.request("POST", path, json=json, **more)

    def refresh(self, cookie=None):
        return refresh(self.gateway, cookie or self.cookie)


def refresh(gateway, cookie, **more):
    headers = {"Cookie": f"refreshToken={cookie}", **more.pop("headers", {})}
    return gateway.post(REFRESH, {}, headers=headers, **more)


@pytest.fixture
def member(gateway):
    """`member(role, **fields of the user)`; role None: none."""
    addresses = (f"10.0.0.{n}" for n in count(1))  # sign-ins are counted by address
    names = count(1)

    def make(role="ROLE_ADMIN", *, signed_in=True, by_hand=False, email=None, **fields):
        user = User.objects.create_user(
            email or f"person{next(names)}@robin.example", PASSWORD, **fields
        )
        if role is not None:
            RobinAccess.objects.create(user=user, role=role)
        person = Person(gateway, user, next(addresses))
        if by_hand:
            person.enter()
        elif signed_in:
            assert person.sign_in().status_code == 200, person.login.text
        return person

    return make


@pytest.fixture(scope="session")
def _robin_session():
    """A stand-in in a thread of its own, at ports that stay."""
    robin, thread = Robin(), LoopThread("robin")
    robin.run = thread.run
    robin.run(robin.start())
    yield robin
    robin.run(robin.stop())
    thread.close()


@pytest.fixture
def robin(_robin_session, gateway, settings, monkeypatch):
    """The stand-in, as new, and the gateway's client of it. `robin.run(robin.client.stop())`."""
    _robin_session.begin_anew()
    _robin_session.seed.queue.cost = 0.0
    settings.ROBIN_QUEUE_SHARE_MAX = 1.0  # it never has to rest
    monkeypatch.setattr(scan, "QUICK_SECONDS", 3.0)  # others may be busy here
    settings.ROBIN_CLIENT_API_URL = _robin_session.client_url
    settings.ROBIN_SERVICE_API_URL = _robin_session.service_url

    async def open_robin():
        ports = client.open_robin()
        await scan.open_scanner()
        return ports

    async def close():
        await scan.close_scanner()
        await client.close_robin()

    _robin_session.ports = gateway.run(open_robin())
    # Nobody asks for what stock Robin has not, but the tests about that.
    _robin_session.ports.client._unknown["/client/queue/json"] = True
    yield _robin_session
    gateway.run(close())
    _robin_session.run(asyncio.sleep(0.02))  # what was asked last has come
    scan.forget()
    for port in (_robin_session.client, _robin_session.service):
        if port._runner is None:
            _robin_session.run(port.start())
        port._stopping.set()  # what hangs lets go
        port._stopping = asyncio.Event()
