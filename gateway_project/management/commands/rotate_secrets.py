"""`manage.py rotate_secrets`: encrypts all anew by the key in front, and says which may go."""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from time import monotonic
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from redis.exceptions import RedisError

from gateway_project import rotation
from gateway_project.rotation import KEYS, UNKNOWN, Tally
from gateway_project.system import presence

PROGRESS_SECONDS = 2.0


class Command(BaseCommand):
    help = (
        "Encrypts anew, by the key in front of FIELD_ENCRYPTION_KEYS, what older keys encrypted, "
        "in slices beside the traffic; then says what still needs an old key or pepper, and which "
        "may go. It may be stopped and begun again. Ends with 1 while something needs an old one."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--count", action="store_true", help="Only count, change nothing.")
        parser.add_argument("--slice", type=int, default=rotation.SLICE_ROWS, help="Rows at once.")
        parser.add_argument(
            "--force", action="store_true", help="Although processes lack the key in front."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["slice"] < 1:
            raise CommandError("--slice: at least one row.")
        if not (options["count"] or options["force"]):
            self._refuse_while_unknown()
        self._printed_at = monotonic()
        if options["count"]:
            found = rotation.count(self._progress)
        else:
            found = rotation.rotate(self._progress, options["slice"])
            rotation.forget_unused(found)
        is_done = self._say_keys(found) & self._say_peppers()
        self._say_signing()
        if not is_done:
            raise CommandError("Something still needs an old one, or cannot be read: see above.")

    def _refuse_while_unknown(self) -> None:
        """Who lacks the key in front could no longer read what is encrypted anew."""
        if not settings.REDIS_URL:
            return
        try:
            living = presence.living()
        except (RedisError, OSError) as exc:
            raise CommandError(
                f"Redis does not answer ({type(exc).__name__}), so it is not known whether every "
                "process has the key in front. Try again, or --force."
            ) from None
        front = presence.own_secrets()[KEYS][0]
        for process in living:
            known = process.knows.get(KEYS, ())
            if list(known[:1]) != [front]:
                where = "behind" if front in known else "not at all"
                raise CommandError(
                    f"{process.role} {process.name} has the key {front} {where}, and goes on "
                    "encrypting with another. Put it in front everywhere first (docs/settings.md, "
                    "Rolling a secret), or --force."
                )

    def _progress(self, column: str, rows: int) -> None:
        if monotonic() - self._printed_at >= PROGRESS_SECONDS:
            self._printed_at = monotonic()
            self.stdout.write(f"{column}: {rows:,} rows …")
            self.stdout.flush()

    def _say_keys(self, found: dict[str, Tally]) -> bool:
        needed: Counter[str] = Counter()
        for name, tally in found.items():
            needed.update(tally.by_key)
            parts = [f"{count:,} by {key}" for key, count in sorted(tally.by_key.items())]
            self.stdout.write(
                f"{name}: {tally.rows:,} rows, {tally.rotated:,} encrypted anew"
                + (f"; now {', '.join(parts)}" if parts else "")
            )
        front, *old = presence.own_secrets()[KEYS]
        self.stdout.write(f"{KEYS}: {front} is in front.")
        for key in old:
            if needed[key]:
                self.stdout.write(f"  {key} is still needed by {needed[key]:,} values.")
            else:
                self.stdout.write(f"  {key} may go: nothing stored needs it.")
        if needed[UNKNOWN]:
            self.stdout.write(
                f"  {needed[UNKNOWN]:,} values were encrypted by a key that is not here: add it "
                "behind. Without it they are lost."
            )
        return not any(needed[key] for key in (*old, UNKNOWN))

    def _say_peppers(self) -> bool:
        """Keys are digests: only a new key gets the new pepper."""
        needed = rotation.peppers_needed()
        current = settings.KEY_PEPPERS.current_version
        self.stdout.write(f"KEY_PEPPERS: version {current} is in front.")
        known = [version for version, _ in settings.KEY_PEPPERS.by_version]
        for version in sorted({*known, *needed} - {current}):
            count = needed.get(version, 0)
            if not count:
                self.stdout.write(f"  version {version} may go: no usable API key needs it.")
            elif version in known:
                self.stdout.write(
                    f"  version {version} is still needed by {count:,} API keys, until each is "
                    "rotated or revoked (docs/keys.md)."
                )
            else:
                self.stdout.write(
                    f"  version {version} is missing: {count:,} API keys are refused."
                )
        return all(version == current for version in needed)

    def _say_signing(self) -> None:
        days = max(settings.REFRESH_TOKEN_EXPIRE_DAYS, settings.SESSION_COOKIE_AGE // 86_400)
        self.stdout.write(
            f"SECRET_KEY and JWT_SECRET: an old one may go {days} days after it went behind, when "
            "the last session that it signed has ended."
        )
