"""Robin's answers as they are, for the tests: `robin/tests/data/answers.json`.

The queue has an item in each state, and one with seven recipients; names, ports and paths are
replaced, and the dates stay.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any

from deploy.robin_real.checks import ANSWERS, wait_for, write_exchanged
from deploy.robin_real.mta import Mta
from deploy.robin_real.sink import NEVER, SLOW, TAKEN
from deploy.robin_real.table import Table
from robin.standin import recorded

MANY = [f"n{n}@north.example" for n in range(7)]


def record(table: Table, mta: Mta, port: int, refused: int) -> None:
    write_exchanged(mta)
    mta.send(f"a@{TAKEN}", port)
    mta.send(f"c@{NEVER}", port)
    mta.send(MANY[0], refused, *MANY[1:])
    mta.send("o'hara@<b>&.example", refused)
    mta.send(f"d@{SLOW}", port)
    with table.check("2", "answers recorded, of each state") as row:
        wait_for("a dead and a claimed item", lambda: _states(mta) >= {"DEAD", "CLAIMED"})
        ports = {"client": mta.ports.client, "service": mta.ports.service}
        headers = {"Authorization": f"Bearer {mta.token}"}

        def answered(*, broken: bool) -> list[dict[str, Any]]:
            calls = [call for call in recorded.CALLS if call.get("broken", False) is broken]
            return [recorded.answer(ports[call["server"]], call, headers) for call in calls]

        answers = answered(broken=False)
        with mta.broken("relay.json5"):
            answers += answered(broken=True)
        text = _with_other_names(json.dumps(answers, indent=1, ensure_ascii=False), mta, port)
        ANSWERS.write_text(f"{text}\n")
        row.found(f"{len(answers)}, {len(text):,} letters", all(a["body"] for a in answers))


def _states(mta: Mta) -> set[str]:
    return {state for state in ("READY", "CLAIMED", "DEAD") if mta.retries(state)}


def _with_other_names(text: str, mta: Mta, port: int) -> str:
    named: dict[Any, str] = {
        mta.home: "/usr/local/robin",
        mta.token: "recorded-token",
        socket.gethostname(): "mx.north.example",
        mta.ports.client: "8090",
        mta.ports.service: "8080",
        mta.ports.smtp: "25",
        port: "2525",
    }
    for name, other in named.items():
        text = re.sub(rf"(?<!\w){re.escape(str(name))}(?!\w)", other, text)
    return text
