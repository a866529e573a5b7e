"""Guessing passwords: what an address may try, and when it may try an account no more.

One for every door (API, portal, admin). An account is never shut as such: only the pair of account
and address is, so nobody can lock a stranger out. Names that nobody has are counted like the
others, so a refusal tells nothing.
"""

from __future__ import annotations

import hashlib

from django.conf import settings
from django.utils.translation import gettext_noop

from accounts.models import normal_email
from gateway_project.core import errors
from gateway_project.core.ratelimit import (
    Decision,
    Policy,
    address_subject,
    get_limiter,
    per_minute,
)
from gateway_project.core.sentences import Sentence

FAILURES_MAX = 10
WINDOW_SECONDS = 15 * 60


def begin(account: str, address: str) -> None:
    """Count one attempt, before the password is looked at; raise `RateLimited` (429)."""
    if settings.RATE_LIMIT_ENABLED:
        attempts = per_minute(
            "sign_in", address_subject(address), settings.LOGIN_RATE_LIMIT_PER_MINUTE
        )
        _refuse_denied(get_limiter().check_sync((attempts,), (1,)))
    failures = _failures(account, address)
    decision = get_limiter().check_sync((failures,), (0,))
    state = decision.states[0]
    if state.remaining <= 0:
        _refuse_denied(
            decision._replace(denied=state.name, retry_after_seconds=max(1, state.reset_seconds))
        )


def note_failure(account: str, address: str) -> None:
    """The attempt failed. After `FAILURES_MAX` in `WINDOW_SECONDS` the pair is locked."""
    get_limiter().check_sync((_failures(account, address),), (1,))


def _refuse_denied(decision: Decision) -> None:
    try:
        decision.raise_if_denied()
    except errors.RateLimited as limited:
        wait = limited.headers["Retry-After"]
        raise errors.RateLimited(
            Sentence(
                gettext_noop("Too many attempts to sign in. Try again in %(wait)s seconds."),
                wait=wait,
            ),
            headers={**limited.headers, **dict(decision.headers())},
        ) from None


def _failures(account: str, address: str) -> Policy:
    # A name may hold anything and be of any length; its digest does not.
    name = hashlib.sha256(normal_email(account).encode()).hexdigest()[:32]
    return Policy(
        "sign_in_failures",
        f"{address_subject(address)}:{name}",
        FAILURES_MAX,
        WINDOW_SECONDS,
        15_000,
        61,
    )
