"""Robin's settings as Robin UI reads them. Pure functions; `ValueError` when it is not that.

Names are the UI's (camelCase). Times are milliseconds, or ISO texts that end in `Z`; a fact that is
not known is left out, never null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from typing import Any, NamedTuple

import orjson

from robin.redaction import redacted

RETRIES_MAX = 30
"""Robin's shipped `relay.maxRetryCount`, where its settings are not known."""
STALWART_RETRIES_MAX = 10
"""Robin's default; its page does not show that section."""


def retries_max(config: Mapping[str, Any]) -> dict[str, int]:
    """Protocol, in small letters → how often Robin tries, from its settings (`config_page`)."""
    found = {"": RETRIES_MAX, "dovecot-lda": 10, "stalwart-direct": STALWART_RETRIES_MAX}
    names = (("relay", ""), ("dovecot", "dovecot-lda"), ("stalwart", "stalwart-direct"))
    for section, protocol in names:
        value = (config.get(section) or {}).get("maxRetryCount")
        if isinstance(value, int) and value > 0:
            found[protocol] = value
    return found


class Waits(NamedTuple):
    """How long Robin waits between two tries, as its settings say; those it ships, unless known."""

    first_minutes: float = 1
    growth: float = 1.2

    def seconds(self, tries: int) -> int:
        """After so many tries."""
        try:
            minutes = round(self.first_minutes * self.growth**tries)
        except OverflowError:
            minutes = WAIT_MINUTES_MAX
        return 60 * min(minutes, WAIT_MINUTES_MAX)


WAIT_MINUTES_MAX = 60 * 24 * 30


def waits(config: Mapping[str, Any]) -> Waits:
    """Of `config_page`: Robin has them under `queue.retry`."""
    queue = config.get("queue") or {}
    retry = queue.get("retry") or queue
    found = [retry.get("firstWaitMinutes"), retry.get("growthFactor")]
    first, growth = (
        value if isinstance(value, int | float) and value > 0 else default
        for value, default in zip(found, Waits(), strict=True)
    )
    return Waits(first, growth)


PRE = re.compile(r"<pre\b[^>]*\bid=['\"](properties|server)Config['\"][^>]*>(.*?)</pre>", re.DOTALL)
SECTION = re.compile(
    r"<div class=['\"]config-section['\"]>\s*<h2>(.*?)</h2>\s*<pre[^>]*>(.*?)</pre>", re.DOTALL
)
EXACT = 2**53
"""Up to here a float tells whole numbers apart, and JSON has them (RFC 8259, §6)."""


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
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return int(value) if is_whole else value
