"""`manage.py create_key`: a key for scripts and operators, beyond any plan if need be."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import slug_re

from accounts import services
from accounts.models import SCOPES

# What the columns hold.
LIMIT_MAX = 2_000_000_000
SLUG_CHARS_MAX = 50
NAME_CHARS_MAX = 100


class Command(BaseCommand):
    help = "Make a key and print only its text. The workspace is made if it is missing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workspace", required=True, metavar="SLUG")
        parser.add_argument("--per-minute", type=int, metavar="N")
        parser.add_argument("--per-day", type=int, metavar="N")
        parser.add_argument("--name", default="Made by create_key")
        parser.add_argument("--scope", action="append", choices=SCOPES, help="default: all")

    def handle(self, *args: Any, **options: Any) -> None:
        for name in ("per_minute", "per_day"):
            if options[name] is not None and not 1 <= options[name] <= LIMIT_MAX:
                raise CommandError(f"--{name.replace('_', '-')} must be 1 to {LIMIT_MAX}.")
        if not slug_re.match(options["workspace"]) or len(options["workspace"]) > SLUG_CHARS_MAX:
            raise CommandError(
                f"--workspace takes a slug: letters, digits, '-' and '_', at most {SLUG_CHARS_MAX}."
            )
        if not 1 <= len(options["name"]) <= NAME_CHARS_MAX:
            raise CommandError(f"--name takes 1 to {NAME_CHARS_MAX} characters.")
        if settings.LOCAL_SECRETS and settings.DATABASE_URL != settings.LOCAL_DATABASE_URL:
            raise CommandError(
                f"{', '.join(settings.LOCAL_SECRETS)} not set: the gateway that serves from "
                "DATABASE_URL would not know the key. Give this command its environment."
            )
        self.stdout.write(
            services.operator_key(
                options["workspace"],
                name=options["name"],
                scopes=options["scope"] or SCOPES,
                per_minute=options["per_minute"],
                per_day=options["per_day"],
                actor=services.Actor("manage.py create_key"),
            )
        )
