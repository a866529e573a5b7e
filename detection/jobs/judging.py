"""Many texts together: each has a verdict or an error of its own, and none spoils the others.

Equal texts ask the engine once, because they are under way at the same time
(`services.detect(batch=…)`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from accounts.usage import why
from accounts.usage.buffer import Record, buffer
from accounts.usage.rows import Row
from detection import services
from detection.policies.effects import say_of_text
from detection.policies.policy import DetectionPolicy
from detection.schemas import DetectConfig, Detection, TextRequest
from gateway_project.core import encryption, errors
from gateway_project.core.clock import new_id
from gateway_project.core.context import RequestContext
from gateway_project.core.sharing import LoopTurns
from gateway_project.core.telemetry.logging import get_logger

DEADLINE = "deadline"
TOO_LATE = (
    "There was no verdict before the batch's deadline. Send it again: with fewer others, with "
    "a longer config.timeout_seconds, or with `Prefer: respond-async`."
)
GRACE_SECONDS = 0.5
"""Longer than the embedded detector needs for the texts whose time with the engine is up."""
BEHIND, BESIDE = LoopTurns(8), LoopTurns(2)
"""Texts that begin at each turn of the loop: of a worker, and of a web process, whose other
requests wait for them. Who says nothing is of the latter."""
events_log = get_logger("gateway.batches")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose texts they are and how they came. `endpoint` is the route that the log names."""

    api_key_id: UUID
    workspace_id: UUID
    endpoint: str
    policy: DetectionPolicy
    wants_detections: bool
    client_ip: str = ""
    correlation_id: str | None = None
    traceparent: str | None = None
    user_agent: str = ""
    batch_id: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One text under the caller's `id`; without a request it was refused, and `error` says why.

    `request_id`: its own in the log, if somebody knows it already.
    """

    id: str
    request: TextRequest | None
    error: dict[str, str] | None = None
    request_id: UUID | None = None

    @classmethod
    def of(
        cls,
        item_id: str,
        text: str,
        config: DetectConfig,
        metadata: dict[str, Any] | None = None,
        *,
        request_id: UUID | None = None,
    ) -> Item:
        """Of parts that were validated."""
        request = TextRequest.model_construct(text=text, config=config, metadata=metadata)
        return cls(item_id, request, request_id=request_id)


class Judged(NamedTuple):
    """`line` is the item's JSON as callers get it; `row` and `extra` are for the usage log."""

    line: bytes
    is_ok: bool
    is_flagged: bool = False
    row: Row | None = None
    extra: dict[str, Any] | None = None
    verdict: Detection | None = None
    error: dict[str, str] | None = None


async def judge(
    items: Sequence[Item],
    origin: Origin,
    *,
    deadline_seconds: float | None = None,
    turns: LoopTurns = BESIDE,
) -> list[Judged]:
    """A verdict or an error for each, in their order.

    After `deadline_seconds` what has no verdict yet gets the error `deadline`.
    """
    batch = str(new_id())
    counts = Counter(item.request.text for item in items if item.request is not None)
    # Equal texts begin together, to be under way together.
    shared = {
        text: asyncio.create_task(turns.wait(origin.workspace_id))
        for text, count in counts.items()
        if count > 1
    }
    tasks = [
        asyncio.create_task(
            _judge_one(item, item.request, origin, batch, turns, shared.get(item.request.text))
        )
        if item.request is not None
        else None
        for item in items
    ]
    running = [task for task in tasks if task is not None]
    try:
        if running:
            await asyncio.wait(
                running,
                timeout=None if deadline_seconds is None else deadline_seconds + GRACE_SECONDS,
            )
    finally:
        late = [task for task in running if not task.done()]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    too_late = {"code": DEADLINE, "message": TOO_LATE}
    return [
        _failed(item, item.error or errors_of(errors.InternalError()))
        if task is None
        else _failed(item, too_late)
        if task.cancelled()
        else task.result()
        for item, task in zip(items, tasks, strict=True)
    ]


async def _judge_one(
    item: Item,
    request: TextRequest,
    origin: Origin,
    batch: str,
    turns: LoopTurns,
    turn: asyncio.Task[None] | None,
) -> Judged:
    await (turns.wait(origin.workspace_id) if turn is None else asyncio.shield(turn))
    context = RequestContext(origin.client_ip, origin.correlation_id, origin.traceparent)
    context.route = origin.endpoint
    context.user_agent = origin.user_agent
    if item.request_id is not None:
        context.request_uuid, context.request_id = item.request_id, str(item.request_id)
    size = len(request.text.encode(errors="replace"))
    row = Record(origin.api_key_id, origin.workspace_id, size)
    try:
        return await _verdict(item, request, origin, batch, context, row)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is this item's and no other's
        error = errors.translate(exc)
        if isinstance(error, errors.InternalError):
            events_log.error("item_failed", request_id=context.request_id, exc_info=exc)
        context.error_code = error.code
        context.wrong = str(error.detail), error.errors
        values = row.row(context, error.status_code, perf_counter() - context.started)
        explanation = {why.NAME: _why(row, context, origin)}
        return _failed(item, errors_of(error))._replace(row=values, extra=explanation)


def _why(row: Record, context: RequestContext, origin: Origin) -> dict[str, Any]:
    explanation = row.explanation(context)
    return {**explanation, "batch": origin.batch_id} if origin.batch_id else explanation


async def _verdict(
    item: Item,
    request: TextRequest,
    origin: Origin,
    batch: str,
    context: RequestContext,
    row: Record,
) -> Judged:
    config = request.config
    looked_up = services.start_look_up(
        request.text,
        config.content_type,
        origin.workspace_id,
        policy=origin.policy,
        use_cache=config.use_cache,
    )
    verdict = await services.detect(
        request,
        context,
        policy=origin.policy,
        looked_up=looked_up,
        batch=batch,
        api_key_id=origin.api_key_id,
    )
    extra: dict[str, Any] = {}
    if origin.wants_detections:
        extra = {
            "threat_types": verdict.threat_types,
            "metadata": request.metadata,
            "traceparent": context.traceparent,
        }
    if origin.policy.store_text:
        extra["text"] = encryption.encrypt(request.text)
    result = verdict.__pydantic_serializer__.to_json(verdict, exclude_none=True)
    line = orjson.dumps(
        {"id": item.id, "status": "ok", "result": orjson.Fragment(result), "error": None}
    )
    row.note(verdict)
    say_of_text(row, request.text, config.content_type)
    extra[why.NAME] = _why(row, context, origin)
    return Judged(
        line,
        is_ok=True,
        is_flagged=verdict.decision == "flag",
        row=row.row(context, 200, perf_counter() - context.started),
        extra=extra,
        verdict=verdict,
    )


def errors_of(error: errors.GatewayError) -> dict[str, str]:
    """As an item says it. Of several fields at fault each is named."""
    return {"code": error.code, "message": "; ".join(error.sentences) or str(error.detail)}


def failed(item: Item, error: errors.GatewayError) -> Judged:
    """One whose verdict cannot be kept."""
    return _failed(item, errors_of(error))


def refused(item_id: str, error: errors.GatewayError) -> Item:
    """One that is not fit to be judged, and fails alone."""
    return Item(item_id, None, errors_of(error))


def _failed(item: Item, error: dict[str, str]) -> Judged:
    line = {"id": item.id, "status": "error", "result": None, "error": error}
    return Judged(orjson.dumps(line), is_ok=False, error=error)


def log(judged: Iterable[Judged], context: RequestContext) -> None:
    """Put them into the usage log, instead of the one request that brought them."""
    context.usage = None
    for one in judged:
        if one.row is not None:
            buffer.append(one.row, context.client_ip, one.extra)


class Counts(NamedTuple):
    succeeded: int
    failed: int
    flagged: int


def counts_of(judged: Iterable[Judged]) -> Counts:
    found = list(judged)
    ok = sum(one.is_ok for one in found)
    return Counts(ok, len(found) - ok, sum(one.is_flagged for one in found))
