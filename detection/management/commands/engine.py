"""`manage.py engine`: a detection engine of our own (`detection/engines/server.py`)."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from detection.engines import server


class Command(BaseCommand):
    help = "Serve a detection engine: the embedded detector, and an ONNX classifier with --model."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        server.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        server.serve(options)
