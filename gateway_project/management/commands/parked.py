"""`manage.py parked`: what stores refused, and trying it again."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand

from accounts import parking
from accounts.models import Parked
from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.staff import parked

SHOWN_MAX = 50


class Command(BaseCommand):
    help = "Lists what lies parked because a store refused it; runs it again, or throws it away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "ids", nargs="*", metavar="ID", type=UUID, help="Only these; default: all."
        )
        parser.add_argument("--kind", default="", help="Only what is of this kind.")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--rerun", action="store_true", help="Try it once more.")
        what.add_argument("--discard", action="store_true", help="Throw it away for good.")

    def handle(self, *_: Any, **options: Any) -> None:
        found = Parked.objects.order_by("id")
        if options["ids"]:
            found = found.filter(pk__in=options["ids"])
        if options["kind"]:
            found = found.filter(kind=options["kind"])
        if not (options["rerun"] or options["discard"]):
            self._list(found)
            return
        act, done = parked.rerun if options["rerun"] else parked.discard, 0
        actor = Actor(f"command ({getpass.getuser()})")
        for row in found.iterator():
            try:
                act(row, actor=actor)
            except errors.GatewayError as exc:
                self.stderr.write(f"{row.pk} {row}: {exc.detail}")
            else:
                done += 1
        self.stdout.write(f"Done: {done}. Still parked: {sum(parking.counts().values())}.")

    def _list(self, found: Any) -> None:
        for row in found[:SHOWN_MAX]:
            self.stdout.write(
                f"{row.pk} {row.created_at:%Y-%m-%d %H:%M:%S} {row} {row.error} "
                f"({row.payload_bytes} bytes, workspace {row.workspace_id})"
            )
        for kind, count in sorted(parking.counts().items()):
            self.stdout.write(f"{kind}: {count}")
