"""The embedded detector off the event loop: it is pure CPU, so no more of it than there are cores.

Workspaces take turns for the places.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from detection import embedded
from detection.content_types import ContentType, unseen_of
from detection.engines import fields, readings
from gateway_project.core.sharing import FairSemaphore

ANALYSTS = 2
LOCATE_FROM = 0.5
FIELDS_MAX = 32
FIELD_BUDGET_SECONDS = 0.005
_pool = ThreadPoolExecutor(max_workers=ANALYSTS, thread_name_prefix="embedded")
_places = FairSemaphore(ANALYSTS)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the detector found, where in a JSON text, and what it could not look at."""

    analysis: embedded.Analysis
    path: str | None = None
    unseen: tuple[str, ...] = ()


async def analyse(text: str, content_type: ContentType, holder: Hashable = None) -> Finding:
    async with _places.place(holder):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_pool, analyse_now, text, content_type)


async def worst_of(
    texts: Sequence[str], content_type: ContentType, holder: Hashable = None
) -> int | None:
    """Which of several texts looks most like an attack; None when none does."""
    async with _places.place(holder):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_pool, _worst, texts, content_type)


def is_busy() -> bool:
    return _places.locked()


def analyse_now(text: str, content_type: ContentType) -> Finding:
    """In the calling thread; some milliseconds."""
    document = fields.read(text)
    found = readings.analyse(text, document, content_type)
    path = None
    if document is not None and found.score >= LOCATE_FROM:
        at = _worst([field.text for field in document.fields], content_type)
        path = None if at is None else document.fields[at].path
    return Finding(found, path, unseen_of(found))


def _worst(texts: Sequence[str], content_type: ContentType) -> int | None:
    longest = sorted(range(len(texts)), key=lambda at: -len(texts[at]))[:FIELDS_MAX]
    scores = {
        at: embedded.analyse(texts[at], content_type, budget_seconds=FIELD_BUDGET_SECONDS).score
        for at in longest
    }
    best = max(scores, key=lambda at: scores[at], default=None)
    return best if best is not None and scores[best] >= LOCATE_FROM else None
