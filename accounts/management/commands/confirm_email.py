"""`manage.py confirm_email ADDRESS`: lift the trial limits of a developer's workspace."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import services
from accounts.models import User, normal_email


class Command(BaseCommand):
    help = "Confirm a registered e-mail address by hand."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(email=normal_email(options["address"])).first()
        if user is None:
            raise CommandError(f"Nobody is registered as {options['address']}.")
        services.confirm_email(user, actor=services.Actor("manage.py confirm_email"))
        self.stdout.write(f"{user.email} is confirmed.")
