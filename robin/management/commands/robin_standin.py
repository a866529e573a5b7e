"""`manage.py robin_standin`: the stand-in of the Robin mail server."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from robin.standin import __main__ as standin


class Command(BaseCommand):
    help = "Serve a stand-in of the Robin mail server: client API and service API."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        standin.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(standin.serve(options))
