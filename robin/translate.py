"""What Robin says, in the words of Robin UI. Pure functions; `ValueError` when it is not that.

Names are the UI's (camelCase). Times are milliseconds, or ISO texts that end in `Z`; a fact that is
not known is left out, never null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from html import unescape
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

Item = dict[str, Any]
RETRIES_MAX = 30
"""Robin's shipped `relay.maxRetryCount`, where its settings are not known."""

ROWS_REMEMBERED = 2048
SHOWN_MAX = 5
"""Of recipients and files of an item, as Robin's page has them."""

# -- Queue ----------------------------------------------------------------------------------------

TOTAL = re.compile(r"Total items:\s*<strong>(\d+)</strong>")
CELL = re.compile(r"<td\b[^>]*>(.*?)</td>", re.DOTALL)
UID = re.compile(r"data-uid=['\"]([^'\"]+)['\"]")
MORE = re.compile(r"\s*…\s*\(\+(\d+)\)\s*$")
FILE = re.compile(r"<span title=['\"]([^'\"]*)['\"]")
CELLS = 11


class QueuePage(NamedTuple):
    """`total` counts all items that the filter lets through, on whatever page."""

    total: int
    items: list[Item]


def queue_page(content: bytes, retries_max: Mapping[str, int] | None = None) -> QueuePage:
    """Robin's page of its queue. `retries_max` by protocol; the entry "" is for all others."""
    text = content.decode("utf-8", errors="replace")
    total, (_, _, rest) = TOTAL.search(text), text.partition("<tbody>")
    body, end, _ = rest.partition("</tbody>")
    if total is None or not end:
        raise ValueError("not the page of the queue")
    # By hand: a pattern that looks for each end letter by letter takes three times as long.
    rows = [row.partition("<tr")[2].partition(">")[2] for row in body.split("</tr>")[:-1]]
    known = frozenset((retries_max or {}).items())
    # Copies: who asked may add what the page does not say.
    return QueuePage(int(total[1]), [{**_row(row, known)} for row in rows])


@lru_cache(maxsize=ROWS_REMEMBERED)
def _row(row: str, retries_max: frozenset[tuple[str, int]]) -> Item:
    """Remembered: between two looks most rows are what they were, and reading one takes 35 µs."""
    return _item(CELL.findall(row), dict(retries_max))


def queue_json(content: bytes) -> QueuePage:
    """The same from `/client/queue/json`, which Robin UI's authors had and never published (§1.6).

    Raises ValueError for anything else.
    """
    try:
        told = orjson.loads(content)
        return QueuePage(int(told["totalCount"]), [_item_of(row) for row in told["items"]])
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not the queue as JSON") from exc


def _item_of(row: Mapping[str, Any]) -> Item:
    session = row.get("session") or {}
    envelopes = session.get("envelopes") or []
    recipients = [rcpt for envelope in envelopes for rcpt in envelope.get("rcpts") or []]
    shown = list(dict.fromkeys(recipients))[:SHOWN_MAX]
    files = [envelope.get("file") for envelope in envelopes[:SHOWN_MAX]]
    item: Item = {
        "uid": str(row["uid"]),
        "protocol": str(row["protocol"]),
        "mailbox": shown[0] if shown else "",
        "retryCount": int(row["retryCount"]),
        "maxRetryCount": max(1, int(row.get("maxRetryCount") or RETRIES_MAX)),
        "createTime": int(row["createTime"]),
        "lastRetryTime": int(row.get("lastRetryTime") or 0),
        "recipients": shown,
        "recipientsTotal": len(recipients),
        "envelopes": len(envelopes),
        "files": [name.rpartition("/")[2] for name in files if name],
    }
    if session.get("uid"):
        item["sessionUid"] = str(session["uid"])
    return item


def _item(cells: list[str], retries_max: Mapping[str, int]) -> Item:
    uid = UID.search(cells[0]) if len(cells) == CELLS else None
    if uid is None:
        raise ValueError("not a row of the queue")
    protocol = unescape(cells[4]).strip()
    recipients = unescape(cells[8])
    more = MORE.search(recipients)
    shown = [one.strip() for one in MORE.sub("", recipients).split(",") if one.strip()]
    item: Item = {
        "uid": unescape(uid[1]),
        "protocol": protocol,
        "mailbox": shown[0] if shown else "",
        "retryCount": int(cells[5]),
        # It is a divisor in the UI.
        "maxRetryCount": max(1, retries_max.get(protocol, retries_max.get("", RETRIES_MAX))),
        "createTime": java_ms(cells[3]),
        "lastRetryTime": java_ms(cells[6]),
        "recipients": shown,
        "recipientsTotal": len(shown) + (int(more[1]) if more else 0),
        "envelopes": int(cells[7]),
        "files": [unescape(name).rpartition("/")[2] for name in FILE.findall(cells[9])],
    }
    session = unescape(cells[2]).strip()
    if session not in ("", "-"):
        item["sessionUid"] = session
    return item


def java_ms(text: str) -> int:
    """`Mon, 23 Nov 2026 08:14:07 +0000` in milliseconds; 0 for none, or in another language."""
    try:
        return int(parsedate_to_datetime(text.strip()).timestamp() * 1000)
    except (ValueError, TypeError, IndexError):
        return 0


def retries_max(config: Mapping[str, Any]) -> dict[str, int]:
    """Protocol → how often Robin tries, from its settings (`config_page`)."""
    found = {"": RETRIES_MAX}
    for section, protocol in (("relay", ""), ("dovecot", "DOVECOT-LDA")):
        value = (config.get(section) or {}).get("maxRetryCount")
        if isinstance(value, int) and value > 0:
            found[protocol] = value
    return found


# -- Storage --------------------------------------------------------------------------------------

DAY = re.compile(r"(\d{8})\.")


def store_parts(path: str) -> list[str]:
    """The names of a path below the store. `ValueError` for what could lead out of it."""
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if ".." in part or part == "." or "\\" in part or not part.isprintable():
            raise ValueError("a name in the path is not allowed")
    return parts


def store_url(parts: list[str]) -> str:
    """Robin decodes twice, and takes a plus for a space the second time."""
    return "/".join(["/store", *(quote(quote(part, safe=""), safe="") for part in parts)])


def store_listing(found: Any, parts: list[str]) -> dict[str, Any]:
    """A directory, as the UI draws it."""
    try:
        items = [_entry(item) for item in found["items"] if item["name"] != ".."]
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not a directory") from exc
    crumbs = [{"name": "Storage", "path": "/"}]
    for n, part in enumerate(parts, 1):
        crumbs.append({"name": part, "path": "/" + "/".join(parts[:n])})
    return {"path": "/" + "/".join(parts), "items": items, "breadcrumbs": crumbs}


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    name = str(item["name"])
    day = DAY.match(name)
    modified = 0
    if day is not None:
        try:
            when = datetime.strptime(day[1], "%Y%m%d").replace(tzinfo=UTC)
            modified = int(when.timestamp() * 1000)
        except ValueError:
            modified = 0  # eight digits that are no date
    return {
        "path": "/" + str(item["path"]).removeprefix("/store").strip("/"),
        "name": name,
        "type": "directory" if item["type"] == "dir" else "file",
        "size": int(item.get("size", 0)),
        "modified": modified,
    }


def mail_text(content: bytes) -> str:
    """Every mail can be shown: what is no UTF-8 is read as Latin-1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


# -- Settings -------------------------------------------------------------------------------------

PRE = re.compile(r"<pre\b[^>]*\bid=['\"](properties|server)Config['\"][^>]*>(.*?)</pre>", re.DOTALL)
SECTION = re.compile(
    r"<div class=['\"]config-section['\"]>\s*<h2>(.*?)</h2>\s*<pre[^>]*>(.*?)</pre>", re.DOTALL
)
SECRET = re.compile(
    r"pass|secret|token|authvalue|authorization|credential|api[_-]?key|auth$|private|cookie|salt",
    re.IGNORECASE,
)
HEADERS = re.compile(r"headers$", re.IGNORECASE)
IN_TEXT = re.compile(
    r"(?P<user>://[^/\s:@]*:)[^@\s/]+(?=@)|(?P<name>(?:password|passwd|pwd|secret|token)=)[^&;\s]+",
    re.IGNORECASE,
)
REDACTED = "[redacted]"


def config_page(content: bytes) -> dict[str, Any]:
    """Robin's settings by section (`server`, `relay`, …), without the secrets they hold."""
    text = content.decode("utf-8", errors="replace")
    found: dict[str, str] = dict(PRE.findall(text))
    if "server" not in found:
        raise ValueError("not the page of the settings")
    for title, raw in SECTION.findall(text):
        name = unescape(title).strip().lower().removesuffix(" configuration")
        found[name.replace(" ", "")] = raw
    return {name: redacted(_whole(orjson.loads(unescape(raw)))) for name, raw in found.items()}


def _whole(value: Any) -> Any:
    """Robin shows every number as a float."""
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def redacted(value: Any, *, is_secret: bool = False) -> Any:
    """The same with every secret replaced: by the name it stands under, or inside of a text."""
    if isinstance(value, dict):
        return {
            name: redacted(
                inner,
                is_secret=is_secret or bool(SECRET.search(str(name)) or HEADERS.search(str(name))),
            )
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redacted(inner, is_secret=is_secret) for inner in value]
    if isinstance(value, bool) or value is None or value == "":
        return value  # whether something is set is no secret
    if is_secret:
        return REDACTED
    if isinstance(value, str):
        return IN_TEXT.sub(lambda m: (m["user"] or m["name"]) + REDACTED, value)
    return value


# -- Health ---------------------------------------------------------------------------------------

PASSED_ON = ("uptime", "metricsCron", "botPool", "lmtpPool")


def health(service: Any, *, client_is_up: bool) -> dict[str, Any]:
    """The UI's health from the service port's, None when that did not answer.

    The UI knows `UP` and `DOWN` only, and reads `scheduler.cron` without looking whether it is
    there: without Robin's `service` or `cron` the whole scheduler is left out.
    """
    is_up = client_is_up and isinstance(service, dict) and service.get("status") == "UP"
    answer: dict[str, Any] = {"status": "UP" if is_up else "DOWN", "listeners": []}
    answer["queue"] = {"size": 0, "retryHistogram": {}}
    if not isinstance(service, dict):
        return {**answer, "uptime": "unknown"}
    answer |= {name: service[name] for name in PASSED_ON if service.get(name) is not None}
    answer.setdefault("uptime", "unknown")
    if isinstance(service.get("listeners"), list):
        answer["listeners"] = service["listeners"]
    if isinstance(service.get("queue"), dict):
        answer["queue"] |= service["queue"]
    scheduler = service.get("scheduler")
    if isinstance(scheduler, dict) and isinstance(cron := _cron(scheduler), dict):
        answer["scheduler"] = {**scheduler, "cron": cron}
    return answer


def _cron(scheduler: Mapping[str, Any]) -> Any:
    service = scheduler.get("service")
    if scheduler.get("cron") is not None or not isinstance(service, dict):
        return scheduler.get("cron")
    return {
        "initialDelaySeconds": service.get("startDelaySeconds", 0),
        "periodSeconds": service.get("housekeepingIntervalSeconds", 0),
        "lastExecutionEpochSeconds": service.get("lastHousekeepingEpochSeconds", 0),
        "nextExecutionEpochSeconds": service.get("nextHousekeepingEpochSeconds", 0),
    }
