"""Exchanges that were recorded with a real Robin: asked again, and what of an answer is compared.

A recorded exchange is `{server, method, path, headers?, body?, answer}`; of the answer there is
what matters here: status, media type, the names in its JSON, the words of a refusal.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Mapping
from typing import Any

Exchange = Mapping[str, Any]
MAILS = {
    "dir.eml/new/x.eml": b"From: x\r\n",
    "UPPER.EML": b"From: ann@north.example\r\n\r\nHi\r\n",
    "a+b.eml": b"From: x@north.example\r\n\r\nHi\r\n",
    "latin.eml": "Subject: Gr\u00fc\u00dfe\r\n\r\n".encode("latin-1"),
    "notes.txt": b"no mail",
    "ann/messages/x.eml": b"From: x\r\n",
}
"""What was in the store, below `north.example`."""


def ask(port: int, call: Exchange, more_headers: Mapping[str, str]) -> dict[str, Any]:
    """The same call, and of its answer what is compared."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = call["body"].encode() if "body" in call else None
    headers = {**call.get("headers", {}), **more_headers}
    try:
        connection.request(call["method"], call["path"], body, headers)
        answer = connection.getresponse()
        content = answer.read()
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return {"hangs_up": True}
    finally:
        connection.close()
    kind = answer.getheader("Content-Type", "")
    found: dict[str, Any] = {"status": answer.status, "content_type": kind}
    if kind.startswith("application/json"):
        found["keys"] = sorted(json.loads(content))
    elif kind.startswith("text/plain") and answer.status != 200:
        found["text"] = content.decode()
    return found


def differences(
    exchanges: Iterable[Exchange],
    ports: Mapping[str, int],
    more_headers: Mapping[str, str] | None = None,
) -> list[str]:
    """Where it is answered otherwise; `ports` are those of `client` and `service`."""
    found = []
    for call in exchanges:
        answer, recorded = ask(ports[call["server"]], call, more_headers or {}), call["answer"]
        same = {name: answer.get(name) for name in recorded}
        if same != recorded:
            where = f"{call['server']} {call['method']} {call['path']} {call.get('body', '')!r}"
            found.append(f"{where}: {same} and not {recorded}")
    return found
