"""A stand-in of the Go detection engine, around the embedded detector, with that engine's traps.

It speaks the contract of the engine the gateway was planned for (version 2.1.0): the same routes,
fields, error bodies and oddities, so that the gateway's real client is what the tests exercise. It
is for tests alone: `engines/server.py` is an engine to use.

`python -m detection.engines.standin` serves it without Django; `manage.py engine_standin` is the
same.
"""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, Literal

from aiohttp import web

from detection import embedded

DEFAULT_THRESHOLD = 0.6
VERSION = "2.1.0-specialized-models"


@dataclass
class Switches:
    """The engine's traps, and ways to fail. All off: a well-behaved engine."""

    score_floor: float = 0.0
    """Scores start here and are only raised (0.5 in the Go engine)."""
    cut_bytes: int = 0
    """Only so many bytes of the text are read (500 in the Go engine); 0 reads all."""
    threshold_zero_is_default: bool = False
    """A threshold of 0 means 0.6, Go's zero value."""
    null_threat_types: bool = False
    latency_seconds: float = 0.0
    fail_status: int = 0
    """Answer every detection with this status (400, 401, 408, 500, 503…)."""
    answer: Literal["", "broken_json", "html", "nan", "missing_fields", "half", "hang"] = ""
    health_status: int = 200


@dataclass
class Engine:
    """One running stand-in. Tests flip `switches` and count `asked`."""

    switches: Switches = field(default_factory=Switches)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keep_asked: bool = False
    served: int = 0
    malicious: int = 0
    failed: int = 0
    busy_seconds: float = 0.0
    started: float = field(default_factory=monotonic)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/v1/detect", self.detect)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/metrics", self.metrics)
        return app

    async def detect(self, request: web.Request) -> web.StreamResponse:
        began = perf_counter()
        switches = self.switches
        if switches.latency_seconds:
            await asyncio.sleep(switches.latency_seconds)
        if switches.fail_status:
            self.failed += 1
            return self._error(switches.fail_status)
        if switches.answer:
            return await self._misbehave(request, switches.answer)
        try:
            body = await request.json()
            text = body["text"]
            config = body.get("config") or {}
            if not isinstance(text, str):
                raise TypeError("text is not a string")
        except (
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            AttributeError,
        ) as exc:
            return web.json_response(
                {"error": "Invalid request body", "details": str(exc)}, status=400
            )
        if self.keep_asked:
            self.asked.append({**body, "headers": dict(request.headers)})
        answer = self._verdict(text, config.get("confidence_threshold"))
        self.served += 1
        self.malicious += answer["is_malicious"]
        self.busy_seconds += perf_counter() - began
        answer["processing_time_ms"] = round((perf_counter() - began) * 1000)
        return web.json_response(answer)

    def _verdict(self, text: str, threshold: float | None) -> dict[str, Any]:
        switches = self.switches
        if threshold is None or (threshold == 0 and switches.threshold_zero_is_default):
            threshold = DEFAULT_THRESHOLD
        if not text:
            return {
                "is_malicious": False,
                "confidence": 0.0,
                "threat_types": [],
                "endpoint": "none",
            }
        if switches.cut_bytes:
            # By bytes, so that the last character may be split, as in the Go engine.
            text = text.encode()[: switches.cut_bytes].decode(errors="replace")
        found = embedded.analyse(text)
        score = max(found.score, switches.score_floor)
        kinds = None if switches.null_threat_types else list(found.threat_types)
        answer = {
            "is_malicious": score >= threshold,
            "confidence": score,
            "threat_types": kinds,
            "endpoint": "embedded",
        }
        if found.reason:
            answer["reason"] = found.reason
        return answer

    async def _misbehave(self, request: web.Request, how: str) -> web.StreamResponse:
        self.failed += 1
        if how == "hang":
            await asyncio.sleep(3600)
        if how == "half":
            response = web.StreamResponse(headers={"Content-Length": "500"})
            await response.prepare(request)
            await response.write(b'{"is_malicious": fal')
            if request.transport is not None:
                request.transport.close()
            return response
        bodies = {
            "broken_json": '{"is_malicious": true, "confidence":',
            "html": "<html><body>It works!</body></html>",
            "nan": '{"is_malicious": true, "confidence": NaN, "threat_types": []}',
            "missing_fields": '{"threat_types": ["injection"]}',
        }
        return web.Response(text=bodies[how], content_type="application/json")

    @staticmethod
    def _error(status: int) -> web.Response:
        body: dict[str, Any] = {"error": "Detection failed", "details": "switched to fail"}
        if status == 503:
            body["retry_after"] = 60
        return web.json_response(body, status=status)

    async def health(self, request: web.Request) -> web.Response:
        status = self.switches.health_status
        words = {200: "healthy", 206: "degraded"}
        mean_ns = self.busy_seconds / self.served * 1e9 if self.served else 0
        body = {
            "status": words.get(status, "degraded - no API key"),
            "version": VERSION,
            # Go durations: nanoseconds, in spite of their names.
            "uptime": int((monotonic() - self.started) * 1e9),
            "requests_served": self.served,
            "average_latency_ms": int(mean_ns),
            "api_key_configured": True,
            "llm_endpoints": ["embedded"],
        }
        return web.json_response(body, status=status)

    async def metrics(self, request: web.Request) -> web.Response:
        total = self.served + self.failed
        return web.json_response(
            {
                "requests_total": total,
                "requests_successful": self.served,
                "requests_failed": self.failed,
                "success_rate": self.served / total if total else 0.0,
                "average_latency_ms": self.busy_seconds / self.served * 1000 if self.served else 0,
                "detection_method": "embedded",
                "detections_by_threat": {},
            }
        )


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument(
        "--traps", action="store_true", help="floor 0.5, 500 bytes, threshold 0 is 0.6"
    )
    parser.add_argument("--score-floor", type=float, default=0.0)
    parser.add_argument("--cut-bytes", type=int, default=0)
    parser.add_argument("--threshold-zero-is-default", action="store_true")
    parser.add_argument("--null-threat-types", action="store_true")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--fail-status", type=int, default=0, metavar="408|500|503|…")
    parser.add_argument(
        "--answer",
        default="",
        choices=["", "broken_json", "html", "nan", "missing_fields", "half", "hang"],
    )
    parser.add_argument("--health-status", type=int, default=200, metavar="200|206|503")


def serve(options: Mapping[str, Any]) -> None:
    """Until SIGINT or SIGTERM. `options` are those of `add_arguments`."""
    traps = options["traps"]
    switches = Switches(
        score_floor=options["score_floor"] or (0.5 if traps else 0.0),
        cut_bytes=options["cut_bytes"] or (500 if traps else 0),
        threshold_zero_is_default=options["threshold_zero_is_default"] or traps,
        null_threat_types=options["null_threat_types"],
        latency_seconds=options["latency_ms"] / 1000,
        fail_status=options["fail_status"],
        answer=options["answer"],
        health_status=options["health_status"],
    )
    web.run_app(
        Engine(switches).app(),
        host=options["host"],
        port=options["port"],
        print=None,
        access_log=None,
    )


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m detection.engines.standin", description=__doc__)
    add_arguments(parser)
    serve(vars(parser.parse_args()))
