"""The registry of all engines: those of the settings, by name, and who is asked for a key's texts.

One engine of each name per process, opened in the lifespan. A policy chooses a `Route`: a first
engine, and perhaps a second one for the texts that the first is unsure about. When the first is
away, the second is asked instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from django.conf import settings

from detection import embedded
from detection.content_types import ContentType
from detection.engines import addresses
from detection.engines.addresses import DEFAULT, Address
from detection.engines.builtin import BuiltinEngine
from detection.engines.engine import Engine, EngineUnavailable, log
from detection.engines.go import GoEngine
from detection.engines.judge import FIRST_SHARE, JudgeEngine
from detection.engines.scores import Score, Spent
from detection.engines.vendors import AzureEngine, LakeraEngine, LlmGuardEngine
from gateway_project.core.context import RequestContext
from gateway_project.core.stores.caching import SingleFlight

# Longer than the answer to a look-up can be on its way (`PipelinedConnection`).
GRACE_SECONDS = 0.5


def _onnx(address: Address) -> Engine:
    from detection.engines.onnx import OnnxEngine  # its libraries are an extra

    return OnnxEngine(address)


KINDS: Mapping[str, Callable[[Address], Engine]] = {
    "http": GoEngine,
    "https": GoEngine,
    "embedded": BuiltinEngine,
    "onnx": _onnx,
    "openai+http": JudgeEngine,
    "openai+https": JudgeEngine,
    "lakera+http": LakeraEngine,
    "lakera+https": LakeraEngine,
    "azure+http": AzureEngine,
    "azure+https": AzureEngine,
    "llmguard+http": LlmGuardEngine,
    "llmguard+https": LlmGuardEngine,
}


class Second(NamedTuple):
    """Asked as well when the first engine's score is from `least` to `most`."""

    engine: str
    least: float
    most: float


class Shadow(NamedTuple):
    """Sees `share` of the texts, behind the answers."""

    engine: str
    share: float


class Engines:
    """What the lifespan opened. For the event loop that opened it."""

    def __init__(self, known: Mapping[str, Address]) -> None:
        self.loop = asyncio.get_running_loop()
        self.asking: SingleFlight[str, Score] = SingleFlight(grace_seconds=GRACE_SECONDS)
        self._by_name = {name: KINDS[one.kind](one) for name, one in known.items()}
        self.default = self._by_name[DEFAULT]

    def get(self, name: str) -> Engine | None:
        return self._by_name.get(name)

    def all(self) -> list[Engine]:
        return list(self._by_name.values())

    async def close(self) -> None:
        await self.asking.cancel_all()
        await asyncio.gather(*(engine.close() for engine in self._by_name.values()))


@dataclass(frozen=True, slots=True)
class Route:
    """Who is asked. An engine that the settings do not name any more is never available."""

    first: str = DEFAULT
    second: Second | None = None

    @property
    def id(self) -> str:
        """What a remembered score depends on besides its text."""
        found = _id_of(self.first)
        if self.second is None:
            return found
        return f"{found}\0{self.second.least} {self.second.most} {_id_of(self.second.engine)}"

    async def ask(
        self,
        text: str,
        content_type: ContentType,
        *,
        timeout_seconds: float,
        context: RequestContext,
        holder: Hashable = None,
    ) -> Score:
        """Raises `EngineUnavailable`: the first engine's, when neither answers.

        The first has a share of the time, so that one that hangs leaves the second enough.
        """
        second = self.second
        if second is None:
            return await _ask(self.first, text, content_type, timeout_seconds, context, holder)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds

        async def ask(name: str, share: float = 1.0) -> Score:
            seconds = share * max(0.001, deadline - loop.time())
            return await _ask(name, text, content_type, seconds, context, holder)

        try:
            scored = await ask(self.first, FIRST_SHARE)
        except EngineUnavailable as exc:
            try:
                alone = await ask(second.engine)
                return replace(alone, spent=Spent.of([exc.spent, alone.spent]))
            except EngineUnavailable as second_exc:
                exc.spent = Spent.of([exc.spent, second_exc.spent])
                raise exc from None
        if not second.least <= scored.score <= second.most:
            return scored
        try:
            deeper = await ask(second.engine)
        except EngineUnavailable as exc:
            # The first was unsure, and still is: the answer says that somebody is missing.
            spent = Spent.of([scored.spent, exc.spent])
            return replace(scored, second_missing=exc.reason, spent=spent)
        return replace(
            deeper,
            path=deeper.path or scored.path,
            queued_seconds=max(deeper.queued_seconds, scored.queued_seconds),
            spent=Spent.of([scored.spent, deeper.spent]),
        )


DIRECT = Route()


async def _ask(
    name: str,
    text: str,
    content_type: ContentType,
    timeout_seconds: float,
    context: RequestContext,
    holder: Hashable,
) -> Score:
    engine = engines().get(name)
    if engine is None:
        log.error("engine_not_configured", engine=name, alert=True)
        raise EngineUnavailable("engine_error", is_outage=False)
    return await engine.ask(
        text, content_type, timeout_seconds=timeout_seconds, context=context, holder=holder
    )


def _id_of(name: str) -> str:
    engine = engines().get(name)
    return f"{name} is not configured" if engine is None else engine.id


_engines: Engines | None = None


def configured() -> dict[str, Address]:
    """By name, as the settings say. Raises `addresses.BadAddress`."""
    return addresses.parse_all(settings.DETECTION_ENGINE_URL, settings.DETECTION_ENGINES)


def open_engines() -> Engines:
    """Make this process' engines; called once, in the lifespan, inside the event loop."""
    global _engines
    embedded.load()  # no call waits for it
    _engines = Engines(configured())
    return _engines


async def close_engines() -> None:
    global _engines
    if _engines is not None:
        await _engines.close()
        _engines = None


def is_open() -> bool:
    return _engines is not None


def engines() -> Engines:
    """Those that the lifespan opened."""
    if _engines is None:
        raise RuntimeError("the application was not started: its lifespan opens the engines")
    return _engines


def default() -> Engine:
    return engines().default
