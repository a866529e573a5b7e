"""What the stub answers in Robin's place: its own pages for the gateway, JSON for the reference.

Stock Robin lists its queue as HTML only; the plans took it to be JSON, so the reference is given
that, and only passes it on. Written once a run, from the stand-in's invented queue.
"""

from __future__ import annotations

import json
from pathlib import Path

from robin.standin.client_api import session_of
from robin.standin.queue import page
from robin.standin.seed_data import SeedData
from robin.standin.server import Call
from robin.standin.service_api import ServiceAPI

PAGE_ITEMS = 50


def write(folder: Path) -> None:
    """`queue.html`, `queue.json`, `config.html`, `config.json` in `folder`."""
    seed = SeedData()
    items = seed.queue.select(["READY", "CLAIMED"])
    call = Call("GET", "/config", {}, "*/*", "", b"", is_authorised=True)
    service = ServiceAPI(seed, "stock")
    listed = {
        "items": [session_of(item) for item in items[:PAGE_ITEMS]],
        "totalCount": len(items),
        "pageSize": PAGE_ITEMS,
        "pageNumber": 0,
    }
    (folder / "queue.html").write_text(page(items, 1, PAGE_ITEMS, now=0.0))
    (folder / "queue.json").write_text(json.dumps(listed))
    for name, reply in (("html", service.config(call)), ("json", service.config_json(call))):
        content = reply.content
        text = content if isinstance(content, str) else content.decode()
        (folder / f"config.{name}").write_text(text)
