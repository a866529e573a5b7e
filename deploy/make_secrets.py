"""`python3 deploy/make_secrets.py`: makes what docker-compose.yml mounts as secrets, each once.

Into `secrets/` beside the compose file: the folder is its owner's alone, the files are readable for
the containers' user. What is there stays as it is: a secret is rolled by hand (docs/settings.md).
Needs nothing but Python.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "secrets"


def _database_url(folder: Path) -> str:
    password = (folder / "postgres_password").read_text()
    return f"postgresql://gateway:{password}@postgres:5432/gateway"


MAKERS: dict[str, Callable[[Path], str]] = {
    "secret_key": lambda _: secrets.token_urlsafe(60),
    "key_peppers": lambda _: f"1:{secrets.token_urlsafe(48)}",
    "field_encryption_keys": lambda _: base64.urlsafe_b64encode(os.urandom(32)).decode(),
    "postgres_password": lambda _: secrets.token_hex(24),
    "database_url": _database_url,
    "metrics_token": lambda _: secrets.token_urlsafe(32),
}


def make(folder: Path) -> list[str]:
    """Make what is missing; the names of what was made."""
    folder.mkdir(mode=0o700, exist_ok=True)
    made = []
    for name, maker in MAKERS.items():
        path = folder / name
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_text(maker(folder))
            draft.chmod(0o444)  # bind-mounted, and read by another user than yours
            draft.rename(path)
            made.append(name)
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    print(f"{folder}: made {', '.join(make(folder)) or 'nothing, all are there'}")
