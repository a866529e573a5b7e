#!/usr/bin/env python
"""Django's command line: `python manage.py help` lists what the gateway can do."""

import os
import sys

NOT_MIGRATED = ("42P01", "42703")  # PostgreSQL knows no such table, or no such column


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError, InterfaceError

    from gateway_project.environment import read_settings

    read_settings()
    try:
        execute_from_command_line(sys.argv)
    except (DatabaseError, InterfaceError) as exc:
        from gateway_project.core.stores.database import is_away

        # A database that is away or not migrated is no fault of the code.
        is_migrated = getattr(exc.__cause__, "sqlstate", None) not in NOT_MIGRATED
        if (is_migrated and not is_away(exc)) or "--traceback" in sys.argv:
            raise
        [reason, *_] = str(exc).splitlines() or [type(exc).__name__]
        sys.exit(
            f"The database failed: {reason}. What is wrong, and what to do, says "
            "`manage.py doctor database database.migrations`; --traceback shows where it was met."
        )


if __name__ == "__main__":
    main()
