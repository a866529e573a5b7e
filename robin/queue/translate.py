"""Robin's queue as Robin UI reads it. Pure functions; `ValueError` when it is not that.

Names are the UI's (camelCase). Times are milliseconds, or ISO texts that end in `Z`; a fact that is
not known is left out, never null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any, NamedTuple

import orjson

from robin.config.translate import RETRIES_MAX

Item = dict[str, Any]

SHOWN_MAX = 5
"""Of recipients and files of an item, as Robin's page has them."""

TOTAL = re.compile(r"Total items:\s*<strong>(\d+)</strong>")
CELL = re.compile(r"<td\b[^>]*>(.*?)</td>", re.DOTALL)
UID = re.compile(r"data-uid=['\"]([^'\"]+)['\"]")
MORE = re.compile(r"\s*…\s*\(\+(\d+)\)\s*$")
TAG = re.compile(r"<[^>]*>")
"""Of its files, where a recipient is called `{{FILES}}`: Robin fills its row name by name."""
RCPT = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,])+')
"""Up to a comma that is not within quotes: `"a, b"@north.example` is one."""
FILE = re.compile(r"<span title=['\"]([^'\"]*)['\"]")
CELLS = 11
COUNT_MAX = 2**53


class QueuePage(NamedTuple):
    """`total` counts all items that the filter lets through, on whatever page."""

    total: int
    items: list[Item]


def queue_page(content: bytes, retries_max: Mapping[str, int] | None = None) -> QueuePage:
    """Robin's page of its queue. `retries_max` by protocol; the entry "" is for all others.

    The date in it is left out: it is that of the listing.
    """
    text = content.decode("utf-8", errors="replace")
    total, (_, _, rest) = TOTAL.search(text), text.partition("<tbody>")
    body, end, _ = rest.partition("</tbody>")
    if total is None or not end:
        raise ValueError("not the page of the queue")
    # By hand: a pattern that looks for each end letter by letter takes three times as long.
    rows = [row.partition("<tr")[2].partition(">")[2] for row in body.split("</tr>")[:-1]]
    tries = {name.lower(): count for name, count in (retries_max or {}).items()}
    return QueuePage(int(total[1]), [_item(CELL.findall(row), tries) for row in rows])


def queue_json(content: bytes) -> QueuePage:
    """The same from `/client/queue/json`, which Robin UI's authors had and never published.

    Raises ValueError for anything else.
    """
    try:
        listing = orjson.loads(content)
        return QueuePage(int(listing["totalCount"]), [_item_of(row) for row in listing["items"]])
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
        "retryCount": _count(row["retryCount"]),
        "maxRetryCount": max(1, _count(row.get("maxRetryCount") or RETRIES_MAX)),
        "createTime": _count(row["createTime"]),
        "lastRetryTime": _count(row.get("lastRetryTime") or 0),
        "recipients": shown,
        "recipientsTotal": len(recipients),
        "recipientsCut": len(recipients) > len(shown),
        "envelopes": len(envelopes),
        "files": [name.rpartition("/")[2] for name in files if name],
    }
    if session.get("uid"):
        item["sessionUid"] = str(session["uid"])
    return item


def _count(value: Any) -> int:
    """As JSON and its readers can have it (RFC 8259, §6)."""
    return max(-COUNT_MAX, min(int(value), COUNT_MAX))


def _item(cells: list[str], retries_max: Mapping[str, int]) -> Item:
    uid = UID.search(cells[0]) if len(cells) == CELLS else None
    if uid is None:
        raise ValueError("not a row of the queue")
    protocol = unescape(cells[4]).strip()
    # Before it is unescaped: what a recipient holds is no tag, and Robin may have put one there.
    recipients = unescape(TAG.sub("", cells[8]))
    more = MORE.search(recipients)
    shown = [one.strip() for one in RCPT.findall(MORE.sub("", recipients))]
    shown = [one for one in shown if one]
    tries = retries_max.get(protocol.lower(), retries_max.get("", RETRIES_MAX))
    item: Item = {
        "uid": unescape(uid[1]),
        "protocol": protocol,
        "mailbox": shown[0] if shown else "",
        "retryCount": _count(cells[5]),
        "maxRetryCount": max(1, tries),  # a divisor in the UI
        "lastRetryTime": java_ms(cells[6]),
        "recipients": shown,
        "recipientsTotal": len(shown) + (_count(more[1]) if more else 0),
        "recipientsCut": more is not None,
        "envelopes": _count(cells[7]),
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
