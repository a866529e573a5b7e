"""`manage.py doctor`: every check of the installation, with what to do about what it found."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections import Counter
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway_project.doctor import examination, installation, network, stores  # noqa: F401
from gateway_project.doctor.examination import CHECKS, Finding, Options, worst

MARKS = {"ok": "ok  ", "skipped": "skip", "warning": "WARN", "error": "FAIL"}


class Command(BaseCommand):
    help = (
        "Examines the installation that the environment names, and says what to do. Ends with 0 "
        "when nothing is wrong, 1 when something is (`--strict`: or is doubtful), 2 when asked "
        "for a check that does not exist. It changes nothing; its requests and tasks do no work."
    )
    requires_system_checks = []  # they are findings here

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("checks", nargs="*", metavar="CHECK", help="Only these; default: all.")
        parser.add_argument("--json", action="store_true", help="One JSON document.")
        parser.add_argument("--strict", action="store_true", help="Warnings end with 1, too.")
        parser.add_argument(
            "--url",
            default="",
            help="The gateway as clients reach it, through every proxy: https://gateway.example. "
            "Default: the first of CSRF_TRUSTED_ORIGINS, else this machine's HOST and PORT.",
        )
        parser.add_argument("--mail-to", default="", help="Sends a real mail to this address.")

    def handle(self, *args: Any, **options: Any) -> None:
        unknown = set(options["checks"]) - set(CHECKS)
        if unknown:
            raise CommandError(
                f"No such check: {', '.join(sorted(unknown))}. There are: {', '.join(CHECKS)}.",
                returncode=2,
            )
        found: list[Finding] = []
        asked = Options(url=options["url"].rstrip("/"), mail_to=options["mail_to"])
        for finding in examination.examine(asked, options["checks"]):
            found.append(finding)
            if not options["json"]:
                self._print(finding)
                self.stdout.flush()
        counts = Counter(one.status for one in found)
        result = worst(found)
        if options["json"]:
            document = {
                "status": result,
                "counts": {status: counts.get(status, 0) for status in examination.RANK},
                "findings": [asdict(one) for one in found],
            }
            self.stdout.write(json.dumps(document, indent=2))
        else:
            self.stdout.write(
                f"\n{counts['error']} wrong, {counts['warning']} doubtful, "
                f"{counts['skipped']} skipped, {counts['ok']} fine."
            )
        if result == "error" or (options["strict"] and result == "warning"):
            sys.exit(1)

    def _print(self, finding: Finding) -> None:
        self.stdout.write(f"{MARKS[finding.status]}  {finding.check}: {finding.message}")
        if finding.do:
            self.stdout.write(f"      → {finding.do}")
