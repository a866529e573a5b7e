"""`manage.py audit verify`: is the audit trail as it was written?"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import audit
from accounts.models import AuditEvent, Workspace


class Command(BaseCommand):
    help = (
        "verify: work out the chain of every workspace (or of --workspace) anew, and say the first "
        "row of each that was changed, put in or left out. Ends with 1 when there is one."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("act", choices=["verify"])
        parser.add_argument("--workspace", help="its slug; `none` for acts of no workspace")

    def handle(self, *args: Any, **options: Any) -> None:
        broken = 0
        chains = self._chains(options["workspace"])
        for chain in chains:
            found = audit.verify(chain)
            if found.wrong is not None:
                broken += 1
                self.stdout.write(f"{self._name(chain)}: {found.wrong}, at number {found.at}")
            elif len(chains) == 1:
                self.stdout.write(f"{self._name(chain)}: {found.first} to {found.last} unbroken")
        waiting = AuditEvent.objects.filter(number=None).count()
        self.stdout.write(f"{len(chains)} chains, {broken} broken; {waiting} rows not sealed yet")
        if broken:
            raise CommandError("the audit trail is not as it was written")

    @staticmethod
    def _chains(slug: str | None) -> list[Any]:
        if slug is None:
            return audit.chains()
        if slug == "none":
            return [audit.NOBODYS]
        found = Workspace.objects.filter(slug=slug).first()
        if found is None:
            raise CommandError(f"there is no workspace '{slug}'")
        return [found.pk]

    @staticmethod
    def _name(chain: Any) -> str:
        if chain == audit.NOBODYS:
            return "none"
        found = Workspace.objects.filter(pk=chain).first()
        return found.slug if found else str(chain)
