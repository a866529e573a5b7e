"""Test processes side by side: one database is migrated, and each of them begins with a copy.

Migrating takes some seconds of a core. The run begins with it in a process of its own, while
the test processes collect; who is done with that waits until there is a database to copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connections
from psycopg import sql

VARIABLE = "TEST_TEMPLATE"
"""In the environment of test processes: the name of the database to copy."""
ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 120.0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    url = os.environ.get("DATABASE_URL", "")
    if not url.startswith("postgres"):
        return
    name = f"gateway_template_{os.getpid()}"
    for spec in specs:
        spec.env[VARIABLE] = name
    making = subprocess.Popen([sys.executable, "-m", __name__, name], stdout=subprocess.DEVNULL)

    def remove() -> None:
        making.kill()
        making.wait()
        with psycopg.connect(url, autocommit=True) as connection:
            for one in (name, f"{name}_making"):
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                connection.execute(drop.format(sql.Identifier(one)))

    config.add_cleanup(remove)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    """Copy what this run has migrated; without it each process migrates for itself."""
    if (name := os.environ.get(VARIABLE)) and is_there(name):
        connections["default"].settings_dict["TEST"] |= {"TEMPLATE": name, "MIGRATE": False}


def is_there(name: str) -> bool:
    until = monotonic() + WAIT_SECONDS
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        while monotonic() < until:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, [name]).fetchone():
                return True
            sleep(0.1)
    return False


def make(name: str) -> None:
    """It has its name when it is whole, and nobody is connected to it."""
    url, making = os.environ["DATABASE_URL"], f"{name}_making"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(making)))
        target = urlsplit(url)._replace(path=f"/{making}").geturl()
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            env={**os.environ, "DATABASE_URL": target},
            cwd=ROOT,
            check=True,
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                sql.Identifier(making), sql.Identifier(name)
            )
        )


if __name__ == "__main__":
    make(sys.argv[1])
