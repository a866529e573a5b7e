"""What a gateway that nobody uses must not do: make anew what it has, keep what is over."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref

import pytest
from django.conf import settings as project
from django.urls import clear_url_caches, get_resolver, path
from drf_spectacular.generators import SchemaGenerator

from gateway_project.core import memory
from gateway_project.core.api import openapi
from gateway_project.server import lifespan

urlpatterns = [path("late", lambda request: None, name="late")]


def run_python(code: str, **environment: str) -> list[str]:
    """What `code` prints in a fresh process with no settings but these, word by word."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.BASE_DIR,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("is_old", [False, True], ids=["young", "of the oldest generation"])
def test_what_lies_in_cycles_does_not_wait_for_fifty_thousand_more(monkeypatch, is_old):
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    async def left_behind() -> None:
        gone = asyncio.Event()
        cycle = Cycle()
        left = weakref.ref(cycle, lambda _: gone.set())
        for generation in (0, 1) * is_old:
            gc.collect(generation)
        del cycle
        assert left() is not None
        collecting = asyncio.create_task(memory.collect_at_rest())
        async with asyncio.timeout(5):
            await gone.wait()
        collecting.cancel()

    monkeypatch.setattr(memory, "COLLECT_SECONDS", 0.01)
    gc.collect()  # what automatic collections come for begins anew
    asyncio.run(left_behind())


FREED = """
import os
from gateway_project.core import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytearray(2_000) for _ in range(20_000)]
above = bytearray(2_000)  # malloc gives back by itself what nothing lies above
del blocks
before = resident()
memory.give_back()
print(before - resident())
"""


@pytest.mark.skipif(memory.malloc_trim is None, reason="malloc_trim is glibc's")
def test_what_was_freed_goes_back_to_the_system():
    [given_back] = run_python(FREED)

    assert int(given_back) > 20e6  # of 40


ARENAS = """
import ctypes, tempfile, threading
import gateway_project

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def keep(barrier):
    blocks = [bytearray(2_000) for _ in range(100)]
    barrier.wait()

barrier = threading.Barrier(16)
threads = [threading.Thread(target=keep, args=[barrier]) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap "))
"""


@pytest.mark.skipif(memory.malloc_trim is None, reason="malloc_trim is glibc's")
def test_threads_share_what_malloc_keeps_for_them():
    [arenas] = run_python(ARENAS)

    assert int(arenas) <= 2


def test_the_api_document_is_made_once_for_any_number_of_readers(gateway, monkeypatch):
    made = []
    generate = SchemaGenerator.get_schema
    openapi._made.cache_clear()
    monkeypatch.setattr(
        SchemaGenerator, "get_schema", lambda *a, **k: made.append(1) or generate(*a, **k)
    )

    answers = gateway.at_once([{"method": "GET", "url": "/openapi.json"}] * 4)
    head = gateway.request("HEAD", "/openapi.json?version=9")

    assert len(made) == 1
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert head.status_code == 200
    assert head.headers["content-disposition"] == 'inline; filename="Gateway.json"'


def test_whoever_has_the_api_document_is_not_sent_it_again(gateway):
    first = gateway.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    again = gateway.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["content-encoding"] == "gzip"
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


def test_every_view_is_imported_before_objects_are_frozen(monkeypatch, settings):
    settings.ROOT_URLCONF = __name__
    clear_url_caches()
    imported = []
    monkeypatch.setattr(lifespan, "tune_gc", lambda: imported.append(get_resolver()._populated))
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    class Quick(lifespan.Process):
        async def start(self):
            pass

        async def stop(self):
            pass

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    asyncio.run(Quick().lifespan(receive, send))

    assert imported == [True]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("module", ["detection.engines.standin", "robin.standin.__main__"])
def test_a_stand_in_needs_no_django(module):
    packages = run_python(
        f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    )

    assert "aiohttp" in packages
    assert {"django", "celery", "gateway_project"}.isdisjoint(packages)


def test_a_web_process_loads_nothing_that_only_some_need():
    """Only where webhooks are sent; only where traces are. redis-py loads their SDK by itself."""
    modules = run_python("import sys, gateway_project.asgi; print(*sys.modules)")

    assert {"django.core.handlers.asgi", "detection.embedded"} <= set(modules)
    assert {"aiohttp", "opentelemetry.exporter"}.isdisjoint(modules)


def test_who_only_waits_needs_nothing_but_the_standard_library():
    packages = run_python(
        "import runpy, sys; before = set(sys.modules);"
        "runpy.run_path('gateway_project/server/local_supervisor.py');"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )

    assert "subprocess" in packages
    assert set(packages) <= sys.stdlib_module_names


@pytest.mark.parametrize("redis_url", ["", "redis://127.0.0.1:1/0"])
def test_without_redis_nobody_looks_into_its_stream(tmp_path, redis_url):
    names = run_python(
        "from gateway_project import settings; print(*settings.CELERY_BEAT_SCHEDULE);"
        "print(settings.CELERY_BEAT_SCHEDULE['deliver-webhooks']['schedule'])",
        VAR_DIR=str(tmp_path),
        REDIS_URL=redis_url,
    )

    assert ("drain-usage" in names) == bool(redis_url)
    assert float(names[-1]) == (1 if redis_url else 5)  # there events wake it themselves


def test_threads_keep_their_connection_to_sqlite(tmp_path):
    code = """if True:
        import django; django.setup()
        from django.db import close_old_connections, connection
        connection.ensure_connection()
        first = connection.connection
        close_old_connections()
        print(connection.vendor, connection.connection is first)
    """
    environment = {"DJANGO_SETTINGS_MODULE": "gateway_project.settings"}

    assert run_python(code, VAR_DIR=str(tmp_path), **environment) == ["sqlite", "True"]
