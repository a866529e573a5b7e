"""Settings as they are read from the environment: a value that cannot be right is a sentence."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import environ
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from environ.fileaware_mapping import FileAwareMapping

from gateway_project.core.stores import addresses

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Entries = list[str]
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
BOOLEANS = ("true", "on", "ok", "y", "yes", "false", "off", "n", "no", "")
DATABASES = ("postgres://", "postgresql://", "sqlite://")
STORES = ("redis://", "rediss://", "unix://", *(f"{name}://" for name in addresses.SCHEMES))
ALIKE, ALIKE_CHARS_MIN = 0.88, 6
"""From which likeness on (difflib's) a name that is no setting is taken for a mistyped one."""
IN_LINES = {"DETECTION_ENGINES"}
NEEDED = {
    "SECRET_KEY": "a long random text (.env.example has a command that makes one)",
    "KEY_PEPPERS": "1:<random text> (likewise), kept for as long as keys are",
    "FIELD_ENCRYPTION_KEYS": "a Fernet key (likewise), kept for as long as what it encrypts",
    "DATABASE_URL": "postgres://user:password@host/name",
    "REDIS_URL": "redis://host:6379/0",
    "DETECTION_ENGINE_URL": "http://detection-engine:8080",
}
"""What each process of an installation is given, with an example."""
PUBLIC = re.compile(r"https?://[A-Za-z0-9._-]+(:[0-9]+)?|https?://\[[0-9A-Fa-f:]+\](:[0-9]+)?")


class Asked(NamedTuple):
    """A setting that was asked for."""

    is_text: bool
    value: Any


class _Files(FileAwareMapping):  # type: ignore[misc]
    """What a secret's file holds, without the line's end that editors and `echo` leave."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key).rstrip("\r\n")


class Environment(environ.FileAwareEnv):  # type: ignore[misc]
    """NAME, or NAME_FILE with the path of a mounted secret.

    Raises `ImproperlyConfigured` with the name of the setting, never with a value of one that
    may be a secret.
    """

    ENVIRON = _Files()

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Asked] = {}

    def read_dotenv(self, path: Path) -> None:
        """What a file `.env` says and the environment does not. None needs to be there."""
        if path.exists() and not os.access(path, os.R_OK):
            raise ImproperlyConfigured(
                f"{path} cannot be read by this user (uid {os.getuid()}): give it to the user that "
                "the gateway runs as, mode 600."
            )
        self.read_env(path)

    def get_value(self, var: Any, cast: Any = None, *args: Any, **more: Any) -> Any:
        if cast is bool:
            # The base class takes whatever it does not know for false.
            text = str(super().get_value(var, default="")).strip()
            if text.lower() not in BOOLEANS and not text.isdigit():
                raise ImproperlyConfigured(f"{var} must be {KINDS[bool]}, not {text!r}.")
        try:
            value = super().get_value(var, cast, *args, **more)
            self.asked[var] = Asked(cast in (None, str), value)
            return value
        except OSError as exc:
            raise ImproperlyConfigured(
                f"{var}_FILE names a file that cannot be read: {exc.filename} ({exc.strerror})."
            ) from None
        except UnicodeDecodeError:
            raise ImproperlyConfigured(f"{var}_FILE names a file that is not UTF-8.") from None
        except ValueError:
            text = str(super().get_value(var, default=""))
            kind = KINDS.get(cast, "another value")
            raise ImproperlyConfigured(f"{var} must be {kind}, not {text!r}.") from None

    def list(self, var: str, cast: Any = None, default: Any = environ.Env.NOTSET) -> Entries:
        """`a, b` as `a,b`: a blank is of no name, origin or key."""
        found = (str(one).strip() for one in super().list(var, cast, default))
        return [one for one in found if one]

    def database_url(self, name: str, *, default: str) -> str:
        return self._url(
            name, default, DATABASES, "postgres://user:password@host:5432/name, or sqlite:///path"
        )

    def store_url(self, name: str) -> str:
        example = f"redis://host:6379/0, or {addresses.EXAMPLE}"
        url = self._url(name, "", STORES, example)
        try:
            addresses.hosts(url)
        except ValueError:  # its words quote, and a password may be in the wrong place
            raise ImproperlyConfigured(f"{name} must look like {example}.") from None
        return url

    def public_url(self, name: str) -> str:
        """Scheme and host, as links begin; nothing behind them."""
        url = str(self.str(name, default="")).rstrip("/")
        if url and PUBLIC.fullmatch(url) is None:
            raise ImproperlyConfigured(f"{name} must look like https://gateway.example.")
        return url

    def networks(self, name: str) -> tuple[Network, ...]:
        """`10.0.0.0/8,fd00::/8`"""
        try:
            return tuple(ipaddress.ip_network(one.strip()) for one in self.list(name, default=[]))
        except ValueError as exc:
            raise ImproperlyConfigured(f"{name}: {exc}") from None

    def _url(self, name: str, default: str, starts: tuple[str, ...], example: str) -> str:
        url = str(self.str(name, default="")) or default
        if url and not url.startswith(starts):  # it may hold a password: it is not repeated
            raise ImproperlyConfigured(f"{name} must look like {example}.")
        return url


def read_settings() -> None:
    """Read all of them; a wrong one ends the process in its sentence, without a traceback."""
    try:
        _ = settings.INSTALLED_APPS
    except ImproperlyConfigured as exc:
        sys.exit(f"A setting is wrong (environment or .env): {exc}")


def lacking() -> str:
    """What this process lacks of `NEEDED`, in lines; "" when it has all. Without the secrets it
    would make some of its own, and read nothing of what other hosts wrote."""
    missing = [name for name in NEEDED if not Environment.ENVIRON.get(name)]
    if not missing:
        return ""
    lines = "\n".join(f"  {name}={NEEDED[name]}" for name in missing)
    return (
        f"These settings are missing (see .env.example):\n{lines}\n"
        "To try the gateway without any, use: make run"
    )


# -- What was read, and is probably not meant -----------------------------------------------------


class Doubt(NamedTuple):
    """Never with a value, which may be a secret."""

    id: str
    message: str
    do: str


def doubts(
    asked: Mapping[str, Asked], variables: Mapping[str, str] | None = None
) -> Iterator[Doubt]:
    """About the variables of a process (this one's), of which the settings `asked` for some."""
    variables = os.environ if variables is None else variables
    files = {name for name in asked if variables.get(f"{name}_FILE")}
    for name in sorted(asked):
        text = _content(variables, name) if name in files else variables.get(name, "")
        value = text.rstrip("\r\n")
        where = f"{name}_FILE" if name in files else name
        if name in files and not value:
            yield Doubt(
                "gateway.W006",
                f"{where} names an empty file: {name} is not set.",
                "Write the secret into it, or take the variable out.",
            )
        elif name in files and variables.get(name, value).rstrip("\r\n") not in ("", value):
            yield Doubt(
                "gateway.W007",
                f"{name} and {where} are both set, and differ: the file's is used.",
                "Take one of them out, also of .env.",
            )
        if asked[name].is_text and name not in IN_LINES and value != value.strip():
            yield Doubt(
                "gateway.W005",
                f"{where} has white space around its value, which is taken for a part of it: a "
                "host without it has another value.",
                "Take it out, on all hosts at once (`printf %s`, not `echo`, makes none).",
            )
    known = {*asked, *(f"{name}_FILE" for name in asked)}
    for name in sorted(set(variables) - known):
        plain = name.removesuffix("_FILE")
        if len(plain) < ALIKE_CHARS_MIN or not variables[name]:
            continue
        if alike := get_close_matches(plain, asked, 1, ALIKE):
            yield Doubt(
                "gateway.W008",
                f"{name} is no setting, and changes nothing.",
                f"Is {alike[0]} meant? docs/settings.md has all.",
            )


def _content(variables: Mapping[str, str], name: str) -> str:
    try:
        return Path(variables[f"{name}_FILE"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # refused where it is read
        return ""
