"""The doctor finds a good installation good, and names what is wrong with each broken one."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import orjson
import psycopg
import pytest
from celery.concurrency import prefork
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core.management import get_commands
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from accounts.events import audit
from accounts.keys import Peppers
from accounts.models import SecretInUse
from accounts.usage import partitions
from deploy import services
from gateway_project import backups, rotation
from gateway_project.core.stores import redis
from gateway_project.core.upstream import breaker
from gateway_project.doctor import examination, installation, network, stores
from gateway_project.doctor.examination import CHECKS, Check, Options, ok
from gateway_project.system import presence
from gateway_project.tests.private_redis import PrivateRedis
from gateway_project.tests.served import ROOT, wait_until

GOOD_SECRET = "Zq3vN8wLr1TgYb6HxKc0PmSd5UfJe2AoXi7QyBnWkRt4VhGzCl9"


def look(name, **options):
    """The findings of one check, by status."""
    found = list(examination.examine(Options(**options), [name]))
    assert found, f"{name} found nothing at all"
    for one in found:
        assert one.check == name
        assert one.do or one.status in ("ok", "skipped"), (
            f"{one.message}: it does not say what to do"
        )
    return found


def statuses(found):
    return {one.status for one in found}


def trouble(name, **options):
    """What a check has to say, warnings and errors, with what to do."""
    return "\n".join(
        f"{one.status}: {one.message} {one.do}"
        for one in look(name, **options)
        if one.status in ("warning", "error")
    )


@pytest.fixture(autouse=True)
def _breakers_of_its_own(monkeypatch):
    """It is a process of its own otherwise: its engines' breakers take the gateway's names."""
    monkeypatch.setattr(breaker, "_registry", dict(breaker._registry))


@pytest.fixture
def production(settings):
    """Settings as of an installation that is fine."""
    settings.IS_LOCAL = False
    settings.LOCAL_SECRETS = []
    settings.SECRET_KEY = GOOD_SECRET
    settings.JWT_SECRET = GOOD_SECRET[::-1]
    settings.KEY_PEPPERS = Peppers.parse(f"1:{GOOD_SECRET[5:40]}")
    settings.HTTPS_ONLY = True
    settings.ALLOWED_HOSTS = ["gateway.example"]
    settings.CSRF_TRUSTED_ORIGINS = ["https://gateway.example"]
    settings.METRICS_TOKEN = GOOD_SECRET[10:]
    settings.DATABASE_URL = f"postgres://gateway:{GOOD_SECRET}@db/gateway"
    settings.REDIS_URL = settings.REDIS_URL or "redis://127.0.0.1:1/0"
    return settings


# -- Running checks -------------------------------------------------------------------------------


def test_a_check_that_hangs_or_breaks_stops_no_other():
    ends = threading.Event()

    def hangs(_):
        yield ok("began")
        ends.wait(30)

    def breaks(_):
        yield ok("began")
        raise RuntimeError("a bug")

    def works(_):
        yield ok("done")

    began = time.monotonic()
    found = list(
        examination.examine(
            Options(),
            checks=[
                Check("hangs", hangs, 0.2),
                Check("breaks", breaks, 0.2),
                Check("works", works, 5),
            ],
        )
    )
    ends.set()

    assert time.monotonic() - began < 5
    assert [(one.check, one.status) for one in found] == [
        *(("hangs", "ok"), ("hangs", "error"), ("breaks", "ok"), ("breaks", "error")),
        ("works", "ok"),
    ]
    assert "No end within 0.2 seconds" in found[1].message
    assert "a bug" in found[3].message


def test_each_check_of_the_page_exists_and_no_other():
    page = (ROOT / "docs/operations.md").read_text()

    for name in CHECKS:
        assert f"`{name}`" in page, f"say in docs/operations.md what `{name}` looks at"


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_what_a_page_has_people_run_exists(page):
    text = re.sub(r"\s+", " ", page.read_text())

    assert set(re.findall(r"manage\.py ([a-z_]+)", text)) <= set(get_commands())
    for names in re.findall(
        r"manage\.py doctor((?: [a-z]+(?:\.[a-z]+)?)+)(?=`| #| systemctl)", text
    ):
        assert set(names.split()) <= set(CHECKS), names


# -- Databases ------------------------------------------------------------------------------------


@pytest.fixture
def pooler(settings, monkeypatch):
    """`with pooler(…):` new connections go by way of a pgbouncer with these options."""
    program = services.find("pgbouncer")
    if program is None:
        pytest.skip("needs pgbouncer: `make test` installs it")
    facts = settings.DATABASES["default"]
    target = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}".format(**facts)

    @contextmanager
    def between(**options):
        with ExitStack() as stack, monkeypatch.context() as patch:
            home = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
            url = services.start_pgbouncer(stack, program, Path(home), target, **options)
            patch.setitem(facts, "PORT", url.rpartition(":")[2])
            yield

    return between


class TestTheDatabase:
    @pytest.mark.needs_postgresql
    def test_a_good_one(self, gateway):
        partitions.make_partitions_ahead()
        names = ("database.migrations", "database.clock", "database.connections")
        for name in (*names, "database.partitions", "database.age"):
            assert statuses(look(name)) == {"ok"}, name

    def test_one_that_does_not_answer_and_the_others_are_skipped(self, gateway, monkeypatch):
        from django import db

        def refuse(self):
            raise db.OperationalError("connection refused")

        with monkeypatch.context() as patch:
            patch.setattr(BaseDatabaseWrapper, "ensure_connection", refuse)
            patch.setattr(BaseDatabaseWrapper, "cursor", refuse)
            patch.setattr(stores, "_connect", lambda: refuse(None))

            assert "It does not answer: connection refused" in trouble("database")
            for name in ("database.migrations", "database.partitions", "secrets", "backup"):
                assert statuses(look(name)) == {"skipped"}, name

    @pytest.mark.needs_postgresql
    def test_a_server_that_may_lose_what_it_has_written(self, gateway):
        # The tests' own is one: it runs without fsync.
        sentence = trouble("database")

        assert "fsync is off" in sentence
        assert "Set fsync = on" in sentence

    def test_a_migration_that_did_not_run(self, gateway):
        recorder = MigrationRecorder(connection)
        recorder.record_unapplied("accounts", "0001_initial")
        try:
            assert "manage.py migrate" in trouble("database.migrations")
        finally:
            recorder.record_applied("accounts", "0001_initial")

    @pytest.mark.needs_postgresql
    def test_pools_that_ask_for_more_than_there_is(self, gateway, settings):
        settings.WORKERS = 20

        sentence = trouble("database.connections")

        assert "The pools may ask for more than there is" in sentence
        assert "max_connections" in sentence

    @pytest.mark.needs_postgresql
    @pytest.mark.needs_redis
    def test_each_child_of_a_worker_has_a_connection(self, gateway, settings):
        children = object.__new__(prefork.TaskPool)
        children._pool = SimpleNamespace(_processes=50)
        note = presence._note("worker", presence.connections_of(children))
        redis.client().delete(presence.PROCESSES)
        redis.client().hset(presence.PROCESSES, "host/1", note)

        [found] = look("database.connections")

        assert "and 1 workers 51;" in found.message
        redis.client().delete(presence.PROCESSES)

    @pytest.mark.needs_postgresql
    def test_behind_a_pooler_its_own_connections_count(self, gateway, settings, pooler):
        settings.WORKERS = 20
        with pooler():
            [found] = look("database.connections")

        assert found.status == "ok"
        assert "A pooler between decides" in found.message

    @pytest.mark.needs_postgresql
    def test_a_log_without_a_partition_for_today(self, gateway, monkeypatch):
        monkeypatch.setattr(partitions, "partition_days", list)

        assert "no partition for today" in trouble("database.partitions")

    @pytest.mark.needs_postgresql
    @pytest.mark.parametrize(
        ("name", "value", "reason", "do"),
        [
            ("HOST", "db.invalid", "resolve", "/etc/resolv.conf"),
            ("PORT", "1", "refused", "Nobody listens there"),
            ("USER", "nobody_of_that_name", 'role "nobody', "correct the user in DATABASE_URL"),
            ("NAME", "nowhere", 'database "nowhere" does not', "createdb"),
        ],
    )
    def test_why_it_does_not_answer(self, gateway, settings, monkeypatch, name, value, reason, do):
        with monkeypatch.context() as patch:
            patch.setitem(settings.DATABASES["default"], name, value)
            sentence = trouble("database")

        assert reason in sentence
        assert do in sentence

    @pytest.mark.parametrize(
        ("reason", "do"),
        [
            ("FATAL: sorry, too many clients already", "raise max_connections"),
            ("FATAL: remaining connection slots are reserved for", "raise max_connections"),
            ("FATAL: password authentication failed for user", "%-encode"),
            ("FATAL: no pg_hba.conf entry for host", "a line of pg_hba.conf"),
            ("connection timeout expired", "A firewall"),
            ("FATAL: unsupported startup parameter: options", "ignore_startup_parameters"),
            ("SSL error: certificate verify failed", "sslrootcert"),
            ("FATAL: the database system is starting up", "Wait until it is up"),
        ],
    )
    def test_what_servers_and_poolers_say_has_its_mend(self, reason, do):
        assert do in stores.what_to_do(f"connection failed: {reason}", stores.WHY, "")

    @pytest.mark.needs_postgresql
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"mode": "statement"}, "set pool_mode = transaction there"),
            ({"ignored": "extra_float_digits"}, "set ignore_startup_parameters"),
        ],
    )
    def test_a_pooler_that_is_set_up_wrong(self, gateway, pooler, options, sentence):
        with pooler(**options):
            assert sentence in trouble("database")

    @pytest.mark.needs_postgresql
    @pytest.mark.parametrize(
        ("statement", "sentence"),
        [
            ("SET default_transaction_read_only = on", "takes no writes"),
            ("SET search_path = nowhere", "no schema to work in"),
            ("SET ROLE pg_monitor", "may make nothing in the schema"),
            ("SET ROLE pg_monitor", "belong to somebody else"),
        ],
    )
    def test_rights_that_are_missing(self, db, statement, sentence):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
            found = list(stores._rights())
            transaction.set_rollback(True)

        assert [one for one in found if sentence in one.message and one.do]
        assert statuses(found) == {"error"}

    def test_a_clock_that_is_off(self):
        now = time.time()
        assert stores.skew("x", now, time.monotonic()).status == "ok"
        late = stores.skew("x", now - 3, time.monotonic())
        assert (late.status, "3.0 s ahead of" in late.message) == ("warning", True)
        early = stores.skew("x", now + 60, time.monotonic())
        assert (early.status, "60.0 s behind" in early.message) == ("error", True)
        assert "NTP" in early.do


@pytest.fixture
def broken_redis(tmp_path, settings):
    """A Redis that keeps nothing and forgets what it likes."""
    with PrivateRedis(tmp_path) as server:
        settings.REDIS_URL = server.url
        with server.client as client:
            yield client


class TestRedis:
    def test_a_good_one(self, broken_redis):
        broken_redis.config_set("maxmemory-policy", "noeviction")
        broken_redis.config_set("appendonly", "yes")

        for name in ("redis", "redis.clock", "redis.memory", "redis.persistence"):
            assert statuses(look(name)) == {"ok"}, name

    def test_one_that_drops_keys(self, broken_redis):
        broken_redis.config_set("maxmemory-policy", "allkeys-lru")

        sentence = trouble("redis.memory")

        assert "error: REDIS_URL drops keys" in sentence
        assert "noeviction" in sentence

    def test_one_that_keeps_nothing(self, broken_redis):
        assert "error: Redis keeps nothing on disk" in trouble("redis.persistence")

        broken_redis.config_set("save", "60 1")
        assert "warning: Redis keeps no append-only file" in trouble("redis.persistence")

    def test_one_that_is_nearly_full(self, broken_redis):
        broken_redis.set("x", "y" * 2_000_000)
        broken_redis.config_set("maxmemory", "3mb")

        assert "once full it refuses" in trouble("redis.memory")

    def test_a_cache_that_never_forgets(self, broken_redis, settings):
        settings.CACHE_REDIS_URL = settings.REDIS_URL

        assert "CACHE_REDIS_URL has no bound" in trouble("redis.memory")

        broken_redis.config_set("maxmemory", "200mb")
        assert "refuses to remember once it is full" in trouble("redis.memory")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda url: url.replace("/0", "/99"), "0 is always there"),
            (lambda url: url.replace("127.0.0.1", "redis.invalid"), "/etc/resolv.conf"),
            (lambda url: url.replace("redis:", "rediss:"), "speak"),
        ],
    )
    def test_a_wrong_address(self, broken_redis, settings, change, sentence):
        settings.REDIS_URL = change(settings.REDIS_URL)

        assert sentence in trouble("redis")

    @pytest.mark.parametrize(
        ("command", "sentence"),
        [
            ("CONFIG SET requirepass abc", "Correct user or password"),
            ("REPLICAOF 127.0.0.1 1", "name the primary"),
            ("CONFIG SET maxmemory 1", "It is full"),
            ("ACL SETUSER default -eval", "ACL SETUSER"),
            ("ACL SETUSER default resetchannels", "ACL SETUSER"),
        ],
    )
    def test_one_that_takes_no_work(self, broken_redis, command, sentence):
        broken_redis.execute_command(*command.split())

        assert sentence in trouble("redis")

    def test_one_that_is_away(self, settings):
        settings.REDIS_URL = settings.CACHE_REDIS_URL = "redis://127.0.0.1:1/0"

        assert "REDIS_URL does not answer" in trouble("redis")
        assert "CACHE_REDIS_URL does not answer" in trouble("cache")
        for name in ("redis.clock", "redis.memory", "redis.persistence"):
            assert statuses(look(name)) == {"skipped"}, name


# -- Settings -------------------------------------------------------------------------------------


class TestSettings:
    def test_good_ones(self, production):
        assert trouble("settings.secrets") == ""
        assert trouble("settings.origins") == ""

    @pytest.mark.parametrize(
        ("setting", "value", "sentence"),
        [
            ("LOCAL_SECRETS", ["KEY_PEPPERS"], "KEY_PEPPERS not set"),
            ("SECRET_KEY", "a" * 60, "SECRET_KEY can be guessed"),
            ("SECRET_KEY", "django-insecure-" + GOOD_SECRET, "SECRET_KEY can be guessed"),
            ("METRICS_TOKEN", "changeme", "METRICS_TOKEN can be guessed"),
            ("JWT_SECRET", GOOD_SECRET, "are the same"),
            ("DATABASE_URL", "postgres://gateway:gateway@db/gateway", "DATABASE_URL can be"),
            ("DATABASE_URL", "postgres://gateway:changeme1@db/gateway", "DATABASE_URL can be"),
            ("REDIS_URL", "redis://:password@redis/0", "REDIS_URL can be guessed"),
            ("SECRET_KEY_FALLBACKS", ["a" * 60], "SECRET_KEY can be guessed"),
            ("FIELD_ENCRYPTION_KEYS", ["A" * 43 + "="], "FIELD_ENCRYPTION_KEYS can be"),
            ("OIDC_CLIENT_SECRET", "secret", "OIDC_CLIENT_SECRET can be guessed"),
            ("ROBIN_CLIENT_API_TOKEN", "robin", "ROBIN_CLIENT_API_TOKEN can be guessed"),
            ("ROBIN_SERVICE_API_URL", "http://robin:robin@mail:8080", "ROBIN_SERVICE_API_URL can"),
            ("DETECTION_ENGINES", "a=https://b c=https://:key@d", "DETECTION_ENGINES can be"),
        ],
    )
    def test_secrets_that_are_none(self, production, setting, value, sentence):
        setattr(production, setting, value)

        assert sentence in trouble("settings.secrets")

    def test_what_two_sides_share_is_not_rolled(self, production):
        production.DATABASE_URL = "postgres://gateway:gateway@db/gateway"
        assert "set it on both sides" in trouble("settings.secrets")
        assert "roll it" not in trouble("settings.secrets")

    def test_a_pepper_that_is_none(self, production):
        production.KEY_PEPPERS = Peppers.parse("1:" + "abcd" * 8)

        assert "KEY_PEPPERS can be guessed" in trouble("settings.secrets")

    @pytest.mark.parametrize(
        ("setting", "value", "sentence"),
        [
            ("ALLOWED_HOSTS", ["*"], "error: ALLOWED_HOSTS holds *"),
            ("ALLOWED_HOSTS", [".example"], "warning: ALLOWED_HOSTS holds .example"),
            ("CSRF_TRUSTED_ORIGINS", ["http://x.example"], "error: CSRF_TRUSTED_ORIGINS holds"),
            ("CSRF_TRUSTED_ORIGINS", ["https://*.x.example"], "any site there"),
            ("CSRF_TRUSTED_ORIGINS", [], "warning: CSRF_TRUSTED_ORIGINS is empty"),
            ("CORS_ALLOWED_ORIGINS", ["http://ui.example"], "error: CORS_ORIGINS holds"),
            ("HTTPS_ONLY", False, "error: HTTPS_ONLY is false"),
            ("RATE_LIMIT_ENABLED", False, "error: RATE_LIMIT_ENABLED is false"),
            ("METRICS_TOKEN", "", "warning: /metrics asks for no token"),
        ],
    )
    def test_origins_that_are_too_wide(self, production, setting, value, sentence):
        setattr(production, setting, value)

        assert sentence in trouble("settings.origins")

    def test_what_django_itself_finds(self, production):
        production.LOG_FORMAT = "xml"

        assert "LOG_FORMAT is unknown. (gateway.E002)" in trouble("settings")


# -- Files ----------------------------------------------------------------------------------------


class TestFiles:
    @pytest.fixture
    def checkout(self, production):
        with tempfile.TemporaryDirectory(dir="/tmp") as name:
            Path(name).chmod(0o755)
            production.BASE_DIR, production.VAR_DIR = Path(name), Path(name) / "var"
            yield Path(name)

    @pytest.mark.parametrize("name", [".env", "var/secrets/key_pepper"])
    def test_secrets_that_everybody_may_read(self, checkout, name):
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o644)

        assert f"error: Every user of this host can read {path}. chmod o= {path}" == trouble(
            "files"
        )

        path.chmod(0o600)
        assert trouble("files") == ""

    def test_a_folder_that_nobody_else_enters(self, checkout):
        (checkout / "var/secrets").mkdir(parents=True, mode=0o700)
        (checkout / "var/secrets/secret_key").touch(0o644)

        assert trouble("files") == ""

    def test_libraries_of_another_version(self, checkout):
        (checkout / "requirements").mkdir()
        lock = checkout / "requirements/base.txt"
        text = (ROOT / "requirements/base.txt").read_text()
        lock.write_text(text)
        assert trouble("packages") == ""

        lock.write_text(re.sub(r"^django==\S+", "django==4.2", text, flags=re.MULTILINE))
        assert "not 4.2" in trouble("packages")
        assert "make setup" in trouble("packages")


# -- Proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "hops", "client_ip", "status", "sentence"),
    [
        ([network.FORGED], 0, "127.0.0.1", "ok", "0 proxies"),
        ([network.FORGED, "192.0.2.1"], 1, "192.0.2.1", "ok", "1 proxies"),
        (["192.0.2.1"], 1, "192.0.2.1", "ok", "1 proxies"),  # it writes the header anew
        ([network.FORGED, "192.0.2.1", "10.0.0.1"], 2, "192.0.2.1", "ok", "2 proxies"),
        ([network.FORGED], 1, network.FORGED, "error", "have it append"),
        ([network.FORGED, "192.0.2.1"], 2, network.FORGED, "error", "TRUSTED_PROXY_HOPS=1"),
        ([network.FORGED, "192.0.2.1"], 0, "10.0.0.1", "error", "TRUSTED_PROXY_HOPS=1"),
        ([network.FORGED, "192.0.2.1", "10.0.0.1"], 1, "10.0.0.1", "error", "HOPS=2"),
        (["192.0.2.1"], 2, "10.0.0.1", "error", "TRUSTED_PROXY_HOPS=1"),
    ],
)
def test_hops_are_counted(entries, hops, client_ip, status, sentence):
    seen = {"forwarded_for": entries, "trusted_proxy_hops": hops, "client_ip": client_ip}
    found = list(
        network.judge_hops({**seen, "scheme": "https"}, url="https://g.example", is_public=True)
    )

    assert [one.status for one in found] == [status]
    assert sentence in found[0].message + found[0].do


def test_nothing_is_said_of_proxies_that_were_not_on_the_way():
    seen = {"forwarded_for": [network.FORGED], "trusted_proxy_hops": 1, "scheme": "http"}
    [found] = network.judge_hops(
        {**seen, "client_ip": network.FORGED}, url="http://127.0.0.1:8000", is_public=False
    )

    assert (found.status, "doctor --url" in found.do) == ("skipped", True)


def test_a_proxy_that_hides_https(settings):
    seen = {"forwarded_for": ["192.0.2.1"], "trusted_proxy_hops": 1, "client_ip": "192.0.2.1"}
    found = list(
        network.judge_hops({**seen, "scheme": "http"}, url="https://g.example", is_public=True)
    )

    assert [one.status for one in found] == ["ok", "error"]
    assert "X-Forwarded-Proto" in found[1].do


@pytest.mark.parametrize(
    ("seen_by_us", "sentence"),
    [
        ({"host": "127.0.0.1:8000"}, "pass `Host` on"),
        ({"host": "g.example:443"}, ""),
        ({"headers": ["idempotency-key", "prefer", "if-match"]}, "x-api-key: sent to"),
    ],
)
def test_headers_that_a_proxy_changes(seen_by_us, sentence):
    seen = {"host": "g.example", "headers": list(network.seen.HEADERS), **seen_by_us}
    found = list(network.judge_headers(seen, url="https://g.example"))

    assert bool(found) == bool(sentence)
    assert all(sentence in one.message + one.do for one in found)


@pytest.fixture
def bad_proxy():
    """Takes no large bodies, and does not pass `Upgrade` on; also no provider of anything."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(426)

        def do_POST(self):
            self.send_error(413)

        def log_message(self, *_): ...

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_bodies_and_sockets_that_a_proxy_does_not_let_through(bad_proxy):
    [body], [socket_] = network._large_body(bad_proxy), network._upgrade(bad_proxy)

    assert (body.status, "client_max_body_size" in body.do) == ("error", True)
    assert (socket_.status, "`Upgrade`" in socket_.do) == ("error", True)


def test_nobody_else_learns_what_the_gateway_sees(gateway):
    for headers in ({}, {"Authorization": "Doctor x:y:z"}, {"Authorization": "Bearer x"}):
        answer = gateway.get("/health/seen", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


# -- The guard, certificates, mail ----------------------------------------------------------------


class TestTheGuard:
    def test_it_holds(self):
        found = look("ssrf")

        assert statuses(found) == {"ok"}
        assert f"{len(network.FORBIDDEN)} forbidden addresses" in found[-1].message

    def test_a_hole_in_it(self, monkeypatch):
        monkeypatch.setattr(network.destinations, "is_refused", lambda _: False)

        sentence = trouble("ssrf")

        assert "error: The guard lets through" in sentence
        assert "169.254.169.254" in sentence

    def test_networks_that_are_allowed(self, settings):
        settings.WEBHOOK_ALLOWED_NETWORKS = (ipaddress.ip_network("10.0.0.0/8"),)

        assert "warning: Webhooks of every customer may be sent to 10.0.0.0/8" in trouble("ssrf")

    def test_a_store_in_an_allowed_network(self, settings):
        settings.WEBHOOK_ALLOWED_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"),)
        settings.DETECTION_ENGINE_URL = "http://127.0.0.1:9"

        assert "where DETECTION_ENGINE_URL is" in trouble("ssrf")


def make_certificate(days, folder):
    """A self-signed certificate for 127.0.0.1 that ends in `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days, hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{days}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """`tls(days)`: a port that speaks TLS with a certificate that we would accept."""
    listeners = []

    def start(days, *, trusted=True):
        path = make_certificate(days, tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve():
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(raw, server_side=True) as spoken:
                        spoken.recv(1)
                except OSError:
                    raw.close()

        threading.Thread(target=serve, daemon=True).start()
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(path))
        return listener.getsockname()[1]

    yield start
    for listener in listeners:
        listener.close()


class TestCertificates:
    @pytest.mark.parametrize(("days", "status"), [(90, "ok"), (14, "warning"), (3, "error")])
    def test_how_long_one_is_good(self, settings, tls, days, status):
        settings.DETECTION_ENGINE_URL = f"https://127.0.0.1:{tls(days)}"
        settings.CSRF_TRUSTED_ORIGINS = []

        found = look("certificates")

        assert statuses(found) == {status}
        assert f"{days} days" in found[0].message

    def test_of_every_engine_and_of_the_provider(self, settings, tls):
        port = tls(3)
        settings.DETECTION_ENGINES = f"judge=openai+https://:KEY@127.0.0.1:{port}/v1?model=m"
        settings.OIDC_ISSUER = f"https://127.0.0.1:{port}/realm"

        sentence = trouble("certificates")

        assert "the engine 'judge' (127.0.0.1" in sentence
        assert "OIDC_ISSUER (127.0.0.1" in sentence
        assert "KEY" not in sentence

    def test_one_of_nobody(self, settings, tls):
        settings.DETECTION_ENGINE_URL = f"https://127.0.0.1:{tls(90, trusted=False)}"
        settings.CSRF_TRUSTED_ORIGINS = []

        assert "its certificate is not accepted" in trouble("certificates")


class TestNames:
    def test_name_servers_that_answer_and_that_do_not(self, name_server, settings, monkeypatch):
        monkeypatch.setattr(network.names, "_answering", (False, 0.0))
        settings.NAME_SERVERS = [name_server.address]
        assert statuses(look("dns")) == {"ok"}

        monkeypatch.setattr(network.names, "_answering", (False, 0.0))
        name_server.is_silent = True
        assert "Correct NAME_SERVERS" in trouble("dns")

    def test_a_provider_that_is_none(self, settings, bad_proxy):
        assert statuses(look("oidc")) == {"skipped"}
        settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID = bad_proxy, "gateway"

        sentence = trouble("oidc")

        assert "does not describe a provider" in sentence
        assert "OIDC_CLIENT_SECRET not" in sentence


class TestMail:
    @pytest.fixture
    def smtp(self, settings):
        settings.EMAIL_BACKEND = "gateway_project.mail.SMTPBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
        settings.EMAIL_HOST_USER = settings.EMAIL_HOST_PASSWORD = ""
        settings.DEFAULT_FROM_EMAIL = "Gateway <gateway@gateway.example>"
        return settings

    def test_a_server_that_is_not_there(self, smtp):
        sentence = trouble("mail")

        assert "error: The mail server 127.0.0.1:1 does not take us" in sentence
        assert "confirm_email" in sentence

    def test_a_server_that_answers(self, smtp):
        commands = []

        def serve(listener):
            peer, _ = listener.accept()
            with peer, peer.makefile("rwb", buffering=0) as file:
                file.write(b"220 here\r\n")
                for line in file:
                    commands.append(line.strip().upper())
                    file.write(b"250 fine\r\n")
                    if line.upper().startswith(b"QUIT"):
                        return

        with socket.create_server(("127.0.0.1", 0)) as listener:
            smtp.EMAIL_PORT = listener.getsockname()[1]
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            found = look("mail")

        assert statuses(found) == {"ok"}
        assert not any(line.startswith(b"MAIL FROM") for line in commands)

    def test_a_sender_that_nobody_accepts(self, smtp):
        smtp.IS_LOCAL = False
        smtp.DEFAULT_FROM_EMAIL = "Gateway <gateway@localhost>"

        assert "warning: Mail is from gateway@localhost" in trouble("mail")


# -- Upstreams ------------------------------------------------------------------------------------


class TestTheEngine:
    def test_a_good_one(self, gateway, engine, settings):
        settings.DETECTION_ENGINE_SCORE_FLOOR = 0.0
        found = look("engine")

        assert statuses(found) == {"ok"}
        assert "2.1.0" in found[0].message

    @pytest.mark.parametrize("answer", ["broken_json", "html", "nan", "missing_fields", "half"])
    def test_one_that_breaks_the_contract(self, gateway, engine, settings, answer):
        engine.answers(answer)

        settings.DETECTION_ENGINE_SCORE_FLOOR = 0.0
        sentence = trouble("engine")

        assert "gives no verdict" in sentence
        assert "docs/engine.md" in sentence

    def test_one_that_refuses_us(self, gateway, engine):
        engine.fails(401)

        assert "gives no verdict" in trouble("engine")

    def test_a_floor_that_it_does_not_have(self, gateway, engine, settings):
        settings.DETECTION_ENGINE_SCORE_FLOOR = 0.5

        assert "below DETECTION_ENGINE_SCORE_FLOOR" in trouble("engine")

    def test_a_floor_that_nobody_named(self, gateway, engine, settings):
        engine.has(score_floor=0.5)
        settings.DETECTION_ENGINE_SCORE_FLOOR = 0.0

        assert "set DETECTION_ENGINE_SCORE_FLOOR to it" in trouble("engine")

    def test_one_that_is_away(self, settings):
        settings.DETECTION_ENGINE_URL = "http://127.0.0.1:1"

        assert "gives no verdict" in trouble("engine")


class TestRobin:
    def test_a_good_one(self, gateway, robin):
        assert statuses(look("robin")) <= {"ok", "warning"}

    def test_both_addresses_swapped_or_wrong(self, settings):
        settings.ROBIN_CLIENT_API_URL = settings.ROBIN_SERVICE_API_URL = "http://127.0.0.1:1"

        sentence = trouble("robin")

        assert "ROBIN_CLIENT_API_URL does not answer" in sentence
        assert "ROBIN_SERVICE_API_URL does not answer" in sentence


# -- The installation -----------------------------------------------------------------------------


@pytest.mark.needs_redis
class TestProcesses:
    @pytest.fixture(autouse=True)
    def nobody(self, gateway, monkeypatch):
        monkeypatch.setattr(installation, "FILES_MIN", 64)
        redis.client().delete(presence.PROCESSES)
        yield
        redis.client().delete(presence.PROCESSES)

    def test_none(self):
        sentence = trouble("processes")

        assert "No web process lives" in sentence
        assert "No worker process lives" in sentence
        assert "celery -A gateway_project worker" in sentence

    def test_some(self):
        for role in ("web", "worker"):
            redis.client().hset(presence.PROCESSES, f"host/{role}", presence._note(role))

        assert statuses(look("processes")) == {"ok"}

    def test_one_with_another_secret(self, settings):
        for role in ("web", "worker"):
            redis.client().hset(presence.PROCESSES, f"host/{role}", presence._note(role))
        settings.SECRET_KEY_FALLBACKS = ["another " * 6]

        assert "web host/web has another SECRET_KEY" in trouble("processes")

    def test_one_with_other_settings(self, settings):
        note = orjson.loads(presence._note("web"))
        note["settings"]["TRUSTED_PROXY_HOPS"] = note["settings"]["PUBLIC_URL"] = "00000000"
        redis.client().hset(presence.PROCESSES, "host-b/2", orjson.dumps(note))
        redis.client().hset(presence.PROCESSES, "host-a/1", presence._note("worker"))

        sentence = trouble("processes")

        assert "host-b/2 has other values of PUBLIC_URL, TRUSTED_PROXY_HOPS than this" in sentence
        assert "host-a/1" not in sentence

    def test_one_that_may_open_few_files(self, settings):
        note = {**orjson.loads(presence._note("web")), "files": 32}
        redis.client().hset(presence.PROCESSES, "host-b/2", orjson.dumps(note))

        assert "LimitNOFILE=65536" in trouble("processes")

    @pytest.mark.needs_postgresql
    def test_a_host_with_another_redis(self, settings):
        facts = settings.DATABASES["default"]
        for name in ("host-b", socket.gethostname()):
            redis.client().hset(presence.PROCESSES, f"{name}/1", presence._note("web"))
        with psycopg.connect(
            "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**facts),
            application_name="gateway-0123456789ab on host-b",
        ):
            assert trouble("redis.shared") == ""
            redis.client().hdel(presence.PROCESSES, "host-b/1")
            assert "host-b use this database, and not this Redis" in trouble("redis.shared")

    def test_queues_that_nobody_takes_from(self, monkeypatch):
        monkeypatch.setattr(installation, "QUEUE_SECONDS", 0.3)

        sentence = trouble("queues")

        for name in ("detection", "webhooks", "usage", "mail", "maintenance"):
            assert f"from the queue {name}" in sentence
            assert f"--queues={name}" in sentence


class TestSecretsInUse:
    def test_all_known(self, gateway):
        rotation.note_in_use()

        assert statuses(look("secrets")) == {"ok"}

    def test_a_key_that_is_missing(self, gateway):
        SecretInUse.objects.create(
            setting="FIELD_ENCRYPTION_KEYS", name="00000000", fingerprint="00000000"
        )

        assert "lacks the key 00000000" in trouble("secrets")

    def test_another_pepper_of_the_same_version(self, gateway, settings):
        rotation.note_in_use()
        settings.KEY_PEPPERS = Peppers.parse("1:not the one that it was")

        assert "has another pepper as version 1" in trouble("secrets")


class TestTheBackup:
    def test_none_was_made(self, production, gateway):
        sentence = trouble("backup")

        assert "error: No backup was ever made" in sentence
        assert "manage.py backup" in sentence

    def test_a_fresh_one_that_nobody_tried(self, production, gateway):
        audit(backups.MADE, actor="test")

        found = look("backup")

        assert [one.status for one in found] == ["ok", "warning"]
        assert "restore --verify" in found[1].do

    def test_a_fresh_one_that_was_tried(self, production, gateway):
        audit(backups.NOTED, actor="test")
        audit(backups.VERIFIED, actor="test")

        assert statuses(look("backup")) == {"ok"}

    def test_one_that_nobody_could_read(self, production, gateway):
        production.BACKUP_RECIPIENTS = ["nonsense"]

        assert "'nonsense' is no age recipient" in trouble("backup")

    def test_an_old_one(self, production, gateway, monkeypatch):
        audit(backups.MADE, actor="test")
        monkeypatch.setattr(installation, "BACKUP_HOURS", -1)

        assert "warning: The last backup is 0 hours old" in trouble("backup")


class TestTheDisk:
    def test_room_enough(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

        assert statuses(look("disk")) == {"ok"}

    @pytest.mark.parametrize(
        ("total", "free", "status"),
        [
            (64 << 20, 60 << 20, "ok"),  # as the compose file and the chart make it
            (64 << 20, 15 << 20, "warning"),
            (64 << 20, 3 << 20, "error"),
            (1 << 40, 300 << 20, "ok"),
            (1 << 40, 255 << 20, "warning"),
            (1 << 40, 31 << 20, "error"),
        ],
    )
    def test_a_folder_that_is_nearly_full(self, tmp_path, monkeypatch, total, free, status):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        usage = SimpleNamespace(total=total, free=free)
        monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage)

        assert [x.status for x in look("disk") if "MULTIPROC_DIR" in x.message] == [status]

    def test_none_that_workers_share(self, monkeypatch):
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

        assert "PROMETHEUS_MULTIPROC_DIR is not set" in trouble("disk")


# -- The command, against real processes ----------------------------------------------------------


def doctor(environment, *arguments):
    return subprocess.run(
        [sys.executable, "manage.py", "doctor", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.served
class TestTheCommand:
    @pytest.mark.slow
    def test_a_whole_installation(self, serve, work, own_redis, tmp_path):
        served = serve(REDIS_URL=own_redis.url, WORKERS="1")
        work("--concurrency=1")
        with own_redis.client as client:
            wait_until(lambda: client.hlen(presence.PROCESSES) == 2)

        done = doctor({**served.environment, "HOST": "127.0.0.1"}, "--json")
        document = json.loads(done.stdout)
        by_check: dict[str, set[str]] = {}
        for one in document["findings"]:
            by_check.setdefault(one["check"], set()).add(one["status"])

        assert done.stderr == ""
        assert set(by_check) == set(CHECKS)
        for name in (
            *("database.migrations", "database.partitions", "database.connections", "redis"),
            *("redis.clock", "database.clock", "queues", "proxy", "ssrf", "engine", "disk"),
        ):
            assert by_check[name] == {"ok"}, [x for x in document["findings"] if x["check"] == name]
        # What the tests' installation has not: PostgreSQL with fsync, a kept Redis, a backup.
        assert (done.returncode, document["status"]) == (1, "error")
        assert "error" in by_check["database"] & by_check["backup"] & by_check["redis.persistence"]

        only = doctor(served.environment, "redis", "proxy", "engine")
        assert only.returncode == 0, only.stdout
        assert "0 wrong, 0 doubtful" in only.stdout
        strict = doctor(served.environment, "redis", "settings.origins", "--strict")
        assert strict.returncode == 1
        assert "→" in strict.stdout

    @pytest.mark.slow
    def test_a_gateway_that_believes_a_forged_address(self, serve, own_redis):
        served = serve(REDIS_URL=own_redis.url, WORKERS="1", TRUSTED_PROXY_HOPS="1")

        done = doctor(served.environment, "proxy", "--url", served.url)

        assert done.returncode == 1
        assert "A forged X-Forwarded-For is believed" in done.stdout
        assert "→ Set TRUSTED_PROXY_HOPS=0." in done.stdout

    def test_a_check_that_does_not_exist(self, tmp_path):
        done = doctor({"PATH": "/usr/bin", "VAR_DIR": str(tmp_path)}, "nonsense")

        assert done.returncode == 2
        assert "There are: database" in done.stderr
