"""What is asked of the gateway in front of a real Robin, one function for each state of the two."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import smtplib
import socket
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from deploy.robin_real import deliveries
from deploy.robin_real.mta import NEVER_SECONDS, Mta
from deploy.robin_real.people import ADMIN
from deploy.robin_real.sink import LATER, LIAR, NEVER, SLOW, TAKEN, forged, taken
from deploy.robin_real.stack import ROOT, Gateway
from deploy.robin_real.table import Table
from robin.standin import recorded

FIRST_BYTE_MS = 100.0
EXPORT_SECONDS = 180.0
LOG_BYTES, LOG_SECONDS, GROWTH_BYTES = 300 << 20, 5.0, 50 << 20
MAIL_BYTES, MAILS = 30 << 20, 6
QUIET_SECONDS = 25.0
OTHERS = ("/api/v1/storage", "/api/v1/logs?limit=20", "/api/v1/config", "/api/v1/metrics/system")
LINE_BYTES = 165
NEEDLE = "needle-in-a-long-log"


def ask(client: httpx.Client, path: str) -> Any:
    return client.get(path).raise_for_status().json()


def wait_for(what: str, ask_: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What it answers once that is true, and no 503; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := ask_():
                return found
        except httpx.HTTPStatusError as exc:
            if exc.response.status_code != 503:
                raise
        time.sleep(0.3)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s")


# -- A queue that stands still --------------------------------------------------------------------


def standing(table: Table, mta: Mta, gateway: Gateway, items: int) -> None:
    """`items` wait, and Robin delivers nothing."""
    client, name = gateway.signed_in(ADMIN), f"{items:,} items in {mta.kind}"
    with table.check("3", f"{name}: Robin's first list, and its third") as row:
        first, _, third = (mta.list_seconds() for _ in range(3))
        row.found(f"{first:.2f} s, {third:.2f} s", None)
    with table.check("3", f"{name}: the first page from a cold start") as row:
        began = time.monotonic()
        page = wait_for("a page", lambda: _page_or_none(client), 300)
        is_ok = page["totalCount"] == items and len(page["items"]) == 50
        row.found(f"{time.monotonic() - began:.1f} s, totalCount {page['totalCount']:,}", is_ok)
    with table.check("5", f"{name}: the sums are Robin's own") as row:
        stats, queue = ask(client, "/api/v1/queue/stats"), mta.health()["queue"]
        is_ok = (stats["ready"], stats["claimed"]) == (queue["ready"], queue["claimed"])
        row.found(f"{stats}", is_ok and stats["total"] == items)
    watchers = deliveries.Watchers(gateway.url, client.headers["Authorization"][7:], 10)
    statuses, slowest = Counter[int](), 0.0
    before, peak = gateway.rss_bytes(), [0]
    watching = Thread(target=lambda: asyncio.run(watchers.watch(QUIET_SECONDS)))
    with _peak(gateway, peak):
        watching.start()
        while watching.is_alive():
            for path in OTHERS:
                began = time.monotonic()
                statuses[client.get(path).status_code] += 1
                slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.5)
        watching.join()
    with table.check("3", f"{name}: memory of the web process meanwhile") as row:
        row.found(f"{before >> 20} → {peak[0] >> 20} MB", peak[0] - before <= GROWTH_BYTES)
    with table.check("3", f"{name}: pages and searches of ten watchers") as row:
        seen = f"median {watchers.page_ms():.0f} ms, {dict(watchers.statuses)}"
        seen += f", up to {max(watchers.ages, default=0)} s old"
        row.found(seen, set(watchers.statuses) == {200} and watchers.page_ms() < FIRST_BYTE_MS)
    with table.check("5", f"{name}: ten sockets on a quiet queue") as row:
        seen = f"{dict(watchers.messages)}, {watchers.socket_bytes:,} bytes"
        row.found(seen, set(watchers.messages) <= {"snapshot", "heartbeat"})
    with table.check("3", f"{name}: storage, log, settings, metrics meanwhile") as row:
        row.found(f"{dict(statuses)}, the slowest {slowest:.2f} s", set(statuses) == {200})
    with table.check("5", f"{name}: an item's time and tries stay the same") as row:
        now = {i["uid"]: i for i in ask(client, "/api/v1/queue/json?size=50")["items"]}
        both = [i for i in page["items"] if i["uid"] in now]
        moved = [i["uid"] for i in both if now[i["uid"]]["createTime"] != i["createTime"]]
        tries = {i["maxRetryCount"] for i in both}
        row.found(f"{len(both)} seen twice, {len(moved)} moved; tries {tries}", both != [] == moved)
    with table.check("5", f"{name}: the last page, and a search of all") as row:
        last = f"/api/v1/queue/json?size=50&page={items // 50 - 1}"
        page = wait_for("the last page", lambda: _page_or_none(client, last), 420)
        uid = page["items"][-1]["mailbox"]
        found = wait_for(
            "a search", lambda: _page_or_none(client, _search(uid), is_whole=True), 420
        )
        row.found(f"{uid}: {found['totalCount']} found", uid in _mailboxes(found))


def _page_or_none(
    client: httpx.Client, path: str = "/api/v1/queue/json?size=50", *, is_whole: bool = False
) -> Any:
    answer = client.get(path)
    if answer.status_code == 503:  # it is being read, and `Retry-After` says so
        return None
    found = answer.raise_for_status().json()
    return found if found["complete"] or not is_whole else None


def _search(text: str) -> str:
    return f"/api/v1/queue/json?size=50&search={quote(text)}"


def _mailboxes(page: Any) -> list[str]:
    return [item["mailbox"] for item in page["items"]]


# -- Deliveries -----------------------------------------------------------------------------------


def moving(
    table: Table,
    mta: Mta,
    gateway: Gateway,
    file: Path,
    items: int,
    *,
    rounds: int,
    alone_seconds: float,
    watched_seconds: float,
) -> None:
    """Robin delivers, and at least `items` wait."""
    client, name = gateway.signed_in(ADMIN), f"{items:,} items and more in {mta.kind}"
    watchers = deliveries.Watchers(gateway.url, client.headers["Authorization"][7:], 10)
    with table.check("3", f"{name}: deliveries a second") as row:
        wait_for("deliveries", lambda: taken(file))
        found = deliveries.run(
            mta,
            gateway,
            file,
            watchers,
            rounds=rounds,
            alone_seconds=alone_seconds,
            watched_seconds=watched_seconds,
        )
        row.found(found.text(), found.share >= deliveries.SHARE_MIN)
        with table.check("3", f"{name}: memory of the web process, round by round") as memory:
            sizes = ", ".join(f"{size >> 20}" for size in found.rss_bytes)
            memory.found(f"{sizes} MB", found.grown_bytes <= GROWTH_BYTES)
    with table.check("3", f"{name}: what the watchers saw meanwhile") as row:
        seen = f"pages {watchers.page_ms():.0f} ms, {dict(watchers.statuses)}, up to "
        seen += f"{max(watchers.ages, default=0)} s old; sockets {dict(watchers.messages)}, "
        seen += f"{watchers.socket_bytes:,} bytes"
        left = mta.health()["queue"]
        row.found(f"{seen}; {left['ready']:,} left", set(watchers.statuses) <= {200, 503})
    with table.check("3", f"{name}: one list of Robin's, at the end") as row:
        row.found(f"{mta.list_seconds():.2f} s", None)


# -- Every fate of a mail -------------------------------------------------------------------------


def fates(table: Table, mta: Mta, gateway: Gateway, file: Path, port: int, refused: int) -> None:
    client = gateway.signed_in(ADMIN)
    for recipient in (f"a@{TAKEN}", f"b@{LATER}", f"c@{NEVER}"):
        mta.send(recipient, port)
    mta.send("e@refused.example", refused)
    slow: list[str] = []

    def of(state: str, recipient: str) -> Any:
        page = ask(client, f"/api/v1/queue/json?size=200&state={state}&search={recipient}")
        return next((i for i in page["items"] if i["mailbox"] == recipient), None)

    def being_delivered() -> Any:
        """One that is: it is for as long as the sink is slow, and seen when the gateway reads."""
        if not slow or f"{slow[-1]}@{SLOW}" in {who for _, who in taken(file)}:
            slow.append(f"d{len(slow)}")
            mta.send(f"{slow[-1]}@{SLOW}", port)
        return of("CLAIMED", f"{slow[-1]}@{SLOW}")

    with table.check("5", "250, 451, 550, refused and slow, as Robin has them") as row:
        wait_for("a delivery", lambda: f"a@{TAKEN}" in {who for _, who in taken(file)})
        dead = wait_for("a dead item", lambda: of("DEAD", f"c@{NEVER}"))
        later = wait_for("a later one", lambda: of("READY", f"b@{LATER}"))
        refusing = wait_for("a refused one", lambda: of("READY", "e@refused.example"))
        claimed = wait_for("a claimed item", being_delivered)
        states = [i.get("state") for i in (claimed, dead, later, refusing)]
        row.found(f"{states}", states == ["CLAIMED", "DEAD", "READY", "READY"])
    with table.check("4", "what is being delivered is not retried, bounced or deleted") as row:
        paths = [("POST", "/retry"), ("POST", "/bounce"), ("DELETE", "")]
        url = f"/api/v1/queue/{claimed['uid']}"
        codes = [client.request(how, url + end).status_code for how, end in paths]
        row.found(f"{codes}", codes == [409, 409, 409])
    with table.check("5", "Robin UI's own list has the dead item; a retry sends it again") as row:
        listed = f"c@{NEVER}" in _mailboxes(ask(client, "/api/v1/queue/json?size=200"))
        answer = client.post(f"/api/v1/queue/{dead['uid']}/retry").raise_for_status().json()
        again = wait_for("dead again", lambda: _dead_again(of("DEAD", f"c@{NEVER}"), dead))
        seen = f"listed {listed}, done {answer['done']}, tries {again['retryCount']}"
        row.found(seen, listed and answer["done"] == 1)
    with table.check("4", "delivered once, though somebody tried meanwhile") as row:
        last = f"{slow[-1]}@{SLOW}"
        wait_for("the slow one", lambda: last in {who for _, who in taken(file)})
        times = sum(who == last for _, who in taken(file))
        row.found(f"{times} times", times == 1)
    with table.check("5", "dead counted by the list, not by Robin's counter") as row:
        counted = mta.health()["queue"].get("dead")
        stats = wait_for("one dead", lambda: _if(ask(client, "/api/v1/queue/stats"), dead=1))
        row.found(f"here {stats['dead']}, Robin's counter {counted}", stats["dead"] == 1)


def _dead_again(now: Any, before: Any) -> Any:
    return now if now is not None and now["retryCount"] > before["retryCount"] else None


def _if(stats: Any, **wanted: int) -> Any:
    return stats if wanted.items() <= stats.items() else None


# -- Robin dies -----------------------------------------------------------------------------------


PIECE, FREEZE_SECONDS = 60, 1.0
MOMENTS = (0.0, 0.02)
"""Seconds: before it arrives, and as it does or is answered."""


def dying(table: Table, mta: Mta, gateway: Gateway) -> None:
    """Robin is killed while it does something: around one action, and in the middle of many."""
    client = gateway.signed_in(ADMIN)
    wait_for("a page", lambda: _page_or_none(client, "/api/v1/queue/json?size=1000"))
    uids = list(mta.retries("READY"))
    for action, kept in (("bounce", "DEAD"), ("retry", "READY"), ("delete", "READY")):
        chosen, uids = uids[:PIECE], uids[PIECE:]
        for moment in MOMENTS:
            _killed_around_one(table, mta, client, action, kept, chosen.pop(), moment)
        with table.check("4", f"a {action} while Robin is away") as row:
            answer = act_on_one(client, action, chosen[-1])
            unknown = answer.json().get("unknown", 0)
            seen = f"{answer.status_code}, unknown {unknown}"
            row.found(seen, (answer.status_code, unknown) == (503, 0))
        _restarted(mta, client)
        _killed_between(table, mta, client, action, kept, chosen)
        with table.check("4", f"each {action} has its lines in the audit trail") as row:
            lines = gateway.audited(f"robin.queue.{action}")
            results = gateway.audited(f"robin.queue.{action}.result")
            row.found(f"{lines}, and {results} of what came of it", lines >= 3 and results >= 1)


def _restarted(mta: Mta, client: httpx.Client) -> None:
    mta.start(start_seconds=NEVER_SECONDS)
    wait_for("storage", lambda: client.get("/api/v1/storage").status_code == 200)


def _killed_around_one(
    table: Table,
    mta: Mta,
    client: httpx.Client,
    action: str,
    kept: str,
    uid: str,
    moment: float,
) -> None:
    """Robin stands still from so long after the action was sent, and is killed a second later."""
    with table.check("4", f"killed over one {action}, {1000 * moment:.0f} ms after it") as row:
        if mta.child is None:
            _restarted(mta, client)
        before = mta.retries(kept)
        with ThreadPoolExecutor(1) as beside:
            sent = beside.submit(act_on_one, client, action, uid)
            time.sleep(moment)
            mta.freeze()
            time.sleep(FREEZE_SECONDS)
            mta.stop(at_once=True)
            answer = sent.result()
        reported = answer.json()
        _restarted(mta, client)
        really = _is_done(action, uid, before, mta.retries(kept))
        mta.stop(at_once=True)
        done, unknown = reported.get("done", 0), reported.get("unknown", 0)
        seen = f"{answer.status_code}, done {done}, unknown {unknown}; Robin did {really:d}"
        is_reported = answer.status_code == 200 or answer.status_code in (502, 503, 504)
        row.found(seen, is_reported and done <= really <= done + unknown)


def _killed_between(
    table: Table, mta: Mta, client: httpx.Client, action: str, kept: str, uids: list[str]
) -> None:
    with table.check("4", f"killed in the middle of {len(uids)}: {action}") as row:
        before = mta.retries(kept)
        answer = client.post("/api/v1/queue/actions", json={"action": action, "uids": uids})
        where = answer.raise_for_status().headers["Location"]
        wait_for("the beginning", lambda: ask(client, where)["sent"] > 0)
        mta.stop(at_once=True)
        down = client.get("/api/v1/health/aggregate")
        time.sleep(5)
        mta.start(start_seconds=NEVER_SECONDS)
        back = time.monotonic()
        job = wait_for("its end", lambda: _ended(ask(client, where)), 600)
        after = mta.retries(kept)
        really = sum(_is_done(action, uid, before, after) for uid in uids)
        reported = job["done"] + job["unknown"] + job["leftOut"]
        seen = f"202, then {job['state']}: {job['done']} done, {job['unknown']} unknown of "
        seen += f"{job['requested']}; Robin did {really}; health meanwhile {down.status_code}; "
        seen += f"{time.monotonic() - back:.0f} s after its start"
        is_true = job["done"] <= really <= job["done"] + job["unknown"]
        row.found(seen, answer.status_code == 202 and is_true and reported <= job["requested"])


def act_on_one(client: httpx.Client, action: str, uid: str) -> httpx.Response:
    path = f"/api/v1/queue/{uid}"
    return client.delete(path) if action == "delete" else client.post(f"{path}/{action}")


def _is_done(action: str, uid: str, before: dict[str, int], after: dict[str, int]) -> bool:
    """By Robin's own list of the dead, or of those that are ready."""
    if action == "bounce":
        return uid in after and uid not in before
    if action == "delete":
        return uid in before and uid not in after
    return after.get(uid, 0) > before.get(uid, 0)


def _ended(job: Any) -> Any:
    return None if job["state"] in ("queued", "processing") else job


# -- Strangers ------------------------------------------------------------------------------------


def strangers(table: Table, mta: Mta, gateway: Gateway, port: int) -> None:
    """What anybody can write into Robin's log, by SMTP, or as the server that takes its mail."""
    client = gateway.signed_in(ADMIN)
    separators = ("\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
    for separator in separators:
        with spoken(mta) as server:
            server.send(f"MAIL FROM:<a{separator}{forged('auth.Forged')}>\r\n".encode())
            server.getreply()
    mta.send(f"x@{LIAR}", port)
    secrets = [say(mta, *dialogue) for dialogue in DIALOGUES]
    time.sleep(3)
    with table.check("6", f"{len(separators)} kinds of line break in a stranger's command") as row:
        found = ask(client, "/api/v1/logs?search=auth.Forged&limit=200")["entries"]
        lies = [e for e in found if e["logger"] == "auth.Forged"]
        row.found(f"{len(found)} lines tell of it, {len(lies)} forged", not lies and bool(found))
    with table.check("6", "another server's answer of two lines, one like Robin's log") as row:
        wait_for("a try", lambda: ask(client, "/api/v1/logs?search=Not%20you")["entries"])
        time.sleep(2)
        lines = mta.log_of(datetime.now(UTC)).read_text(errors="replace").splitlines()
        there = sum(line.startswith("ERROR|") and "|auth.Liar|" in line for line in lines)
        found = ask(client, "/api/v1/logs?level=ERROR&limit=1000")["entries"]
        shown = [e["logger"] for e in found] + ask(client, "/api/v1/logs/loggers")
        lies = shown.count("auth.Liar")
        row.found(f"{there} in Robin's log, {lies} shown", there > 0 and not lies)
    with table.check("6", f"credentials in Robin's log, {len(DIALOGUES)} ways to sign in") as row:
        text = client.get("/api/v1/logs/export?format=txt").text
        leaked = [word for words in secrets for word in words if word in text]
        written = mta.log_of(datetime.now(UTC)).read_text(errors="replace")
        there = sum(any(word in written for word in words) for words in secrets)
        seen = f"{there} of them in Robin's log, {text.count('AUTH')} lines with AUTH here"
        row.found(f"{seen}, leaked: {leaked}", not leaked and there > 0)


SECRET_USER, SECRET_WORD = "secret-user", "secret-password"
DIALOGUES = (
    ("AUTH PLAIN", "\0{}\0{}"),
    ("AUTH PLAIN {}", "\0{}\0{}"),
    ("auth plain {}", "\0{}\0{}"),
    ("AUTH LOGIN", "{}", "{1}"),
    ("AUTH LOGIN {}", "{}", "{1}"),
    ("AUTH CRAM-MD5", "{} 0123456789abcdef0123456789abcdef"),
    ("AUTH XOAUTH2 {}", "user={}\1auth=Bearer {}\1\1"),
    ("AUTH OAUTHBEARER {}", "n,a={},\1auth=Bearer {}\1\1"),
    ("AUTH SCRAM-SHA-256 {}", "n,,n={},r={}"),
    ("AUTH BOGUS {}", "{}:{}"),
)
"""The command, and what is sent base64: within it, or as the next lines."""


def say(mta: Mta, command: str, *answers: str) -> list[str]:
    """Sign in so, with words of its own; what must not be shown of it."""
    unique = token_hex(4)
    plain = [
        one.format(f"{SECRET_USER}-{unique}", f"{SECRET_WORD}-{unique}").encode() for one in answers
    ]
    encoded = [b64encode(one).decode() for one in plain]
    lines = [command.format(encoded[0]), *encoded[1:]] if "{}" in command else [command, *encoded]
    with spoken(mta) as server:
        for line in lines:
            server.docmd(line)
    return [*encoded, f"{SECRET_WORD}-{unique}"]


@contextmanager
def spoken(mta: Mta) -> Iterator[smtplib.SMTP]:
    with suppress(smtplib.SMTPException), smtplib.SMTP("127.0.0.1", mta.ports.smtp) as server:
        server.ehlo("stranger.example")
        yield server


# -- A long log, large mails ----------------------------------------------------------------------


def write_log(mta: Mta, size: int, now: datetime, *, hours: int = 20) -> int:
    """About `size` bytes in the log of the last hours, before Robin starts; the lines written."""
    lines_in_second = max(1, round(size / (hours * 3600 * LINE_BYTES)))
    at, lines = now - timedelta(hours=hours), 0
    files: dict[str, Any] = {}
    try:
        while at < now - timedelta(seconds=60):
            path = mta.log_of(at)
            file = files.setdefault(path.name, None) or path.open("w")
            files[path.name] = file
            file.write(_second_of_log(at, lines, lines_in_second))
            lines += lines_in_second
            at += timedelta(seconds=1)
    finally:
        for file in files.values():
            file.close()
    return lines


def _second_of_log(at: datetime, first: int, number: int) -> str:
    stamp = f"{at:%m%d-%H%M%S}"
    parts = []
    for n in range(first, first + number):
        level = "ERROR" if n % 100 == 0 else "WARN " if n % 26 == 0 else "INFO "
        what = NEEDLE if n % 20_000 == 7 else f"Session processed: uid={n:032x}, removedEnvelopes=1"
        parts.append(
            f"{level}|{stamp}{n * 7919 % 1000:03d}|pool-4-thread-{n % 8}|"
            f"queue.RelayDequeue||||{what}, remainingEnvelopes=0, node=mx{n % 3}.north.example\n"
        )
    return "".join(parts)


def long_log(table: Table, mta: Mta, gateway: Gateway) -> None:
    client = gateway.signed_in(ADMIN)
    size = sum(path.stat().st_size for path in (mta.home / "log").glob("*.log"))
    client.get("/api/v1/storage")
    with table.check("6", f"a log of {size >> 20} MB: one search of Robin's own") as row:
        row.found(f"{mta.search_seconds():.2f} s, {mta.search_seconds():.2f} s", None)
    before, most = gateway.rss_bytes(), 0
    paths = {
        "the page without a filter": "/api/v1/logs?limit=100",
        "errors": "/api/v1/logs?limit=100&level=ERROR",
        "errors and warnings": "/api/v1/logs?limit=100&level=ERROR,WARN",
        "a search without a hit": "/api/v1/logs?limit=100&search=there-is-no-such-word",
        "a search with few hits": f"/api/v1/logs?limit=100&search={NEEDLE}",
        "a search with very many": "/api/v1/logs?limit=100&search=processed",
        "page 50": "/api/v1/logs?limit=100&offset=5000",
        "the loggers": "/api/v1/logs/loggers",
    }
    for name, path in paths.items():
        with table.check("6", f"a log of {size >> 20} MB: {name}") as row:
            began = time.monotonic()
            answer = client.get(path)
            seconds = time.monotonic() - began
            most = max(most, gateway.rss_bytes())
            if answer.status_code != 200:
                row.found(f"{answer.status_code}, {seconds:.1f} s, {_message_of(answer)}", False)
                continue
            found = answer.json()
            count = len(found if isinstance(found, list) else found["entries"])
            whole = "" if isinstance(found, list) or found["complete"] else ", not all searched"
            seen = f"{answer.status_code}, {seconds:.1f} s, {count} entries{whole}"
            is_there = count > 0 or "no-such" in path
            row.found(seen, answer.status_code == 200 and seconds <= LOG_SECONDS and is_there)
    with table.check("6", f"a log of {size >> 20} MB: memory of the web process") as row:
        row.found(f"{before >> 20} → {most >> 20} MB", most - before <= GROWTH_BYTES)
    with table.check("6", f"a log of {size >> 20} MB: exported whole") as row:
        began, read, first, most = time.monotonic(), 0, 0.0, before
        with client.stream("GET", "/api/v1/logs/export?format=txt", timeout=240) as answer:
            for part in answer.iter_bytes():
                first = first or time.monotonic() - began
                if read >> 23 != (read + len(part)) >> 23:  # each 8 MB
                    most = max(most, gateway.rss_bytes())
                read += len(part)
                if time.monotonic() - began > EXPORT_SECONDS:
                    break  # it streams, and that was enough to see what it costs
        seconds, grown = time.monotonic() - began, most - before
        seen = f"{read >> 20} MB in {seconds:.0f} s, {grown >> 20} MB more memory"
        seen += f", first byte {first:.1f} s"
        row.found(seen, read > 0 and grown <= GROWTH_BYTES and first <= LOG_SECONDS)


def write_mails(mta: Mta) -> dict[str, str]:
    """Large ones, and odd names: path in the store of the large → SHA-256."""
    folder = mta.home / "store/north.example/ada/new"
    (folder / "dir.eml").mkdir(parents=True)
    line = b"0123456789abcdef" * 4 + b"\r\n"
    made = {}
    for n in range(MAILS):
        content = f"Subject: Large {n}\r\n\r\n".encode() + line * (MAIL_BYTES // len(line))
        (folder / f"large-{n}.eml").write_bytes(content)
        made[f"/north.example/ada/new/large-{n}.eml"] = hashlib.sha256(content).hexdigest()
    (folder / "latin.eml").write_bytes("Subject: Grüße\r\n\r\nÄrger\r\n".encode("latin-1"))
    (folder / "dir.eml/inside.eml").write_bytes(b"Subject: Inside\r\n\r\nHello.\r\n")
    return made


def large_mails(table: Table, gateway: Gateway, mails: dict[str, str]) -> None:
    client = gateway.signed_in(ADMIN)
    before, peak = gateway.rss_bytes(), [0]
    name = f"{MAILS} mails of {MAIL_BYTES >> 20} MB at once"

    def raw(path: str) -> bool:
        digest = hashlib.sha256()
        with client.stream("GET", f"/api/v1/storage/raw?path={quote(path)}") as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                digest.update(part)
        return digest.hexdigest() == mails[path]

    def text(path: str) -> bool:
        found = ask(client, f"/api/v1/storage/file?path={quote(path)}")
        return bool(found["truncated"]) and 0 <= MAIL_BYTES - found["size"] < 100

    for what, read in (("as they are", raw), ("as text", text)):
        with table.check("6", f"{name}, {what}") as row, _peak(gateway, peak):
            began = time.monotonic()
            with ThreadPoolExecutor(MAILS) as pool:
                right = [*pool.map(read, mails)]
            row.found(f"{sum(right)} right, {time.monotonic() - began:.1f} s", all(right))
    with table.check("6", f"{name}: memory of the web process") as row:
        row.found(f"{before >> 20} → {peak[0] >> 20} MB", peak[0] - before <= GROWTH_BYTES)
    with table.check("6", "a directory `dir.eml` opens, and a mail that is no UTF-8") as row:
        inside = ask(client, "/api/v1/storage?path=/north.example/ada/new/dir.eml")
        latin = ask(client, "/api/v1/storage/file?path=/north.example/ada/new/latin.eml")
        row.found(
            f"{len(inside['items'])} inside, {latin['content'][:16]!r}", bool(inside["items"])
        )


@contextmanager
def _peak(gateway: Gateway, peak: list[int]) -> Iterator[None]:
    is_over = False

    def look() -> None:
        while not is_over:
            peak[0] = max(peak[0], gateway.rss_bytes())
            time.sleep(0.05)

    looking = Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        is_over = True
        looking.join()


# -- Bad input ------------------------------------------------------------------------------------

EXCHANGES = ROOT / "robin/tests/data/exchanges.json"
ANSWERS = ROOT / "robin/tests/data/answers.json"
HUGE_BYTES = 200 << 20
ODD_NAMES = (
    *("a+b", "a b", "100%", "%2e%2e", "%00", "%252e", "a&b=c;d", "#x", "?q=1", "~", "-", "'\"<b>"),
    *("{{ITEMS}}", "trailing ", "n" * 240, "back\\slash", "a..b", "tab\tx", "line\nbreak", "\rx"),
    *("é", "e\u0301", "日本", "\u202egnp", "\u2028", "*[a-z]$^(?", "\x7f", "folders", "\x1b[31m"),
)
BAD_PATHS = {
    "..": "/../../etc/passwd",
    "%2e%2e": "/%2e%2e/%2e%2e/etc/passwd.eml",
    "NUL": "/a\0b.eml",
    "4,000 characters": f"/{'n' * 4000}.eml",
    "2,000 names": "/a" * 2000,
    "backslash": "/..\\..\\etc\\passwd",
    "+": "/north.example/a+nobody/x.eml",
    "a lone surrogate": "/%ED%A0%80.eml",
}
SIGNS = ("[", "(", "*", "\\", ".*", "a{2,", "^", "(?i)n", "n1|n2", "'", '"', "%", "%00", "%zz", "+")


def write_odd(mta: Mta) -> dict[str, bytes]:
    """A mail under each odd name: what is listed → what it holds; and one of 200 MB."""
    folder = mta.home / "store/north.example/odd/new"
    folder.mkdir(parents=True)
    made = {}
    for number, name in enumerate(ODD_NAMES):
        made[f"{name}.eml"] = f"Subject: {number}\r\n\r\n{name!a}\r\n".encode()
        (folder / f"{name}.eml").write_bytes(made[f"{name}.eml"])
    (Path(os.fsdecode(bytes(folder) + b"/lat\xe9.eml"))).write_bytes(b"Subject: x\r\n\r\n")
    with (mta.home / "store/north.example/huge.eml").open("wb") as file:
        file.write(b"Subject: Huge\r\n\r\n")
        for _ in range(HUGE_BYTES >> 20):
            file.write((b"0123456789abcde\n" * 64) * 1024)
    return made


def bad_input(table: Table, gateway: Gateway, odd: dict[str, bytes], items: int) -> None:
    client = gateway.signed_in(ADMIN)
    with table.check("bad", f"{len(odd) + 1} odd names of mails: opened, or said not to be") as row:
        listed = ask(client, "/api/v1/storage?path=/north.example/odd/new")["items"]
        wrong, opened = [], 0
        for item in listed:
            answer = client.get("/api/v1/storage/raw", params={"path": item["path"]})
            name = item["path"].rpartition("/")[2]
            is_right = answer.status_code == 200 and answer.content == odd.get(name)
            opened += is_right
            if is_right is not item["openable"] or not (is_right or is_problem(answer)):
                wrong.append((item["name"], item["openable"], answer.status_code))
        row.found(
            f"{len(listed)} listed, {opened} opened, wrong: {wrong}", not wrong and opened > 9
        )
    with table.check("bad", f"{len(BAD_PATHS)} paths that lead nowhere") as row:
        found = {}
        for name, path in BAD_PATHS.items():
            for what in ("storage", "storage/file", "storage/raw"):
                answer = client.get(f"/api/v1/{what}", params={"path": path})
                if not (is_problem(answer) and answer.status_code in (403, 404, 414, 422)):
                    found[name] = (what, answer.status_code, answer.text[:80])
        row.found(f"other than refused: {found}", not found)
    with table.check("bad", f"a mail of {HUGE_BYTES >> 20} MB") as row:
        before, peak, began = gateway.rss_bytes(), [0], time.monotonic()
        path = "/north.example/huge.eml"
        with _peak(gateway, peak):
            text = ask(client, f"/api/v1/storage/file?path={path}")
            text_seconds, size = time.monotonic() - began, 0
            with client.stream("GET", f"/api/v1/storage/raw?path={path}") as answer:
                for part in answer.iter_bytes():
                    size += len(part)
        seen = f"text {text_seconds:.1f} s, all {size >> 20} MB {time.monotonic() - began:.1f} s"
        is_ok = text["truncated"] and size == text["size"] > HUGE_BYTES
        row.found(f"{seen}; the web process {before >> 20} → {peak[0] >> 20} MB", is_ok)
        row.is_ok = bool(row.is_ok and peak[0] - before <= GROWTH_BYTES)
    with table.check("bad", f"{len(SIGNS)} filters with signs of regular expressions") as row:
        hits: dict[str, tuple[Any, ...]] = {}
        for sign in SIGNS:
            where = f"/api/v1/queue/json?{urlencode({'search': sign, 'size': 200})}"
            page = wait_for("a page", partial(_page_or_none, client, where))
            lines = client.get("/api/v1/logs", params={"search": sign, "limit": 50}).json()
            wanted = {"action": "delete", "filter": {"search": sign}}
            proposal = client.post("/api/v1/queue/actions", json=wanted)
            matched = proposal.json().get("matched")
            foreign = [e for e in lines["entries"] if sign not in json.dumps(e, ensure_ascii=False)]
            if page["totalCount"] or matched or (foreign and sign not in '\\"'):
                hits[sign] = (page["totalCount"], matched, len(foreign))
        row.found(f"of {items} items matched: {hits}", not hits)
    with table.check("bad", "afterwards: other routes, and the breakers") as row:
        statuses = [client.get(path).status_code for path in OTHERS]
        health = ask(client, "/api/v1/health")
        breakers = [health[name]["breaker"] for name in ("robinClientApi", "robinServiceApi")]
        row.found(f"{statuses}, {breakers}", {*statuses} == {200} and {*breakers} == {"closed"})


def as_recorded(table: Table, mta: Mta) -> None:
    """Whether this Robin is the one that the stand-in was made after."""
    write_exchanged(mta)
    exchanges = json.loads(EXCHANGES.read_text())
    ports = {"client": mta.ports.client, "service": mta.ports.service}
    headers = {"Authorization": f"Bearer {mta.token}"}
    with table.check("2", f"{len(exchanges)} exchanges that were recorded, asked again") as row:
        found = recorded.differences(exchanges, ports, headers)
        row.found(f"{len(found)} differ: {'; '.join(found)}"[:600], not found)
    with table.check("2", "answers that were recorded whole, their shapes") as row:
        # Which rows a queue has, and which metrics were counted yet, is of each run.
        known = [a for a in json.loads(ANSWERS.read_text()) if not a.get("broken")]
        whole = [a for a in known if a["path"] in ("/health", "/config")]
        others = [
            real["path"]
            for real in whole
            if recorded.outline(recorded.answer(ports[real["server"]], _call(real), headers))
            != recorded.outline(real)
        ]
        row.found(f"{len(whole)}, {len(others)} differ: {others}", not others)


def _call(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("server", "path", "headers") if name in answer}


def write_exchanged(mta: Mta) -> None:
    """The mails of what was recorded."""
    for name, content in recorded.MAILS.items():
        path = mta.home / "store/north.example" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def is_problem(answer: httpx.Response) -> bool:
    """An error in our own form, which can be asked about."""
    kind = answer.headers.get("content-type", "")
    return kind.startswith("application/problem+json") and bool(answer.headers.get("x-request-id"))


# -- Refused, reloaded ----------------------------------------------------------------------------


def settings(table: Table, mta: Mta, gateway: Gateway) -> None:
    client = gateway.signed_in(ADMIN)
    with table.check("6", "settings: nothing secret, what is harmless shown") as row:
        found = client.get("/api/v1/config").raise_for_status().text
        leaked = [word for word in (mta.token, "avengers", "YOUR_API_KEY") if word in found]
        shown = all(word in found for word in ("relay", "maxRetryCount", "webhooks"))
        row.found(f"{len(leaked)} secrets, harmless shown {shown}", not leaked and shown)
    with table.check("6", "a broken file, reloaded") as row:
        with mta.broken("relay.json5"):
            broken = client.post("/api/v1/config/reload")
        mended = client.post("/api/v1/config/reload")
        row.found(f"{broken.status_code} {_message_of(broken)}; then {mended.status_code}", None)
        row.is_ok = (
            "relay" in broken.text
            and bool(broken.json().get("logged"))
            and mended.status_code == 200
        )


def _message_of(answer: httpx.Response) -> str:
    return json.dumps(answer.json())[:160]


def refused(table: Table, mta: Mta, gateway: Gateway) -> None:
    """Robin asks for another token from now on."""
    token, mta.token = mta.token, "another"
    mta.stop()
    mta.start(start_seconds=86_400)
    client = gateway.signed_in(ADMIN)
    with table.check("6", "wrong credentials are not UP") as row:
        health = wait_for("not UP", lambda: _not_up(client))
        code = client.get("/api/v1/storage").status_code
        row.found(f"health {health}, storage {code}", code in (502, 503))
    mta.token = token
    mta.stop()
    mta.start(start_seconds=86_400)


def _not_up(client: httpx.Client) -> str:
    answer = client.get("/api/v1/health")
    status = str(answer.json().get("status", answer.status_code))
    return "" if status == "UP" else f"{answer.status_code} {status}"


def closed_port() -> int:
    """A port at which nobody listens, and that nobody else is given while this run lasts."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))  # bound, and never listened on
    _held.append(holder)
    return int(holder.getsockname()[1])


_held: list[socket.socket] = []
