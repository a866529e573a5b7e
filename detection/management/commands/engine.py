"""`manage.py engine`: the stand-in of the Go detection engine."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from aiohttp import web
from django.core.management.base import BaseCommand

from detection.engines.standin import Engine, Switches


class Command(BaseCommand):
    help = "Serve a stand-in of the Go detection engine, with its traps as switches."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
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

    def handle(self, *args: Any, **options: Any) -> None:
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
