"""A store that is away, told from data that a store refuses; and how to write all but the refused.

Whoever waits for a store that is away loses nothing. Whoever tries refused data again tries for
ever, and keeps everybody else's waiting behind it: that is found by halving and handed to `park`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from django import db
from django.db import transaction

from gateway_project.core.encryption import Undecryptable
from gateway_project.core.stores.database import is_away
from gateway_project.core.telemetry.logging import get_logger

R = TypeVar("R")
T = TypeVar("T")
log = get_logger("gateway.refused")
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


def each_alone(rows: Iterable[T], act: Callable[[T], R]) -> list[R]:
    """What `act` said of each row.

    One that is refused, or takes too long, keeps no other waiting. Its error is raised when all had
    their turn: the round has failed, which is told of when it happens again and again. A store that
    is away is raised at once.
    """
    done: list[R] = []
    error: Exception | None = None
    for row in rows:
        try:
            done.append(act(row))
        except Exception as exc:
            is_late = isinstance(exc, db.OperationalError) and not is_away(exc)
            if not (is_late or is_refused(exc)):
                raise
            which = str(getattr(row, "pk", row))[:100]
            log.error("row_refused", row=which, error=reason(exc), alert=True)
            error = error or exc
    if error is not None:
        raise error
    return done


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
