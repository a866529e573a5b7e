"""manage.py secrets: which process knows which secret, and whether a new one may go in front."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count
from redis.exceptions import RedisError

from accounts.models import ApiKey
from gateway_project.system import presence
from gateway_project.system.presence import Process


class Command(BaseCommand):
    help = (
        "Shows by fingerprint which secrets each live process knows. Ends with 0 when each knows "
        "all that any of them and this environment know: only then put a new one in front "
        "(docs/settings.md)."
    )
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.REDIS_URL:
            self.stdout.write("Without REDIS_URL there is one process: restart it with the new.")
            return
        try:
            processes = presence.living()
        except (RedisError, OSError) as exc:
            raise CommandError(f"Redis does not answer ({type(exc).__name__}).") from None
        if not processes:
            raise CommandError(
                f"No process wrote in the last {presence.GONE_SECONDS:.0f} seconds: start them."
            )
        missing = [
            sentence
            for name, own in presence.own_secrets().items()
            for sentence in self._show(name, own, processes)
        ]
        self._show_peppers()
        if missing:
            raise CommandError(
                f"Not yet. {' '.join(missing)} Restart these, with it behind the one in front."
            )
        self.stdout.write(
            f"Each of the {len(processes)} processes knows all of these: any may go in front."
        )

    def _show(self, name: str, own: list[str], processes: list[Process]) -> list[str]:
        """Print what is known of a setting; who lacks something, in sentences.

        What this environment alone knows was just added, and nobody was restarted yet.
        """
        known = dict.fromkeys(one for p in processes for one in p.knows.get(name, ()))
        known.update(dict.fromkeys(own))
        self.stdout.write(name)
        missing = []
        for one in known:
            front = [p for p in processes if list(p.knows.get(name, ()))[:1] == [one]]
            without = [p for p in processes if one not in p.knows.get(name, ())]
            self.stdout.write(
                f"  {one}  in front in {len(front)}, known to {len(processes) - len(without)} "
                f"of {len(processes)}"
            )
            if without:
                names = ", ".join(f"{p.role} {p.name}" for p in without)
                missing.append(f"{name} {one} is unknown to {names}.")
        return missing

    def _show_peppers(self) -> None:
        counts = ApiKey.objects.usable().order_by("pepper_version").values_list("pepper_version")
        for version, count in counts.annotate(count=Count("pk")):
            self.stdout.write(f"  {count} keys need the pepper of version {version}")
