"""The stand-in behaves as Robin does: its rules C1 to C17, asked over real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from contextlib import suppress
from functools import wraps
from time import monotonic

import httpx
import pytest

from robin.standin.queue import Envelope, java_date, wait_seconds
from robin.standin.robin import Robin
from robin.standin.seed_data import SECRETS, SeedData

UNKNOWN = "00000000-0000-4000-8000-000000000000"
NOW = 1_795_424_700.0  # Mon, 23 Nov 2026 09:05:00 UTC
JSON = {"Accept": "application/json"}


def in_a_loop(test):
    @wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class Asked:
    """`robin` with a client for each port: `await r.client("GET", "/health")`."""

    def __init__(self, robin):
        self.robin, self.seed = robin, robin.seed

    async def __aenter__(self):
        await self.robin.start()
        self._http = httpx.AsyncClient(trust_env=False, timeout=10)
        return self

    async def __aexit__(self, *_):
        await self._http.aclose()
        await self.robin.stop()

    async def client(self, method, path, **more):
        return await self._http.request(method, self.robin.client_url + path, **more)

    async def service(self, method, path, **more):
        return await self._http.request(method, self.robin.service_url + path, **more)


def asked(profile="stock", **seed):
    return Asked(Robin(SeedData(clock=lambda: NOW, **seed), profile))


def uids(page):
    return re.findall(r"class='row-checkbox' data-uid='([^']+)'", page)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/blocklist", "/scanners/clamav/test"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@in_a_loop
async def test_every_unknown_path_is_the_landing_page(method, path):
    async with asked() as r:
        for ask, title in ((r.client, "API Endpoint"), (r.service, "Service Endpoints")):
            answer = await ask(method, path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert f"<title>{title}</title>" in answer.text


@in_a_loop
async def test_paths_match_by_their_prefix():
    async with asked() as r:
        assert (await r.client("GET", "/healthz")).json() == {"status": "UP"}
        assert "Configuration Viewer" in (await r.service("GET", "/config/storage")).text
        assert "Metrics Charts" in (await r.service("GET", "/metrics/system")).text
        assert (await r.client("GET", "/storefoo", headers=JSON)).status_code == 404


@pytest.mark.parametrize(
    ("kind", "value", "good"),
    [
        ("basic", "robin:pw", {"Authorization": "Basic cm9iaW46cHc="}),
        ("bearer", "tok", {"Authorization": "Bearer tok"}),
    ],
)
@in_a_loop
async def test_credentials(kind, value, good):
    async with asked() as r:
        r.robin.client.auth.kind, r.robin.client.auth.value = kind, value
        refused = await r.client("GET", "/client/queue/list")
        assert (refused.status_code, refused.text) == (401, "Unauthorized")
        assert refused.headers["www-authenticate"] == f'{kind.title()} realm="API"'
        assert (await r.client("GET", "/client/queue/list", headers=good)).status_code == 200
        assert (await r.client("GET", "/health")).status_code == 200
        # The method is looked at first on some paths, the credentials on others.
        assert (await r.client("GET", "/client/queue")).status_code == 405
        assert (await r.client("POST", "/logs")).status_code == 405
        assert (await r.client("POST", "/users")).status_code == 401
        r.robin.client.auth.allow = ("127.0.0.0/8",)
        assert (await r.client("GET", "/client/queue/list")).status_code == 200


@in_a_loop
async def test_health_is_rich_or_bare():
    async with asked() as r:
        rich = (await r.service("GET", "/health")).json()
        assert rich["queue"]["size"] == rich["queue"]["ready"] + rich["queue"]["claimed"] == 112
        assert rich["queue"]["dead"] == 8
        assert "cron" not in rich["scheduler"]
        r.robin.service.auth.kind, r.robin.service.auth.value = "basic", "a:b"
        bare = await r.service("GET", "/health")
        assert bare.status_code == 200
        assert set(bare.json()) == {"status", "uptime"}


@in_a_loop
async def test_the_old_shape_of_health():
    async with asked("legacy") as r:
        health = (await r.service("GET", "/health")).json()
        assert set(health["queue"]) == {"size", "retryHistogram"}
        assert health["scheduler"]["cron"]["periodSeconds"] == 30


@in_a_loop
async def test_the_list_is_a_page_that_hides_the_dead():
    async with asked() as r:
        page = (await r.client("GET", "/client/queue/list?page=2&limit=50", headers=JSON)).text
        assert "Total items: <strong>112</strong>" in page
        assert "Showing <strong>51</strong> to <strong>100</strong>" in page
        assert "Page <strong>2</strong> of <strong>3</strong>" in page
        assert page.count("<div class='pagination'>") == 2
        assert len(uids(page)) == 50
        row = re.search(r"<tbody>\n(<tr>.*?</tr>)", page, re.S).group(1)
        assert row.count("<td") == 11
        dead = (await r.client("GET", "/client/queue/list?state=dead,bogus")).text
        assert len(uids(dead)) == 8
        assert len(uids((await r.client("GET", "/client/queue/list?state=bogus")).text)) == 50
        first = (await r.client("GET", "/client/queue/list?page=x&limit=y&size=3")).text
        assert len(uids(first)) == 50
        assert "ann&#39;s@south.example" in first
        past = (await r.client("GET", "/client/queue/list?page=99")).text
        assert "Showing <strong>4901</strong> to <strong>112</strong>" in past
        assert uids(past) == []
        wrong = await r.client("GET", "/client/queue/list?retryMin=x")
        assert (wrong.status_code, wrong.text) == (
            500, 'Internal Server Error: For input string: "x"',
        )  # fmt: skip
        with pytest.raises(httpx.RemoteProtocolError):
            await r.client("GET", "/client/queue/list?page=99999999999")


@in_a_loop
async def test_an_empty_queue():
    async with asked() as r:
        r.seed.queue.items.clear()
        page = (await r.client("GET", "/client/queue/list")).text
        assert "Showing <strong>1</strong> to <strong>0</strong>" in page
        assert "Page <strong>1</strong> of <strong>0</strong>" in page


@pytest.mark.parametrize(
    ("what", "count"),
    [("delete", "deletedCount"), ("retry", "retriedCount"), ("bounce", "bouncedCount")],
)
@in_a_loop
async def test_operations(what, count):
    async with asked() as r:
        path = f"/client/queue/{what}"
        uid = next(iter(r.seed.queue.items))
        done = await r.client("POST", path, json={"uids": [uid, uid, UNKNOWN]})
        assert done.json()[count] == 1
        assert done.json()["queueSize"] == r.seed.queue.size()
        assert (await r.client("POST", path, json={"uid": UNKNOWN})).json()[count] == 0
        for body, status, text in (
            (b" ", 400, "Empty request body"),
            (b"null", 400, "Invalid JSON body"),
            (b"{}", 400, "Missing 'uid' or 'uids' parameter"),
            (b"{", 500, "Internal Server Error"),
            (b"[]", 400, "Missing 'uid' or 'uids' parameter"),
            (b"[1]", 500, "Internal Server Error"),
            (b'{"uid": 5}', 500, "java.lang.Double"),
            (b'{"uids": "x"}', 500, "java.lang.String"),
        ):
            answer = await r.client("POST", path, content=body)
            assert (answer.status_code, text in answer.text) == (status, True), body
        assert (await r.client("GET", path)).status_code == 405


@in_a_loop
async def test_a_path_of_one_item_enqueues_junk():
    async with asked() as r:
        before = r.seed.queue.size()
        assert (await r.client("DELETE", "/client/queue/abc")).status_code == 405
        assert (await r.client("POST", "/client/queue/abc/retry", content=b"")).status_code == 400
        junk = await r.client("POST", "/client/queue/abc/retry", json={"uid": "abc"})
        assert (junk.status_code, junk.json()["status"]) == (202, "QUEUED")
        assert r.seed.queue.size() == before + 1
        r.seed.queue.items = {u: i for u, i in r.seed.queue.items.items() if not i.envelopes}
        r.seed.queue.tick()
        r.seed.queue.tick()
        assert r.seed.queue.size() == 0


@in_a_loop
async def test_raw_mail_is_queued_and_sent():
    async with asked() as r:
        raw = {"Content-Type": "message/rfc822"}
        query = "?mail=a@north.example&rcpt=nobody@west.example,ann@north.example"
        queued = await r.client("POST", f"/client/queue{query}", content=b"x", headers=raw)
        assert queued.status_code == 202
        assert queued.json()["uploadedFile"]
        assert queued.json()["session"]["uid"] in {
            i.session_uid for i in r.seed.queue.items.values()
        }
        sent = await r.client("POST", f"/client/send{query}", content=b"x", headers=raw)
        transactions = sent.json()["sessionTransactionList"]["envelopes"][0]["transactions"]
        assert [t["error"] for t in transactions] == [True, False]
        for url, body, text in (
            ("/client/queue", b"x", "Missing required query parameters: mail and rcpt"),
            (f"/client/queue{query}", b"", "Empty upload body"),
        ):
            refused = await r.client("POST", url, content=body, headers=raw)
            assert (refused.status_code, refused.text) == (400, text)


def test_what_the_dispatcher_does():
    now = [NOW]
    queue = SeedData(clock=lambda: now[0]).queue
    queue.items.clear()
    queue.dead_counter = 0
    item = queue.enqueue("ESMTP", [Envelope("a@north.example", ["b@south.example"])])
    queue.tick(lambda i: "later")
    assert item.state == "CLAIMED"
    queue.tick(lambda i: "later")
    assert (item.state, item.retry, item.next_attempt) == ("READY", 1, NOW + wait_seconds(1))
    now[0] = item.next_attempt
    queue.tick()
    now[0] += 301
    queue.tick(lambda i: "delivered")
    assert item.uid in queue.items  # the claim had ended: it was ready again, and claimed anew
    item.retry = item.retries_max
    queue.tick(lambda i: "later")
    assert item.state == "DEAD"
    bounce = next(i for i in queue.items.values() if i is not item)
    # To who could not be reached, of all people: that is what Robin does.
    assert bounce.envelopes[0].rcpts == ["b@south.example"]
    assert queue.dead_counter == 1
    queue.retry([item.uid])
    assert queue.dead_counter == 1  # not lowered
    assert (item.state, item.retry) == ("READY", item.retries_max + 1)
    fresh = queue.enqueue("ESMTP", [Envelope("", ["b@south.example"])])
    queue.bounce([bounce.uid, item.uid])
    queue.tick(lambda i: "never")
    queue.tick(lambda i: "never")
    assert fresh.state == "DEAD"  # at once: every failure was a 5xx
    assert len(queue.items) == 4


@pytest.mark.parametrize(("action", "times"), [("retry", 2), ("bounce", 1), ("delete", 1)])
def test_what_is_being_delivered_goes_out_whatever_is_done_to_it(action, times):
    queue = SeedData(clock=lambda: NOW).queue
    queue.items.clear()
    item = queue.enqueue("ESMTP", [Envelope("a@north.example", ["b@south.example"])])
    queue.tick()
    assert item.state == "CLAIMED"
    assert getattr(queue, action)([item.uid]) == 1
    for _ in "123":
        queue.tick(lambda i: "delivered")
    assert queue.delivered == [item.uid] * times


@in_a_loop
async def test_a_list_costs_by_the_length_of_the_queue_and_stops_delivery():
    async with asked() as r:
        for n in range(400):
            r.seed.queue.enqueue("ESMTP", [Envelope("", [f"n{n}@south.example"])])
        began = monotonic()
        listing = asyncio.create_task(r.client("GET", "/client/queue/list?limit=1&state=DEAD"))
        await asyncio.sleep(0.05)
        assert r.seed.queue.lock.locked()
        await r.service("GET", "/health")  # which waits for it
        assert monotonic() - began >= 0.2
        await listing


@in_a_loop
async def test_the_date_of_an_item_is_that_of_the_listing():
    now = [NOW]
    seed = SeedData(clock=lambda: now[0])
    async with Asked(Robin(seed)) as r:
        first = (await r.client("GET", "/client/queue/list")).text
        now[0] += 3600
        later = (await r.client("GET", "/client/queue/list")).text
        assert java_date(NOW) in first
        assert java_date(NOW) not in later


@in_a_loop
async def test_a_broken_file_is_reloaded_with_good_cheer():
    async with asked() as r:
        before = await r.service("GET", "/config")
        r.seed.broken = {"Relay Configuration"}
        assert (await r.service("POST", "/config/reload")).json()["status"] == "OK"
        unreadable = await r.service("GET", "/config")
        assert (unreadable.status_code, unreadable.text) == (500, "Internal Server Error")
        assert "Failed to generate config viewer" in (await r.client("GET", "/logs?q=ERROR")).text
        r.seed.broken = set()
        await r.service("POST", "/config/reload")
        assert (await r.service("GET", "/config")).text == before.text
        r.seed.broken = {"Server", "Relay Configuration"}
        assert (await r.service("POST", "/config/reload")).json()["status"] == "OK"
        assert "Relay Configuration" not in (await r.service("GET", "/config")).text
        assert "JsonSyntaxException" in (await r.client("GET", "/logs?q=WARN")).text


@pytest.mark.parametrize(("retry", "seconds"), [(0, 60), (1, 60), (5, 120), (30, 14220), (31, 0)])
def test_how_long_it_waits(retry, seconds):
    assert wait_seconds(retry) == seconds


def test_dates_are_java_s():
    assert java_date(1_793_692_800 + 7) == "Tue, 3 Nov 2026 08:00:07 +0000"


@in_a_loop
async def test_the_log_is_searched():
    async with asked() as r:
        assert (await r.client("GET", "/logs?lines=5&level=ERROR")).text.startswith("Usage")
        everything = (await r.client("GET", "/logs?q=%7C")).text.splitlines()
        assert everything[0].split("|")[1].startswith("1123-")
        assert everything[-1].split("|")[1].startswith("1122-")
        assert {line[:5] for line in everything} == {
            "INFO ", "DEBUG", "WARN ", "ERROR", "TRACE", "FATAL",
        }  # fmt: skip
        assert "SocketTimeoutException" in (await r.client("GET", "/logs?query=Socket")).text
        # It says what it looks for before it looks: so it finds that, and nothing else.
        (echo,) = (await r.client("GET", "/logs?q=accepted-in-small-letters")).text.splitlines()
        assert "endpoints.LogsHandler" in echo


@in_a_loop
async def test_a_byte_that_is_no_utf_8_ends_a_search_of_its_file():
    async with asked() as r:
        before, today = r.seed.log["20261122"], r.seed.log["20261123"]
        found = [line for line in before if "smtp." in line]
        today[:] = ["smtp. one", "two \udce9", "smtp. three"]
        answer = (await r.client("GET", "/logs?q=smtp.")).text.split("\n")
        assert answer == ["smtp. one", *found, ""]  # not even what it says of this search
        assert today[-1].endswith("Error reading log file: Input length = 1")


@in_a_loop
async def test_it_hangs_up_over_an_answer_that_is_too_long_for_its_memory():
    async with asked() as r:
        r.seed.log_answer_bytes_max = 2000
        with pytest.raises(httpx.RemoteProtocolError):
            await r.client("GET", "/logs?q=%7C")
        assert (await r.client("GET", "/logs?q=nothing-of-that")).status_code == 200


@in_a_loop
async def test_an_act_stopped_in_the_middle_is_done_in_part():
    async with asked() as r:
        chosen = [item.uid for item in r.seed.queue.select(["READY"])[:10]]
        r.seed.closes_after = 4
        answer = await r.client("POST", "/client/queue/bounce", json={"uids": chosen})
        assert answer.status_code == 500
        assert [r.seed.queue.items[uid].state for uid in chosen] == ["DEAD"] * 4 + ["READY"] * 6


@in_a_loop
async def test_a_name_that_is_no_utf_8_is_listed_and_not_there():
    async with asked() as r:
        r.seed.put("west.example/lat\udce9/new/x.eml", b"From: x\r\n")
        listed = (await r.client("GET", "/store/west.example", headers=JSON)).json()["items"]
        assert {
            "type": "dir",
            "name": "lat\ufffd",
            "path": "/store/west.example/lat\ufffd/",
        } in listed
        for name in ("lat%EF%BF%BD", "lat%E9", "lat%25E9"):
            assert (await r.client("GET", f"/store/west.example/{name}")).status_code == 404


@in_a_loop
async def test_the_store_is_browsed():
    async with asked() as r:

        async def get(path, headers=JSON):
            return await r.client("GET", path, headers=headers)

        root = (await get("/store?path=/north.example")).json()
        assert root["path"] == "/"
        assert [i["name"] for i in root["items"]] == [
            "north.example", "south.example", "west.example",
        ]  # fmt: skip
        ann = (await get("/store/north.example/ann")).json()["items"]
        assert ann[0] == {"type": "dir", "name": "..", "path": "/store/north.example"}
        assert "notes.txt" not in [i["name"] for i in ann]
        assert (await get("/store/north.example/ann/.A+B/cur")).status_code == 404
        plus = (await get("/store/north.example/ann/.A%252BB/cur")).json()["items"][1]
        assert plus["path"].endswith("/.A+B/cur/20261123.plus.eml")
        mail = (await get(plus["path"].replace("+", "%252B"))).json()
        assert mail["content"].startswith("From: ann@north.example")
        percent = "/store/west.example/ann/new/20261123.100%2525%20done.eml"
        assert (await get(percent)).status_code == 200
        assert (await get("/store/..%252fetc")).json() == {"error": "Forbidden"}
        assert (await get("/store/north.example/ann/notes.txt")).status_code == 404
        latin = "/store/north.example/bob/new/20261123.latin1.eml"
        with pytest.raises(httpx.RemoteProtocolError):
            await get(latin)
        raw = await get(latin, {})
        assert raw.headers["content-type"] == "text/plain; charset=utf-8"
        assert "Sch\u00f6ne".encode("latin-1") in raw.content
        assert "<a href=" in (await get("/store/north.example", {})).text
        assert max(len(m) for m in r.seed.mails.values()) > 2_000_000
        assert 40 <= len(r.seed.mails) <= 45
        disabled = await get("/store-rocksdb/north.example/ann")
        assert (disabled.status_code, disabled.json()["error"]) == (
            503, "RocksDB storage disabled.",
        )  # fmt: skip


@in_a_loop
async def test_folders_messages_and_drafts():
    async with asked() as r:
        box = "/store/north.example/ann"
        made = await r.client("POST", f"{box}/folders", json={"name": "Office"})
        assert made.json() == {"r": 1, "msg": "Folder created."}
        mail = next(m for m in r.seed.mails if m.startswith("north.example/ann/new/"))
        moved = await r.client(
            "POST", f"{box}/messages/move",
            json={"toFolder": "Office", "messageIds": [mail.rpartition("/")[2]]},
        )  # fmt: skip
        assert moved.json() == {"success": True, "moved": 1}
        facts = (await r.client("GET", f"{box}/folders/Office/properties")).json()
        assert (facts["r"], facts["total"], facts["unread"]) == (1, 1, 0)
        full = await r.client("DELETE", f"{box}/folders/Office")
        assert (full.status_code, full.json()["msg"]) == (400, "Folder is not empty.")
        assert (await r.client("PATCH", f"{box}/folders/Nope", json={"name": "x"})).json() == {
            "r": 0, "msg": "Folder not found.",
        }  # fmt: skip
        draft = (await r.client("POST", f"{box}/drafts", content=b"hello")).json()["draftId"]
        assert r.seed.mails[f"north.example/ann/.Drafts/cur/{draft}"] == b"hello"
        assert (await r.client("DELETE", f"{box}/drafts/{draft}")).json()["r"] == 1
        broken = await r.client("POST", f"{box}/messages/move", content=b"{")
        assert broken.json() == {"error": "Invalid JSON body"}


@in_a_loop
async def test_users():
    async with asked() as r:
        listed = (await r.client("GET", "/users")).json()
        assert (listed["source"], listed["count"]) == ("config", 9)
        exists = (await r.client("GET", "/users/ann@north.example/exists")).json()
        assert exists["exists"] is True
        login = {"username": "ann@north.example", "password": "wrong"}
        wrong = await r.client("POST", "/users/authenticate", json=login)
        assert (wrong.status_code, wrong.json()["authenticated"]) == (200, False)
        assert (await r.client("POST", "/users/authenticate")).status_code == 400
        assert (await r.client("GET", "/users/ann")).status_code == 404
        assert (await r.client("DELETE", "/users")).status_code == 405
    async with asked(users_backend="") as r:
        assert (await r.client("GET", "/users")).status_code == 503


@in_a_loop
async def test_settings_show_their_secrets():
    async with asked() as r:
        page = (await r.service("GET", "/config")).text
        assert 'id="serverConfig"' in page
        assert "8090.0" in page
        assert all(secret in page for secret in SECRETS)
        assert (await r.service("GET", "/config/json?section=x")).text == page
        assert (await r.service("POST", "/config")).status_code == 405
        assert (await r.service("POST", "/config/reload")).json()["status"] == "OK"
        assert (await r.service("GET", "/config/reload")).status_code == 405
        assert (await r.service("GET", "/config/sync/status")).json()["enabled"] is False


@in_a_loop
async def test_metrics_move():
    async with asked() as r:
        name = r"^robin_email_receipt_start_total (\S+)$"
        texts = [(await r.service("GET", "/metrics/prometheus")) for _ in (1, 2)]
        assert texts[0].headers["content-type"] == "text/plain; charset=utf-8"
        values = [float(re.search(name, t.text, re.M).group(1)) for t in texts]
        assert values[1] > values[0]
        graphite = (await r.service("GET", "/metrics/graphite")).text
        assert len(re.findall(r"^jvm_memory_used ", graphite, re.M)) == 3
        assert (await r.service("GET", "/system/heapdump")).text.startswith("Heap dump")


@in_a_loop
async def test_the_profile_with_the_unpublished_addresses():
    async with asked("ui-fork") as r:
        found = (await r.client("GET", "/client/queue/json?page=1&limit=5")).json()
        assert (len(found["items"]), found["totalCount"]) == (5, 112)
        section = (await r.service("GET", "/config/json?section=relay")).json()
        assert section["maxRetryCount"] == 30.0
        assert (await r.service("GET", "/scanners/clamav/status")).json()["status"] == "UP"
        assert (await r.service("POST", "/blocklist")).status_code == 501


@pytest.mark.parametrize(
    ("fault", "error"),
    [("reset", httpx.RemoteProtocolError), ("half", httpx.RemoteProtocolError)],
)
@in_a_loop
async def test_faults_that_break_the_connection(fault, error):
    async with asked() as r:
        r.robin.client.faults.answer, r.robin.client.faults.times = fault, 1
        with pytest.raises(error):
            await r.client("GET", "/health")
        assert (await r.client("GET", "/health")).status_code == 200


@in_a_loop
async def test_other_faults_and_being_down():
    async with asked() as r:
        faults = r.robin.client.faults
        faults.answer = "flap"
        assert [(await r.client("GET", "/health")).status_code for _ in "123"] == [500, 200, 500]
        faults.answer, faults.prefix = "html", "/logs"
        assert "<title>" in (await r.client("GET", "/logs?q=x")).text
        assert (await r.client("GET", "/health")).json() == {"status": "UP"}
        await r.robin.client.stop()
        with pytest.raises(httpx.ConnectError):
            await r.client("GET", "/health")
        await r.robin.client.start()
        assert (await r.client("GET", "/health")).status_code == 200


@pytest.mark.parametrize("steps", range(8))
@in_a_loop
async def test_who_is_being_accepted_when_it_stops_is_hung_up_on(steps):
    robin = Robin(SeedData())
    await robin.start()
    with socket.create_connection(("127.0.0.1", robin.client.port), timeout=5) as caller:
        for _ in range(steps):
            await asyncio.sleep(0)
        await robin.stop()
        # At once: what is left open here fails whatever test runs when it is collected.
        with suppress(ConnectionResetError):
            assert caller.recv(1) == b""


@in_a_loop
async def test_one_request_at_a_time():
    async with asked() as r:
        r.robin.client.faults.answer, r.robin.client.faults.prefix = "hang", "/logs"
        slow = asyncio.create_task(r.client("GET", "/logs?q=x"))
        await asyncio.sleep(0.1)
        with pytest.raises(httpx.ReadTimeout):
            await r.client("GET", "/health", timeout=0.2)
        assert (await r.service("GET", "/health")).status_code == 200
        slow.cancel()


@in_a_loop
async def test_characters_that_java_refuses():
    async with asked() as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.robin.client.port)
        writer.write(b"GET /logs?q={x} HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"URISyntaxException" in answer
        writer.close()


def test_it_is_the_same_each_time():
    one, two = SeedData(clock=lambda: NOW), SeedData(clock=lambda: NOW)
    assert list(one.queue.items) == list(two.queue.items)
    assert one.mails == two.mails
    assert one.log == two.log
    assert len(one.queue.items) == 120
    assert {i.state for i in one.queue.items.values()} == {"READY", "CLAIMED", "DEAD"}
    assert all(secret in json.dumps(one.config) for secret in SECRETS)
