"""A mail as two that say the same: plain text, and HTML made of it.

The HTML asks nothing of any host and has no picture: what it shows is what the text says. A link
that stands alone on a line is a button, lines that are indented are facts. A customer's word comes
into a text by `name`, and whatever else a text quotes, only our own addresses become links.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from smtplib import SMTPDataError, SMTPException, SMTPRecipientsRefused
from time import monotonic
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives, get_connection
from django.utils.html import escape
from django.utils.translation import gettext
from redis.exceptions import LockError

from gateway_project.core.language import spoken
from gateway_project.core.stores import redis
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.telemetry.logging import get_logger

log = get_logger("gateway.mails")
LINK = re.compile(r"https?://\S+")
FACT = re.compile(r"^\s{2,}(\S.*?)\s{2,}(\S.*)$")
DOT = re.compile(r"[.@\u3002\uff0e\uff61](?=\w)")
"""What holds an address together, with the dots that a browser reads as one. `mails.name` puts a
space without width behind it, where no name of a host goes on."""
ANY_LINK = "http"
"""For `ours`, of a text that staff alone wrote."""
TURN = "gw:mails"
WAIT_SECONDS = 1.0
"""For the turn of another round, which seldom takes as long."""
SEND_SECONDS = 20.0
TURN_SECONDS_MAX = 120.0
"""Of a round that died in its turn: more than all of one takes, and a last mail as slow as can be
(`EMAIL_TIMEOUT` is of each step)."""
ACCENT, INK, SOFT, LINE, GROUND = "#0c6b63", "#0f1f1d", "#4b5c59", "#d9e2df", "#f6f8f7"
PAGE = (
    '<!doctype html><html lang="{language}"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">'
    '<meta name="color-scheme" content="light dark"><title>{title}</title></head>'
    f'<body style="margin:0;background:{GROUND};color:{INK};'
    'font:16px/1.55 system-ui,-apple-system,Segoe UI,Roboto,sans-serif">'
    '<div style="max-width:34rem;margin:0 auto;padding:2rem 1.25rem">'
    f'<p style="margin:0 0 1rem;font-weight:640">Gateway</p>'
    f'<div style="background:#fff;border:1px solid {LINE};border-radius:14px;padding:1.5rem">'
    '<h1 style="font-size:1.25rem;line-height:1.25;margin:0 0 1rem">{title}</h1>{body}</div>'
    f'<p style="color:{SOFT};font-size:.86rem;margin:1rem 0 0">{{foot}}</p></div></body></html>'
)
BUTTON = (
    '<p style="margin:1.25rem 0"><a href="{link}" style="display:inline-block;'
    f"background:{ACCENT};color:#fff;text-decoration:none;font-weight:600;border-radius:9px;"
    'padding:.6rem 1.1rem">{open}</a></p>'
    f'<p style="color:{SOFT};font-size:.86rem;overflow-wrap:anywhere">{{link}}</p>'
)


def message(
    subject: str, text: str, to: Sequence[str], *, ours: str | None = None, **more: Any
) -> EmailMultiAlternatives:
    """Both forms in one mail. What a header must not hold is taken out of the subject.

    `ours`: what an address begins with that becomes a link; by default `PUBLIC_URL`.
    """
    if ours is None:
        ours = settings.PUBLIC_URL and f"{settings.PUBLIC_URL.rstrip('/')}/"
    subject = " ".join(subject.split())
    mail = EmailMultiAlternatives(subject, text, to=list(to), **more)
    mail.attach_alternative(html_of(subject, text, ours), "text/html")
    return mail


def name(text: str) -> str:
    """What a customer calls something, for the middle of a text: one line, and nothing that a mail
    program would take for an address and make a link of."""
    return DOT.sub("\\g<0>\u200b", " ".join(text.replace("://", " ").split()))


def html_of(subject: str, text: str, ours: str = "") -> str:
    """The page of a text, with links to what begins with `ours`; to nothing without it."""
    body, _, foot = text.partition("\n-- \n")
    parts = [_part(part, ours) for part in re.split(r"\n\s*\n", body.strip("\n"))]
    return PAGE.format(
        language=spoken(), title=escape(subject), body="".join(parts), foot=escape(foot.strip())
    )


def is_refused(error: BaseException) -> bool:
    """Whether the server, or the library, will not have this mail, whoever sends it and when.

    Codes of 500 and above are for good (RFC 5321, §4.2.1); of a sender or a password they are
    about us.
    """
    if isinstance(error, SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, SMTPDataError):
        return error.smtp_code >= 500
    return isinstance(error, UNFIT)


def is_of_one(error: BaseException) -> bool:
    """Whether it says nothing of other mails: this one is refused, for good or for now.

    Else the server is away, and the others would fare no better.
    """
    return isinstance(error, SMTPRecipientsRefused | SMTPDataError) or is_refused(error)


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of mails to several. `later`: who is written to the next time, and nobody else."""

    count: int
    later: list[str]
    refused: dict[str, Exception]
    is_away: bool = False


def in_turn(work: Callable[[], int]) -> Callable[[], int]:
    """For rounds that send mails: of all of them one runs in the installation.

    A mail server that hangs would else have all places of the workers, one for each such round. The
    round that waits in vain does nothing and says 0; beat sends it again.
    """

    @wraps(work)
    def in_turn() -> int:
        if not settings.REDIS_URL:
            return work()  # one process, whose worker has places enough
        turn = redis.client().lock(TURN, timeout=TURN_SECONDS_MAX)
        if not turn.acquire(blocking_timeout=WAIT_SECONDS):
            return 0
        try:
            return work()
        finally:
            with suppress(LockError):  # it ended by itself
                turn.release()

    return in_turn


def send_each(addresses: Sequence[str], mail_to: Callable[[str], EmailMessage]) -> Sent:
    """A mail to each: what is wrong with one keeps no other from theirs, and nobody gets two.

    A server that takes `SEND_SECONDS` is taken for one that is away. Raises nothing. Not inside a
    transaction.
    """
    if not addresses:
        return Sent(0, [], {})
    count, later, refused = 0, list[str](), dict[str, Exception]()
    connection, until = get_connection(), monotonic() + SEND_SECONDS
    try:
        connection.open()
        for number, address in enumerate(addresses):
            if number and monotonic() > until:
                raise TimeoutError
            try:
                connection.send_messages([mail_to(address)])
                count += 1
            except (OSError, SMTPException, *UNFIT) as exc:
                if not is_of_one(exc):
                    raise
                log.warning("mail_unsent", error=type(exc).__name__)
                if is_refused(exc):
                    refused[address] = exc
                else:
                    later.append(address)
    except (OSError, SMTPException) as exc:
        log.error("mail_server_away", error=type(exc).__name__)
        rest = addresses[count + len(later) + len(refused) :]
        return Sent(count, [*later, *rest], refused, is_away=True)
    finally:
        connection.close()
    return Sent(count, later, refused)


def table(facts: Sequence[tuple[str, str]]) -> str:
    """Lines that both forms show as one: names, and what they are."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"    {name:{width}}  {value}" for name, value in facts)


def _part(part: str, ours: str) -> str:
    lines = part.strip("\n").split("\n")
    facts = [FACT.match(line) for line in lines]
    if all(facts):
        cells = "".join(
            f'<tr><td style="color:{SOFT};padding:.15rem 1.25rem .15rem 0">{escape(fact[1])}</td>'
            f'<td style="padding:.15rem 0">{escape(fact[2])}</td></tr>'
            for fact in facts
            if fact
        )
        return f'<table style="border-collapse:collapse;margin:.75rem 0">{cells}</table>'
    found: list[str] = []
    words: list[str] = []
    for line in lines:
        if LINK.fullmatch(line.strip()) and _is_ours(line.strip(), ours):
            button = BUTTON.format(link=escape(line.strip()), open=gettext("Open the link"))
            found += [_paragraph(words, ours), button]
            words = []
        else:
            words.append(line)
    return "".join([*found, _paragraph(words, ours)])


def _paragraph(lines: list[str], ours: str) -> str:
    if not lines:
        return ""
    words = "<br>".join(_linked(line, ours) for line in lines)
    return f'<p style="margin:.75rem 0">{words}</p>'


def _is_ours(link: str, ours: str) -> bool:
    return bool(ours) and link.startswith(ours)


def _linked(line: str, ours: str) -> str:
    found: list[str] = []
    at = 0
    for link in LINK.finditer(line):
        if not _is_ours(link[0], ours):
            continue
        url = escape(link[0])
        found += [
            escape(line[at : link.start()]),
            f'<a href="{url}" style="color:{ACCENT}">{url}</a>',
        ]
        at = link.end()
    return "".join([*found, escape(line[at:])])
