"""`manage.py breaker engine open|closed|auto`: hold a breaker in every process, or let it go."""

from __future__ import annotations

import getpass
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from redis.exceptions import RedisError

from accounts import oversight
from accounts.services import Actor

NAMES = ("engine",)


class Command(BaseCommand):
    help = (
        "Hold a circuit breaker open (spare an upstream), closed (call it whatever happens), or "
        "let it decide again (auto). Reaches every process within a second, and later ones."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", choices=NAMES)
        parser.add_argument("state", choices=("open", "closed", "auto"))

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.REDIS_URL:
            raise CommandError("Without REDIS_URL other processes cannot be reached from here.")
        name, state = options["name"], options["state"]
        try:
            oversight.force_breaker(name, state, actor=Actor(f"command ({getpass.getuser()})"))
        except RedisError as exc:
            raise CommandError(f"Redis did not answer, nothing was changed: {exc}") from exc
        self.stdout.write(f"{name}: {state}")
