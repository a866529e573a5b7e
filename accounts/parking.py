"""Where lies what a store refused: out of the way of all others, for staff to see and run again.

A row, an entry or an event that cannot be written is parked instead of tried for ever. What is
parked is encrypted, bounded in size and number, forgotten after `KEPT`, and listed in the admin;
`manage.py parked` and the admin run it again (`gateway_project/staff/parked.py` knows how).
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.db.models import Count, Q

from accounts.models import Parked
from gateway_project.core import encryption
from gateway_project.core.storable import cleaned
from gateway_project.core.stores.refused import reason
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached, parked_total

PAYLOAD_BYTES_MAX = 4 << 20
"""Of what is larger only the beginning is kept, which cannot be run again."""
PER_WORKSPACE_MAX = 1_000
"""What a workspace has beyond it is counted (`gateway_bound_reached_total`) and not kept. The same
for all that is nobody's."""
KEPT = timedelta(days=30)
log = get_logger("gateway.parked")


def park(
    kind: str,
    origin: object,
    error: Exception,
    *,
    payload: bytes = b"",
    workspace_id: object = None,
) -> bool:
    """Put it aside, in the caller's transaction: it is parked when the others are written.

    `kind` is `app.thing`, `origin` says where it came from (an id), and `payload` is all that
    running it again needs beside that. False when there was no room to keep it. Raises only what a
    store that is away raises.
    """
    name, why, owner = cleaned(str(origin))[:100], reason(error)[:300], _as_uuid(workspace_id)
    whose = Q(workspace=None) if owner is None else Q(workspace_id=owner)
    before = Parked.objects.filter(whose).order_by()[:PER_WORKSPACE_MAX].count()
    is_kept = before < PER_WORKSPACE_MAX
    if is_kept:
        parked_total.labels(kind).inc()
        Parked.objects.create(
            kind=kind,
            origin=name,
            workspace_id=owner,
            error=why,
            payload=encryption.encrypt_bytes(payload[:PAYLOAD_BYTES_MAX]) if payload else "",
            payload_bytes=len(payload),
        )
    else:
        bound_reached.labels("parked").inc()
    log.error("parked", kind=kind, origin=name, error=why, is_kept=is_kept, alert=True)
    return is_kept


def payload_of(parked: Parked) -> bytes:
    """What was put aside. Raises `Undecryptable` without its key, `ValueError` when it was cut."""
    if parked.payload_bytes > PAYLOAD_BYTES_MAX:
        raise ValueError(f"only the beginning of its {parked.payload_bytes} bytes was kept")
    return encryption.decrypt_bytes(parked.payload) if parked.payload else b""


def counts() -> dict[str, int]:
    """How much lies here, by kind."""
    found = Parked.objects.order_by().values_list("kind").annotate(count=Count("pk"))
    return dict(found)


def _as_uuid(value: object) -> UUID | None:
    try:
        return value if value is None or isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        return None
