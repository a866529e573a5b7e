"""`manage.py breaker [NAME [open|closed|auto]]`: how the breakers are; hold one, or let it go."""

from __future__ import annotations

import getpass
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from redis.exceptions import RedisError

from accounts import moderation
from accounts.services import Actor
from gateway_project.core.upstream import breaker
from gateway_project.core.upstream.breaker import Everywhere

# Known also while no web process runs; one that runs may have more.
NAMES = (
    *("engine", "robin_client", "robin_logs", "robin_queue", "robin_service", "robin_settings"),
)


class Command(BaseCommand):
    help = (
        "Show every circuit breaker with its state in the worst process, or hold one open (spare "
        "an upstream), closed (call it whatever happens), or let it decide again (auto). What is "
        "held reaches every process within a second, and later ones."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="?", help="of one breaker; all without it")
        parser.add_argument("state", nargs="?", choices=("open", "closed", "auto"))

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.REDIS_URL:
            raise CommandError("Without REDIS_URL other processes cannot be reached from here.")
        name, state = options["name"], options["state"]
        everywhere = breaker.ask_everywhere()
        if everywhere.silent is None:
            raise CommandError("Redis did not answer, nothing was asked or changed. Try again.")
        try:
            forced = breaker.forced_everywhere()
            names = sorted({*NAMES, *everywhere.worst(), *forced})
            if name is not None and name not in names:
                raise CommandError(f"There is no breaker {name!r}. There are: {', '.join(names)}.")
            if state is not None:
                who = Actor(f"command ({getpass.getuser()})")
                moderation.force_breaker(name, state, actor=who)
                self.stdout.write(f"{name}: {state}")
                return
        except RedisError as exc:
            said = f"Redis did not answer: look what is held before you try again ({exc})."
            raise CommandError(said) from exc
        for one in names if name is None else [name]:
            self.stdout.write(f"{one:<16}{_description(one, everywhere, forced)}")
        if everywhere.silent:
            self.stdout.write(f"Web processes that did not answer in time: {everywhere.silent}.")


def _description(name: str, everywhere: Everywhere, forced: dict[str, str]) -> str:
    reports = [breakers[name] for breakers in everywhere.processes.values() if name in breakers]
    held = f"held {forced[name]} by an operator" if name in forced else ""
    if not reports:
        return ", ".join(filter(None, ("in no web process", held)))
    worst = everywhere.worst()[name]
    facts = [worst["state"]]
    if "open_for_seconds" in worst:
        facts.append(f"for {worst['open_for_seconds']:g} s")
    if worst["failures"]:
        facts.append(f"failures in a row: {worst['failures']}")
    return ", ".join([*facts, *filter(None, [held]), f"processes: {len(reports)}"])
