"""`manage.py backup PLACE`: the database, encrypted, into a folder or a bucket."""

from __future__ import annotations

import getpass
import os
from argparse import ArgumentParser
from time import monotonic
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.services import Actor
from gateway_project.backups import BackupError, services
from gateway_project.backups.storage import open_store

PROGRESS_SECONDS = 2.0


class Reporting:
    """Prints how far it is, at most every two seconds."""

    def __init__(self, command: BaseCommand) -> None:
        self._command, self._printed_at = command, monotonic()

    def __call__(self, what: str, size: int) -> None:
        if monotonic() - self._printed_at >= PROGRESS_SECONDS:
            self._printed_at = monotonic()
            self._command.stdout.write(f"{what} {size / 1e6:,.1f} MB …" if size else f"{what} …")
            self._command.stdout.flush()


class Command(BaseCommand):
    help = (
        "Dumps one snapshot of the database beside the traffic, encrypts it to BACKUP_RECIPIENTS "
        "as it leaves, and writes it into a folder or s3://bucket/prefix, with a readable list of "
        "what is in it. The secrets of the settings are not in it: keep them elsewhere."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("place", nargs="?", help="A folder, or s3://bucket/prefix.")
        parser.add_argument(
            "--noted",
            metavar="WORDS",
            help="Make none: note that something else did (for the doctor and the alert).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        actor = Actor(f"command ({user()})").fields()
        if options["noted"]:
            services.note(options["noted"][:200], actor=actor)
            self.stdout.write("Noted.")
            return
        if not options["place"]:
            raise CommandError("Name a folder or s3://bucket/prefix, or --noted.")
        try:
            store = open_store(options["place"])
            made = services.make(store, actor=actor, progress=Reporting(self))
        except BackupError as exc:
            raise CommandError(str(exc)) from None
        self.stdout.write(
            f"{store.where}: {made.dump}, {made.bytes / 1e6:,.1f} MB, {made.rows:,} rows in "
            f"{len(made.tables)} tables."
        )
        needed = ", ".join(f"{name} ({print_})" for name, print_ in made.keys.items())
        self.stdout.write(f"To read what is in it, keep too: {needed or 'no secret yet'}.")


def user() -> str:
    """Who runs this; in a container without a name, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
