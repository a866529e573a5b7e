"""ClamAV and Rspamd, asked whether they are there. Robin offers nothing of the kind.

The document that Robin UI edits names the host. Only addresses that the operator lists are dialled
(`ROBIN_SCANNERS`), or whoever may edit it could search the gateway's network for open ports.
Protocols: clamd(8) `zVERSION`, Rspamd's HTTP workers `/ping` and `/stat`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import orjson
from django.conf import settings

from gateway_project.core.upstream import client as http

SECONDS_MAX = 5.0
VERSION_BYTES_MAX = 500
STAT_BYTES_MAX = 1 << 20
STAT = {
    "uptime": "uptime",
    "scannedTotal": "scanned",
    "spamCount": "spam_count",
    "hamCount": "ham_count",
}
State = Literal["UP", "DOWN", "TIMEOUT", "ERROR"]


@dataclass(frozen=True, slots=True)
class Found:
    """`facts` are what the scanner says of itself: `version`, and Rspamd's counters."""

    state: State
    message: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Unknown(Exception):
    """Something answered, but not this scanner."""


async def ask(name: str, document: Mapping[str, Any]) -> Found:
    """Ask the scanner that `document` (of `documents.py`) names. Never raises for it."""
    host, port = str(document["host"]), int(document["port"])
    if f"{host}:{port}" not in settings.ROBIN_SCANNERS:
        return Found(
            "ERROR",
            f"The gateway may not ask {host}:{port}: its operator has to name it in "
            "ROBIN_SCANNERS.",
            0.0,
        )
    deadline = min(SECONDS_MAX, document.get("timeout", 5000) / 1000)
    began = perf_counter()
    try:
        async with asyncio.timeout(deadline):
            facts = await (
                _clamav(host, port) if name == "clamav" else _rspamd(host, port, document)
            )
    except (TimeoutError, http.UpstreamTimeout):
        return Found("TIMEOUT", f"No answer within {deadline:g} s.", perf_counter() - began)
    except (OSError, http.ConnectFailed):
        return Found("DOWN", "No connection could be made.", perf_counter() - began)
    except (_Unknown, http.UpstreamError):
        text = "Something answers there, but not as this scanner does. Is the port right?"
        return Found("ERROR", text, perf_counter() - began)
    return Found("UP", "It answers.", perf_counter() - began, facts)


async def _clamav(host: str, port: int) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(host, port, limit=VERSION_BYTES_MAX)
    try:
        writer.write(b"zVERSION\0")
        reply = await reader.readuntil(b"\0")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
        raise _Unknown from exc
    finally:
        writer.close()
    version = reply[:-1].decode("ascii", "replace")
    if not version.startswith("ClamAV "):
        raise _Unknown
    return {"version": version}


async def _rspamd(host: str, port: int, document: Mapping[str, Any]) -> dict[str, Any]:
    shown = f"[{host}]" if ":" in host else host
    client = http.UpstreamClient(
        "rspamd", f"http://{shown}:{port}", in_flight_max=1, answer_bytes_max=STAT_BYTES_MAX
    )
    password = {"Password": document["apiKey"]} if document.get("apiKey") else {}
    async with client:
        pong = await client.request("GET", "/ping", timeout_seconds=SECONDS_MAX)
        if pong.status != 200 or pong.content.strip() != b"pong":
            raise _Unknown
        # Only its controller knows these, and it may want the password: not knowing them is no
        # trouble.
        stat = await client.request("GET", "/stat", headers=password, timeout_seconds=SECONDS_MAX)
    try:
        reply = orjson.loads(stat.content) if stat.status == 200 else {}
    except ValueError:
        reply = {}
    if not isinstance(reply, dict):
        return {}
    facts: dict[str, Any] = {
        field: reply[theirs] for field, theirs in STAT.items() if isinstance(reply.get(theirs), int)
    }
    if isinstance(reply.get("version"), str):
        facts["version"] = reply["version"][:100]
    return facts
