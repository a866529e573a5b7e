"""The three documents that Robin UI edits and Robin does not read: dovecot, clamav, rspamd.

Robin's own files of these names have other fields, and no HTTP way to write them. So the gateway
keeps the UI's documents and says so; a first one begins with what Robin's settings tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import ConfigDict, Field

from gateway_project.core import clock, errors
from gateway_project.core.api import json_body
from gateway_project.core.api.endpoint import Asked
from robin.models import Document
from robin.redaction import REDACTED

NOTICE = {"X-Gateway-Notice": "stored here, not applied to Robin"}
Host = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^(?:[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+)$")
]
TcpPort = Annotated[int, Field(ge=1, le=65535)]
Line = Annotated[str, Field(max_length=500)]
Milliseconds = Annotated[int, Field(ge=1000, le=60_000)]
Score = Annotated[float, Field(ge=1, le=100)]


class Strict(Asked):
    model_config = ConfigDict(extra="forbid")


class ClamAV(Strict):
    enabled: bool = False
    host: Host = "localhost"
    port: TcpPort = 3310
    timeout: Milliseconds = 5000
    maxFileSize: Annotated[int, Field(ge=0)] | None = None
    scanArchives: bool | None = None


class Rspamd(Strict):
    enabled: bool = False
    host: Host = "localhost"
    port: TcpPort = 11333
    apiKey: Line | None = None
    rejectScore: Score = 15
    addHeaderScore: Score = 6
    greylistScore: Annotated[float, Field(ge=0, le=100)] | None = None
    timeout: Milliseconds | None = None


class Authentication(Strict):
    mechanisms: list[Line] = ["plain", "login"]
    defaultRealm: Line = ""


class TLS(Strict):
    enabled: bool = False
    # Where Robin's own Dovecot has them: Robin UI saves nothing while one is empty.
    certFile: Line = "/etc/dovecot/certs/imap.crt"
    keyFile: Line = "/etc/dovecot/certs/imap.key"


class Limits(Strict):
    maxConnections: Annotated[int, Field(ge=1)] = 1000
    maxUserConnections: Annotated[int, Field(ge=1)] = 20


class Dovecot(Strict):
    protocols: list[Line] = ["imap", "lmtp"]
    listen: Line = "*"
    authentication: Authentication = Authentication()
    mailLocation: Line = "maildir:~/Maildir"
    ssl: TLS = TLS()
    limits: Limits = Limits()


Changes = dict[str, list[Any]]
"""`{field: [before, after]}`, a secret as it is shown."""
KINDS: dict[str, type[Strict]] = {"dovecot": Dovecot, "clamav": ClamAV, "rspamd": Rspamd}
# The UI's field → Robin's, and what it is multiplied with.
SEEDS: dict[str, dict[str, tuple[str, int]]] = {
    "clamav": {
        "enabled": ("enabled", 1), "host": ("host", 1), "port": ("port", 1),
        "timeout": ("timeout", 1000),
    },
    "rspamd": {
        "enabled": ("enabled", 1), "host": ("host", 1), "port": ("port", 1),
        "timeout": ("timeout", 1000), "rejectScore": ("rejectThreshold", 1),
        "addHeaderScore": ("rejectThreshold", 1),  # it marks nothing that it does not reject
    },
    "dovecot": {},
}  # fmt: skip


def stored(name: str) -> dict[str, Any] | None:
    row = Document.objects.filter(pk=name).first()
    return None if row is None else dict(row.content)


def seeded(name: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The first document: Robin's values where it has such, else the usual ones."""
    known = sections.get(name) or {}
    given = {}
    for field, (source, factor) in SEEDS[name].items():
        value = known.get(source)
        if value is not None:
            given[field] = value if factor == 1 else value * factor
    try:
        return _plain(KINDS[name].model_validate(given))
    except pydantic.ValidationError:  # Robin allows what the UI does not
        return _plain(KINDS[name]())


def parsed(name: str, body: bytes) -> dict[str, Any]:
    """A document from a client, whatever media type it came with: the UI sends it as text."""
    return _plain(json_body.validated(body, KINDS[name]))


def checked(name: str, given: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """A document that is not to be kept; its secret may be sent as it was shown."""
    try:
        return _with_secret(_plain(KINDS[name].model_validate(given)), kept)
    except pydantic.ValidationError as exc:
        raise errors.from_pydantic(exc, KINDS[name]) from None


def save(name: str, content: dict[str, Any], *, by: str) -> tuple[dict[str, Any], Changes]:
    """Keep it; a secret that was sent back as it was shown stays what it is.

    Returns it, and what changed in it.
    """
    kept = stored(name) or {}
    content = _with_secret(content, kept)
    facts = {"content": content, "updated_by": by, "updated_at": clock.now()}
    Document.objects.update_or_create(pk=name, defaults=facts)
    was, now = shown(kept), shown(content)
    changed = sorted(field for field in {*kept, *content} if kept.get(field) != content.get(field))
    return content, {field: [was.get(field), now.get(field)] for field in changed}


def _with_secret(content: dict[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    if content.get("apiKey") != REDACTED:
        return content
    others = {field: value for field, value in content.items() if field != "apiKey"}
    return {**others, "apiKey": kept["apiKey"]} if kept.get("apiKey") else others


def shown(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "apiKey": REDACTED} if content.get("apiKey") else content


def _plain(document: Strict) -> dict[str, Any]:
    return document.model_dump(exclude_none=True)
