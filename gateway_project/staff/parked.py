"""What lies parked (`accounts/parking.py`): run again or thrown away, by staff.

Here, because only the outer ring knows all that can be parked.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.db import DatabaseError, transaction
from django.db.models import F
from django.utils.translation import gettext_noop

from accounts import parking
from accounts.events import audit
from accounts.models import Parked
from accounts.services import Actor
from accounts.usage import log, stream
from gateway_project.core import errors
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores.refused import is_refused, reason
from webhooks.delivery import notices, outbox


def _usage(kind: str) -> Callable[[Parked], None]:
    return lambda parked: log.write_again(kind, parking.payload_of(parked), parked.pk)


RERUN: dict[str, Callable[[Parked], None]] = {
    stream.UNREADABLE: lambda parked: stream.rerun(parking.payload_of(parked)),
    **{f"usage.{kind}": _usage(kind) for kind in ("row", "event", "text")},
    outbox.UNPUBLISHED: lambda parked: outbox.publish_again(UUID(parked.origin)),
    outbox.UNSENDABLE: lambda parked: outbox.send_again([UUID(parked.origin)]),
    notices.UNSENDABLE: lambda parked: notices.send_again(int(parked.origin)),
}
"""By kind. What is not named here can only be looked at and thrown away."""


def rerun(parked: Parked, *, actor: Actor) -> None:
    """Do what was refused, and forget that it was. Raises 409 when it is refused again."""
    run = RERUN.get(parked.kind)
    if run is None:
        raise errors.Conflict(
            gettext_noop(
                "This cannot be run again: it says what was lost. Discard it once that is known."
            )
        )
    try:
        with transaction.atomic():
            run(parked)
            _forget(parked, "parked.rerun", actor)
    except Exception as exc:
        if isinstance(exc, DatabaseError) and not is_refused(exc):
            raise
        Parked.objects.filter(pk=parked.pk).update(
            attempts=F("attempts") + 1, error=reason(exc)[:300]
        )
        raise errors.Conflict(
            Sentence(
                gettext_noop(
                    "It was refused again (%(why)s) and stays parked. Mend the cause and run it "
                    "again, or discard it."
                ),
                why=reason(exc),
            )
        ) from exc


def discard(parked: Parked, *, actor: Actor) -> None:
    """Throw it away for good."""
    _forget(parked, "parked.discarded", actor)


@transaction.atomic
def _forget(parked: Parked, action: str, actor: Actor) -> None:
    Parked.objects.filter(pk=parked.pk).delete()
    audit(action, target=parked.origin, kind=parked.kind, **actor.fields())
