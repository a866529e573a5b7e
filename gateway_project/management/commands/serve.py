"""`manage.py serve`: the web processes, as in production."""

from __future__ import annotations

import os
import resource
from typing import Any

from django import db
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from gateway_project import rotation
from gateway_project.core.stores import migrations
from gateway_project.core.telemetry import multiprocess
from gateway_project.environment import lacking
from gateway_project.server.command import command as server_command

FILES_MAX = 65536


def allow_files() -> None:
    """As many as this user may open, two for each client: shells and systemd begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Command(BaseCommand):
    help = "Serve the gateway with WORKERS web processes against the stores the environment names."

    def handle(self, *args: Any, **options: Any) -> None:
        if lack := lacking():
            raise CommandError(lack)
        self.check(display_num_errors=True)
        self._warn_of_the_database()
        allow_files()
        environment = {
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(multiprocess.metrics_folder()),
        }
        command = server_command(host=settings.HOST, port=settings.PORT, workers=settings.WORKERS)
        os.execve(command[0], command, environment)  # noqa: S606 - becomes the server

    def _warn_of_the_database(self) -> None:
        """Not refused: the processes look again, and are not ready until all is there."""
        try:
            missing = migrations.find_missing()
        except db.Error as exc:
            self.stderr.write(
                f"The database of DATABASE_URL does not answer ({type(exc).__name__}). The gateway "
                "starts, and is not ready until it does."
            )
        else:
            if missing:
                self.stderr.write(migrations.sentence(missing))
            else:
                for sentence in rotation.note_in_use():
                    self.stderr.write(sentence)
        finally:
            db.connections.close_all()
