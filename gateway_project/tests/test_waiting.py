"""Waiting holds nothing: whoever is slow, or away, keeps nobody else from being served.

The check over everything is in `waiting.py`: it watches all tests. Here is what it cannot see:
real processes with real pools, stores that fail behind a proxy, disks that are full.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.urls import URLPattern, get_resolver

from accounts.models import ApiKey, OutboxEvent, Workspace
from detection.guardrails import PATHS as GUARDRAILS
from detection.jobs import store
from detection.models import Job, JobChunk
from detection.tests.test_batch import items
from gateway_project.asgi import LITELLM, application
from gateway_project.core.api.handler import DRAINED_BYTES_MAX
from gateway_project.core.stores import database
from gateway_project.core.telemetry import multiprocess
from gateway_project.core.telemetry.logging import StandardOutput, Together
from gateway_project.core.upstream import destinations
from gateway_project.mail import LocalBackend, SMTPBackend, Unheld
from gateway_project.tests import waiting
from gateway_project.tests.conftest import need_stores
from gateway_project.tests.proxy import Proxy
from gateway_project.tests.served import ROOT, Served, wait_until
from gateway_project.tests.test_generated import (  # noqa: F401 - a fixture
    BODIES,
    KNOWN,
    OPERATIONS,
    _neighbours,
    own_id,
)
from webhooks.models import Webhook
from webhooks.tests.receiver import Answer

pytestmark = pytest.mark.hostile
MIB = 1 << 20


def routes():
    """All that can be asked over HTTP, as paths with made-up ids."""

    def walk(patterns, prefix=""):
        for pattern in patterns:
            part = prefix + str(pattern.pattern).lstrip("^").removesuffix("$").removesuffix("\\Z")
            if isinstance(pattern, URLPattern):
                yield "/" + part
            else:
                yield from walk(pattern.url_patterns, part)

    return sorted(set(walk(get_resolver().url_patterns)))


class TestBodies:
    """Bounded on both planes before anybody looks at them."""

    def endless(self, path):
        """How the application answers a body without end; with the bytes that it took."""
        took = 0
        answer = []

        async def receive():
            nonlocal took
            took += 65536
            assert took < 2 * settings.LITELLM_BYTES_MAX + DRAINED_BYTES_MAX, path
            return {"type": "http.request", "body": b"a" * 65536, "more_body": True}

        async def send(message):
            answer.append(message)

        scope = {"type": "http", "method": "POST", "http_version": "1.1", "scheme": "http"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
        scope |= {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
        scope["server"] = ("127.0.0.1", 80)
        return application(scope, receive, send), answer, lambda: took

    def test_every_route_refuses_one_without_end(self, gateway):
        found = {}
        for path in routes():
            work, answer, took = self.endless(path)
            gateway.run(work)
            found[path] = answer[0]["status"], took()

        is_known = {path for path, (status, _) in found.items() if status == 413}
        assert len(is_known) > 100
        # What is not there may say so instead; on the data plane without reading anything.
        # There it is read to its end, and thrown away: proxies take a refusal for no guardrail.
        for path in (LITELLM, *GUARDRAILS):
            status, bytes_read = found.pop(path)
            assert status == 401  # no key came with it
            assert bytes_read <= settings.LITELLM_BYTES_MAX + DRAINED_BYTES_MAX + 2 * 65536
        wrong = {path: status for path, (status, _) in found.items() if status not in (413, 404)}
        assert wrong == {}
        assert max(took for _, took in found.values()) <= settings.BATCH_BYTES_MAX + 65536

    def test_one_that_never_comes_is_given_up_on_every_route(self, gateway, monkeypatch):
        planes = application.app.data_plane, application.app.control_plane
        monkeypatch.setattr(planes[0], "_body_seconds_max", 0.01)
        monkeypatch.setattr(planes[1], "_seconds_max", 0.01)

        for path in ("/v1/detect", "/accounts/login/", "/admin/login/", "/auth/register"):
            r = gateway.post(path, content=never())
            assert (path, r.status_code, r.json()["code"]) == (path, 408, "request_timeout")


async def never():
    await asyncio.sleep(30)
    yield b""


def size_of(folder):
    """Also of files without a name, which is what Django's would be."""
    return sum(os.stat(path).st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def small(_gateway_session, tmp_path_factory):
    """A process with two connections for its pages."""
    need_stores()
    folder = tmp_path_factory.mktemp("small")
    (folder / "temporary").mkdir()
    served = Served(
        folder,
        WORKERS="1",
        DATABASE_POOL_MAX="2",
        ANSWER_STALL_SECONDS_MAX="1",
        WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
        TMPDIR=str(folder / "temporary"),
    )
    served.temporary = folder / "temporary"
    try:
        served.wait()
        yield served
    finally:
        served.close()


@pytest.mark.served
class TestOthersAreServed:
    @pytest.fixture
    def others(self, small, engine, globex_key):
        """What another tenant's calls are answered at this moment."""

        def others():
            calls = [("GET", "/v1/keys"), ("GET", "/v1/limits")]
            return {ask(small, *call, globex_key).status_code for call in calls * 3}

        return others

    @pytest.fixture
    def job(self, make_key):
        """A finished batch whose results are far more than a socket takes."""
        key = make_key(name="reader", scopes=["batch"])
        job, _ = store.create(
            store.Order(Job.Kind.BATCH, key.row.workspace_id, key.row.pk, "r"), []
        )
        line = json.dumps({"id": "t", "filler": "a" * 200_000})
        JobChunk.objects.bulk_create(
            JobChunk(job=job, number=n, first=n, size=1, state="done", results=line)
            for n in range(100)
        )
        return key, store.status_url(job)

    def test_while_300_mib_come_for_the_sign_in_page(self, small, others):
        most = sent = 0
        with socket.create_connection(("127.0.0.1", small.port), timeout=20) as client:
            client.sendall(
                b"POST /accounts/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/x-www-form-urlencoded\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            with suppress(OSError):
                while sent < 300 * MIB:
                    client.sendall(b"%x\r\n%s\r\n" % (65536, b"a" * 65536))
                    sent += 65536
                    most = max(most, size_of(small.temporary))
            answer = client.recv(65536)

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert sent < 32 * MIB  # what the sockets' buffers hold
        assert most == 0
        assert others() == {200}

    def test_while_clients_do_not_read_who_are_then_hung_up_on(self, small, others, job):
        key, path = job
        asked = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n"
            "Accept: application/x-ndjson\r\n\r\n"
        )
        readers = []
        for _ in range(6):
            reader = socket.create_connection(("127.0.0.1", small.port), timeout=20)
            reader.sendall(asked.encode())
            readers.append(reader)
        assert [reader.recv(12) for reader in readers] == [b"HTTP/1.1 200"] * 6
        while_they_wait = others()
        for reader in readers:
            wait_until_hung_up(reader)
        got = [everything(reader) for reader in readers]

        assert while_they_wait == {200}
        assert all(0 < size < 15 * MIB for size in got)  # of 20: the rest was not sent

    def test_who_reads_slowly_but_does_gets_it_all(self, small, job):
        key, path = job
        headers = {"X-API-Key": key, "Accept": "application/x-ndjson", "Accept-Encoding": ""}
        size = 0
        with httpx.stream("GET", small.url + path, headers=headers) as answer:
            for number, piece in enumerate(answer.iter_raw(MIB)):
                size += len(piece)
                if number % 5 == 0:
                    time.sleep(0.5)  # the whole takes longer than a stall may

        assert size > 19 * MIB

    def test_while_receivers_hang_that_are_probed(
        self, small, others, make_webhook, receiver, make_key
    ):
        key = make_key(scopes=["webhooks"])
        hooks = [make_webhook(f"/{n}") for n in range(4)]
        Webhook.objects.update(is_active=False)
        receiver.answers(Answer(hangs=True))

        with ThreadPoolExecutor(4) as pool:
            probes = [
                pool.submit(ask, small, "PATCH", f"/webhooks/{h.pk}", key, json={"is_active": True})
                for h in hooks
            ]
            wait_until(lambda: len(receiver.received) == 4)
            while_they_hang = others()
            receiver.release()
            answered = [probe.result().status_code for probe in probes]

        assert while_they_hang == {200}
        assert answered == [200] * 4

    @pytest.mark.parametrize(
        "addresses", [["127.0.0.2"] * 2, ["127.0.0.2", "127.0.0.4"]], ids=["one", "two"]
    )
    def test_while_pages_of_one_workspace_wait_for_a_row(
        self, small, globex_key, make_key, acme, addresses
    ):
        key = make_key(name="manager", scopes=["keys:write"])

        def call(address, method, path, key, **more):
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
                headers = {"X-API-Key": key}
                url = small.url + path
                return client.request(method, url, headers=headers, timeout=30, **more).status_code

        call("127.0.0.2", "GET", "/v1/keys", key)  # whose it is, the process knows from here on
        with ThreadPoolExecutor(12) as pool, held(acme):
            waiting = [
                pool.submit(call, address, "POST", "/v1/keys", key, json={"name": f"k{n}"})
                for n in range(4)
                for address in addresses
            ]
            time.sleep(0.3)  # the first of them has a connection, and waits for its lock
            others = [call("127.0.0.3", "GET", "/v1/keys", globex_key) for _ in range(5)]
        waited = {one.result() for one in waiting}

        assert others == [200] * 5
        assert waited <= {201, 503}


def wait_until_hung_up(reader):
    """Without reading."""
    look = select.poll()
    look.register(reader, select.POLLRDHUP)
    assert look.poll(20_000)


def everything(reader):
    size = 0
    with reader, suppress(OSError):
        while part := reader.recv(1 << 20):
            size += len(part)
    return size


def ask(served, method, path, key, **more):
    return httpx.request(
        method,
        served.url + path,
        headers={"X-API-Key": key, **more.pop("headers", {})},
        timeout=30,
        verify=False,
        **more,
    )


def test_no_lock_of_a_row_keeps_out_who_only_points_at_it():
    """A lock `FOR UPDATE` stops each insert of a row that refers to the locked one."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).parts
        if inside[0].startswith(".") or "tests" in inside:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_lock = isinstance(node, ast.Call) and (
                getattr(node.func, "attr", "") == "select_for_update"
            )
            if is_lock and "no_key" not in [keyword.arg for keyword in node.keywords]:
                wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []


@contextmanager
def held(row):
    """Its lock, as a slow transaction of somebody's has it."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite locks the whole database")
    taken, leave = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            type(row).objects.select_for_update().get(pk=row.pk)
            taken.set()
            leave.wait(20)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(10)
    yield
    leave.set()
    thread.join()


class TestPlaces:
    """SQL of the data plane: threads and connections of its own, and shares of them."""

    def test_a_row_that_one_workspace_holds_keeps_no_other_waiting(
        self, gateway, engine, make_key, acme, globex
    ):
        mine, theirs = (make_key(w, scopes=["batch"]) for w in (acme, globex))
        later = {"Prefer": "respond-async"}

        def call(key):
            body = {"requests": items("hello")}
            headers = {"X-API-Key": key, **later}
            return {"method": "POST", "url": "/v1/detect/batch", "json": body, "headers": headers}

        gateway.at_once([call(mine), call(theirs)])  # both keys are known from here on
        Job.objects.all().delete()
        with held(acme):
            answers = gateway.at_once([*[call(mine)] * 8, *[call(theirs)] * 4])

        statuses = [r.status_code for r in answers]
        assert statuses[8:] == [202] * 4
        assert set(statuses[:8]) == {503}
        assert not Job.objects.filter(workspace=acme).exists()
        assert Job.objects.filter(workspace=globex).count() == 4
        assert database.trouble_since is None
        gateway.run(database.probe())  # nobody rests

    def test_what_is_over_time_is_undone(self, gateway, acme, monkeypatch):
        monkeypatch.setattr(database, "DEADLINE_SECONDS", 0.05)
        going, seen = threading.Event(), threading.Event()

        def slow():
            Workspace.objects.filter(pk=acme.pk).update(name="changed")
            going.wait(10)
            seen.set()

        with pytest.raises(database.errors.StoreUnavailable):
            gateway.run(database.run(slow))
        going.set()
        assert seen.wait(10)

        wait_until(lambda: not database._writers._work_queue.qsize())
        gateway.run(database.run(lambda: None))  # whoever was before has ended
        acme.refresh_from_db()
        assert acme.name == "Acme"

    def test_a_full_pool_of_the_pages_does_not_matter(self, gateway, acme_key):
        if connection.vendor != "postgresql":
            pytest.skip("needs a pool")
        pool = connection.pool
        pool.open()
        borrowed = []
        with suppress(Exception):
            while True:
                borrowed.append(pool.getconn(timeout=1))
        try:
            full = pool.get_stats()
            r = gateway.get("/v1/limits", key=acme_key)
        finally:
            for one in borrowed:
                pool.putconn(one)

        assert (full["pool_size"], full["pool_available"]) == (full["pool_max"], 0)
        assert r.status_code == 200

    def test_its_connections_have_everybodys_settings_and_a_pool_of_their_own(self, gateway):
        if connection.vendor != "postgresql":
            pytest.skip("needs a pool")

        def seen():
            settings_of_lane = connections["default"].settings_dict
            return settings_of_lane, connections["default"].pool

        found, pool = gateway.run(database.read(seen))

        assert found is connections.settings["default"]  # what tests set holds here, too
        assert pool is not connection.pool
        assert (pool.max_size, connection.pool.max_size) == (database.LANE.size, 10)

    def test_bounds_hold_in_every_transaction_also_without_a_session(self, gateway):
        if connection.vendor != "postgresql":
            pytest.skip("PostgreSQL's bounds")

        def shown():
            with connection.cursor() as cursor:
                found = {}
                for name in database.BOUNDS.parameters():
                    cursor.execute(f"SELECT current_setting('{name}')")
                    found[name] = cursor.fetchone()[0]
                return found

        def reset_and_show():
            # As a pooler in transaction mode would hand on a connection of somebody else's.
            with connection.cursor() as cursor:
                for name in database.BOUNDS.parameters():
                    cursor.execute(f"SET {name} = 0")
            with transaction.atomic():
                return shown()

        def behind():
            try:
                return reset_and_show()
            finally:
                connection.close()

        assert gateway.run(database.run(shown)) == {
            "statement_timeout": "1500ms",
            "lock_timeout": "500ms",
            "idle_in_transaction_session_timeout": "2s",
        }
        assert gateway.run(database.run_behind(behind))["statement_timeout"] == "10s"


# -- Stores that fail -----------------------------------------------------------------------------


def rows():
    """How many there are of what the calls make."""
    found = {model.__name__: model.objects.count() for model in (Job, ApiKey, Webhook)}
    # Others are of the log: behind the answer.
    return {**found, "OutboxEvent": OutboxEvent.objects.exclude(deliver_to="").count()}


def contents():
    """What each table holds, in short."""
    tables = connection.introspection.django_table_names(only_existing=True)
    held = " UNION ALL ".join(
        f"SELECT '{table}', md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM \"{table}\" t"
        for table in tables
    )
    with connection.cursor() as cursor:
        cursor.execute(held)
        return dict(cursor.fetchall())


ENDS_ACCESS = ("DELETE /auth/revoke", "POST /auth/rotate-key", "POST /api/v1/auth/logout")
KNOWN_BY = ("/v1/limits", "/api/v1/queue")
QUEUE = "/api/v1/queue"
NO_FILE = ("POST", "/api/v1/blocklist/import")
WITHOUT_THE_DATABASE = {
    ("POST", "/v1/detect"): 200,
    ("POST", "/v1/detect/score"): 200,
    ("POST", "/v1/detect/batch"): 200,
    ("POST", "/beta/litellm_basic_guardrail_api"): 200,
    **dict.fromkeys((("POST", path) for path in GUARDRAILS), 200),
    ("POST", "/api/v1/auth/refresh"): 400,  # without a cookie
    # Robin does these, and says so. That their audit could not be written is in the log.
    ("POST", "/api/v1/auth/ws-ticket"): 200,
    ("POST", f"{QUEUE}/actions"): 200,
    ("POST", "/api/v1/config/reload"): 200,
    # And these it does not know, or are refused before.
    **{("POST", f"{QUEUE}/{action}"): 501 for action in ("pause", "resume")},
    **{("POST", f"{QUEUE}/{{uid}}/{action}"): 501 for action in ("pause", "resume")},
    ("DELETE", "/api/v1/logs"): 501,
    NO_FILE: 422,
}
"""What is answered all the same while the database is away; everything else is 503."""
NOT_DONE = {
    **{("POST", f"{QUEUE}/{{uid}}/{action}"): 404 for action in ("retry", "bounce")},
    ("DELETE", f"{QUEUE}/{{uid}}"): 404,
    **{one: code for one, code in WITHOUT_THE_DATABASE.items() if code >= 300},
    ("POST", "/api/v1/auth/login"): 401,  # of nobody
    **{(method, "/api/v1/users/{username}"): 404 for method in ("PUT", "DELETE")},
    ("DELETE", "/api/v1/users/{username}/sessions/{session_id}"): 404,
    ("DELETE", f"{QUEUE}/actions/{{job_id}}"): 404,
    **{(method, "/api/v1/blocklist/{id}"): 404 for method in ("PATCH", "DELETE")},
}
"""What is not done while all is well either."""


def send(served, neighbours, method, path):
    """One of the operations, with a body that is right."""
    own = own_id(path, neighbours.ids)
    names = {part[1:-1]: KNOWN.get(part[1:-1], own) for part in path.split("/") if "{" in part}
    body = json.dumps(BODIES[method, path]) if (method, path) in BODIES else None
    headers = {"Content-Type": "application/json"} if body else {}
    if path.startswith("/api/v1/"):
        headers |= neighbours.robin.bearer
    else:
        headers["X-API-Key"] = str(neighbours.key)
    return httpx.request(
        method,
        f"{served.url}{path.format(**names)}",
        headers=headers,
        content=body and body.replace('"{id}"', f'"{own}"'),
        timeout=60,
        verify=False,
    )


@pytest.mark.served
class TestStoresThatFail:
    """What is answered with 503 has not happened, whichever store fails and how."""

    @pytest.fixture
    def proxies(self):
        need_stores()
        facts, redis = settings.DATABASES["default"], urlsplit(settings.REDIS_URL)
        with (
            Proxy(facts["HOST"], int(facts["PORT"])) as sql,
            Proxy(redis.hostname, redis.port) as r,
        ):
            yield {"postgresql": sql, "redis": r}

    def posts(self, receiver):
        """Each POST with an effect; the data plane's, then the control plane's."""
        named = {"webhook_url": receiver.url("/named")}
        batch = {"requests": items("hello"), **named}
        return [
            ("/v1/detect", {"text": "hello", **named}),
            ("/v1/detect/async", {"text": "hello", **named}),
            ("/v1/detect/batch", batch),
            ("/v1/keys", {"name": "new"}),
            ("/webhooks/register", {"url": receiver.url("/new")}),
        ]

    def start(self, serve, proxies, **options):
        facts, redis = settings.DATABASES["default"], urlsplit(settings.REDIS_URL)
        user = f"{facts['USER']}:{facts['PASSWORD']}"
        return serve(
            WORKERS="1",
            DATABASE_URL=f"postgres://{user}@127.0.0.1:{proxies['postgresql'].port}/{facts['NAME']}",
            REDIS_URL=f"redis://127.0.0.1:{proxies['redis'].port}{redis.path}",
            WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
            DATABASE_STATEMENT_SECONDS="3",
            **options,
        )

    def start_with(self, robin, serve, proxies):
        return self.start(
            serve,
            proxies,
            RATE_LIMIT_ENABLED="false",
            ROBIN_CLIENT_API_URL=robin.client_url,
            ROBIN_SERVICE_API_URL=robin.service_url,
        )

    def all_well(self, served, key):
        ready = httpx.get(f"{served.url}/health/ready", timeout=30).json()
        is_up = set(ready["checks"].values()) == {"up"}
        return is_up and served.detect(key).status_code == 200

    def test_it_has_not(self, serve, proxies, receiver, make_key):
        key = make_key(
            scopes=["detect", "batch", "keys:write", "webhooks"], rate_limit_per_minute=1000
        )
        served = self.start(serve, proxies)
        asked = self.posts(receiver)
        with ThreadPoolExecutor(len(asked)) as pool:

            def post_all():
                return list(
                    pool.map(lambda one: ask(served, "POST", one[0], key, json=one[1]), asked)
                )

            def all_well():
                return self.all_well(served, key)

            for which, proxy in proxies.items():
                for mode in ("refusing", "silent", "slow"):
                    wait_until(all_well)
                    before = rows()
                    proxy.be(mode)
                    answers = post_all()
                    proxy.be("well")
                    wait_until(all_well)  # what was under way has ended
                    self.compare(which, mode, answers, before, rows())

    def test_no_operation_has(self, serve, proxies, neighbours, robin):
        """All that write, of both planes, at once; whatever table they write to."""
        served = self.start_with(robin, serve, proxies)
        key, proxy = str(neighbours.key), proxies["postgresql"]
        writing = [one for one in OPERATIONS if one[0] != "GET"]

        def ask_one(operation):
            return operation, send(served, neighbours, *operation)

        with ThreadPoolExecutor(len(writing)) as pool:
            for mode in ("refusing", "silent"):
                wait_until(lambda: self.all_well(served, key))
                # So that who asks is known, and it is the effect that the database is needed for.
                known = [send(served, neighbours, "GET", path) for path in KNOWN_BY]
                assert [r.status_code for r in known] == [200, 200]
                before = contents()
                proxy.be(mode)
                answers = dict(pool.map(ask_one, writing))
                proxy.be("well")
                wait_until(lambda: self.all_well(served, key))

                statuses = {one: r.status_code for one, r in answers.items()}
                assert contents() == before, (mode, statuses)
                others = {one: code for one, code in statuses.items() if code != 503}
                assert others == WITHOUT_THE_DATABASE, mode
        # And their bodies are right: done, or of what is not there. Last what ends this access.
        order = sorted(writing, key=lambda one: (" ".join(one) in ENDS_ACCESS, one[0] == "DELETE"))
        codes = {one: r.status_code for one, r in map(ask_one, order)}
        assert {one: code for one, code in codes.items() if code >= 300} == NOT_DONE

    def test_none_fails_for_want_of_redis(self, serve, proxies, neighbours, robin):
        """All of them, of both planes: done without it, or 503."""
        served = self.start_with(robin, serve, proxies)
        key, proxy = str(neighbours.key), proxies["redis"]
        first = [one for one in OPERATIONS if " ".join(one) not in ENDS_ACCESS]
        last = [one for one in OPERATIONS if one not in first]

        def ask_one(operation):
            r = send(served, neighbours, *operation)
            return operation, (r.status_code, r.json()["code"] if r.status_code >= 500 else "")

        with ThreadPoolExecutor(20) as pool:
            for mode in ("refusing", "silent"):
                wait_until(lambda: self.all_well(served, key))
                proxy.be(mode)
                found = dict(pool.map(ask_one, first))
                found |= dict(map(ask_one, last if mode == "silent" else []))
                if mode == "refusing":  # one after the other, so that each is known to do nothing
                    refused = {one for one, (status, _) in found.items() if status == 503}
                    before = contents()
                    assert {one for one in refused if ask_one(one)[1][0] == 503} == refused
                    # What is asked of Robin's queue is audited, and that it failed.
                    changed = {name for name, held in contents().items() if held != before[name]}
                    assert changed <= {"accounts_auditevent"}, refused
                proxy.be("well")
                failed = {one for one, (status, _) in found.items() if status == 500}
                assert failed == set(), mode
                codes = {code for status, code in found.values() if status == 503}
                assert codes <= {"store_unavailable", "upstream_unavailable"}, mode

    def compare(self, which, mode, answers, before, after):
        statuses = [r.status_code for r in answers]
        case = which, mode, statuses
        assert set(statuses) <= {200, 201, 202, 503}, (case, [r.text for r in answers])
        made = {name: after[name] - before[name] for name in after}
        notified, later, batch, new_key, webhook = (status < 300 for status in statuses)
        assert made["Job"] == later + batch, case
        assert made["OutboxEvent"] == notified, case
        assert made["ApiKey"] == new_key, case
        assert made["Webhook"] == webhook, case
        if which == "redis":
            assert max(statuses) < 300, case
        elif mode != "slow":
            assert set(statuses) == {503}, case


# -- Counting and logging -------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 512 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(b"a" * 4096):
            pass


@pytest.mark.served
class TestCounting:
    def test_a_disk_that_is_full_from_the_start(self, serve, full_disk, acme_key):
        (full_disk / "metrics").mkdir()
        fill(full_disk)
        served = serve(WORKERS="2", PROMETHEUS_MULTIPROC_DIR=str(full_disk / "metrics"))

        statuses = {served.detect(acme_key, f"hello {n}").status_code for n in range(20)}

        assert statuses == {200}
        assert len(served.web_workers()) == 2
        assert "metrics of this process are not all shown" in served.output()
        assert httpx.get(f"{served.url}/metrics").status_code == 200

    def test_a_disk_that_fills_up_while_new_series_begin(self, serve, full_disk, acme_key):
        served = serve(WORKERS="1", PROMETHEUS_MULTIPROC_DIR=str(full_disk / "metrics"))
        assert served.detect(acme_key).status_code == 200
        fill(full_disk)

        with httpx.Client(base_url=served.url) as client:
            for path in routes()[:60]:  # each a series of its own, in a file of 64 KiB
                client.get(path)

        assert served.detect(acme_key, "hello again").status_code == 200
        assert served.process.poll() is None
        assert any("metrics" in line.get("event", "") for line in served.lines())
        assert httpx.get(f"{served.url}/metrics").status_code == 200


@pytest.mark.parametrize("kind", ["a file", "no temporary folder", "read-only"])
def test_a_metrics_folder_that_cannot_be(full_disk, tmp_path, kind):
    """The process counts by itself."""
    (tmp_path / "file").touch()
    subprocess.run(["mount", "-o", "remount,ro", full_disk], check=True)
    of_kind = {"a file": tmp_path / "file", "read-only": full_disk / "metrics"}
    folder = of_kind.get(kind, multiprocess.NOWHERE)
    code = (
        "from gateway_project.core.telemetry import metrics, multiprocess\n"
        "metrics.live_polls.inc()\n"
        "print(multiprocess.exposition().decode())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "gateway_live_polls_total 1.0" in shown.stdout


@pytest.mark.served
class TestLogging:
    @pytest.fixture
    def piped(self, gateway, engine, tmp_path):
        """A process whose standard output is a pipe; with that pipe's other end."""
        need_stores()
        reading, writing = os.pipe()
        served = Served(tmp_path / "piped", WORKERS="1", stdout=writing)
        os.close(writing)
        wait_until(lambda: httpx.get(f"{served.url}/health/ready").status_code == 200)
        yield served, reading
        with suppress(OSError):
            os.close(reading)
        served.close()

    def test_a_pipe_that_nobody_reads_and_then_nobody_has(self, piped, make_key):
        served, reading = piped
        key = make_key(rate_limit_per_minute=1000)

        statuses = {served.detect(key, f"hello {n}").status_code for n in range(300)}
        text = httpx.get(f"{served.url}/metrics").text
        os.close(reading)
        statuses |= {served.detect(key, f"hello {n}").status_code for n in range(5)}

        assert statuses == {200}
        assert "gateway_log_lines_dropped_total 0.0" not in text
        assert served.stop() == 0


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_log_on_a_full_disk(format):  # noqa: A002
    code = (
        "import logging\n"
        "from gateway_project.core.telemetry.logging import configure_logging, get_logger\n"
        f"configure_logging(level='INFO', format={format!r})\n"
        "get_logger('x').info('ours')\nlogging.getLogger('y').error('theirs')\n"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_line_that_was_cut_ends_before_the_next(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdout", type("Out", (), {"buffer": pipe}))
        StandardOutput.write(b"a" * 100_000 + b"\n")  # more than a pipe takes
        got = os.read(reading, 1 << 20)
        StandardOutput.write(b"next\n")
    rest = b""
    while part := os.read(reading, 1 << 20):
        rest += part
    os.close(reading)

    assert (got + rest).endswith(b"a\nnext\n")


class Noticed(Together):
    """`await flushed.wait()`: until it has written in time."""

    flushed: asyncio.Event

    def _flush_in_time(self):
        super()._flush_in_time()
        self.flushed.set()


class TestLinesThatWaitForEachOther:
    @pytest.fixture
    def together(self, monkeypatch):
        """A logger of such lines, and what is written: `(logger, written)`."""
        written = []
        monkeypatch.setattr(StandardOutput, "write", written.append)
        monkeypatch.setattr(Together, "is_json", True)
        monkeypatch.setattr(Together, "is_wanted", True)
        monkeypatch.setattr(Together, "wait_seconds", 0.001)
        return Noticed("x"), written

    def test_they_are_written_in_one_go(self, together):
        logger, written = together

        async def log(logs):
            logger.flushed = asyncio.Event()
            for n in range(3):
                logger.info("request", status=n)
            assert len(written) == logs
            await logger.flushed.wait()

        for logs in range(2):  # the second loop is another, of which it knows nothing yet
            asyncio.run(log(logs))

        lines = [[json.loads(line) for line in one.splitlines()] for one in written]
        assert [[line["status"] for line in one] for one in lines] == [[0, 1, 2]] * 2
        first = lines[0][0]
        assert (first["component"], first["event"], first["level"]) == ("x", "request", "info")
        assert first["timestamp"].endswith("Z")

    def test_no_piece_is_larger_than_what_a_pipe_takes_whole(self, together):
        logger, written = together

        async def log():
            for _ in range(20):
                logger.info("request", long="x" * 1_000)
            logger.flush()

        asyncio.run(log())

        assert max(map(len, written)) <= select.PIPE_BUF
        assert sum(one.count(b"\n") for one in written) == 20
        assert all(one.endswith(b"\n") for one in written)

    def test_each_that_cannot_be_written_is_counted(self, monkeypatch):
        dropped = []
        monkeypatch.setattr(StandardOutput, "when_dropped", dropped.append)
        monkeypatch.setattr("sys.stdout", None)

        with open("/dev/full", "wb", buffering=0) as full:
            monkeypatch.setattr("sys.stdout", type("Out", (), {"buffer": full}))
            StandardOutput.write(b"one\ntwo\nthree\n")

        assert dropped == [3]


class TestTheCheckItself:
    def test_it_sees_a_connection_that_is_held(self, gateway, acme):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite has no pool")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "let_go", lambda: None)
            Workspace.objects.get()
            with suppress(Exception):
                destinations.check("https://example.com/")
        seen, waiting.found[:] = list(waiting.found), []

        assert any("a name is looked up" in one for one in seen)

    def test_waiting_inside_a_transaction_is_refused(self, gateway):
        with transaction.atomic(), pytest.raises(RuntimeError, match="transaction"):
            database.let_go()


def test_mail_leaves_through_what_gives_connections_back_first():
    """Whatever `EMAIL_URL` says, and without it."""
    urls = ["", "smtp://mail.example:25", "smtp+tls://u:p@mail.example:587", "smtps://m:465"]
    code = (
        "import os, runpy\n"
        f"for url in {urls}:\n"
        "    os.environ['EMAIL_URL'] = url\n"
        "    print(runpy.run_path('gateway_project/settings.py')['EMAIL_BACKEND'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SECRET_KEY": "s" * 40},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    shown = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert shown == ["gateway_project.mail.SMTPBackend"] * len(urls)
    assert issubclass(SMTPBackend, Unheld)
    assert issubclass(LocalBackend, Unheld)
