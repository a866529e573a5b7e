#!/usr/bin/env python
"""Django's command line: `python manage.py help` lists what the gateway can do."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    from django.core.management import execute_from_command_line

    from gateway_project.environment import read_settings

    read_settings()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
