#!/usr/bin/env python
"""Django's command line: `python manage.py help` lists what the gateway can do."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        _ = settings.INSTALLED_APPS  # reads all of them
    except ImproperlyConfigured as exc:
        sys.exit(f"A setting is wrong (environment or .env): {exc}")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
