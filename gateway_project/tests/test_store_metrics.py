"""What is counted of the stores: each statement, connection and look into the cache once."""

from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx
import pytest
from django.conf import settings
from django.core.cache import caches
from django.db import ConnectionHandler, DatabaseError, OperationalError, connection
from django.db.migrations.loader import MigrationLoader
from django.test.utils import CaptureQueriesContext
from django_prometheus.db import query_duration_seconds
from django_prometheus.migrations import applied_migrations, unapplied_migrations
from prometheus_client import REGISTRY

from accounts import authentication, keys
from accounts.models import Plan
from gateway_project.core.stores.counted.locmem import LocMemCache
from gateway_project.core.telemetry import metrics, migration_counts
from gateway_project.system.backlog import BacklogCollector
from gateway_project.tests.served import wait_until
from gateway_project.tests.test_metrics import series


class Counts:
    """What was added to the series of one database since this was made."""

    def __init__(self, alias: str, vendor: str) -> None:
        self.labels = {"alias": alias, "vendor": vendor}
        self.before: dict[str, float] = {}
        self.before = {name: self[name] for name in ("execute", "execute_many", "new_connections")}
        self.before["observed"] = self["observed"]

    def __getitem__(self, name: str) -> float:
        series = {"observed": "query_duration_seconds_count"}.get(name, f"{name}_total")
        found = REGISTRY.get_sample_value(f"django_db_{series}", self.labels) or 0.0
        return found - self.before.get(name, 0.0)

    def errors(self, kind: str) -> float:
        labels = {**self.labels, "type": kind}
        return REGISTRY.get_sample_value("django_db_errors_total", labels) or 0.0


@pytest.fixture
def counts(db) -> Counts:
    connection.ensure_connection()
    return Counts("default", connection.vendor)


class TestStatements:
    def test_each_is_counted_and_timed_once(self, counts):
        with CaptureQueriesContext(connection) as queries:
            Plan.objects.count()
            list(Plan.objects.filter(name="none"))
            Plan.objects.create(
                name="new", rate_limit_per_minute=1, rate_limit_per_day=1, log_days=1
            )

        assert len(queries) >= 3
        assert counts["execute"] == counts["observed"] == len(queries)
        assert counts["execute_many"] == 0

    def test_of_many_at_once_each_counts(self, counts):
        rows = ((f"p{n}",) for n in range(7))  # an iterator: it can be read only once
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE accounts_plan SET name = name WHERE name = %s", rows)

        assert (counts["execute"], counts["execute_many"], counts["observed"]) == (7, 7, 1)

    def test_one_that_fails_is_counted_by_its_error(self, counts):
        kind = "UndefinedTable" if connection.vendor == "postgresql" else "OperationalError"
        before = counts.errors(kind)

        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")

        assert counts.errors(kind) == before + 1
        assert counts["execute"] == counts["observed"] == 1

    def test_its_times_fall_into_the_buckets_of_our_own(self):
        assert query_duration_seconds._kwargs["buckets"] == settings.PROMETHEUS_LATENCY_BUCKETS
        assert (*metrics.SECONDS, float("inf")) == settings.PROMETHEUS_LATENCY_BUCKETS


@pytest.fixture
def sqlite(tmp_path):
    handler = ConnectionHandler({
        "default": {},
        "scratch": {
            "ENGINE": "gateway_project.core.stores.counted.sqlite3",
            "NAME": tmp_path / "scratch.sqlite3",
        },
    })  # fmt: skip
    yield handler["scratch"]
    handler["scratch"].close()


@pytest.mark.django_db(databases=[])
class TestSQLite:
    @pytest.fixture(autouse=True)
    def allowed(self, django_db_blocker):
        with django_db_blocker.unblock():
            yield

    def test_it_is_counted_alike(self, sqlite):
        counts = Counts("scratch", "sqlite")
        with sqlite.cursor() as cursor:
            cursor.execute("CREATE TABLE t (x)")
            cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
            cursor.execute("SELECT sum(x) FROM t")
            assert cursor.fetchone() == (3,)

        assert (counts["execute"], counts["execute_many"], counts["observed"]) == (4, 2, 3)
        assert counts["new_connections"] == 1
        with pytest.raises(OperationalError), sqlite.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")
        assert counts.errors("OperationalError") == 1

    def test_its_cursors_are_of_one_class(self, sqlite):
        with sqlite.cursor() as one, sqlite.cursor() as other:
            assert type(one.cursor) is type(other.cursor)
            assert isinstance(one.cursor, sqlite3.Cursor)


def opened(wrapper) -> int:
    """A pool opens connections in threads of its own, and counts each when it is configured."""
    return wrapper.pool.get_stats()["connections_num"]


@pytest.mark.needs_postgresql
class TestPool:
    """PostgreSQL with the pooled option, lent and given back as the data plane does it."""

    @pytest.fixture
    def pooled(self, django_db_setup, django_db_blocker):
        scratch = dict(connection.settings_dict, NAME=connection.settings_dict["NAME"])
        handler = ConnectionHandler({"default": {}, "scratch": scratch})
        with django_db_blocker.unblock():
            yield handler["scratch"]
            handler["scratch"].close()
            handler["scratch"].close_pool()

    def test_a_loan_is_no_connection_and_the_pools_look_at_it_no_statement(self, pooled):
        counts = Counts("scratch", "postgresql")

        def ask() -> None:
            with pooled.cursor() as cursor:
                cursor.execute("SELECT 1")
            pooled.close()

        for _ in range(10):
            ask()

        assert pooled.settings_dict["CONN_HEALTH_CHECKS"] is True  # so each loan is looked at
        # One or two, as the first loan comes before or after the pool's own first connection.
        wait_until(lambda: opened(pooled) == counts["new_connections"])
        assert opened(pooled) <= 2
        assert counts["execute"] == counts["observed"] == 10

    def test_connections_at_once_are_as_many_as_the_pool_opened(self, pooled):
        counts = Counts("scratch", "postgresql")
        together = Barrier(3)

        def hold(wrapper) -> None:
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
                together.wait(10)
            wrapper.close()

        with ThreadPoolExecutor(3) as threads:
            wrappers = [pooled.copy() for _ in range(3)]
            for wrapper in wrappers:
                wrapper.inc_thread_sharing()
            list(threads.map(hold, wrappers))

        wait_until(lambda: opened(pooled) == counts["new_connections"])
        assert opened(pooled) >= 3

    def test_a_server_that_is_away_is_counted(self, pooled):
        handler = ConnectionHandler({
            "default": {},
            "away": {
                **connection.settings_dict,
                "HOST": "127.0.0.1",
                "PORT": "1",
                "OPTIONS": {"pool": {"min_size": 1, "timeout": 0.2}},
            },
        })  # fmt: skip
        labels = {"alias": "away", "vendor": "postgresql"}
        with pytest.raises(OperationalError):
            handler["away"].ensure_connection()
        handler["away"].close_pool()

        errors = REGISTRY.get_sample_value("django_db_new_connection_errors_total", labels)
        assert errors == 1
        assert REGISTRY.get_sample_value("django_db_new_connections_total", labels) is None


class TestCache:
    def counts(self, backend: str) -> list[float]:
        names = ("get", "get_hits", "get_misses")
        return [
            REGISTRY.get_sample_value(f"django_cache_{name}_total", {"backend": backend}) or 0.0
            for name in names
        ]

    def added(self, backend: str, act) -> list[float]:
        before = self.counts(backend)
        act()
        return [now - then for now, then in zip(self.counts(backend), before, strict=True)]

    @pytest.mark.parametrize("value", [0, False, "", [], None, "text"])
    def test_in_memory_what_is_there_is_given_whatever_it_is(self, value):
        cache = LocMemCache("counted", {})
        cache.set("there", value)
        found = []

        def look() -> None:
            found.extend([cache.get("there", "default"), cache.get("away", "default")])

        assert self.added("locmem", look) == [2, 1, 1]
        assert found == [value, "default"]
        cache.clear()

    def test_the_installed_one_counts(self):
        backend = "redis" if settings.REDIS_URL else "locmem"
        cache = caches["default"]

        def look() -> None:
            cache.set("counted", 1, 10)
            cache.get("counted")
            cache.get("counted")
            cache.delete("counted")
            cache.get("counted")

        assert self.added(backend, look) == [3, 2, 1]


@pytest.mark.django_db(transaction=True)
class TestMigrations:
    def gauges(self) -> tuple[float | None, ...]:
        return tuple(
            REGISTRY.get_sample_value(f"django_migrations_{name}_total", {"connection": "default"})
            for name in ("applied", "unapplied")
        )

    def test_they_are_counted_as_a_process_starts(self, gateway):
        gateway.run(migration_counts.export())

        assert self.gauges() == (len(MigrationLoader(connection).applied_migrations), 0.0)

    def test_a_database_that_is_away_is_asked_again(self, gateway, monkeypatch, capsys):
        tries = []

        def away_at_first() -> None:
            tries.append(1)
            if len(tries) < 3:
                raise OperationalError("gone")

        monkeypatch.setattr(migration_counts, "ExportMigrations", away_at_first)
        monkeypatch.setattr(migration_counts, "RETRY_SECONDS", 0.0)

        gateway.run(migration_counts.export())

        assert len(tries) == 3
        assert capsys.readouterr().out.count("migrations_not_counted") == 2

    def test_it_is_one_series_for_all_processes(self):
        for gauge in (applied_migrations, unapplied_migrations):
            assert gauge.labels("scratch")._multiprocess_mode == "mostrecent"
            gauge.remove("scratch")


def test_requests_are_counted_once(gateway):
    """django-prometheus' middleware would count those of the control plane a second time."""
    text = gateway.get("/metrics").text

    assert not any("prometheus" in name for name in settings.MIDDLEWARE)
    assert "django_http_" not in text
    assert "# TYPE gateway_requests_total counter" in text
    for name in (
        "django_db_execute_total",
        "django_db_query_duration_seconds",
        "django_cache_get_total",
        "django_migrations_unapplied_total",
    ):
        assert f"# TYPE {name} " in text


@pytest.mark.slow
@pytest.mark.served
def test_served_they_go_up_by_exactly_the_queries_made_whoever_dies(serve, make_key):
    served = serve()  # two web workers
    sql = {"alias": "default", "vendor": "postgresql"}

    with CaptureQueriesContext(connection) as backlog:
        list(BacklogCollector().collect())  # what each scrape asks; it shows up in the next one
    scrapes = 0

    def scraped(name: str, **labels: str) -> float:
        nonlocal scrapes
        scrapes += 1
        return series(served, name, **labels)

    def executed() -> float:
        """Without what the scrapes asked."""
        return scraped("django_db_execute_total", **sql) - (scrapes - 1) * len(backlog)

    def have_started(number: int) -> bool:
        return sum(line["event"] == "migrations_counted" for line in served.lines()) == number

    def guess(times: int) -> None:
        for _ in range(times):
            r = served.detect(keys.make_key())
            assert r.status_code == 401

    with CaptureQueriesContext(connection) as look_up:
        authentication._look_up([keys.make_key()])
    wait_until(lambda: have_started(2))
    applied = len(MigrationLoader(connection).applied_migrations)
    assert scraped("django_migrations_applied_total", connection="default") == applied
    assert "django_migrations_unapplied_total" in httpx.get(f"{served.url}/metrics").text
    scrapes += 1
    assert scraped("django_migrations_unapplied_total", connection="default") == 0

    start = executed()
    assert start == executed() > 0  # a scrape asks for nothing else
    opened = scraped("django_db_new_connections_total", **sql)
    assert opened >= 2  # by two pools
    guess(6)
    assert executed() - start == 6 * len(look_up)
    observed = scraped("django_db_query_duration_seconds_count", **sql)
    assert observed - (scrapes - 1) * len(backlog) == executed()

    key = make_key(rate_limit_per_minute=1000)
    for _ in range(60):
        assert served.detect(key).status_code == 200
    # Each worker got to know the key once; no request but those asked for anything.
    assert executed() - start - 6 * len(look_up) <= 2 * len(look_up)
    assert scraped("django_db_new_connections_total", **sql) == opened  # loans are none

    total = executed()
    os.kill(served.web_workers()[0], signal.SIGKILL)
    wait_until(lambda: have_started(3))
    restarted = executed()
    assert restarted > total  # what the dead counted, and what the new one asked at its start
    guess(6)
    assert executed() - restarted == 6 * len(look_up)
    assert scraped("django_migrations_applied_total", connection="default") == applied

    looks = scraped("django_cache_get_total", backend="redis")
    httpx.get(f"{served.url}/health")
    assert scraped("django_cache_get_total", backend="redis") == looks + 1
    assert scraped("django_cache_get_misses_total", backend="redis") >= 1  # no worker beats
