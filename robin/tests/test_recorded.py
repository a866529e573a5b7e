"""The stand-in against a real Robin: exchanges that were recorded of both of its ports.

`data/exchanges.json` has what was asked, and of each answer what matters here: status, media type,
the names in its JSON, the words of a refusal. Recorded of Robin 2.0.0-SNAPSHOT (`6186d413f`) with
two mails in its queue; names and addresses are invented.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from pathlib import Path

import pytest

from robin.standin.robin import Robin
from robin.standin.seed_data import SeedData

EXCHANGES = json.loads((Path(__file__).parent / "data/exchanges.json").read_text())
MAILS = {
    "dir.eml/new/x.eml": b"From: x\r\n",
    "UPPER.EML": b"From: ann@north.example\r\n\r\nHi\r\n",
    "a+b.eml": b"From: x@north.example\r\n\r\nHi\r\n",
    "latin.eml": "Subject: Gr\u00fc\u00dfe\r\n\r\n".encode("latin-1"),
    "notes.txt": b"no mail",
}


def ask(port: int, call: dict) -> dict:
    """The same call, and of its answer what is compared."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = call["body"].encode() if "body" in call else None
    try:
        connection.request(call["method"], call["path"], body, call.get("headers", {}))
        answer = connection.getresponse()
        content = answer.read()
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return {"hangs_up": True}
    finally:
        connection.close()
    kind = answer.getheader("Content-Type", "")
    found = {"status": answer.status, "content_type": kind}
    if kind.startswith("application/json"):
        found["keys"] = sorted(json.loads(content))
    elif kind.startswith("text/plain") and answer.status != 200:
        found["text"] = content.decode()
    return found


async def differences() -> list[str]:
    """Where the stand-in answers otherwise than the real one did."""
    robin = Robin(SeedData())
    robin.seed.queue.cost = 0.0
    for name, content in MAILS.items():
        robin.seed.put(f"north.example/{name}", content)
    await robin.start()
    found = []
    try:
        for call in EXCHANGES:
            port = robin.client.port if call["server"] == "client" else robin.service.port
            answer = await asyncio.to_thread(ask, port, call)
            recorded = call["answer"]
            same = {name: answer.get(name) for name in recorded}
            if same != recorded:
                where = f"{call['server']} {call['method']} {call['path']} {call.get('body', '')!r}"
                found.append(f"{where}: {same} and not {recorded}")
    finally:
        await robin.stop()
    return found


def test_it_answers_as_the_real_one_did():
    assert asyncio.run(differences()) == []


@pytest.mark.parametrize("server", ["client", "service"])
def test_every_address_of_both_ports_is_among_them(server):
    robin = Robin(SeedData())
    asked = {call["path"].partition("?")[0] for call in EXCHANGES if call["server"] == server}
    dangerous = ("/system/", "/favicon.ico")
    for prefix in getattr(robin, server).contexts:
        if not prefix.startswith(dangerous):
            assert any(path.startswith(prefix) for path in asked), prefix
