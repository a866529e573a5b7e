"""`manage.py restore PLACE`: a backup into an empty database, or `--verify`: only try it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from accounts.services import Actor
from gateway_project.backups import BackupError, postgres, services
from gateway_project.backups.storage import open_store
from gateway_project.core.stores import migrations
from gateway_project.management.commands.backup import Reporting, user


class Command(BaseCommand):
    help = (
        "Restores a backup into the database of DATABASE_URL, which must be empty, and compares "
        "every table, partition, index and constraint with what was backed up. With --verify it "
        "does so in a fresh database beside it, which is dropped again."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("place", help="The folder, or s3://bucket/prefix.")
        parser.add_argument("name", nargs="?", default="", help="Which; default: the newest.")
        parser.add_argument(
            "--identity",
            type=Path,
            help="File with the secret half of BACKUP_RECIPIENTS; default: BACKUP_IDENTITY.",
        )
        parser.add_argument("--verify", action="store_true", help="Only try it.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            keys = services.identities(self._identity(options["identity"]))
            store = open_store(options["place"])
            if options["verify"]:
                actor = Actor(f"command ({user()})").fields()
                tried = services.verify(
                    store, options["name"], keys=keys, actor=actor, progress=Reporting(self)
                )
            else:
                tried = services.restore(
                    store,
                    options["name"],
                    keys=keys,
                    into=postgres.target(),
                    progress=Reporting(self),
                )
        except BackupError as exc:
            raise CommandError(str(exc)) from None
        made = tried.manifest
        self.stdout.write(
            f"{made.dump} of {made.made_at}, by gateway {made.gateway}: {made.rows:,} rows in "
            f"{len(made.tables)} tables {'would be' if options['verify'] else 'are'} back."
        )
        for sentence in (*tried.differences, *tried.unreadable):
            self.stderr.write(f"! {sentence}")
        if tried.unreadable:
            self.stderr.write(
                "Without these secrets API keys are refused, and what is encrypted is lost: find "
                "them before you serve."
            )
        if not options["verify"]:
            self.stdout.write(f"Next: {migrations.COMMAND}, then serve (docs/operations.md).")
        if tried.differences or tried.unreadable:
            sys.exit(1)
        self.stdout.write("Everything compared is the same.")

    def _identity(self, path: Path | None) -> str:
        if path is None:
            if not settings.BACKUP_IDENTITY:
                raise CommandError(
                    "Name the secret half: --identity FILE, or BACKUP_IDENTITY_FILE."
                )
            return str(settings.BACKUP_IDENTITY)
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            raise CommandError(f"--identity: {path} cannot be read ({exc}).") from None
