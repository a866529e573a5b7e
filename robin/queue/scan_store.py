"""What was last read of Robin's queue, kept for all processes: in Redis, or in the only one.

The queue is kept in parts, as Robin gives it: a thousand items each (`ALL:0`, `ALL:1`, …), and the
uids of those that are claimed or dead (`CLAIMED:0`, `DEAD:0`, …). What is kept is compressed, so
that fifty thousand items take some three megabytes; of each part a few figures stand beside it.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Awaitable, Collection, Mapping
from threading import Lock
from typing import Any, NamedTuple, Protocol

import orjson
from django.conf import settings

from gateway_project.core.stores.addresses import async_client
from gateway_project.core.stores.caching import SingleFlight
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.telemetry.logging import get_logger

VERSION = 1
KEEP_SECONDS = 86_400
ACTED_SECONDS = 900
"""Longer than a list that was under way when somebody acted may take."""
PREFIX = "gw:queue:{live}:scan:"  # one slot of a cluster
SIZES, TROUBLE = "sizes", "trouble"
REVISION = "rev"
"""In the facts of a part: another one for each content that was kept."""
log = get_logger("gateway.live")
Facts = dict[str, Any]


class Part(NamedTuple):
    """`at`: Unix seconds, when Robin was asked. `total`: of all parts of its kind."""

    at: float
    total: int
    items: list[Any]
    """Items as `/api/v1/queue/json` shows them, but for their state; uids of the other kinds."""
    is_amended: bool = False
    """By what somebody did since: Robin did not say all of it."""

    def packed(self) -> bytes:
        content = {"v": VERSION, "at": self.at, "total": self.total, "items": self.items}
        content["amended"] = self.is_amended
        return zlib.compress(orjson.dumps(content), 1)

    @classmethod
    def unpacked(cls, content: bytes | None) -> Part | None:
        """None for nothing, and for what another version wrote."""
        if content is None:
            return None
        try:
            raw = orjson.loads(zlib.decompress(content))
            if raw["v"] != VERSION:
                return None
            is_amended = bool(raw.get("amended"))
            return cls(float(raw["at"]), int(raw["total"]), list(raw["items"]), is_amended)
        except (zlib.error, *UNFIT) as exc:
            log.error("queue_part_unreadable", error=type(exc).__name__)
            return None


class ScanStore(Protocol):
    """Every call may raise `redis.RedisError` or `OSError`."""

    async def facts(self) -> Mapping[str, Facts]:
        """By part what is known of it; beside them `SIZES` and `TROUBLE`, if there are such."""
        ...

    async def parts(self, names: Collection[str]) -> dict[str, bytes]: ...

    async def put(self, name: str, facts: Facts, content: bytes | None = None) -> None: ...

    async def replace(self, name: str, old: bytes, new: bytes, facts: Facts) -> bool:
        """False, and nothing is done, where another is kept by now."""
        ...

    async def drop(self, names: Collection[str]) -> None: ...

    async def acted(self, uids: Mapping[str, str]) -> None:
        """Remember for a while what was done to these: uid → action and Unix seconds."""
        ...

    async def acts(self, uids: Collection[str]) -> dict[str, str]: ...

    async def close(self) -> None: ...


REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[5])
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
return 1
"""


class RedisScanStore:
    def __init__(self, url: str) -> None:
        self._redis: Any = async_client(url, socket_timeout=2, socket_connect_timeout=1)
        self._facts, self._acts = PREFIX + "facts", PREFIX + "acts"
        self._asking: SingleFlight[int, Mapping[str, Facts]] = SingleFlight()
        self._writes = 0

    async def facts(self) -> Mapping[str, Facts]:
        # All pages of a moment ask the same; but what this process has written, it sees.
        return await self._asking.do(self._writes, self._ask_for_facts)

    async def _ask_for_facts(self) -> Mapping[str, Facts]:
        found = await self._redis.hgetall(self._facts)
        return _read_facts({name.decode(): content for name, content in found.items()})

    async def parts(self, names: Collection[str]) -> dict[str, bytes]:
        ordered = list(names)
        if not ordered:
            return {}
        found = await self._redis.mget([PREFIX + name for name in ordered])
        pairs = zip(ordered, found, strict=True)
        return {name: content for name, content in pairs if content is not None}

    async def put(self, name: str, facts: Facts, content: bytes | None = None) -> None:
        pipeline = self._redis.pipeline(transaction=True)
        if content is not None:
            pipeline.set(PREFIX + name, content, ex=KEEP_SECONDS)
            facts = _revised(facts)
        pipeline.hset(self._facts, name, orjson.dumps(facts))
        pipeline.expire(self._facts, KEEP_SECONDS)
        await self._written(pipeline.execute())

    async def replace(self, name: str, old: bytes, new: bytes, facts: Facts) -> bool:
        values = (old, new, name, orjson.dumps(_revised(facts)), KEEP_SECONDS)
        keys = PREFIX + name, self._facts
        return bool(await self._written(self._redis.eval(REPLACE, len(keys), *keys, *values)))

    async def drop(self, names: Collection[str]) -> None:
        if not names:
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hdel(self._facts, *names)
        pipeline.delete(*(PREFIX + name for name in names))
        await self._written(pipeline.execute())

    async def acted(self, uids: Mapping[str, str]) -> None:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(self._acts, mapping=dict(uids))
        pipeline.expire(self._acts, ACTED_SECONDS)
        await pipeline.execute()

    async def acts(self, uids: Collection[str]) -> dict[str, str]:
        ordered = list(uids)
        if not ordered:
            return {}
        found = await self._redis.hmget(self._acts, ordered)
        pairs = zip(ordered, found, strict=True)
        return {uid: text.decode() for uid, text in pairs if text is not None}

    async def _written(self, writing: Awaitable[Any]) -> Any:
        try:
            return await writing
        finally:
            self._writes += 1

    async def close(self) -> None:
        await self._asking.cancel_all()
        await self._redis.aclose()


class _Local:
    """What the threads of the only process share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.facts: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.acts: dict[str, str] = {}


class LocalScanStore:
    async def facts(self) -> Mapping[str, Facts]:
        with _local.lock:
            return _read_facts(dict(_local.facts))

    async def parts(self, names: Collection[str]) -> dict[str, bytes]:
        with _local.lock:
            return {name: _local.parts[name] for name in names if name in _local.parts}

    async def put(self, name: str, facts: Facts, content: bytes | None = None) -> None:
        with _local.lock:
            if content is not None:
                _local.parts[name] = content
                facts = _revised(facts)
            _local.facts[name] = orjson.dumps(facts)

    async def replace(self, name: str, old: bytes, new: bytes, facts: Facts) -> bool:
        with _local.lock:
            if _local.parts.get(name) != old:
                return False
            _local.parts[name], _local.facts[name] = new, orjson.dumps(_revised(facts))
            return True

    async def drop(self, names: Collection[str]) -> None:
        with _local.lock:
            for name in names:
                _local.facts.pop(name, None)
                _local.parts.pop(name, None)

    async def acted(self, uids: Mapping[str, str]) -> None:
        with _local.lock:
            if len(_local.acts) > ACTS_MAX:
                _local.acts.clear()
            _local.acts.update(uids)

    async def acts(self, uids: Collection[str]) -> dict[str, str]:
        with _local.lock:
            return {uid: _local.acts[uid] for uid in uids if uid in _local.acts}

    async def close(self) -> None:
        """Nothing is held."""


ACTS_MAX = 100_000
_local = _Local()


def _revised(facts: Facts) -> Facts:
    return {**facts, REVISION: secrets.token_hex(8)}


def _read_facts(found: Mapping[str, bytes]) -> dict[str, Facts]:
    answer = {}
    for name, content in found.items():
        try:
            facts = orjson.loads(content)
            answer[name] = {**facts, "at": float(facts["at"])}
        except UNFIT as exc:
            log.error("queue_facts_unreadable", error=type(exc).__name__)
    return answer


def make_scan_store() -> ScanStore:
    return RedisScanStore(settings.REDIS_URL) if settings.REDIS_URL else LocalScanStore()


def forget() -> None:
    _local.__init__()  # type: ignore[misc]
