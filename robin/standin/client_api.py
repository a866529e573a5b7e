"""The stand-in's client API (8090): queue, enqueue and send, log search, users."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from robin.standin import queue
from robin.standin.queue import STATES, Envelope
from robin.standin.seed_data import STORE, SeedData
from robin.standin.server import HTML, Call, Context, Refused, Reply, as_json
from robin.standin.store import Store

LANDING = "<html><head><title>API Endpoint</title></head><body><h1>API Endpoint</h1></body></html>"
USAGE = "Usage: GET /logs?query=<text> or /logs?q=<text>\nSearches today's and yesterday's log.\n"
RAW = ("multipart/form-data", "message/rfc822", "application/octet-stream")
POST = frozenset({"POST"})
INT_MAX = 2**31 - 1
LINE_END = re.compile(r"\r\n|\r|\n")
NO_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte that is none, as Python has it in a text (`surrogateescape`)."""
LIST = "/client/queue/list"
LOG_SECONDS_PER_BYTE = 5e-9
"""A search reads both days from their beginning, whatever is asked for."""


def contexts(seed: SeedData, *, profile: str = "stock") -> dict[str, Context]:
    api = ClientAPI(seed)
    store = Store(seed)
    found = {
        "/": Context(lambda call: Reply(LANDING, content_type=HTML)),
        "/favicon.ico": Context(
            lambda call: Reply(
                b"\0\0\1\0", content_type="image/x-icon",
                headers={"Cache-Control": "public, max-age=86400"},
            ),
            needs_auth=False,
        ),
        "/health": Context(lambda call: as_json({"status": "UP"}), needs_auth=False),
        "/client/send": Context(api.send, POST),
        "/client/queue": Context(api.enqueue, POST),
        "/client/queue/list": Context(api.list_page, work=api.list_all),
        "/client/queue/delete": Context(api.operation("delete"), POST, work=api.act_on_many),
        "/client/queue/retry": Context(api.operation("retry"), POST, work=api.act_on_many),
        "/client/queue/bounce": Context(api.operation("bounce"), POST, work=api.act_on_many),
        "/logs": Context(api.logs, frozenset({"GET"}), work=api.read_log),
        "/users": Context(api.users),
        "/store": Context(store.browse),
        "/store-rocksdb": Context(store.rocksdb),
    }  # fmt: skip
    if profile == "ui-fork":
        found["/client/queue/json"] = Context(api.list_json, work=api.list_all)
        found["/logs/json"] = Context(api.logs_json)
    return found


class ClientAPI:
    def __init__(self, seed: SeedData) -> None:
        self.seed = seed

    # -- Queue ------------------------------------------------------------------------------------

    async def list_all(self, call: Call) -> None:
        """The whole queue is read for every list, under the lock that stops delivery."""
        await self.seed.queue.work(queue.LIST_SECONDS * len(self.seed.queue.items))

    async def act_on_many(self, call: Call) -> None:
        with suppress(Refused):
            for _ in _uids(call.body):
                await self.seed.queue.work(queue.ACT_SECONDS)

    def list_page(self, call: Call) -> Reply:
        self.seed.note("DEBUG", "endpoints.QueueOperationsHandler", f"GET {LIST} from /127.0.0.1")
        number, limit = 1, 50
        # A value that is no number is ignored here, and an error for the retries below.
        if _is_int(call.query.get("page", "")):
            number = max(1, int(call.query["page"]))
        if _is_int(call.query.get("limit", "")):
            limit = min(1000, max(1, int(call.query["limit"])))
        items = self._select(call)
        if (number - 1) * limit > INT_MAX:
            raise OverflowError  # Java's int wraps and the list throws
        page = queue.page(items, number, limit, now=self.seed.clock())
        return Reply(page, content_type=HTML)

    def _select(self, call: Call) -> list[queue.Item]:
        wanted = [s.strip().upper() for s in call.query.get("state", "").split(",")]
        states = [s for s in STATES if s in wanted] or ["READY", "CLAIMED"]
        bounds = [_bound(call, name) for name in ("retryMin", "retryMax")]
        return self.seed.queue.select(states, call.query.get("protocol", ""), *bounds)

    def list_json(self, call: Call) -> Reply:
        """Only in the profile `ui-fork`; `page` counts from 1 as in the page of HTML."""
        number = max(1, int(call.query.get("page", "1")))
        limit = min(1000, max(1, int(call.query.get("limit", "50"))))
        items = self._select(call)
        shown = items[(number - 1) * limit : number * limit]
        return as_json(
            {
                "items": [session_of(item) for item in shown],
                "totalCount": len(items),
                "pageSize": limit,
                "pageNumber": number,
            }
        )

    def operation(self, what: str) -> Any:
        act = getattr(self.seed.queue, what)
        count = {"delete": "deletedCount", "retry": "retriedCount", "bounce": "bouncedCount"}[what]

        def handle(call: Call) -> Reply:
            uids = _uids(call.body)
            if self.seed.closes_after is not None:
                act(uids[: self.seed.closes_after])
                raise Refused(500, "Internal Server Error: MVStore is closed")
            done = act(uids)
            return as_json({"status": "OK", count: done, "queueSize": self.seed.queue.size()})

        return handle

    # -- Enqueue and send -------------------------------------------------------------------------

    def enqueue(self, call: Call) -> Reply:
        envelopes, uploaded = self._case(call)
        protocol = call.query.get("protocol", "ESMTP")
        item = self.seed.queue.enqueue(protocol, envelopes)
        self.seed.received += 1
        answer: dict[str, Any] = {"status": "QUEUED", "queueSize": self.seed.queue.size()}
        if uploaded:
            answer["uploadedFile"] = uploaded
        return as_json({**answer, "session": self._session(item.session_uid, envelopes)}, 202)

    def send(self, call: Call) -> Reply:
        envelopes, _ = self._case(call)
        session = self._session(self.seed.queue.uuid(), envelopes)
        answers = [
            {
                "transactions": [
                    {"command": "RCPT", "payload": f"RCPT TO:<{rcpt}>", **_smtp_answer(rcpt)}
                    for rcpt in envelope.rcpts
                ]
            }
            for envelope in envelopes
        ]
        hello = {"command": "EHLO", "payload": "EHLO gw", "response": "250 mx", "error": False}
        session["sessionTransactionList"] = {"transactions": [hello], "envelopes": answers}
        return as_json(session)

    def _case(self, call: Call) -> tuple[list[Envelope], str]:
        """The envelopes to send, and the file an upload was kept in."""
        if any(kind in call.content_type for kind in RAW):
            mail, rcpt = call.query.get("mail"), call.query.get("rcpt")
            if not mail or not rcpt:
                raise Refused(400, "Missing required query parameters: mail and rcpt")
            if not call.body:
                raise Refused(400, "Empty upload body")
            name = call.query.get("filename") or f"eml-{int(self.seed.clock() * 1000)}.eml"
            path = f"{STORE}/queue/{name}"
            return [Envelope(mail, [r.strip() for r in rcpt.split(",")], path)], path
        case = _object(call.body)
        if not case:
            raise Refused(400, "Invalid JSON body")
        return [
            Envelope(e.get("mail", ""), e.get("rcpt", []), e.get("file", ""))
            for e in case.get("envelopes", [])  # without any, junk is queued all the same
        ], ""

    def _session(self, uid: str, envelopes: Any) -> dict[str, Any]:
        return {
            "direction": "INBOUND",
            "uid": uid,
            "date": queue.java_date(self.seed.clock()),
            "retry": 0,
            "port": 25,
            "envelopes": [
                {"mail": e.mail, "rcpts": e.rcpts, "params": {}, "headers": {}, "file": e.file}
                for e in envelopes
            ],
            "sessionTransactionList": {"transactions": [], "envelopes": []},
        }

    # -- Log --------------------------------------------------------------------------------------

    async def read_log(self, call: Call) -> None:
        size = sum(len(line) for day in self._days() for line in day)
        await asyncio.sleep(LOG_SECONDS_PER_BYTE * size)

    def _days(self) -> list[list[str]]:
        today = datetime.fromtimestamp(self.seed.clock(), UTC)
        days = (today, today - timedelta(days=1))
        return [self.seed.log.get(day.strftime("%Y%m%d"), []) for day in days]

    def _lines(self, wanted: str) -> Any:
        for day in self._days():
            for written in day:
                if NO_UTF8.search(written):  # and the rest of that file is not looked at
                    text = "Error reading log file: Input length = 1"
                    self.seed.note("ERROR", "endpoints.LogsHandler", text)
                    break
                # What Java takes for the end of a line, also within what was written as one.
                yield from (line for line in LINE_END.split(written) if wanted in line)

    def logs(self, call: Call) -> Reply:
        wanted = call.query.get("query") or call.query.get("q")
        if not wanted:
            return Reply(USAGE)
        logger = "endpoints.LogsHandler"
        self.seed.note("INFO", logger, f"Searching logs for query: '{wanted}'")
        self.seed.note("DEBUG", logger, "Searching log files")
        found = "".join(f"{line}\n" for line in self._lines(wanted))
        if len(found) > self.seed.log_answer_bytes_max:
            raise MemoryError  # of its heap: it makes one text of all it finds
        return Reply(found)

    def logs_json(self, call: Call) -> Reply:
        lines = [*self._lines(call.query.get("search", ""))]
        start = int(call.query.get("offset", "0"))
        return as_json({"lines": lines[start : start + int(call.query.get("limit", "100"))]})

    # -- Users ------------------------------------------------------------------------------------

    def users(self, call: Call) -> Reply:
        parts = call.segments("/users")
        is_exists = len(parts) == 2 and parts[1] == "exists"
        is_login = parts == ["authenticate"]
        if parts and not is_exists and not is_login:
            return Reply("Not Found", 404)
        if call.method != ("POST" if is_login else "GET"):
            return Reply("Method Not Allowed", 405)
        source = self.seed.users_backend
        if not source:
            facts = {"authSqlEnabled": False, "usersListEnabled": False, "usersListCount": 0}
            return as_json({"error": "Users API backend is not configured", **facts}, 503)
        if is_login:
            return self._authenticate(call, source)
        if is_exists:
            name = parts[0].strip()
            if not name:
                return as_json({"error": "Missing username"}, 400)
            known = name in self.seed.users
            return as_json({"source": source, "username": name, "exists": known})
        names = sorted(self.seed.users, key=str.lower)
        return as_json({"source": source, "count": len(names), "users": names})

    def _authenticate(self, call: Call, source: str) -> Reply:
        if not call.body.strip():
            return as_json({"error": "Empty request body"}, 400)
        try:
            given = json.loads(call.body)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return as_json({"error": "Invalid JSON body"}, 400)
        name, password = given.get("username"), given.get("password")
        if not name or not password:
            return as_json({"error": "Missing username or password"}, 400)
        good = self.seed.users.get(name) == password
        return as_json({"source": source, "username": name, "authenticated": good})


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _bound(call: Call, name: str) -> int | None:
    text = call.query.get(name)
    if text is None:
        return None
    if not _is_int(text):
        raise Refused(500, f'Internal Server Error: For input string: "{text}"')
    return int(text)


def _object(body: bytes) -> dict[str, Any] | None:
    """A JSON object as lenient Gson reads it; None for `null`."""
    if not body.strip():
        raise Refused(400, "Empty request body")
    try:
        given = json.loads(body)
    except ValueError as exc:
        raise Refused(500, f"Internal Server Error: {exc}") from exc
    if given == []:
        return {}  # Gson reads a map from a list of pairs, too
    if given is not None and not isinstance(given, dict):
        raise Refused(500, "Internal Server Error: Expected BEGIN_OBJECT")
    return given


def _uids(body: bytes) -> list[str]:
    given = _object(body)
    if given is None:
        raise Refused(400, "Invalid JSON body")
    cast = "Internal Server Error: class {} cannot be cast to class {}"
    if given.get("uid") is not None:  # it wins over `uids`
        if not isinstance(given["uid"], str):
            raise Refused(500, cast.format("java.lang.Double", "java.lang.String"))
        return [given["uid"]]
    if given.get("uids") is None:
        raise Refused(400, "Missing 'uid' or 'uids' parameter")
    if not isinstance(given["uids"], list):
        raise Refused(500, cast.format("java.lang.String", "java.util.List"))
    return [uid for uid in given["uids"] if isinstance(uid, str)]


def _smtp_answer(rcpt: str) -> dict[str, Any]:
    is_unknown = rcpt.startswith("nobody@")
    replies = "550 5.1.1 No such user" if is_unknown else "250 2.1.5 OK"
    return {"response": replies, "error": is_unknown}


def session_of(item: queue.Item) -> dict[str, Any]:
    """A `RelaySession` of the profile `ui-fork`."""
    return {
        "uid": item.uid,
        "protocol": item.protocol,
        "retryCount": item.retry,
        "maxRetryCount": item.retries_max,
        "createTime": int(item.created * 1000),
        "lastRetryTime": int(item.last_retry * 1000),
        "session": {
            "uid": item.session_uid,
            "envelopes": [
                {"mail": e.mail, "rcpts": e.rcpts, "file": e.file} for e in item.envelopes
            ],
        },
    }
