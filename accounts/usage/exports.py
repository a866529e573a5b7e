"""Files of the log that are too large for one answer: written behind it, and told of by mail.

A round of a periodic task writes a piece after the other, each committed with how far the file is,
so that a worker that dies costs a piece and no row stands twice. The log of `until`, the moment of
asking, is what is written.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from smtplib import SMTPException
from typing import Any
from uuid import UUID

import orjson
from django.db import transaction
from django.db.models import F
from django.utils.translation import gettext, gettext_noop, ngettext

from accounts.events import audit
from accounts.models import LogExport, LogExportPart, UsageLog, User, Workspace
from accounts.services import Actor
from accounts.usage import reading
from gateway_project.core import clock, errors, mails
from gateway_project.core.clock import utc_text
from gateway_project.core.language import number, speaking
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import advisory, database
from gateway_project.core.stores.refused import UNFIT, each_alone
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

ROWS_A_PART = 2_000
ROWS_MAX = 2_000_000
"""Of one file; the next begins where it ends."""
KEPT = timedelta(days=7)
KEPT_MAX = 10
"""Of a workspace at once; one is written at a time."""
MAILS_GIVEN_UP_AFTER = timedelta(days=1)
log = get_logger("gateway.usage")


def ask(
    workspace: Workspace, conditions: dict[str, Any], base: str, *, by: str, actor: Actor
) -> LogExport:
    """Have a file written; `base` is the address that its id is put behind. Raises 409 while
    another of the workspace is written, or when `KEPT_MAX` are kept."""
    with transaction.atomic():
        Workspace.objects.select_for_update(no_key=True).get(pk=workspace.pk)
        if workspace.exports.filter(finished_at=None).exists():
            raise errors.Conflict(
                gettext_noop("A file is being written already. Wait for the mail that tells of it.")
            )
        if workspace.exports.count() >= KEPT_MAX:
            raise errors.TooMany(
                Sentence(
                    gettext_noop(
                        "%(most)s files are kept, for seven days each. Read one of them, or wait."
                    ),
                    most=KEPT_MAX,
                )
            )
        conditions = {**conditions, "until": conditions.get("until") or clock.now()}
        made = LogExport(workspace=workspace, asked_by=by, conditions=_packed(conditions))
        made.link = f"{base}{made.pk}"
        made.save(force_insert=True)
        audit("log.export_asked", workspace=workspace, target=made.pk, **actor.fields())
    return made


def _packed(conditions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, range):
            found[name] = [value.start, value.stop]
        elif isinstance(value, datetime):
            found[name] = value.isoformat()
        elif value:
            found[name] = str(value)
    return found


def _unpacked(conditions: dict[str, Any]) -> dict[str, Any]:
    found = dict(conditions)
    if "statuses" in found:
        found["statuses"] = range(*found["statuses"])
    for name in ("since", "until"):
        if name in found:
            found[name] = datetime.fromisoformat(found[name])
    if "api_key_id" in found:
        found["api_key_id"] = UUID(found["api_key_id"])
    return found


def work() -> int:
    """A round: write on what waits, the oldest first, and tell of what is done; returns rows.

    What no mail left for yet stands behind, the newest first: addresses that are refused for now
    hold up neither files nor other mails.
    """
    during, telling = Round(), Round(mails.SEND_SECONDS)
    order = F("finished_at").desc(nulls_first=True), "created_at"
    waiting = LogExport.objects.filter(told_at=None).order_by(*order)
    ids = list(waiting.values_list("pk", flat=True)[:20])
    return sum(each_alone(telling.each(ids), partial(_work_on, during)))


def _work_on(during: Round, pk: UUID) -> int:
    rows = 0
    while not during.is_over:
        done = _write_part(pk)
        if done is None:
            break
        rows += done
    _tell(pk)
    return rows


def _write_part(pk: UUID) -> int | None:
    """Write a piece; None when it is finished, or another worker writes it."""
    with transaction.atomic():
        if not advisory.try_to_hold(f"log_export.{pk}"):
            return None
        export = LogExport.objects.select_related("workspace__plan").filter(pk=pk).first()
        if export is None or export.finished_at is not None:
            return None
        found = reading.page(
            export.workspace,
            **_unpacked(export.conditions),
            cursor=export.cursor,
            size=ROWS_A_PART,
        )
        if found.rows:
            content = gzip.compress(b"".join(map(line_of, found.rows)), 6)
            LogExportPart.objects.create(export=export, number=export.parts, content=content)
            export.parts += 1
            export.rows += len(found.rows)
            export.size += len(content)
        export.is_cut = found.older is not None and export.rows >= ROWS_MAX
        if found.older is None or export.is_cut:
            export.finished_at = clock.now()
        else:
            export.cursor = found.older
        export.save()
    return len(found.rows)


def line_of(row: UsageLog) -> bytes:
    """A row as a line of JSON; times in UTC, durations in milliseconds, no text."""
    values = {
        "request_id": row.request_id,
        "created_at": utc_text(row.created_at),
        "api_key_id": row.api_key_id,
        "endpoint": row.endpoint,
        "http_status": row.http_status,
        "error_code": row.error_code or None,
        "request_bytes": row.request_size,
        "total_ms": round(row.response_time_ms, 2),
        "upstream_ms": round(row.upstream_ms, 2),
        "status": row.status or None,
        "source": row.source or None,
        "decision": row.decision or None,
        "is_malicious": row.is_malicious,
        "confidence": row.confidence,
        "cached": row.cached,
        "why": row.why,
    }
    return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)


def _tell(pk: UUID) -> None:
    """By mail, once a worker has claimed it; a mail may leave twice, never in vain."""
    export = LogExport.objects.filter(pk=pk, told_at=None, finished_at__isnull=False).first()
    if export is None or export.finished_at is None:
        return
    who = User.objects.filter(email=export.asked_by).only("language").first()
    with speaking(who.language if who else ""):
        mail = mails.message(*_written(export), [export.asked_by], ours=export.link)
    try:
        database.let_go()
        mail.send()
    except (OSError, SMTPException, *UNFIT) as exc:
        log.error("log_export_untold", export=str(pk), error=type(exc).__name__)
        is_late = clock.now() - export.finished_at >= MAILS_GIVEN_UP_AFTER
        if not (is_late or mails.is_refused(exc)):
            return
    LogExport.objects.filter(pk=pk).update(told_at=clock.now())


def _written(export: LogExport) -> tuple[str, str]:
    """Subject and text."""
    parts = [
        ngettext(
            "The file of your request log is written: %(n)s request.",
            "The file of your request log is written: %(n)s requests.",
            export.rows,
        )
        % {"n": number(export.rows)},
        export.link,
        gettext("It is kept for seven days, for members of the workspace who are signed in."),
    ]
    if export.is_cut:
        cut = gettext("It ends after %(n)s requests. Ask for the time before them next.")
        parts.append(cut % {"n": number(ROWS_MAX)})
    return gettext("Your request log is ready"), "\n\n".join(parts)


def pieces(export: LogExport) -> Iterator[bytes]:
    """The file, a piece at a time."""
    for at in range(export.parts):
        part = LogExportPart.objects.filter(export=export, number=at).first()
        if part is not None:
            yield bytes(part.content)
