"""`http:` and `https:`: the Go engine's contract, and every service that speaks it.

The engine's own verdict is not used: a threshold of 0 means 0.6 to it (Go's zero value), so only
its score is believed, and compared by the caller. Its classifiers read the first 500 bytes of a
text, and never score below a floor.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import ClassVar
from urllib.parse import quote

from django.conf import settings

from detection.engines.addresses import Address
from detection.engines.engine import (
    REASON_CHARS_MAX,
    Call,
    HttpEngine,
    NotUnderstood,
    fraction,
    read_json,
    word,
    words_of,
)
from detection.engines.scores import Score
from gateway_project.core.telemetry import health
from gateway_project.core.upstream import client as http
from gateway_project.core.upstream.client import Answer

VERSION_SECONDS = 30.0
REASONS_MAX = 8


class GoEngine(HttpEngine):
    refusals: ClassVar[frozenset[int]] = frozenset({400})

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        if address.user or address.secret:
            scheme, _, rest = address.url.partition("://")
            pair = f"{quote(address.user, safe='')}:{quote(address.secret, safe='')}"
            self.http.base_url = self.probes.base_url = f"{scheme}://{pair}@{rest}"
        self._watch = asyncio.create_task(self._watch_version(), name="engine-version")

    @property
    def id(self) -> str:
        return f"{self.http.base_url} {self.version} {self.window_bytes}"

    @property
    def window_bytes(self) -> int:
        return self.address.number("window", settings.DETECTION_ENGINE_WINDOW_BYTES)

    @property
    def floor(self) -> float:
        return self.address.fraction("floor", settings.DETECTION_ENGINE_SCORE_FLOOR)

    async def close(self) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await super().close()

    async def _watch_version(self) -> None:
        # A score of an engine's last version is worth nothing once a new one is deployed.
        while True:
            with suppress(http.UpstreamError):
                self._learn(await self.http.request("GET", "/health", timeout_seconds=2))
            await asyncio.sleep(VERSION_SECONDS)

    def _learn(self, answer: Answer) -> None:
        with suppress(NotUnderstood, KeyError, TypeError):
            self.version = word(read_json(answer.content)["version"])  # type: ignore[index]

    async def probe(self) -> health.Status:
        answer = await self.probes.request(
            "GET", "/health", timeout_seconds=health.PROBE_SECONDS_MAX
        )
        self._learn(answer)
        # It says 206 when it is degraded, which a client would take for success.
        statuses: dict[int, health.Status] = {200: "up", 206: "degraded"}
        return statuses.get(answer.status, "down")

    async def _score(self, text: str, call: Call) -> Score:
        body: dict[str, str] = {"text": text}
        if call.content_type != "user_input":
            body["content_type"] = call.content_type
        content, queued_seconds = await self._post("/v1/detect", body, call)
        return self._read(Answer(200, content, queued_seconds), len(text))

    @staticmethod
    def _read(answer: Answer, chars: int) -> Score:
        body = read_json(answer.content)
        if not isinstance(body, dict):
            raise NotUnderstood("no object")
        if "confidence" not in body or not isinstance(body.get("is_malicious"), bool):
            raise NotUnderstood("`confidence` or `is_malicious` is missing")
        scanned, unseen = _coverage(body.get("coverage"), chars)
        return Score(
            score=fraction(body["confidence"]),
            threat_types=words_of(body.get("threat_types")),
            reason=word(body["reason"], REASON_CHARS_MAX) if body.get("reason") else None,
            endpoint=word(body["endpoint"]) if body.get("endpoint") else None,
            scanned_chars=scanned,
            total_chars=chars,
            queued_seconds=answer.queued_seconds,
            unseen=unseen,
        )


def _coverage(value: object, chars: int) -> tuple[int, tuple[str, ...]]:
    """What an engine says that it has seen, if it says so: `{"scanned_chars", "reasons"}`."""
    if value is None:
        return chars, ()
    if not isinstance(value, dict):
        raise NotUnderstood("`coverage` is no object")
    scanned = fraction(value.get("scanned_chars", chars), 0, chars)
    return int(scanned), words_of(value.get("reasons"))[:REASONS_MAX]
