"""E-mail addresses that we keep, and that mail can be sent to."""

from __future__ import annotations

from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from accounts.models import normal_email

CHARS_MAX = 150
"""It is the user name as well, which Django keeps at that."""
TOO_LONG = f"has more than {CHARS_MAX} characters. Use a shorter address of yours."
BEYOND_ASCII = (
    "has letters beyond ASCII before the @, and mail servers without SMTPUTF8 (RFC 6531) deliver "
    "nothing there. Use another address of yours."
)
NO_HOST = "has a host behind the @ that is no name of the Internet. Check its spelling."


FOR_PEOPLE = {
    TOO_LONG: _("This address has more than 150 characters. Use a shorter address of yours."),
    BEYOND_ASCII: _(
        "This address has letters beyond ASCII before the @, and mail servers without SMTPUTF8 "
        "(RFC 6531) deliver nothing there. Use another address of yours."
    ),
    NO_HOST: _(
        "This address has a host behind the @ that is no name of the Internet. Check its spelling."
    ),
}


def why_undeliverable(email: str) -> str | None:
    """Why we write to none there, as the end of a sentence; None: we do.

    What an address looks like at all is for the form to check.
    """
    if len(normal_email(email)) > CHARS_MAX:
        return TOO_LONG
    local, _, host = email.strip().rpartition("@")
    if not local.isascii():
        return BEYOND_ASCII
    try:
        host.encode("idna")  # as Django's mail does
    except UnicodeError:
        return NO_HOST
    return None


def refusal_of(email: str) -> str | None:
    """The same as a sentence for the form of a page."""
    reason = why_undeliverable(email)
    return gettext(FOR_PEOPLE[reason]) if reason else None


def deliverable(email: str) -> str:
    """`email`, for fields of a schema; raises ValueError when no mail would arrive there."""
    if reason := why_undeliverable(email):
        raise ValueError(reason)
    return email
