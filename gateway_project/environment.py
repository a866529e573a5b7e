"""Settings as they are read from the environment: a value that cannot be right is a sentence."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from environ.fileaware_mapping import FileAwareMapping

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
BOOLEANS = ("true", "on", "ok", "y", "yes", "false", "off", "n", "no", "")
DATABASES = ("postgres://", "postgresql://", "sqlite://")
STORES = ("redis://", "rediss://", "unix://")
PUBLIC = re.compile(r"https?://[A-Za-z0-9._-]+(:[0-9]+)?|https?://\[[0-9A-Fa-f:]+\](:[0-9]+)?")


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

    def get_value(self, var: Any, cast: Any = None, *args: Any, **more: Any) -> Any:
        if cast is bool:
            # The base class takes whatever it does not know for false.
            text = str(super().get_value(var, default="")).strip()
            if text.lower() not in BOOLEANS and not text.isdigit():
                raise ImproperlyConfigured(f"{var} must be {KINDS[bool]}, not {text!r}.")
        try:
            return super().get_value(var, cast, *args, **more)
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

    def database_url(self, name: str, *, default: str) -> str:
        return self._url(
            name, default, DATABASES, "postgres://user:password@host:5432/name, or sqlite:///path"
        )

    def store_url(self, name: str) -> str:
        return self._url(name, "", STORES, "redis://host:6379/0")

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
