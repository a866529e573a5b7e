"""What every engine is to the gateway: something that scores a text, or says why it cannot.

`Engine.ask` gives a `Score` or raises `EngineUnavailable` with one of four stable reasons. What is
the same for all of them is here: the breaker, windows of long texts, the strings of JSON texts, the
merging of what the calls found. A kind of engine says how it is asked once (`_score`), how it is
probed, and what its scores depend on (`version`).

A longer text than an engine reads is asked in windows, several at once, and the highest score
counts; one that is sure ends the asking.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

import orjson
from django.conf import settings

from detection.content_types import DATA, FIELDS_APART, ContentType
from detection.engines import analysts, fields, windows
from detection.engines.addresses import Address
from detection.engines.fields import Document, Field
from detection.engines.scores import NOTHING, Reason, Score, Spent
from gateway_project.core.context import RequestContext
from gateway_project.core.storable import cleaned
from gateway_project.core.telemetry import health, tracing
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.upstream import client as http
from gateway_project.core.upstream.breaker import Breaker, BreakerOpen

# What an engine says beside the score goes into logs, events and every answer.
THREAT_TYPES_MAX, WORD_CHARS_MAX, REASON_CHARS_MAX = 32, 64, 1_000
WINDOWS_AT_ONCE = 8
SURE = 0.95
LOCATE_FROM = 0.5
"""From this score on it is worth asking which of several strings it was."""
LOCATE_FIELDS_MAX = 8
FAULT_SECONDS_MIN = 2.0
"""A call that had less than this did not show that the engine is slow."""
NOT_TRACED = nullcontext()
log = get_logger("gateway.engine")


class EngineUnavailable(Exception):
    """No score from the engine, and why."""

    def __init__(
        self, reason: Reason, retry_after_seconds: int = 5, *, is_outage: bool = True
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.is_outage = is_outage
        """False when it works but refuses us: a misconfiguration, which must not fail open."""
        self.spent = NOTHING
        """What was paid for all the same."""


class NotAnOutage(Exception):
    """The engine works but not for this request: the breaker must not open for it."""


class NotUnderstood(Exception):
    """It answered, and not as its contract says. The sentence goes into the log."""


@dataclass(frozen=True, slots=True)
class Call:
    """What goes with each of the calls for one text."""

    content_type: ContentType
    deadline: float
    """Of the loop's clock."""
    request_id: str
    traceparent: str | None
    holder: Hashable
    spent: list[Spent] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        return max(0.001, self.deadline - asyncio.get_running_loop().time())

    def headers(self) -> dict[str, str]:
        found = {"Content-Type": "application/json", "X-Request-ID": self.request_id}
        if self.traceparent is not None:
            found["traceparent"] = self.traceparent
        return found


class Engine(ABC):
    """One per process and name. See the module's paragraph."""

    reads_fields_together: ClassVar[bool] = False
    """All strings of a JSON text in one call, since each call costs."""
    reads_json: ClassVar[bool] = False
    """It takes a JSON text apart itself."""
    reads_bytes: ClassVar[int] = 0
    """Of a text, unless its address says otherwise (`window`); 0: all."""

    def __init__(self, address: Address) -> None:
        self.loop = asyncio.get_running_loop()
        """The only one that may use it."""
        self.name = address.name
        self.address = address
        self.breaker = Breaker(
            address.service,
            failures_max=settings.CIRCUIT_BREAKER_FAILURE_THRESHOLD,
            open_seconds=settings.CIRCUIT_BREAKER_TIMEOUT_SECONDS,
        )
        self.version = ""

    @property
    def id(self) -> str:
        """What a remembered score depends on besides its text. Never an address' secret."""
        return f"{self.address.shown} {self.version} {self.window_bytes}"

    @property
    def window_bytes(self) -> int:
        return self.address.number("window", self.reads_bytes)

    @property
    def floor(self) -> float:
        """The score that it gives to whatever it finds harmless."""
        return self.address.fraction("floor", 0.0)

    @property
    def is_busy(self) -> bool:
        """Whether calls wait for a place: what can wait itself should not come now."""
        return False

    @abstractmethod
    async def _score(self, text: str, call: Call) -> Score:
        """Ask once, for what it reads whole.

        Raises `NotUnderstood`, `NotAnOutage`, `EngineUnavailable` or an `UpstreamError`.
        """

    @abstractmethod
    async def probe(self) -> health.Status:
        """As `/health` shows it. Raises whatever it likes when it is down."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what it holds."""

    async def ask(
        self,
        text: str,
        content_type: ContentType,
        *,
        timeout_seconds: float,
        context: RequestContext,
        holder: Hashable = None,
    ) -> Score:
        """Score one text; `holder` takes turns with others for the places at the engine.

        Raises `EngineUnavailable`.
        """
        call = Call(
            content_type,
            self.loop.time() + timeout_seconds,
            context.correlation_id or context.request_id,
            context.traceparent,
            holder,
        )
        document = None if self.reads_json else fields.read(text)
        try:
            if document is not None:
                scored = await self._ask_document(text, document, call)
            else:
                scored, _ = await self._ask_text(text, call)
        except EngineUnavailable as exc:
            exc.spent = Spent.of([exc.spent, *call.spent])
            raise
        if scored.engine == self.name and not call.spent:
            return scored
        return replace(scored, engine=self.name, spent=Spent.of([NOTHING, *call.spent]))

    async def _ask_text(self, text: str, call: Call) -> tuple[Score, tuple[int, int]]:
        """The score, and between which characters the highest stood."""
        if not self.window_bytes:
            return await self._ask_one(text, call), (0, len(text))
        data = text.encode()
        spans = windows.spans(data, self.window_bytes, is_data=call.content_type in DATA)
        if len(spans) == 1:
            return await self._ask_one(text, call), (0, len(text))
        found = await self._ask_windows(data, spans, call)
        covered = windows.covered_chars(data, found) - sum(map(_unseen_chars, found.values()))
        scored = _merged(found.values(), max(0, covered), len(text))
        start, end = max(found, key=lambda span: found[span].score)
        return scored, (len(data[:start].decode()), len(data[:end].decode()))

    async def _ask_windows(
        self, data: bytes, spans: list[windows.Span], call: Call
    ) -> dict[windows.Span, Score]:
        places = asyncio.Semaphore(WINDOWS_AT_ONCE)

        async def ask(span: windows.Span) -> tuple[windows.Span, Score]:
            async with places:
                return span, await self._ask_one(data[slice(*span)].decode(), call)

        tasks = [asyncio.create_task(ask(span)) for span in spans]
        found: dict[windows.Span, Score] = {}
        try:
            for task in asyncio.as_completed(tasks):
                span, scored = await task
                found[span] = scored
                if scored.score >= SURE:
                    break
        except EngineUnavailable:
            # What it has found so far is worth more than what the embedded detector may find.
            if not any(scored.threat_types for scored in found.values()):
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def _ask_document(self, text: str, document: Document, call: Call) -> Score:
        """The strings of a JSON text; of those that score, the path of the highest."""
        is_apart = call.content_type in FIELDS_APART
        whole = Field("$", document.with_names if is_apart else document.text)
        apart = self._apart(document) if is_apart else ()
        if apart:
            # And all of it, since an order may be spread over several.
            asked = [*apart, whole]
            answers = await self._ask_each(asked, call)
            scored = _merged(answers.values(), _seen_chars(asked, answers), len(whole.text))
            best = max(answers, key=lambda field: answers[field].score)
            path: str | None = best.path if answers[best].score >= self._locate_from else None
        else:
            scored, (start, end) = await self._ask_text(whole.text, call)
            candidates = document.between(start, end)
            path = None
            if scored.score >= self._locate_from:
                path, closer = await self._located(candidates, call)
                scored = _merged([scored, *closer], scored.scanned_chars, scored.total_chars)
        share = scored.scanned_chars / max(1, len(whole.text))
        scanned = round((len(text) - document.unread_chars) * min(1.0, share))
        return replace(
            scored,
            scanned_chars=scanned,
            total_chars=len(text),
            path=path,
            unseen=scored.unseen + document.unseen,
        )

    @property
    def _locate_from(self) -> float:
        return max(LOCATE_FROM, self.floor + 0.01)

    def _apart(self, document: Document) -> Sequence[Field]:
        """The strings that are asked one by one, if they are few."""
        worded = [field for field in document.fields if " " in field.text.strip()]
        is_few = len(worded) <= LOCATE_FIELDS_MAX
        return worded if is_few and not self.reads_fields_together else ()

    async def _ask_each(self, asked: Sequence[Field], call: Call) -> dict[Field, Score]:
        scores = await asyncio.gather(
            *(self._ask_text(field.text, call) for field in asked), return_exceptions=True
        )
        found: dict[Field, Score] = {}
        failed: BaseException | None = None
        for part, scored in zip(asked, scores, strict=True):
            if isinstance(scored, BaseException):
                failed = scored
            else:
                found[part] = scored[0]
        # As of windows: what was found so far is worth more than the embedded detector's word.
        if failed is not None and not any(scored.threat_types for scored in found.values()):
            raise failed
        return found

    async def _located(
        self, candidates: list[Field], call: Call
    ) -> tuple[str | None, Collection[Score]]:
        """Which of several strings scores highest, and what was said of each. A question of detail:
        without an answer it is what their paths have in common."""
        if not candidates:
            return None, ()
        if len(candidates) == 1:
            return candidates[0].path, ()
        common = fields.common_path(candidates)
        if self.reads_fields_together:
            texts = [field.text for field in candidates]
            best_at = await analysts.worst_of(texts, call.content_type, call.holder)
            return (common if best_at is None else candidates[best_at].path), ()
        worded = sorted(candidates, key=lambda field: -len(field.text))[:LOCATE_FIELDS_MAX]
        with suppress(EngineUnavailable):
            answers = await self._ask_each(worded, call)
            best = max(answers, key=lambda field: answers[field].score)
            is_there = answers[best].score >= self._locate_from
            return (best.path if is_there else common), answers.values()
        return common, ()

    async def _ask_one(self, text: str, call: Call) -> Score:
        """One call, under the breaker."""
        try:
            permit = self.breaker.acquire()
        except BreakerOpen as exc:
            raise EngineUnavailable("circuit_open", math.ceil(exc.retry_after_seconds)) from exc
        try:
            scored = await self._score(text, call)
        except EngineUnavailable:
            permit.failed()
            raise
        except NotAnOutage as exc:
            permit.release()
            raise EngineUnavailable("engine_error", is_outage=False) from exc
        except NotUnderstood as exc:
            permit.failed()
            self._log("engine_answer_unreadable", call, error=str(exc))
            raise EngineUnavailable("engine_error") from exc
        except http.UpstreamError as exc:
            if isinstance(exc, http.UpstreamTimeout) and exc.had_seconds < _fault_seconds():
                permit.release()  # it waited for a place, or its caller had no time
            else:
                permit.failed()
            self._log("engine_failed", call, reason=exc.reason, error=str(exc))
            raise EngineUnavailable(exc.reason) from exc  # type: ignore[arg-type]
        except BaseException:
            permit.release()  # cancelled, or a bug of ours: no word about the engine
            raise
        permit.succeeded()
        return scored

    def _log(self, event: str, call: Call, **facts: object) -> None:
        log.warning(event, engine=self.name, request_id=call.request_id, **facts)


class HttpEngine(Engine):
    """One that is asked over HTTP."""

    refusals: ClassVar[frozenset[int]] = frozenset({400, 404, 405, 413, 415, 422})
    """Statuses by which it says that it does not take this request: no outage."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.http = http.UpstreamClient(address.service, address.url)
        # A probe that waited for a place of the calls would say of the engine what is true of us.
        self.probes = http.UpstreamClient(address.service, address.url, in_flight_max=2)

    async def close(self) -> None:
        await self.http.close()
        await self.probes.close()

    @property
    def is_busy(self) -> bool:
        return self.http.is_full

    async def _post(
        self,
        path: str,
        body: object,
        call: Call,
        headers: dict[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> tuple[bytes, float]:
        """The content of a 200, and how long the call waited for a place.

        Raises what every other status means: `docs/engine.md` has the table.
        """
        sent = {**call.headers(), **(headers or {})}
        service = self.address.service
        with (
            NOT_TRACED
            if tracing.tracer is None
            else tracing.calling(
                f"{service} POST {path.partition('?')[0]}", sent, **{"peer.service": service}
            )
        ):
            answer = await self.http.request(
                "POST",
                path,
                body=orjson.dumps(body),
                headers=sent,
                timeout_seconds=call.seconds_left if timeout_seconds is None else timeout_seconds,
                holder=call.holder,
            )
        status = answer.status
        if status == 200:
            return answer.content, answer.queued_seconds
        if status in (401, 403):
            # Somebody put authentication before the engine: an operator must act.
            log.error("engine_refuses_us", engine=self.name, status=status, alert=True)
            raise NotAnOutage
        if status in self.refusals:
            size = len(answer.content)
            log.error("engine_rejected_request", engine=self.name, status=status, body_bytes=size)
            raise NotAnOutage
        log.warning("engine_failed", engine=self.name, status=status)
        raise EngineUnavailable("timeout" if status in (408, 504) else "engine_error")


def read_json(content: bytes) -> object:
    """Raises `NotUnderstood`. NaN and infinity are no JSON, as RFC 8259 has it."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as exc:
        raise NotUnderstood("no JSON") from exc


def fraction(value: object, least: float = 0.0, most: float = 1.0) -> float:
    """A finite number, brought into bounds. Raises `NotUnderstood`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotUnderstood(f"no finite number where a score should be: {type(value).__name__}")
    return min(most, max(least, float(value)))


def words_of(value: object) -> tuple[str, ...]:
    """Names of threats, each once. Raises `NotUnderstood`."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise NotUnderstood("threat types are no list")
    return tuple(dict.fromkeys(word(kind) for kind in value[:THREAT_TYPES_MAX]))


def word(value: object, chars_max: int = WORD_CHARS_MAX) -> str:
    """What an engine says in words, as every store takes it. Raises `NotUnderstood`.

    A list or an object is no word, and the text of one that is nested deep is beyond Python.
    """
    if not isinstance(value, str | int | float):
        raise NotUnderstood(f"no text where one should be: {type(value).__name__}")
    return cleaned(str(value)[:chars_max])


def _fault_seconds() -> float:
    # Of all the time there is, a first engine has only a share: the second needs the rest.
    return min(FAULT_SECONDS_MIN, settings.DETECTION_ENGINE_TIMEOUT_SECONDS / 2)


def _unseen_chars(scored: Score) -> int:
    return scored.total_chars - scored.scanned_chars


def _seen_chars(asked: Sequence[Field], answers: Mapping[Field, Score]) -> int:
    """Of the text that the last one is, which holds all others: where one of them failed, its part
    is not seen, whatever was made of it among the rest."""
    *parts, whole = asked
    seen = sum(answers[part].scanned_chars for part in parts if part in answers)
    if whole not in answers:
        return seen
    unseen = sum(len(part.text) for part in parts) - seen
    return max(0, min(answers[whole].scanned_chars, len(whole.text) - unseen))


def _merged(scored: Iterable[Score], scanned_chars: int, total_chars: int) -> Score:
    """One score of all calls: the highest, with whatever any of them found and used."""
    ranked = sorted(scored, key=lambda one: -one.score)
    kinds = dict.fromkeys(kind for one in ranked for kind in one.threat_types)
    unseen = dict.fromkeys(reason for one in ranked for reason in one.unseen)
    return replace(
        ranked[0],
        threat_types=tuple(kinds)[:THREAT_TYPES_MAX],
        scanned_chars=scanned_chars,
        total_chars=total_chars,
        queued_seconds=max(one.queued_seconds for one in ranked),
        unseen=tuple(unseen)[:THREAT_TYPES_MAX],
    )
