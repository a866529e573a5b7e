"""Rate limits: one atomic decision over all policies of a caller.

A policy is a sliding window cut into buckets. A bucket counts until the whole of it is older than
the window, so **never more than `limit` pass in any window** (published overshoot: 0 %); the price
is that a place comes back up to one bucket late (half a second for the minute). A day quota is the
same with a single bucket: it starts anew at midnight UTC.

A denied request consumes nothing, of any policy, and a request that was refused for another reason
is given its day back. The clock is Redis' own `TIME`, so that workers and hosts agree.
`MemoryLimiter` is the twin for one process; both pass the same tests. `denials` remembers who was
refused, so that whoever goes on asking meanwhile costs neither a trip nor any other work.

When Redis is away, each policy says what happens (`on_failure`): `local` counts in this process,
`open` lets pass, `closed` refuses with 503. Every such decision is counted, and `degraded` shows
in `/health/ready`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol

from cachetools import LRUCache
from django.conf import settings
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway_project.core import clock, errors
from gateway_project.core.stores import redis
from gateway_project.core.stores.caching import TTLCache, ignore
from gateway_project.core.stores.redis import PipelinedConnection, RedisUnavailable, pack
from gateway_project.core.telemetry.metrics import rate_limit_degraded, rate_limit_exceeded

Failure = Literal["local", "open", "closed"]

MINUTE_BUCKET_MS = 500
MEMORY_SUBJECTS_MAX = 20_000
CLAIMS_BYTES_MAX, CLAIM_BYTES = 8 << 20, 400
BUCKETS_PER_SUBJECT = 16
"""A window of more buckets counts as several subjects; all together take some 40 MB at most."""
DENIALS_MAX = 20_000
FREE_CALLS_PER_MINUTE = 600
COMMANDS_MAX = 4  # of a caller's that are remembered: batches have many costs


@dataclass(frozen=True, slots=True)
class Policy:
    """`limit` units in `window_seconds` for one `subject`.

    `subject` begins with the tenant in braces (`{workspace}`), so that all policies of a request
    lie in one slot of a Redis cluster.
    """

    name: str
    subject: str
    limit: int
    window_seconds: int
    bucket_ms: int
    buckets: int
    on_failure: Failure = "local"

    @property
    def key(self) -> str:
        return f"rl:{self.subject}:{self.name}"

    @property
    def is_daily(self) -> bool:
        return self.window_seconds >= 86_400


def per_minute(name: str, subject: str, limit: int, on_failure: Failure = "local") -> Policy:
    # One bucket more than the window holds: the oldest counts until all of it has left.
    return Policy(
        name, subject, limit, 60, MINUTE_BUCKET_MS, 60_000 // MINUTE_BUCKET_MS + 1, on_failure
    )


def per_hour(name: str, subject: str, limit: int, on_failure: Failure = "local") -> Policy:
    return Policy(name, subject, limit, 3600, 60_000, 61, on_failure)


def per_day(name: str, subject: str, limit: int, on_failure: Failure = "local") -> Policy:
    return Policy(name, subject, limit, 86_400, 86_400_000, 1, on_failure)


class Policies(tuple[Policy, ...]):
    """All of one caller. What follows from them alone is made once, and not for each request."""

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        self._commands: dict[tuple[int, ...], bytes] = {}
        self._costs: dict[tuple[int, int], tuple[int, ...]] = {}

    def costs(self, minute_cost: int, day_cost: int) -> tuple[int, ...]:
        """Of each, for a request that costs so much of a minute and of a day."""
        asked = minute_cost, day_cost
        costs = self._costs.get(asked)
        if costs is None:
            costs = tuple(day_cost if policy.is_daily else minute_cost for policy in self)
            if len(self._costs) < COMMANDS_MAX:
                self._costs[asked] = costs
        return costs

    def command(self, costs: tuple[int, ...]) -> bytes:
        """The limiter's, packed."""
        command = self._commands.get(costs)
        if command is None:
            command = _command(self, costs, 0)
            if len(self._commands) < COMMANDS_MAX:
                self._commands[costs] = command
        return command

    @cached_property
    def header(self) -> bytes:
        """`RateLimit-Policy`."""
        return _policy_header(self)


class State(NamedTuple):
    """One policy after the decision. `reset_seconds`: until all of `limit` is back."""

    name: str
    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int


class Decision(NamedTuple):
    """`denied` names the policy that refused; then `retry_after_seconds` is > 0.

    `degraded` names the policies that were decided without Redis. `wait_ms` is how long nothing of
    that cost can pass, exactly.
    """

    states: tuple[State, ...]
    denied: str | None = None
    retry_after_seconds: int = 0
    degraded: tuple[str, ...] = ()
    wait_ms: int = 0
    policy_header: bytes = b""

    def headers(self) -> list[tuple[str, str]]:
        """`raw_headers` as Django and people write them."""
        return [(HEADERS[name], value.decode()) for name, value in self.raw_headers()]

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The IETF pair (draft-ietf-httpapi-ratelimit-headers-10, as lists) and the older triple.

        The triple describes the policy nearest to its end; its Reset is in seconds from now.
        """
        if not self.states:
            return []
        left = [f'"{s.name}";r={s.remaining};t={s.reset_seconds}' for s in self.states]
        tight = self._tightest()
        return [
            (b"ratelimit", ", ".join(left).encode()),
            (b"ratelimit-policy", self.policy_header or _policy_header(self.states)),
            (b"x-ratelimit-limit", b"%d" % tight.limit),
            (b"x-ratelimit-remaining", b"%d" % tight.remaining),
            (b"x-ratelimit-reset", b"%d" % tight.reset_seconds),
        ]

    def _tightest(self) -> State:
        tightest, least = self.states[0], math.inf
        for state in self.states:
            if state.name == self.denied:
                return state
            share = state.remaining / (state.limit or 1)
            if share < least:
                tightest, least = state, share
        return tightest

    def raise_if_denied(self) -> None:
        """Raise the 429 (or, for a closed policy without its store, the 503) of this decision."""
        if self.denied is None:
            return
        if self.denied in self.degraded and not self.retry_after_seconds:
            raise errors.StoreUnavailable(
                "The store that counts this limit is away and its policy is to refuse meanwhile. "
                "Try again shortly."
            )
        state = next(s for s in self.states if s.name == self.denied)
        rate_limit_exceeded.labels(self.denied).inc()
        kind = errors.QuotaExceeded if state.window_seconds >= 86_400 else errors.RateLimited
        wait = self.retry_after_seconds
        raise kind(
            f"The limit '{state.name}' of {state.limit} per {_window(state.window_seconds)} is "
            f"used up. Try again in {wait} seconds.",
            headers={"Retry-After": str(wait)},
        )


HEADERS = {
    b"ratelimit": "RateLimit",
    b"ratelimit-policy": "RateLimit-Policy",
    b"x-ratelimit-limit": "X-RateLimit-Limit",
    b"x-ratelimit-remaining": "X-RateLimit-Remaining",
    b"x-ratelimit-reset": "X-RateLimit-Reset",
}


def _policy_header(known: Iterable[Policy | State]) -> bytes:
    return ", ".join(f'"{p.name}";q={p.limit};w={p.window_seconds}' for p in known).encode()


def _window(seconds: int) -> str:
    return {60: "minute", 3600: "hour", 86_400: "day"}.get(seconds, f"{seconds} s")


class Claim(NamedTuple):
    """A request that may be sent again. `key` begins as a policy's subject does, with the tenant.

    `value` lies there while it is being served, `seconds` at most; then what it was answered.
    """

    key: str
    value: bytes
    seconds: int


class Limiter(Protocol):
    async def check(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        """Take `costs[i]` units of `policies[i]`, all or none. Cost 0 only reads.

        A cost below 0 gives back what was taken just now: of the bucket in hand, and no more than
        is in it.
        """
        ...

    def check_sync(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision: ...

    async def check_once(
        self, policies: Sequence[Policy], costs: Sequence[int], claim: Claim
    ) -> tuple[Decision, bytes | None]:
        """`check`, and what lies at the claim's key already; the claim is laid there otherwise.

        Where something lies nothing of a day is taken: one of many at once pays. One trip.
        """
        ...

    def put(self, key: str, value: bytes | None, seconds: int) -> None:
        """Lay it where a claim was, None: nothing. Nobody waits for it."""
        ...


# Per policy: HASH {t: total, h: oldest bucket that may count, l: latest bucket, <bucket>: units}.
# `h` walks forward as buckets leave, so the work is one step per elapsed bucket at most.
SCRIPT = """
local now = tonumber(ARGV[1])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local out, rows, denied, wait = {0, 0, now}, {}, 0, 0
for i = 1, #KEYS do
  local a = 1 + (i - 1) * 4
  local limit, size = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local span, cost = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local bucket = math.floor(now / size)
  local got = redis.call('HMGET', KEYS[i], 't', 'h', 'l', bucket)
  local total, head = tonumber(got[1]) or 0, tonumber(got[2]) or bucket
  local last, here = tonumber(got[3]) or bucket, tonumber(got[4]) or 0
  if total > 0 and (last <= bucket - span or last > bucket + span) then
    redis.call('DEL', KEYS[i])
    total, head, last, here = 0, bucket, bucket, 0
  elseif head <= bucket - span then
    while head <= bucket - span do
      local c = redis.call('HGET', KEYS[i], head)
      if c then
        total = total - c
        redis.call('HDEL', KEYS[i], head)
      end
      head = head + 1
    end
    redis.call('HSET', KEYS[i], 't', total, 'h', head)
  end
  if total + cost > limit then
    local need, w = total + cost - limit, size * span
    if cost > 0 and cost <= limit then
      local freed = 0
      for b = head, last do
        freed = freed + (tonumber(redis.call('HGET', KEYS[i], b)) or 0)
        if freed >= need then w = (b + span) * size - now break end
      end
    end
    if cost > 0 and w > wait then denied, wait = i, w end
  end
  rows[i] = {total, head, last, here, bucket, size, span, cost}
end
for i = 1, #KEYS do
  local r = rows[i]
  local total, head, last = r[1], r[2], r[3]
  if denied == 0 and r[8] > 0 then
    if total == 0 then head = r[5] end
    total, last = total + r[8], r[5]
    redis.call('HSET', KEYS[i], 't', total, 'h', head, 'l', last, r[5], r[4] + r[8])
    if r[4] == 0 then redis.call('PEXPIRE', KEYS[i], r[6] * (r[7] + 1)) end
  elseif denied == 0 and r[8] < 0 and r[4] > 0 then
    local back = math.min(-r[8], r[4])
    total = total - back
    redis.call('HSET', KEYS[i], 't', total, r[5], r[4] - back)
  end
  out[#out + 1] = total
  out[#out + 1] = (total > 0) and ((last + r[7]) * r[6] - now) or 0
end
out[1], out[2] = denied, wait
return out
"""
# The same with a claim as the last key and its value and seconds as the last arguments.
ONCE = "local before = redis.call('GET', KEYS[#KEYS])\n" + SCRIPT.replace(
    "#KEYS", "#KEYS - 1"
).replace(
    "  local bucket = math.floor",
    "  if before and size == 86400000 then cost = 0 end\n  local bucket = math.floor",
).replace(
    "out[1], out[2] = denied, wait\nreturn out",
    "out[1], out[2] = denied, wait\n"
    "if denied == 0 and not before then\n"
    "  redis.call('SET', KEYS[#KEYS], ARGV[#ARGV - 1], 'EX', ARGV[#ARGV])\n"
    "end\n"
    "return {out, before}",
)


def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


SHA, SHA_ONCE = _sha(SCRIPT), _sha(ONCE)
_LOAD, _LOAD_ONCE = pack("SCRIPT", "LOAD", SCRIPT), pack("SCRIPT", "LOAD", ONCE)


def _command(policies: Sequence[Policy], costs: Sequence[int], now_ms: int) -> bytes:
    names, numbers = _arguments(policies, costs, now_ms)
    return pack("EVALSHA", SHA, len(policies), *names, *numbers)


def _arguments(
    policies: Sequence[Policy], costs: Sequence[int], now_ms: int
) -> tuple[list[str], list[int]]:
    """The script's keys and arguments."""
    numbers = [now_ms]
    for policy, cost in zip(policies, costs, strict=True):
        numbers += (policy.limit, policy.bucket_ms, policy.buckets, cost)
    return [policy.key for policy in policies], numbers


def _decision(policies: Sequence[Policy], reply: Sequence[int]) -> Decision:
    denied, wait = reply[0], reply[1]
    states = tuple(
        [
            State(
                policy.name,
                policy.limit,
                max(0, policy.limit - reply[3 + 2 * i]),
                max(0, reply[4 + 2 * i] // 1000),
                policy.window_seconds,
            )
            for i, policy in enumerate(policies)
        ]
    )
    if denied:
        seconds = max(1, math.ceil(wait / 1000))
        return Decision(states, policies[denied - 1].name, seconds, wait_ms=wait)
    return Decision(
        states, policy_header=policies.header if isinstance(policies, Policies) else b""
    )


class MemoryLimiter:
    """The same arithmetic in this process: for one process, and while Redis is away."""

    def __init__(self, now: Callable[[], float] = clock.time) -> None:
        self._now = now
        self._lock = Lock()
        # key -> (latest bucket, {bucket: units}). Hostile variety of subjects must not grow without
        # bound, and a minute may have 121 buckets where a day has one. Who goes on asking is never
        # the one that is forgotten. That order costs some 5 µs a check, which only processes
        # without Redis pay.
        self._windows: LRUCache[str, tuple[int, dict[int, int]]] = LRUCache(
            MEMORY_SUBJECTS_MAX, getsizeof=lambda window: 1 + len(window[1]) // BUCKETS_PER_SUBJECT
        )
        self._claims: TTLCache[str, bytes] = TTLCache(
            CLAIMS_BYTES_MAX, size_of=lambda value: CLAIM_BYTES + len(value)
        )

    async def check(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        return self.check_sync(policies, costs)

    async def check_once(
        self, policies: Sequence[Policy], costs: Sequence[int], claim: Claim
    ) -> tuple[Decision, bytes | None]:
        before = self._claims.get(claim.key)
        if before is not None:
            costs = [
                0 if policy.is_daily else cost for policy, cost in zip(policies, costs, strict=True)
            ]
        decision = self.check_sync(policies, costs)
        if before is None and decision.denied is None:
            self._claims.put(claim.key, claim.value, seconds=claim.seconds)
        return decision, before

    def put(self, key: str, value: bytes | None, seconds: int) -> None:
        if value is None:
            self._claims.drop(key)
        else:
            self._claims.put(key, value, seconds=seconds)

    def check_sync(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        now = int(self._now() * 1000)
        with self._lock:
            rows, denied, wait = [], 0, 0
            for i, (policy, cost) in enumerate(zip(policies, costs, strict=True), 1):
                size, span = policy.bucket_ms, policy.buckets
                bucket = now // size
                counts = self._live(policy.key, bucket, span)
                total = sum(counts.values())
                if cost > 0 and total + cost > policy.limit:
                    needed_ms = self._wait_ms(
                        counts, total + cost - policy.limit, policy, cost, now
                    )
                    if needed_ms > wait:
                        denied, wait = i, needed_ms
                rows.append((policy, cost, bucket, counts, total))
            reply = [denied, wait, now]
            for policy, cost, bucket, counts, total in rows:
                if not denied and cost:
                    taken = max(cost, -counts.get(bucket, 0))
                    counts[bucket] = counts.get(bucket, 0) + taken
                    total += taken
                    self._windows[policy.key] = (bucket, counts)
                reset = (max(counts) + policy.buckets) * policy.bucket_ms - now if total else 0
                reply += [total, reset]
            return _decision(policies, reply)

    def _live(self, key: str, bucket: int, span: int) -> dict[int, int]:
        try:  # not `get`, which looks twice
            last, counts = self._windows[key]
        except KeyError:
            return {}
        if last > bucket + span:  # the clock was set back: what it counted means nothing now
            return {}
        return {b: units for b, units in counts.items() if b > bucket - span}

    @staticmethod
    def _wait_ms(counts: dict[int, int], need: int, policy: Policy, cost: int, now: int) -> int:
        if cost <= policy.limit:
            freed = 0
            for b in sorted(counts):
                freed += counts[b]
                if freed >= need:
                    return (b + policy.buckets) * policy.bucket_ms - now
        return policy.bucket_ms * policy.buckets


class RedisLimiter:
    """All policies in one script call; falls back by each policy's `on_failure`.

    `pipe` serves the event loop, `client` (a synchronous redis-py client) the control plane.
    """

    def __init__(
        self,
        pipe: Callable[[], PipelinedConnection],
        client: Callable[[], Any],
        now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._pipe = pipe
        self._client = client
        self._now_ms = now_ms
        self.local = MemoryLimiter()
        self.degraded_since: float | None = None

    async def check(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        now_ms = self._now_ms()
        if isinstance(policies, Policies) and not now_ms:
            command = policies.command(tuple(costs))
        else:
            command = _command(policies, costs, now_ms)
        try:
            reply = await self._run(command, _LOAD)
        except (RedisUnavailable, ResponseError):
            return self._without_redis(policies, costs)
        self.degraded_since = None
        return _decision(policies, reply)

    async def _run(self, command: bytes, load: bytes) -> Any:
        pipe = self._pipe()
        try:
            return await pipe.submit(command)
        except NoScriptError:
            # Redis was restarted or flushed; both leave in one batch.
            loaded, answer = pipe.submit(load), pipe.submit(command)
            _, reply = await asyncio.gather(loaded, answer)
            return reply

    async def check_once(
        self, policies: Sequence[Policy], costs: Sequence[int], claim: Claim
    ) -> tuple[Decision, bytes | None]:
        now_ms = self._now_ms()
        names, numbers = _arguments(policies, costs, now_ms)
        head: list[str | int] = ["EVALSHA", SHA_ONCE, len(policies) + 1]
        command = pack(*head, *names, claim.key, *numbers, claim.value, claim.seconds)
        try:
            reply = await self._run(command, _LOAD_ONCE)
        except (RedisUnavailable, ResponseError):
            # Who comes again is not known then, and pays again.
            return self._without_redis(policies, costs), None
        self.degraded_since = None
        return _decision(policies, reply[0]), reply[1] if len(reply) > 1 else None

    def put(self, key: str, value: bytes | None, seconds: int) -> None:
        command = pack("DEL", key) if value is None else pack("SET", key, value, "EX", seconds)
        self._pipe().submit(command).add_done_callback(ignore)

    def check_sync(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        client = self._client()
        names, numbers = _arguments(policies, costs, self._now_ms())
        arguments = [*names, *numbers]
        try:
            try:
                reply = client.evalsha(SHA, len(policies), *arguments)
            except NoScriptError:
                reply = client.eval(SCRIPT, len(policies), *arguments)
        except (RedisError, OSError):
            return self._without_redis(policies, costs)
        self.degraded_since = None
        return _decision(policies, reply)

    def _without_redis(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision:
        self.degraded_since = self.degraded_since or monotonic()
        names = tuple(policy.name for policy in policies)
        for name in names:
            rate_limit_degraded.labels(name).inc()
        for policy, cost in zip(policies, costs, strict=True):
            if policy.on_failure == "closed" and cost:  # what costs nothing is never refused
                return Decision(self._full(policies), policy.name, 0, names)
        counted = [(p, c) for p, c in zip(policies, costs, strict=True) if p.on_failure == "local"]
        local = self.local.check_sync([p for p, _ in counted], [c for _, c in counted])
        by_name = {state.name: state for state in local.states}
        states = tuple(by_name.get(state.name, state) for state in self._full(policies))
        return Decision(states, local.denied, local.retry_after_seconds, names)

    @staticmethod
    def _full(policies: Sequence[Policy]) -> tuple[State, ...]:
        return tuple(State(p.name, p.limit, p.limit, 0, p.window_seconds) for p in policies)


class Denials:
    """Who was refused, until when and for how much; of this process, without asking anybody.

    What was refused stays refused until places come back, so remembering it changes no decision:
    it only comes before the work. A policy whose limit was raised is another policy.
    """

    def __init__(self) -> None:
        self._known: TTLCache[Policy, tuple[int, float, Decision]] = TTLCache(DENIALS_MAX)

    def note(self, policies: Sequence[Policy], costs: Sequence[int], decision: Decision) -> None:
        if decision.denied is None or not decision.wait_ms or decision.degraded:
            return
        for policy, cost in zip(policies, costs, strict=True):
            if policy.name == decision.denied:
                seconds = decision.wait_ms / 1000
                self._known.put(policy, (cost, monotonic() + seconds, decision), seconds=seconds)

    def __len__(self) -> int:
        return len(self._known)

    def of(self, policies: Sequence[Policy], costs: Sequence[int]) -> Decision | None:
        """The refusal that a request of these costs would meet; None: it has to be asked."""
        for policy, cost in zip(policies, costs, strict=True):
            known = self._known.get(policy)
            if known is not None and cost >= known[0] > 0:
                left = max(1, math.ceil(known[1] - monotonic()))
                return known[2]._replace(retry_after_seconds=left)
        return None

    def clear(self) -> None:
        self._known.clear()


denials = Denials()

_limiter: Limiter | None = None


def get_limiter() -> Limiter:
    """This process' limiter: on Redis where `REDIS_URL` is set, else in memory."""
    global _limiter
    if _limiter is None:
        _limiter = (
            RedisLimiter(redis.connection, redis.client) if settings.REDIS_URL else MemoryLimiter()
        )
    return _limiter


def network_of(address: str) -> str:
    """What counts as one address wherever addresses are counted.

    Of IPv6 that is the /64, which is what one subscriber gets. An IPv4 address in IPv6's notation
    (`::ffff:192.0.2.1`) is the IPv4 address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, ipaddress.IPv6Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), 64), strict=False).network_address)


def address_subject(address: str) -> str:
    """The subject of a policy that counts calls by their address."""
    return f"{{ip:{network_of(address)}}}"


def ip_policy(address: str) -> Policy:
    """The limit on unauthenticated and failed calls of one address."""
    return per_minute("ip", address_subject(address), settings.RATE_LIMIT_PER_MINUTE)


def free_policy(policy: Policy) -> Policy:
    """Of calls that cost nothing, beside a minute's policy: they never wait for those that do, and
    one key cannot keep the database busy with them either."""
    return replace(policy, name="free", limit=FREE_CALLS_PER_MINUTE)


def refusals_policy(policy: Policy) -> Policy:
    """How many bodies that are refused unread a minute's policy lets through.

    They cost nothing of the minute itself, and reading them costs us more than answering many.
    """
    return replace(policy, name="refused")


def pages_policy(address: str) -> Policy:
    """The limit on pages of one address, whoever is signed in there."""
    return per_minute("pages", address_subject(address), settings.PAGES_PER_MINUTE)


async def refuse_used_up(policy: Policy) -> None:
    """Raise the 429 of a policy that has nothing left, without taking anything of it."""
    _refuse_empty(await get_limiter().check((policy,), (0,)))


def refuse_used_up_sync(policy: Policy) -> None:
    """The same in a thread of the control plane."""
    _refuse_empty(get_limiter().check_sync((policy,), (0,)))


def _refuse_empty(decision: Decision) -> None:
    state = decision.states[0]
    if state.remaining > 0:
        return
    denied = decision._replace(denied=state.name, retry_after_seconds=max(1, state.reset_seconds))
    try:
        denied.raise_if_denied()
    except errors.GatewayError as error:
        error.headers.update(denied.headers())
        raise
