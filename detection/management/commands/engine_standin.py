"""`manage.py engine_standin`: the Go detection engine with its traps, for tests."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from detection.engines import standin


class Command(BaseCommand):
    help = "Serve a stand-in of the Go detection engine, with its traps as switches. For tests."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        standin.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        standin.serve(options)
