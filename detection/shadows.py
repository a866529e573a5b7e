"""A shadow engine sees a share of a key's texts behind the answers, and never changes one.

So an operator learns on the traffic itself what another engine would say, how long it takes and
what it costs (`ledger`). It is the first to stop: nothing is sent to it while this process has
much to do, while anybody waits for an engine, or while enough shadow calls are under way: its
workspace's among them, so that one whose shadow hangs leaves places to the others.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from django.conf import settings

from detection.content_types import ContentType
from detection.engines import registry
from detection.engines.addresses import LOCAL
from detection.engines.engine import Engine, EngineUnavailable
from detection.engines.scores import Score, Spent
from detection.ledger import Role, Sums, ledger
from detection.models import Disagreement
from gateway_project.core.context import RequestContext
from gateway_project.core.sharing import SharedBudget
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import shadow_total

if TYPE_CHECKING:
    from detection.policies.policy import DetectionPolicy

IN_FLIGHT_MAX, LOCAL_IN_FLIGHT_MAX = 16, 2
"""Shared by workspaces, of which one alone has half."""
PRESSURE = 48
"""So many detections under way in this process are much to do."""
log = get_logger("gateway.shadow")
_under_way = 0
_calls: set[asyncio.Task[None]] = set()
_places, _local_places = SharedBudget(IN_FLIGHT_MAX), SharedBudget(LOCAL_IN_FLIGHT_MAX)


class Seen(NamedTuple):
    """One text as it was answered."""

    request_id: UUID
    api_key_id: UUID
    workspace_id: UUID
    text: str
    content_type: ContentType
    scored: Score
    is_malicious: bool
    seconds: float


def began() -> None:
    global _under_way
    _under_way += 1


def ended() -> None:
    global _under_way
    _under_way -= 1


def note_cost(spent: Spent, engine: str, api_key_id: UUID, workspace_id: UUID) -> None:
    """Of a text that was judged: nothing, for engines without a price."""
    if any(spent):
        ledger.add(
            Sums(calls=1, **spent._asdict()),
            api_key_id=api_key_id,
            workspace_id=workspace_id,
            engine=engine,
            role=Role.PAID,
        )


def send(seen: Seen, context: RequestContext, policy: DetectionPolicy) -> None:
    """Perhaps show it to the policy's shadow; returns at once."""
    shadow = policy.shadow
    if shadow is None or shadow.engine == seen.scored.engine:
        return
    if (seen.request_id.int & 0xFFFF_FFFF) >= shadow.share * 2**32:
        return
    engine = registry.engines().get(shadow.engine)
    if engine is None:
        log.error("engine_not_configured", engine=shadow.engine, alert=True)
        return
    places = _local_places if engine.address.kind in LOCAL else _places
    if _is_too_much() or not places.take(seen.workspace_id, 1):
        _count(seen, engine.name, "skipped", Sums(skipped=1))
        return
    call = asyncio.create_task(_compare(seen, engine, context, policy))
    _calls.add(call)
    call.add_done_callback(_calls.discard)
    call.add_done_callback(lambda _: places.give_back(seen.workspace_id, 1))


async def stop() -> None:
    """End the calls under way: nobody waits for them."""
    calls = list(_calls)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def _is_too_much() -> bool:
    return _under_way > PRESSURE or any(one.is_busy for one in registry.engines().all())


async def _compare(
    seen: Seen, engine: Engine, context: RequestContext, policy: DetectionPolicy
) -> None:
    started = perf_counter()
    try:
        found = await engine.ask(
            seen.text,
            seen.content_type,
            timeout_seconds=settings.DETECTION_ENGINE_TIMEOUT_SECONDS,
            context=context,
            holder="shadow",
        )
    except EngineUnavailable as exc:
        _count(seen, engine.name, "failed", Sums(calls=1, failed=1, **exc.spent._asdict()))
        return
    except Exception as exc:
        log.error("shadow_failed", engine=engine.name, exc_info=exc)
        _count(seen, engine.name, "failed", Sums(calls=1, failed=1))
        return
    sums = Sums(
        calls=1,
        milliseconds=(perf_counter() - started) * 1000,
        own_milliseconds=seen.seconds * 1000,
        **found.spent._asdict(),
    )
    threshold, _ = policy.threshold("engine", None, seen.content_type, engine.name)
    is_malicious = (
        found.score >= threshold
        and (found.score > engine.floor or bool(found.threat_types))
        and policy.counts(found.threat_types)
    )
    if is_malicious == seen.is_malicious:
        sums.agreed = 1
        _count(seen, engine.name, "agreed", sums)
        return
    if seen.is_malicious:
        sums.only_own = 1
    else:
        sums.only_shadow = 1
    _count(seen, engine.name, "disagreed", sums)
    ledger.note(
        Disagreement(
            api_key_id=seen.api_key_id,
            workspace_id=seen.workspace_id,
            request_id=seen.request_id,
            engine=engine.name,
            compared_to=seen.scored.engine,
            content_type=seen.content_type,
            own_score=seen.scored.score,
            shadow_score=found.score,
            is_malicious=seen.is_malicious,
        )
    )


def _count(seen: Seen, engine: str, outcome: str, sums: Sums) -> None:
    shadow_total.labels(engine, outcome).inc()
    ledger.add(
        sums,
        api_key_id=seen.api_key_id,
        workspace_id=seen.workspace_id,
        engine=engine,
        compared_to=seen.scored.engine,
        role=Role.SHADOW,
    )
