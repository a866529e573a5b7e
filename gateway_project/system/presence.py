"""Which processes of the installation live, and which secrets and settings each of them has.

Each writes a note into one hash in Redis every `EVERY_SECONDS`, in which a secret is a fingerprint
of 32 bits: enough to tell two apart, too little to find one. `manage.py secrets` and the doctor
read it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from random import uniform
from typing import Any

import orjson
from celery import bootsteps
from celery.concurrency import prefork
from celery.concurrency.base import BasePool
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from gateway_project.core import clock
from gateway_project.core.stores import database, redis
from gateway_project.core.telemetry.logging import get_logger

PROCESSES = "gw:processes"
EVERY_SECONDS = 10.0
GONE_SECONDS = 35.0
VERSION = 1
SECRETS = ("SECRET_KEY", "KEY_PEPPERS", "FIELD_ENCRYPTION_KEYS", "JWT_SECRET")
OF_A_HOST = frozenset(
    {
        *("HOST", "PORT", "WORKERS", "VAR_DIR", "EMBEDDED_WORKER", "DRAIN_SECONDS"),
        *("SERVER_CLOSE_FILTER", "LOG_LEVEL", "LOG_FORMAT", "TRACING", "METRICS_TOKEN"),
        *("DATABASE_POOL_MAX", "NETWORK_PLACES_MAX", "BACKUP_RECIPIENTS", "BACKUP_IDENTITY"),
    }
)
"""Settings in which processes of one installation may differ."""
log = get_logger("gateway.process")


@dataclass(frozen=True, slots=True)
class Process:
    """`knows`: by setting the fingerprints of its secrets, the one in front first. `settings`: one
    of each other setting. `files`, `connections`: how many it may open, of files and to the
    database; 0: it did not say."""

    name: str
    role: str
    version: str
    knows: Mapping[str, Sequence[str]]
    settings: Mapping[str, str]
    files: int
    connections: int

    @property
    def host(self) -> str:
        return self.name.partition("/")[0]


def fingerprint(setting: str, secret: str | bytes) -> str:
    raw = secret if isinstance(secret, bytes) else secret.encode()
    return blake2b(raw, digest_size=4, key=setting.encode()[:64]).hexdigest()


def own_secrets() -> dict[str, list[str]]:
    found: dict[str, Sequence[str | bytes]] = {
        "SECRET_KEY": [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS],
        "KEY_PEPPERS": [pepper for _, pepper in settings.KEY_PEPPERS.by_version],
        "FIELD_ENCRYPTION_KEYS": settings.FIELD_ENCRYPTION_KEYS,
        "JWT_SECRET": [settings.JWT_SECRET, *settings.JWT_SECRET_FALLBACKS],
    }
    return {name: [fingerprint(name, one) for one in secrets] for name, secrets in found.items()}


def own_settings() -> dict[str, str]:
    """Of all but the secrets above, and what each host or role has of its own."""
    return {
        name: fingerprint(name, repr(asked.value))
        for name, asked in settings.ENVIRONMENT_ASKED.items()
        if name not in OF_A_HOST and not name.startswith(SECRETS)
    }


def _me() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _note(role: str, connections: int = 0) -> bytes:
    facts = {
        "role": role,
        "version": settings.VERSION,
        "knows": own_secrets(),
        "settings": own_settings(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "connections": connections,
    }
    return orjson.dumps({"v": VERSION, "at": clock.time(), **facts})


def living() -> list[Process]:
    """Those that wrote lately, by name; the others' notes are dropped. Raises redis-py's errors."""
    found, client = [], redis.client()
    for field, raw in client.hgetall(PROCESSES).items():
        note = orjson.loads(raw)
        if clock.time() - note["at"] > GONE_SECONDS:
            client.hdel(PROCESSES, field)
        else:  # of whatever version: what is read here every version has
            name, facts = field.decode(), (note["role"], note["version"], note["knows"])
            more = (note.get("settings", {}), note.get("files", 0), note.get("connections", 0))
            found.append(Process(name, *facts, *more))
    return sorted(found, key=lambda process: process.name)


async def announce_web() -> None:
    """For as long as this process serves; keeps its clock right, too."""
    try:
        while True:
            note = _note("web", database.web_max())
            redis.send_behind(redis.pack("HSET", PROCESSES, _me(), note))
            await asyncio.sleep(EVERY_SECONDS * uniform(0.8, 1.0))  # not in step with others
            try:
                await database.run_behind(database.learn_time)
            except DatabaseError as exc:
                log.info("time_not_learned", error=type(exc).__name__)
    finally:
        redis.send_behind(redis.pack("HDEL", PROCESSES, _me()))


def connections_of(pool: BasePool) -> int:
    """A child has one, and so has the timer of their parent; threads share the process's pool."""
    is_forked = isinstance(pool, prefork.TaskPool)
    return pool.num_processes + 1 if is_forked else database.pool_max()


class WorkerPresence(bootsteps.StartStopStep):
    """The same for a Celery worker, in the turns of its timer."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._timer: Any = None

    def include_if(self, consumer: Any) -> bool:
        return bool(settings.REDIS_URL)

    def start(self, consumer: Any) -> None:
        self._announce(consumer.pool)
        self._timer = consumer.timer.call_repeatedly(
            EVERY_SECONDS, self._announce, (consumer.pool,)
        )

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with suppress(RedisError, OSError):  # else others drop it when it is old
            redis.client().hdel(PROCESSES, _me())

    def _announce(self, pool: BasePool) -> None:
        try:
            redis.client().hset(PROCESSES, _me(), _note("worker", connections_of(pool)))
            database.learn_time()
        except (RedisError, OSError, DatabaseError) as exc:
            log.info("process_unannounced", error=type(exc).__name__)
