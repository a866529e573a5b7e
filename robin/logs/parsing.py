"""Robin's log: its lines as entries, without what they must not show, and what filters ask.

One line of Robin is one entry, whatever a stranger's SMTP command put into it: only a line feed
ends it, and what is not printable is shown escaped. Credentials that Robin logs are left out
(`redacted`), and so is what it logs of our own reading.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from gateway_project.core.clock import utc_text
from robin.redaction import REDACTED, without_secrets

LINE = re.compile(
    r"(?P<level>TRACE|DEBUG|INFO|WARN|ERROR|FATAL) *\|(?P<day>\d{4})-(?P<clock>\d{9})\|"
    r"(?P<thread>[^|]*)\|(?P<logger>[^|]*)\|(?P<a>[^|]*)\|(?P<b>[^|]*)\|(?P<c>[^|]*)\|"
    r"(?P<message>.*)",
    re.DOTALL | re.ASCII,
)
LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
DIALOGUE = re.compile(r"(<<|>>)\s*(\S+)(.*)", re.DOTALL)
"""What was read from or written to a connection."""
COMMANDS = {
    *("HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "BYTES", "RSET", "NOOP", "QUIT"),
    *("HELP", "VRFY", "EXPN", "STARTTLS", "ETRN", "XCLIENT", "AUTH", "."),
}
REPLY = re.compile(r"[2-5]\d\d(?:[- ]|\Z)", re.ASCII)
MECHANISMS = (
    r"PLAIN|LOGIN|CRAM-MD5|DIGEST-MD5|SCRAM-SHA-[\w-]{1,12}|XOAUTH2|OAUTHBEARER|NTLM|GSSAPI|"
    r"EXTERNAL|ANONYMOUS"
)
NAMES = re.compile(MECHANISMS, re.IGNORECASE)
MECHANISM = re.compile(
    rf"(?<!250-)(?<!250 )\b(AUTH\s+(?:{MECHANISMS})\b)\s*\S.*", re.IGNORECASE | re.DOTALL
)
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")


@dataclass(frozen=True, slots=True)
class Entry:
    at: datetime
    id: str
    level: str
    thread: str
    logger: str
    message: str
    context: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """As Robin UI reads it."""
        at = utc_text(self.at)
        entry: dict[str, Any] = {"id": self.id, "timestamp": at, "level": self.level}
        entry |= {"logger": self.logger, "message": self.message}
        if self.thread:
            entry["thread"] = self.thread
        if any(self.context):
            entry["context"] = dict(zip("abc", self.context, strict=True))
        return entry

    def line(self) -> str:
        shown = self.shown()
        return f"{shown['timestamp']} {self.level:5} [{self.thread}] {self.logger} {self.message}"

    def searched(self) -> str:
        """The line as Robin wrote it, but for what is left out."""
        level = f"{self.level:5}|{self.id.rpartition('-')[0]}"
        return "|".join([level, self.thread, self.logger, *self.context, self.message])

    def is_ours(self) -> bool:
        """What Robin says of being asked by us, several lines each time; what was done stays."""
        if not self.logger.startswith("endpoints."):
            return False
        if self.message.startswith("Searching logs for query"):
            return True
        is_chatter = self.level in ("DEBUG", "TRACE")
        return is_chatter and not self.message.startswith("Authentication failed")


def entries(content: bytes, *, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    """The entries in a text of Robin's, in its order; `now` knows the year that no line names.

    Lines of stack traces are left out: Robin gives those that match without the entry they
    belong to.
    """
    today = now.astimezone(zone)
    seen: Counter[str] = Counter()
    for raw in content.split(b"\n"):
        match = LINE.fullmatch(raw.decode("utf-8", errors="replace"))
        at = match and _time(match["day"], match["clock"], today)
        if match is None or at is None:
            continue
        stamp = f"{match['day']}-{match['clock']}"
        seen[stamp] += 1
        level = "ERROR" if match["level"] == "FATAL" else match["level"]
        logger = match["logger"]
        yield Entry(
            at.astimezone(UTC),
            f"{stamp}-{seen[stamp]}",
            level,
            escaped(match["thread"]),
            escaped(logger),
            escaped(redacted(match["message"], logger)),
            tuple(escaped(without_secrets(match[name])) for name in "abc"),
        )


def _time(day: str, clock: str, today: datetime) -> datetime | None:
    """Of this year, or of the last when it would lie in the future: December read in January."""
    for year in (today.year, today.year - 1):
        try:
            # By hand: `strptime` takes three times as long as all else together.
            at = datetime(
                year, int(day[:2]), int(day[2:]),
                int(clock[:2]), int(clock[2:4]), int(clock[4:6]), int(clock[6:]) * 1000,
                tzinfo=today.tzinfo,
            )  # fmt: skip
        except ValueError:  # 29 February, or no date at all
            continue
        if at <= today + timedelta(days=1):
            return at
    return None


def escaped(text: str) -> str:
    """What is not printable as `\\x0c` or `\\u2028`: it would end a line, or turn it around."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def redacted(message: str, logger: str = "") -> str:
    """The same without credentials.

    Robin logs each line of a dialogue: `AUTH PLAIN …`, and what a client sends when it is asked
    for its name and password. Of what is no command nobody can tell that it is neither.
    """
    if logger.rpartition(".")[2].startswith("Digest"):
        what, colon, rest = message.partition(":")
        return f"{what}: {REDACTED}" if colon and rest.strip() else message
    spoken = DIALOGUE.match(message)
    if spoken is not None:
        arrow, word, rest = spoken.groups()
        if word.upper() == "AUTH":
            mechanism, *more = rest.split(maxsplit=1) or [""]
            if not more and (not mechanism or NAMES.fullmatch(mechanism)):
                return message
            is_known = NAMES.fullmatch(mechanism)
            return " ".join([arrow, word, *([mechanism] if is_known else []), REDACTED])
        if word.upper() not in COMMANDS and not REPLY.match(word + rest):
            return f"{arrow} {REDACTED}"
    message = MECHANISM.sub(rf"\1 {REDACTED}", message)
    return BASE64.sub(_unless_sasl, without_secrets(message))


def _unless_sasl(match: re.Match[str]) -> str:
    """SASL PLAIN (RFC 4616) is `[authzid] NUL authcid NUL password`, whatever stands around it."""
    text = match[0].rstrip("=")
    try:
        decoded = b64decode(text + "=" * (-len(text) % 4), altchars=None)
    except ValueError:
        return match[0]
    return REDACTED if decoded.count(b"\0") == 2 and not decoded.endswith(b"\0") else match[0]


@dataclass(frozen=True, slots=True)
class Filter:
    """What may be asked of the log. Empty means: all."""

    levels: frozenset[str] = frozenset()
    search: str = ""
    logger: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def markers(self) -> list[str]:
        """What stands before the time in the lines that are wanted."""
        if not self.levels or len(self.levels) > 2:
            return ["|"]
        wanted = [*self.levels, "FATAL"] if "ERROR" in self.levels else [*self.levels]
        return sorted(f"{level:5}|" for level in wanted)

    def keeps(self, entry: Entry) -> bool:
        if entry.is_ours():
            return False
        if self.levels and entry.level not in self.levels:
            return False
        if self.logger and self.logger.lower() not in entry.logger.lower():
            return False
        if (self.since and entry.at < self.since) or (self.until and entry.at > self.until):
            return False
        # In what is shown: a search must not find what was left out of it.
        return not self.search or self.search in entry.searched()
