"""Every call of Robin UI, as `docs/API_MIGRATION.md` lists them: each gets the status it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from django.conf import settings

from robin.tests.conftest import PASSWORD

DOCUMENT = Path(settings.BASE_DIR) / "docs/API_MIGRATION.md"
ROW = re.compile(r"^\| `([A-Z]+) (/api/v1/\S+)` \| (\d{3}) \|", re.MULTILINE)
CALLS = ROW.findall(DOCUMENT.read_text())
ENTRY = {"type": "IP", "value": "192.0.2.9", "reason": "Sends spam", "active": True}
CLAMAV = {"enabled": True, "host": "clamav", "port": 3310, "timeout": 5000}
BODIES = {
    "PUT /api/v1/config/clamav": CLAMAV,
    "POST /api/v1/scanners/clamav/test": {"config": CLAMAV},
    "POST /api/v1/scanners/rspamd/test": {"config": {"host": "rspamd"}},
    "POST /api/v1/blocklist": ENTRY,
    "PATCH /api/v1/blocklist/{id}": {"active": False},
}
FILE = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n'
    b"Content-Type: text/csv\r\n\r\ntype,value,reason\r\nIP,192.0.2.8,Spam\r\n\r\n--b--\r\n"
)


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN")


def first_mail(ada, path="/"):
    for item in ada.get(f"/api/v1/storage?path={quote(path)}").json()["items"]:
        if item["type"] == "file":
            return item["path"]
        if found := first_mail(ada, item["path"]):
            return found
    return None


def test_each_gets_its_status(ada):
    names, got = {}, {}
    cookie = {"Cookie": f"refreshToken={ada.cookie}"}
    for method, path, _ in CALLS:
        call = f"{method} {path}"
        if "{uid}" in path:
            names["uid"] = ada.get("/api/v1/queue/json").json()["items"][0]["uid"]
        if "{mail}" in path:
            names["mail"] = quote(first_mail(ada))
        body = {"json": BODIES.get(call, {})} if method in ("POST", "PUT", "PATCH") else {}
        headers = {}
        if call.endswith("/login"):
            body = {"json": {"username": ada.user.email, "password": PASSWORD}}
        elif call.endswith(("/refresh", "/logout")):
            headers = cookie
        elif call.endswith("/import"):
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            body = {"content": FILE}
        r = ada.request(method, path.format(**names), headers=headers, **body)
        if call == "POST /api/v1/blocklist":
            names["id"] = r.json()["id"]
        if call.endswith("/refresh"):
            cookie = {"Cookie": r.headers["set-cookie"].partition(";")[0]}
            ada.token = r.json()["accessToken"]
        got[call] = f"{r.status_code}"
        assert r.status_code < 500 or "cannot" in json.loads(r.text)["message"], (call, r.text)

    assert got == {f"{method} {path}": status for method, path, status in CALLS}
    assert len(got) == 37
