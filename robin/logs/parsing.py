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

from django.utils.translation import gettext_noop

from gateway_project.core.clock import utc_text
from robin.redaction import REDACTED, without_secrets

LINE = re.compile(
    r"(?P<level>TRACE|DEBUG|INFO|WARN|ERROR|FATAL) *\|(?P<day>\d{4})-(?P<clock>\d{9})\|"
    r"(?P<thread>[^|]*)\|(?P<logger>[^|]*)\|(?P<a>[^|]*)\|(?P<b>[^|]*)\|(?P<c>[^|]*)\|"
    r"(?P<message>.*)",
    re.DOTALL | re.ASCII,
)
GAP = gettext_noop("Robin wrote more in this millisecond than can be shown.")
CUT = gettext_noop("Robin finds no later line of this day: its file has a byte that is not UTF-8.")
SEARCHING = "Searching logs for query"
LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
DIALOGUE = re.compile(r"(<<|>>)\s*(\S+)(.*)", re.DOTALL)
"""What was read from or written to a connection."""
RECEIVED = "<< "
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
ABOUT_AUTH = re.compile(r"(\bCommand: AUTH\b).*", re.DOTALL)
"""Robin's note of a transaction: with what was sent, and what was answered."""
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
SASL = re.compile(
    rb"\A[^\0]*\0[^\0]+\0[^\0]+\Z"  # PLAIN: [authzid] NUL authcid NUL password (RFC 4616)
    rb"|\Aauth=|\x01auth=|\A\S{1,200} [0-9a-f]{32}\Z"  # XOAUTH2, OAUTHBEARER; CRAM-MD5
    rb"|\bresponse=|,p=[A-Za-z0-9+/]+=*\Z|\ANTLMSSP"  # DIGEST-MD5, SCRAM, NTLM
    rb"|\A[\x21-\x7e]+:[\x21-\x7e]+\Z",  # HTTP's Basic
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line. What it says is redacted when it is looked at: that takes ten times as long as to
    read the line, and of ten thousand that are counted a hundred are shown."""

    at: datetime
    id: str
    level: str
    raw_thread: str
    raw_logger: str
    raw_context: tuple[str, str, str]
    raw_message: str
    is_gap: bool = False
    """Whether the gateway says so, and no line of Robin's."""

    @property
    def thread(self) -> str:
        return escaped(self.raw_thread)

    @property
    def logger(self) -> str:
        return escaped(self.raw_logger)

    @property
    def context(self) -> tuple[str, ...]:
        return tuple(escaped(without_secrets(one)) if one else "" for one in self.raw_context)

    @property
    def message(self) -> str:
        return escaped(redacted(self.raw_message, self.raw_logger))

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
        at, message = utc_text(self.at), self.message
        return f"{at} {self.level:5} [{self.thread}] {self.logger} {message}"

    def searched(self) -> str:
        """The line as Robin wrote it, but for what is left out."""
        return "|".join([self._stamp, self.thread, self.logger, *self.context, self.message])

    def has(self, text: str) -> bool:
        """Whether it is in the line as Robin wrote it, and in what is left of it."""
        raw = (self.raw_thread, self.raw_logger, *self.raw_context, self.raw_message)
        return text in "|".join([self._stamp, *raw]) and text in self.searched()

    @property
    def _stamp(self) -> str:
        return f"{self.level:5}|{self.id.rpartition('-')[0]}"

    def is_ours(self) -> bool:
        """What Robin says of being asked by us, several lines each time; what was done stays."""
        if not self.raw_logger.startswith("endpoints."):
            return False
        if self.raw_message.startswith(SEARCHING):
            return True
        is_chatter = self.level in ("DEBUG", "TRACE")
        return is_chatter and not self.raw_message.startswith("Authentication failed")


def entries(content: bytes, *, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    """The entries in a text of Robin's, in its order; `now` knows the year that no line names.

    Lines of stack traces are left out: Robin gives those that match without the entry they
    belong to. So is a line that another server said: Robin logs each line that it hears, and then
    all of an answer of several lines as one ("Error: 550-…"), whose second one may look like a line
    of the log.
    """
    today = now.astimezone(zone)
    seen: Counter[str] = Counter()
    received: set[str] = set()
    for raw in content.split(b"\n"):
        line = raw.decode("utf-8", errors="replace")
        match = LINE.fullmatch(line)
        at = match and _time(match["day"], match["clock"], today)
        if match is None or at is None or (received and line.rstrip() in received):
            continue
        if match["message"].startswith(RECEIVED) and LINE.match(match["message"], len(RECEIVED)):
            received.add(match["message"][len(RECEIVED) :].rstrip())
        stamp = f"{match['day']}-{match['clock']}"
        seen[stamp] += 1
        level = "ERROR" if match["level"] == "FATAL" else match["level"]
        context = (match["a"], match["b"], match["c"])
        yield Entry(
            at.astimezone(UTC),
            f"{stamp}-{seen[stamp]}",
            level,
            match["thread"],
            match["logger"],
            context,
            match["message"],
        )


def gap(at: datetime, stamp: str, why: str = GAP) -> Entry:
    """In the place of lines that are too many to be read, or that Robin does not find."""
    return Entry(at, f"{stamp}-0", "WARN", "", "", ("", "", ""), why, is_gap=True)


def last_search(content: bytes, query: str, *, now: datetime, zone: tzinfo) -> datetime | None:
    """When Robin was asked that last, by the lines that it finds of its own."""
    echo = f"{SEARCHING}: '{query}'"
    lines = b"\n".join(one for one in content.split(b"\n") if one.endswith(echo.encode()))
    found = entries(lines, now=now, zone=zone)
    return max((one.at for one in found if one.is_ours() and one.raw_message == echo), default=None)


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
    message = ABOUT_AUTH.sub(rf"\1 {REDACTED}", MECHANISM.sub(rf"\1 {REDACTED}", message))
    return BASE64.sub(_unless_sasl, without_secrets(message))


def _unless_sasl(match: re.Match[str]) -> str:
    """What a client answers to a challenge, whatever stands around it."""
    text = match[0].rstrip("=")
    try:
        decoded = b64decode(text + "=" * (-len(text) % 4), altchars=None)
    except ValueError:
        return match[0]
    return REDACTED if SASL.search(decoded) else match[0]


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
        # In what is shown, too: a search must not find what was left out of it.
        return not self.search or entry.has(self.search)
