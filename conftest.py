"""Fixtures that all tests share: people with their keys, the gateway, a detection engine.

alice owns Acme, bob is a member of it, charlie is a stranger with a workspace of his own, Globex.
`gateway` is the real ASGI application with its lifespan, in a thread of its own; `engine` is the
stand-in engine it talks to over HTTP, with a small vocabulary for misbehaving. Tests about workers,
signals and sockets start real server processes instead (`served`).
"""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import time as host_time
from typing import Any, TypeVar

import asgiref.sync
import httpx
import pytest
import time_machine
from aiohttp import web
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.management import call_command
from django.db import OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.test import TransactionTestCase
from httpx._transports import default
from servestatic.middleware import ServeStaticMiddleware

from accounts import authentication, services
from accounts.hashers import BoundedArgon2
from accounts.models import ApiKey, Membership, Plan, User, Workspace
from accounts.services import Actor
from accounts.usage import buffer, log, partitions, reading, stream
from accounts.usage.buffer import buffer as usage_buffer
from detection import ledger
from detection.engines import registry
from detection.engines.standin import Engine, Switches
from gateway_project.core import clock, ratelimit
from gateway_project.core.ratelimit import RedisLimiter
from gateway_project.core.stores import database, queues, redis, silence
from gateway_project.core.telemetry.logging import Together
from gateway_project.core.upstream import names
from gateway_project.system import views as system_views
from gateway_project.tests import contract, waiting
from gateway_project.tests.loop_thread import LoopThread
from gateway_project.tests.name_server import NameServer
from robin.access import authentication as members
from robin.config import settings_page
from robin.health import views as robin_health
from robin.logs import search
from robin.queue import scan

pytest_plugins = ["deploy.tests.processes", "gateway_project.tests.template"]
T = TypeVar("T")
ACTOR = Actor("test")
SHARE = 3
"""One of so many, of the combinations that `is_in_turn` is asked about."""
PLANS = {"free": (60, 10_000, 7), "team": (600, 200_000, 30), "scale": (6_000, 5_000_000, 90)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` leaves out what is slow, and never what is hostile; stores may not be there."""
    is_postgresql = settings.DATABASES["default"]["ENGINE"].endswith("postgresql")
    missing = {
        "needs_redis": None if settings.REDIS_URL else "needs Redis: `make test` starts it",
        "needs_postgresql": None if is_postgresql else "needs PostgreSQL: `make test` starts it",
    }
    for item in items:
        for name, reason in missing.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
    both = [
        item.nodeid
        for item in items
        if item.get_closest_marker("slow") and item.get_closest_marker("hostile")
    ]
    if both:
        raise pytest.UsageError(f"marked slow and hostile: {', '.join(both)}")


@pytest.fixture
def is_in_turn(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """A share of the combinations for a change's tests, all where the slow ones run as well.

    Always the same, and no pattern in it that a list of such a length would fall in with.
    """
    if request.config.option.markexpr != "not slow":
        return lambda: True
    dice = random.Random(SHARE)
    return lambda: dice.randrange(SHARE) == 0


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """Hash with Argon2 at its smallest, and empty the database in a few milliseconds.

    The stores run on this machine, so its clock is theirs, and time machines move both.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(clock, "learn", lambda answer, asked_at: None)
    clock.forget()
    patch.setattr(Together, "wait_seconds", 0.0)  # a test looks at once
    patch.setattr(BoundedArgon2, "time_cost", 1)
    patch.setattr(BoundedArgon2, "memory_cost", 8)
    patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _: empty_the_database())
    # Whoever asks without a client of their own would read all certificates again, each time.
    patch.setattr(default, "create_ssl_context", functools.cache(default.create_ssl_context))
    patch.setattr(ServeStaticMiddleware, "add_files_from_finders", add_files_once)
    yield
    patch.undo()


_add_files = ServeStaticMiddleware.add_files_from_finders
_added: dict[str, Any] = {}


def add_files_once(middleware: ServeStaticMiddleware) -> None:
    """Each `Client` has the middleware of its own, which looks for three hundred files."""
    if not _added:
        _add_files(middleware)
        _added.update(files=middleware.files, directories=middleware.directories)
    middleware.files, middleware.directories = _added["files"], _added["directories"]


@pytest.fixture(scope="session", autouse=True)
def _name_server() -> Iterator[NameServer]:
    """No test asks the name servers of this machine, and no process that it starts."""
    with NameServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "NAME_SERVERS", [server.address])
        patch.setenv("NAME_SERVERS", server.address)
        yield server


@pytest.fixture(autouse=True)
def name_server(_name_server: NameServer) -> NameServer:
    """`name_server.resolves("a.example", "192.0.2.1")`; all other names are unknown."""
    _name_server.forget()
    names._answering = (True, 0.0)
    names._channel.cache_clear()
    return _name_server


@pytest.fixture(scope="session", autouse=True)
def _watch_what_waits() -> Iterator[None]:
    with waiting.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "EMAIL_BACKEND", "gateway_project.tests.waiting.Mail")
        yield


@pytest.fixture(autouse=True)
def _waiting_holds_nothing() -> Iterator[None]:
    """No connection is held while somebody outside is waited for, whatever the test does."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()  # of the test before
    waiting.found.clear()
    yield
    assert waiting.found == []


@pytest.fixture(scope="session", autouse=True)
def _answers_are_as_documented() -> Iterator[None]:
    """Whatever test asks the application: its answer is held against the OpenAPI document."""
    with contract.held():
        yield


def empty_the_database() -> None:
    """What Django's `flush` does, without what it takes most of its time for.

    TRUNCATE makes new files for every table, partition and index: 80 ms, where tests leave a dozen
    rows. And the permissions and content types, which `flush` makes anew, the admin makes when it
    needs them.
    """
    connection = connections["default"]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            wait_for_others(cursor)
            for tries_left in reversed(range(5)):
                try:
                    cursor.execute(sql_delete())
                    break
                except OperationalError:
                    # Processes that several tests share may be writing the same rows: a deadlock.
                    if not tries_left:
                        raise
    else:
        call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=True)
    ContentType.objects.clear_cache()


def wait_for_others(cursor: CursorWrapper) -> None:
    """PostgreSQL goes on with what a process had asked that was killed: its rows would be left."""
    for _ in range(100):
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state = 'active'"
        )
        if cursor.fetchone() == (0,):
            return
        time.sleep(0.01)  # a second at most: shared processes always do something


@functools.cache
def sql_delete() -> str:
    """One text; replicas check no foreign keys, so that the order does not matter."""
    tables = connections["default"].introspection.django_table_names(only_existing=True)
    deletes = "".join(f'DELETE FROM "{table}";' for table in tables)
    role = "SET session_replication_role ="
    return f"{role} replica; {deletes} {role} DEFAULT"


@pytest.fixture
def host_is_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This host's clock is ten seconds ahead of the stores', whose time the process was told."""
    monkeypatch.setattr(clock, "monotonic", host_time)  # time machines go on moving it
    monkeypatch.setattr(clock, "_began", -10.0)
    monkeypatch.setattr(clock, "_host_behind_ms", -10_000)
    with time_machine.travel(host_time() + 10, tick=True):
        yield


class Gateway:
    """The application, reached as a client reaches it. `get("/v1/limits", key=text)`."""

    def __init__(self) -> None:
        self._thread = LoopThread("gateway")
        self.loop = self._thread.loop
        self._stop_lifespan = threading.Event()

    def run(self, work: Awaitable[T], timeout: float = 30) -> T:
        async def call() -> T:
            return await work

        return self._thread.run(call(), timeout)

    def start(self) -> None:
        from gateway_project.asgi import application

        self.application = application
        self.process = application.app.process
        self.run(self.process.start())

    def stop(self) -> None:
        self.run(self.process.stop())
        self._thread.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        client_ip: str = "127.0.0.1",
        **more: Any,
    ) -> httpx.Response:
        headers = {**({"X-API-Key": key} if key else {}), **(headers or {})}

        async def call() -> httpx.Response:
            async with self.http(client_ip) as http:
                return await http.request(method, path, headers=headers, **more)

        return self.run(call())

    def at_once(self, calls: Iterable[dict[str, Any]]) -> list[httpx.Response]:
        """Send them together, each in the words of `httpx.request`; the answers in order."""

        async def send() -> list[httpx.Response]:
            async with self.http() as http:
                return await asyncio.gather(*(http.request(timeout=60, **call) for call in calls))

        return self.run(send(), timeout=60)

    def http(self, client_ip: str = "127.0.0.1") -> httpx.AsyncClient:
        """A client of the application; only the gateway's own loop may use it."""
        transport = httpx.ASGITransport(
            waiting.watched(self.application), raise_app_exceptions=False, client=(client_ip, 50000)
        )
        return httpx.AsyncClient(
            transport=transport,
            base_url="http://testserver",
            event_hooks={"response": [contract.hold]},
        )

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return self.request("POST", path, json=json, **more)

    def patch(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return self.request("PATCH", path, json=json, **more)

    def delete(self, path: str, **more: Any) -> httpx.Response:
        return self.request("DELETE", path, **more)

    def detect(self, text: Any, *, key: str, **config: Any) -> httpx.Response:
        body = {"text": text, **({"config": config} if config else {})}
        return self.post("/v1/detect", body, key=key)

    def flush_usage(self) -> None:
        """Let the rows arrive in the table, the worker's part included."""
        self.run(usage_buffer.flush())
        if settings.REDIS_URL:
            stream.drain()


class Count:
    """What a request cost."""

    def __init__(self) -> None:
        self.sql = 0
        self.hops = 0
        self.trips = 0


@pytest.fixture
def counted(gateway, monkeypatch):
    """Counts SQL statements, thread hops and Redis trips from here on."""
    count = Count()
    execute = CursorWrapper.execute
    submit = ThreadPoolExecutor.submit
    call = asgiref.sync.SyncToAsync.__call__

    def counting_execute(self, *args, **kwargs):
        count.sql += 1
        return execute(self, *args, **kwargs)

    def counting_hop(*args, **kwargs):
        count.hops += 1
        return submit(*args, **kwargs)

    async def counting_call(self, *args, **kwargs):
        count.hops += 1
        return await call(self, *args, **kwargs)

    monkeypatch.setattr(CursorWrapper, "execute", counting_execute)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", counting_hop)
    monkeypatch.setattr(asgiref.sync.SyncToAsync, "__call__", counting_call)
    return count


@pytest.fixture(scope="session")
def _engine_session() -> Iterator[tuple[Engine, str, Callable[[], None]]]:
    engine, thread = Engine(keep_asked=True), LoopThread("engine")

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(engine.app(), shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = thread.run(start())
    yield engine, f"http://127.0.0.1:{port}", lambda: None
    thread.run(runner.cleanup())
    thread.close()


@pytest.fixture(scope="session")
def _gateway_session(
    _engine_session: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[Gateway]:
    settings.DETECTION_ENGINE_URL = _engine_session[1]
    # Tests flush by hand: a flusher of its own would meet a database that pytest has closed.
    buffer.FLUSH_SECONDS = ledger.FLUSH_SECONDS = 3600.0
    reading.WAIT_SECONDS = 0.0  # nothing comes meanwhile
    gateway = Gateway()
    with django_db_blocker.unblock():  # it looks for missing migrations
        gateway.start()
    yield gateway
    with django_db_blocker.unblock():
        gateway.stop()
        # The test database can only be dropped when nobody holds a connection to it.
        connections.close_all()
        if connections["default"].vendor == "postgresql":
            connections["default"].close_pool()


@pytest.fixture
def gateway(_gateway_session: Gateway, transactional_db: None) -> Iterator[Gateway]:
    """The application with an empty database, fresh limits and nothing remembered."""
    drop_stale_pools()
    # At once, and most tests begin with it. Those of a transaction's own are there already.
    Plan.objects.bulk_create(
        (
            Plan(
                name=name,
                rate_limit_per_minute=per_minute,
                rate_limit_per_day=per_day,
                log_days=days,
            )
            for name, (per_minute, per_day, days) in PLANS.items()
        ),
        ignore_conflicts=True,
    )
    forget_everything(_gateway_session)
    yield _gateway_session
    usage_buffer.clear()


def drop_stale_pools() -> None:
    """A pool keeps the name of its database: it may be of before there was one of the tests."""
    wrapper = connections["default"]
    if wrapper.vendor != "postgresql":
        return
    pools = [of_lane.get("default") for of_lane in wrapper._lanes.values()]
    names = {pool.kwargs.get("dbname") for pool in pools if pool is not None}
    if names - {wrapper.settings_dict["NAME"]}:
        wrapper.close_pool()


def forget_everything(gateway: Gateway) -> None:
    """All that a process keeps from one request to the next. What is new there is new here."""
    authentication._memory.forget(authentication.ALL)
    members._memory.forget(members.ALL)
    settings_page.forget()
    search.forget()
    scan.forget()
    robin_health.forget_health()
    for probe in system_views.PROBES.values():
        probe._until = 0.0
    # A call of an earlier test, still waiting for its engine, would be joined by the next.
    gateway.run(registry.engines().asking.cancel_all())
    usage_buffer.clear()
    ledger.ledger.clear()
    log._touched.clear()
    stream.left.forget()
    partitions._days_known.clear()
    database.forget_trouble()
    silence.of_postgresql.forget()
    silence.of_redis.forget()
    forget_limits()


def forget_limits() -> None:
    """The counts of all limits, and what else is in Redis."""
    limiter = ratelimit.get_limiter()
    if not isinstance(limiter, RedisLimiter):
        cache.clear()
        ratelimit._limiter = None
        return
    client = redis.client()
    keys = [key for name in queues.NAMES for key in queues.keys_of(name)]
    # Looked for in one trip: each test begins with it.
    of_ours = (b"rl:", b"gw:", b"once:")
    keys += (key for key in client.scan_iter(count=10_000) if key.startswith(of_ours))
    client.delete(*keys)
    limiter.local = ratelimit.MemoryLimiter()
    limiter.degraded_since = None


class EngineControl:
    """What a test can say about the engine: `engine.is_down()`, `engine.answers("half")`."""

    def __init__(self, engine: Engine, gateway: Gateway, url: str) -> None:
        self.engine = engine
        self.url = url
        self._gateway = gateway

    @property
    def asked(self) -> list[dict[str, Any]]:
        return self.engine.asked

    def has(self, **switches: Any) -> None:
        for name, value in switches.items():
            setattr(self.engine.switches, name, value)

    def fails(self, status: int) -> None:
        self.has(fail_status=status)

    def answers(self, how: str) -> None:
        self.has(answer=how)

    def is_slow(self, seconds: float) -> None:
        self.has(latency_seconds=seconds)

    def is_down(self) -> None:
        """Refuse connections: nobody listens on port 1 of the loopback."""
        registry.default().http.base_url = "http://127.0.0.1:1"

    def is_well(self) -> None:
        self.engine.switches = Switches()
        self.engine.asked.clear()
        client = registry.default()
        client.http.base_url = self.url
        client.breaker.forced = None
        client.breaker._machine.close()
        client.breaker._generation += 1
        client.breaker._probing = False


@pytest.fixture
def engine(gateway: Gateway, _engine_session: Any) -> Iterator[EngineControl]:
    control = EngineControl(_engine_session[0], gateway, _engine_session[1])
    control.is_well()
    yield control
    control.is_well()


# -- People and their keys -----------------------------------------------------------------------


def make_person(email: str) -> User:
    now = clock.now()
    return User.objects.create_user(email, "a good long password", email_confirmed_at=now)


def make_workspace(slug: str, owner: User, *members: User) -> Workspace:
    workspace = Workspace.objects.create(slug=slug, name=slug.title(), is_confirmed=True)
    Membership.objects.create(workspace=workspace, user=owner, role="owner")
    for member in members:
        Membership.objects.create(workspace=workspace, user=member, role="member")
    return workspace


class Key(str):
    """The text of a key, with its row: `acme_key.row`."""

    row: ApiKey


@pytest.fixture
def make_key(acme: Workspace) -> Callable[..., Key]:
    def make(workspace: Workspace = acme, **fields: Any) -> Key:
        row, text = services.issue_key(workspace, actor=ACTOR, **fields)
        key = Key(text)
        key.row = row
        return key

    return make


@pytest.fixture
def alice(gateway: Gateway) -> User:
    return make_person("alice@acme.example")


@pytest.fixture
def bob(gateway: Gateway) -> User:
    return make_person("bob@acme.example")


@pytest.fixture
def charlie(gateway: Gateway) -> User:
    return make_person("charlie@globex.example")


@pytest.fixture
def acme(alice: User, bob: User) -> Workspace:
    return make_workspace("acme", alice, bob)


@pytest.fixture
def globex(charlie: User) -> Workspace:
    return make_workspace("globex", charlie)


@pytest.fixture
def acme_key(make_key: Callable[..., Key]) -> Key:
    """Acme's everyday key, with the scopes a new key has."""
    return make_key(name="acme")


@pytest.fixture
def acme_admin_key(make_key: Callable[..., Key]) -> Key:
    return make_key(name="acme admin", scopes=["detect", "keys:write"])


@pytest.fixture
def globex_key(make_key: Callable[..., Key], globex: Workspace) -> Key:
    return make_key(globex, name="globex", scopes=["detect", "keys:write"])
