"""Exchanges that were recorded with a real Robin: asked again, and what of an answer is compared.

A recorded exchange is `{server, method, path, headers?, body?, answer}`; of the answer there is
what matters here: status, media type, the names in its JSON, the words of a refusal.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Exchange = Mapping[str, Any]
LIST = "/client/queue/list?page=1&limit=50&state="
WANTS_JSON = {"Accept": "application/json"}
CALLS: tuple[Exchange, ...] = (
    *({"server": "client", "path": LIST + state} for state in ("READY", "CLAIMED", "DEAD")),
    {"server": "client", "path": "/store/north.example", "headers": WANTS_JSON},
    {"server": "client", "path": "/logs?query=smtp."},
    {"server": "client", "path": "/store", "headers": {"Authorization": "Bearer wrong"}},
    {"server": "service", "path": "/health"},
    {"server": "service", "path": "/config"},
    {"server": "service", "path": "/metrics/prometheus"},
    {"server": "service", "path": "/config", "headers": {"Authorization": "Bearer wrong"}},
    {"server": "service", "path": "/config/reload", "method": "POST", "broken": True},
    {"server": "service", "path": "/config", "broken": True},
    {"server": "client", "path": "/logs?query=onfig", "broken": True},
)
"""Of which the whole answer is recorded; the last ones over `relay.json5` cut in the middle."""
DRAWN = re.compile(r"<(style|script|svg)\b.*?</\1>\s*", re.DOTALL)
"""How a page looks and moves, which nobody reads."""
TAG = re.compile(r"<\w[^>]*>")
METRIC = re.compile(r"^(\w+)(\{.*\})? [-+\w.]+$", re.MULTILINE)
HEADERS = ("Content-Type", "WWW-Authenticate", "Connection", "Transfer-Encoding", "Cache-Control")
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


def answer(port: int, call: Exchange, more_headers: Mapping[str, str]) -> dict[str, Any]:
    """The call with all of its answer; the call's own headers win."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {**more_headers, **call.get("headers", {})}
        connection.request(call.get("method", "GET"), call["path"], headers=headers)
        found = connection.getresponse()
        kept = {name: found.getheader(name) for name in HEADERS if found.getheader(name)}
        body = DRAWN.sub("", found.read().decode())
        return {**call, "status": found.status, "answer_headers": kept, "body": body}
    finally:
        connection.close()


def outline(answer: Mapping[str, Any]) -> set[str]:
    """What of an answer is compared: names at every depth of JSON, the tags of what a page says of
    the queue or of settings, the names of metrics with those of their labels."""
    body, kind = str(answer["body"]), str(answer["answer_headers"]["Content-Type"])
    if kind.startswith("application/json"):
        return set(_names("", json.loads(body)))
    if kind.startswith("text/html"):
        row = body.partition("<tbody>")[2].partition("</tr>")[0]
        sections = body.partition('<div class="config-section">')[2]
        tags = TAG.findall(row or sections)
        return {re.sub(r"(data-uid|title)='[^']*'", r"\1", tag) for tag in tags}
    return {
        name + ",".join(sorted(re.findall(r'(\w+)="', labels)))
        for name, labels in METRIC.findall(body)
    }


def _names(at: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _names(f"{at}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(f"{at}[]", inner)
    else:
        yield f"{at}: {'number' if isinstance(value, int | float) else type(value).__name__}"


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
