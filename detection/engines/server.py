"""A detection engine of our own: the embedded detector, and a classifier if one is named.

It speaks the Go engine's contract (`docs/engine.md`) without that engine's traps, and says beside
it what it could not look at (`coverage`). One process, on as many cores as `--threads` says: rules
in one thread, the classifier in threads of its own, where texts under way at once run together. It
keeps nothing of any text. Start several behind one address for more.

`python -m detection.engines.server` serves it without Django; `manage.py engine` is the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, cast

from aiohttp import web

from detection import embedded
from detection.content_types import CONTENT_TYPES, DATA, ContentType, unseen_of
from detection.engines import calibration, fields, readings
from detection.engines.batching import Batcher, Busy
from detection.engines.classifier import (
    MODEL_BYTES_MAX,
    Classifier,
    Facts,
    Found,
    ModelUnusable,
    NoScore,
)

DEFAULT_THRESHOLD = 0.6
TEXT_BYTES_MAX = 4 << 20
RULES_WAITING_MAX = 512
SHUTDOWN_SECONDS = 10.0
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Since the start."""

    served: int = 0
    failed: int = 0
    malicious: int = 0
    seconds: float = 0.0
    threats: Counter[str] = field(default_factory=Counter)


class NotARequest(Exception):
    """What was sent is none, and why."""


class Server:
    """One running engine; `batcher` None: rules alone."""

    def __init__(
        self,
        batcher: Batcher | None = None,
        calibrations: calibration.Calibrations | None = None,
    ) -> None:
        self._batcher = batcher
        self._calibrations = calibrations or {}
        self._rules = ThreadPoolExecutor(1, thread_name_prefix="rules")
        self._at_the_rules = 0
        self._counts = Counts()
        self._started = monotonic()

    @property
    def model(self) -> Facts | None:
        return None if self._batcher is None else self._batcher.facts

    @property
    def version(self) -> str:
        """Changes with the rules, the model and its calibration, so that no score outlives them."""
        known = embedded.DETECTOR
        parts = [known.version, known.weights_sha256[:8]]
        if self.model is not None:
            parts.append(self.model.version)
        if self._calibrations:
            parts.append(calibration.digest(self._calibrations))
        return "+".join(parts)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=TEXT_BYTES_MAX, middlewares=[_in_json])
        app.router.add_post("/v1/detect", self.detect)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/metrics", self.metrics)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        self._rules.shutdown(wait=False, cancel_futures=True)

    async def detect(self, request: web.Request) -> web.Response:
        began = perf_counter()
        try:
            answer = await self.judge(*await _asked(request))
        except Exception:
            self._counts.failed += 1
            raise
        seconds = perf_counter() - began
        self._counts.served += 1
        self._counts.seconds += seconds
        self._counts.malicious += answer["is_malicious"]
        self._counts.threats.update(answer["threat_types"])
        answer["processing_time_ms"] = round(seconds * 1000)
        return web.json_response(answer)

    async def judge(
        self, text: str, content_type: ContentType, threshold: float = DEFAULT_THRESHOLD
    ) -> dict[str, Any]:
        """Raises `Busy` or `NoScore`."""
        if not text:
            return _answer(0.0, threshold, (), None, "none", 0, [])
        document = fields.read(text)
        whole = text if document is None else document.text
        rules = asyncio.ensure_future(self._by_rules(text, document, content_type))
        try:
            found = await self._by_model(whole, content_type)
        except BaseException:
            rules.cancel()
            raise
        known = await rules
        model_score = (
            0.0
            if found is None
            else calibration.calibrated(self._calibrations, found.score, content_type)
        )
        score = max(known.score, model_score)
        kinds = known.threat_types
        reason = known.reason
        if model_score >= DEFAULT_THRESHOLD and model_score > known.score:
            kinds = kinds or ("injection",)
            reason = f"The classifier {self.model.name if self.model else ''} finds an attack."
        scanned, unseen = known.scanned_chars, list(unseen_of(known))
        if found is not None:
            scanned = min(scanned, round(known.total_chars * found.scanned_chars / len(whole)))
            unseen += found.unseen
        endpoint = "rules" if self.model is None else f"rules+{self.model.name}"
        return _answer(score, threshold, kinds, reason, endpoint, scanned, unseen)

    async def _by_rules(
        self, text: str, document: fields.Document | None, content_type: ContentType
    ) -> embedded.Analysis:
        if self._at_the_rules >= RULES_WAITING_MAX:
            raise Busy
        self._at_the_rules += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._rules, readings.analyse, text, document, content_type
            )
        finally:
            self._at_the_rules -= 1

    async def _by_model(self, whole: str, content_type: ContentType) -> Found | None:
        if self._batcher is None:
            return None
        return await self._batcher.judge(whole, is_data=content_type in DATA)

    async def health(self, request: web.Request) -> web.Response:
        counts = self._counts
        mean_ns = counts.seconds / counts.served * 1e9 if counts.served else 0
        body = {
            "status": "healthy",
            "version": self.version,
            # As in the Go engine: nanoseconds, in spite of their names.
            "uptime": int((monotonic() - self._started) * 1e9),
            "requests_served": counts.served,
            "average_latency_ms": int(mean_ns),
            "models": [] if self.model is None else [self.model.name],
        }
        return web.json_response(body)

    async def metrics(self, request: web.Request) -> web.Response:
        counts = self._counts
        total = counts.served + counts.failed
        return web.json_response(
            {
                "requests_total": total,
                "requests_successful": counts.served,
                "requests_failed": counts.failed,
                "requests_malicious": counts.malicious,
                "success_rate": counts.served / total if total else 0.0,
                "average_latency_ms": counts.seconds / counts.served * 1000 if counts.served else 0,
                "detection_method": "rules" if self.model is None else "rules+classifier",
                "detections_by_threat": dict(counts.threats),
            }
        )


async def _asked(request: web.Request) -> tuple[str, ContentType, float]:
    """Raises `NotARequest`. Unknown fields are ignored, as the Go engine does."""
    try:
        body = await request.json()
    except (ValueError, LookupError, RecursionError) as exc:  # no JSON, charset, or end of it
        raise NotARequest(str(exc)) from exc
    text = body.get("text") if isinstance(body, dict) else None
    if not isinstance(text, str):
        raise NotARequest("text is no string")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise NotARequest("text holds half of a surrogate pair") from exc
    content_type = body.get("content_type", "user_input")
    if content_type not in CONTENT_TYPES:
        raise NotARequest(f"content_type is none of {', '.join(CONTENT_TYPES)}")
    config = body.get("config") or {}
    threshold = config.get("confidence_threshold") if isinstance(config, dict) else None
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= 1:  # NaN neither
        raise NotARequest("confidence_threshold is no number from 0 to 1")
    return text, cast(ContentType, content_type), float(threshold)


def _answer(
    score: float,
    threshold: float,
    kinds: tuple[str, ...],
    reason: str | None,
    endpoint: str,
    scanned_chars: int,
    unseen: list[str],
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "is_malicious": score >= threshold,
        "confidence": round(score, 4),
        "threat_types": list(kinds),
        "endpoint": endpoint,
        "coverage": {"scanned_chars": scanned_chars, "reasons": list(dict.fromkeys(unseen))},
    }
    if reason:
        answer["reason"] = reason
    return answer


def _error(status: int, error: str, details: str, **more: Any) -> web.Response:
    return web.json_response({"error": error, "details": details, **more}, status=status)


@web.middleware
async def _in_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Whatever is refused or fails, in the engine's own form."""
    try:
        return cast(web.StreamResponse, await handler(request))
    except NotARequest as exc:
        return _error(400, "Invalid request body", str(exc))
    except NoScore:
        # It is this text's: by 400 the gateway knows that others' texts are judged.
        return _error(400, "Not judged", "The model's answer to this text is no finite number.")
    except Busy:
        return _error(503, "Overloaded", "Too many texts wait.", retry_after=1)
    except web.HTTPException as exc:
        return _error(exc.status, exc.reason, "")
    except Exception:
        log.exception("A text was not judged")
        return _error(500, "Internal Server Error", "The log of the engine says why.")


def add_arguments(parser: ArgumentParser) -> None:
    get = os.environ.get
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument(
        "--model",
        default=get("ENGINE_MODEL", ""),
        help="folder of an ONNX text classifier, or its name on the hub; none: rules alone",
    )
    parser.add_argument("--file", default="", help="which .onnx of the folder")
    parser.add_argument(
        "--attack", default="", help="labels that are attacks, where config.json does not tell"
    )
    parser.add_argument(
        "--threads", type=int, default=int(get("ENGINE_THREADS", "1")), help="of the classifier"
    )
    parser.add_argument(
        "--calibration", default="", help="JSON of the scores' calibration by content type"
    )
    parser.add_argument(
        "--model-mb-max", type=int, default=MODEL_BYTES_MAX >> 20, help="larger models are refused"
    )


def serve(options: Mapping[str, Any]) -> None:
    """Until SIGINT or SIGTERM. `options` are those of `add_arguments`. Ends the process with a
    sentence when the model cannot be used."""
    try:
        asyncio.run(_serve(options))
    except ModelUnusable as exc:
        sys.exit(f"The engine cannot start. {exc}.")


async def _serve(options: Mapping[str, Any]) -> None:
    calibrations: calibration.Calibrations = {}
    if options["calibration"]:
        calibrations = calibration.read(Path(options["calibration"]))
    batcher = None
    if options["model"]:
        load = partial(
            Classifier,
            options["model"],
            threads=max(1, options["threads"]),
            file=options["file"],
            attack=[one for one in options["attack"].split(",") if one],
            model_bytes_max=options["model_mb_max"] << 20,
        )
        batcher = Batcher(load)
        # Nothing listens before it is loaded and has run once: the first caller waits for nothing.
        try:
            await batcher.loaded()
        except ModelUnusable:
            await batcher.close()
            raise
    runner = web.AppRunner(
        Server(batcher, calibrations).app(),
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        handler_cancellation=True,  # who went away wants nothing judged
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await runner.setup()
    try:
        await web.TCPSite(runner, options["host"], options["port"]).start()
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m detection.engines.server", description=__doc__)
    add_arguments(parser)
    serve(vars(parser.parse_args()))
