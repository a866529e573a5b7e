"""The stand-in against a real Robin: exchanges that were recorded of both of its ports.

`data/exchanges.json` has them (`robin/standin/recorded.py`), of Robin 2.0.0-SNAPSHOT (`6186d413f`)
with two mails in its queue; names and addresses are invented. `make robin-real` asks a real one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from robin.standin import recorded
from robin.standin.robin import Robin
from robin.standin.seed_data import SeedData

EXCHANGES = json.loads((Path(__file__).parent / "data/exchanges.json").read_text())


async def differences() -> list[str]:
    """Where the stand-in answers otherwise than the real one did."""
    robin = Robin(SeedData())
    robin.seed.queue.cost = 0.0
    for name, content in recorded.MAILS.items():
        robin.seed.put(f"north.example/{name}", content)
    await robin.start()
    ports = {"client": robin.client.port, "service": robin.service.port}
    try:
        return await asyncio.to_thread(recorded.differences, EXCHANGES, ports)
    finally:
        await robin.stop()


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
