"""A store that is away, told from data that a store refuses; and how to write all but the refused.

Whoever waits for a store that is away loses nothing. Whoever tries refused data again tries for
ever, and keeps everybody else's waiting behind it: that is found by halving and handed to `park`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from django import db
from django.db import transaction

from gateway_project.core.encryption import Undecryptable

T = TypeVar("T")
# What our own code says of a value that is not what it should be. Not all there is: a task that is
# over its time, or out of memory, is no fault of the row in hand.
UNFIT = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, Undecryptable),
)
# SQLSTATE classes (PostgreSQL's documentation, appendix A) that Django files under the errors of
# a connection or of a statement, and what they are about.
TOO_MUCH = "54"  # program limit exceeded: JSON nested too deep, a value too large for its index
SCHEMA = "42"  # syntax error or access rule violation: the tables are not those of this version
SQLITE_TOO_BIG = 18


def is_refused(error: BaseException) -> bool:
    """Whether what was written is at fault, so that the same would be refused again.

    False for a store that is away, slow, full, or not migrated yet: then waiting helps.
    """
    if isinstance(error, transaction.TransactionManagementError):
        return False
    if isinstance(error, db.Error):
        state = str(getattr(error.__cause__, "sqlstate", None) or "")
        if isinstance(error, db.OperationalError):
            code = getattr(error.__cause__, "sqlite_errorcode", None)
            return state.startswith(TOO_MUCH) or code == SQLITE_TOO_BIG
        if isinstance(error, db.ProgrammingError):
            return not state.startswith(SCHEMA)  # none: a value that the driver cannot write
        return isinstance(error, db.DataError | db.IntegrityError | db.NotSupportedError)
    return isinstance(error, UNFIT)


def reason(error: BaseException) -> str:
    """What an operator may read of it: kinds and codes, never the store's words, which quote."""
    cause = error.__cause__
    if isinstance(error, db.Error) and cause is not None:
        state = getattr(cause, "sqlstate", None)
        return f"{type(error).__name__}: {type(cause).__name__}" + (f" ({state})" if state else "")
    return type(error).__name__


def write_all_but(
    items: Sequence[T],
    write: Callable[[Sequence[T]], object],
    park: Callable[[T, Exception], object],
) -> list[T]:
    """Write `items` in one savepoint, or as many as it takes; returns those that were taken.

    Halves until what is refused stands alone, which goes to `park` with the reason. A store that
    is away is raised, as it came.
    """
    if not items:
        return []
    try:
        with transaction.atomic():
            write(items)
    except Exception as exc:
        if not is_refused(exc):
            raise
        if len(items) == 1:
            park(items[0], exc)
            return []
    else:
        return list(items)
    middle = len(items) // 2
    first = write_all_but(items[:middle], write, park)
    return first + write_all_but(items[middle:], write, park)
