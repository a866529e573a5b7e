"""The blocklist of Robin UI: kept by the gateway, not applied to Robin, and each answer says so."""

from __future__ import annotations

import csv
import io
from typing import Any
from uuid import UUID

import orjson
import pydantic
from django.db import IntegrityError, transaction
from django.http import HttpResponse
from django.utils.http import content_disposition_header
from rest_framework.request import Request

from accounts.events import audit
from gateway_project.core import cells, errors
from gateway_project.core.api import json_body
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import JSON, reply
from gateway_project.core.clock import utc_text
from gateway_project.core.context import context_of
from robin.access.repeats import MemberViewSet, changing
from robin.blocklist.schemas import (
    EntryList,
    EntryPatch,
    EntryQuery,
    EntryRequest,
    EntryView,
    ExportQuery,
    ImportedView,
    ImportRequest,
)
from robin.config.documents import NOTICE
from robin.models import BlocklistEntry
from robin.permissions import Permission
from robin.upstream.viewset import DOWNLOAD, endpoint

BLOCKLIST = ("robin blocklist",)
ENTRIES = list[EntryView]  # in the class `list` is an action
ROWS_MAX = 10_000
ERRORS_MAX = 50
FIELDS = ("type", "value", "reason", "expiresAt", "active")


class BlocklistViewSet(MemberViewSet):
    @endpoint(
        operation="listBlocklist",
        summary="The blocklist",
        description="Stored here, not applied to Robin, which cannot be told over HTTP.",
        tags=BLOCKLIST,
        answer=EntryList,
        headers=["X-Gateway-Notice"],
        scope=Permission.VIEW_SECURITY,
        query=EntryQuery,
    )
    def list(self, request: Request) -> HttpResponse:
        query = asked(request._request, EntryQuery)
        rows = BlocklistEntry.objects.all()
        if query.type is not None:
            rows = rows.filter(type=query.type)
        if query.active is not None:
            rows = rows.filter(active=query.active)
        start = query.page * query.limit
        items = [EntryView.of(row) for row in rows[start : start + query.limit]]
        return reply(EntryList(items=items, totalCount=rows.count()), headers=NOTICE)

    @changing(
        operation="createBlocklistEntry",
        summary="Add an entry",
        tags=BLOCKLIST,
        body=EntryRequest,
        answer=EntryView,
        status=201,
        headers=["X-Gateway-Notice"],
        scope=Permission.MANAGE_SECURITY,
        problems=[errors.Conflict],
    )
    def create(self, request: Request) -> HttpResponse:
        with transaction.atomic():
            row = self._added(self.parsed(EntryRequest))
            self._audit("added", str(row))
        return reply(EntryView.of(row), status=201, headers=NOTICE)

    def _added(self, body: EntryRequest) -> BlocklistEntry:
        try:
            with transaction.atomic():
                return BlocklistEntry.objects.create(
                    type=body.type,
                    value=body.value,
                    reason=body.reason,
                    expires_at=body.expiresAt,
                    active=body.active,
                    created_by=self.principal.email,
                )
        except IntegrityError:
            raise errors.Conflict(
                f"{body.value} is on the list already. Change that entry instead (PATCH)."
            ) from None

    @changing(
        operation="updateBlocklistEntry",
        summary="Change an entry",
        tags=BLOCKLIST,
        body=EntryPatch,
        answer=EntryView,
        headers=["X-Gateway-Notice"],
        scope=Permission.MANAGE_SECURITY,
        problems=[errors.NotFound],
    )
    def partial_update(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        body = self.parsed(EntryPatch)
        row = self._row(id)
        before = self._changeable(row)
        if body.reason is not None:
            row.reason = body.reason
        if body.active is not None:
            row.active = body.active
        if "expiresAt" in body.model_fields_set:
            row.expires_at = body.expiresAt
        after = self._changeable(row)
        changes = {
            name: [before[name], after[name]] for name in after if before[name] != after[name]
        }
        with transaction.atomic():
            row.save(update_fields=["reason", "active", "expires_at"])
            self._audit("changed", str(row), changes=changes)
        return reply(EntryView.of(row), headers=NOTICE)

    @changing(
        operation="deleteBlocklistEntry",
        summary="Delete an entry",
        tags=BLOCKLIST,
        status=204,
        headers=["X-Gateway-Notice"],
        scope=Permission.MANAGE_SECURITY,
        problems=[errors.NotFound],
    )
    def destroy(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        row = self._row(id)
        with transaction.atomic():
            row.delete()
            self._audit("deleted", str(row), **self._changeable(row))
        return reply(None, status=204, headers=NOTICE)

    @endpoint(
        operation="importBlocklist",
        summary="Add the entries of a file",
        description="CSV with the export's columns, its JSON, or one value a line. Field `file`.",
        tags=BLOCKLIST,
        takes={"multipart/form-data": ImportRequest},
        answer=ImportedView,
        headers=["X-Gateway-Notice"],
        scope=Permission.MANAGE_SECURITY,
    )
    def import_file(self, request: Request) -> HttpResponse:
        file = request._request.FILES.get("file")
        if file is None:
            raise invalid("send the file as multipart/form-data, in the field 'file'")
        try:
            rows = _rows(file.read().decode("utf-8-sig"))
        except (ValueError, csv.Error):
            raise invalid("is neither CSV, nor JSON, nor a list of values, in UTF-8") from None
        if len(rows) > ROWS_MAX:
            raise invalid(f"has more than {ROWS_MAX} entries")
        imported, wrong = 0, []
        with transaction.atomic():
            for number, row in enumerate(rows, 1):
                try:
                    self._added(EntryRequest.model_validate(row))
                    imported += 1
                except pydantic.ValidationError as exc:
                    sentence = errors.from_pydantic(exc, EntryRequest).sentences[0]
                    wrong.append(f"entry {number}: {sentence}")
                except errors.Conflict as exc:
                    wrong.append(f"entry {number}: {exc.detail}")
            self._audit("imported", f"{imported} entries")
        answer = ImportedView(imported=imported, failed=len(wrong), errors=wrong[:ERRORS_MAX])
        return reply(answer, headers=NOTICE)

    @endpoint(
        operation="exportBlocklist",
        summary="The blocklist as a file",
        tags=BLOCKLIST,
        media_types={"text/csv": str, JSON: ENTRIES},
        headers=["Content-Disposition", "X-Gateway-Notice"],
        scope=Permission.VIEW_SECURITY,
        query=ExportQuery,
    )
    def export(self, request: Request) -> HttpResponse:
        kind = asked(request._request, ExportQuery).format
        rows = [EntryView.of(row).model_dump(mode="json") for row in BlocklistEntry.objects.all()]
        if kind == "json":
            content = orjson.dumps(rows).decode()
        else:
            out = io.StringIO()
            writer = cells.writer(out)
            writer.writerow(FIELDS)
            writer.writerows([_cell(row[field]) for field in FIELDS] for row in rows)
            content = out.getvalue()
        name = content_disposition_header(True, f"blocklist.{kind}")
        return HttpResponse(
            content,
            content_type=JSON if kind == "json" else "text/csv; charset=utf-8",
            headers={**NOTICE, **DOWNLOAD, "Content-Disposition": str(name)},
        )

    def _row(self, id: UUID) -> BlocklistEntry:  # noqa: A002
        row = BlocklistEntry.objects.filter(pk=id).first()
        if row is None:
            raise errors.NotFound("There is no such entry. GET /api/v1/blocklist lists them.")
        return row

    @staticmethod
    def _changeable(row: BlocklistEntry) -> dict[str, Any]:
        """What can be changed of an entry, for the trail."""
        expires_at = row.expires_at and utc_text(row.expires_at)
        return {"reason": row.reason, "active": row.active, "expires_at": expires_at}

    def _audit(self, what: str, target: str, **details: Any) -> None:
        context = context_of(self.request)
        audit(
            f"robin.blocklist.{what}",
            actor=self.principal.email,
            target=target[:100],
            client_ip=context.client_ip,
            request_id=context.request_id,
            **details,
        )


def _rows(text: str) -> list[dict[str, Any]]:
    if text.lstrip()[:1] == "[":
        json_body.refuse_twice(text.encode())
        found = orjson.loads(text)
        return [_known(row) if isinstance(row, dict) else {"value": row} for row in found]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    head = next(csv.reader(lines[:1], skipinitialspace=True), [])
    names = [_field(name) for name in head]
    if "value" in names:
        return [_known(row) for row in csv.DictReader(lines[1:], names)]
    return [_guessed(line.strip()) for line in lines]


def _field(name: str) -> str:
    """Of a column: spreadsheets and people write it with capitals and blanks."""
    name = name.strip()
    return next((field for field in FIELDS if field.lower() == name.lower()), name)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of an entry; what an export has besides is left out."""
    found = {name: row[name] for name in FIELDS if row.get(name) not in (None, "")}
    if isinstance(found.get("active"), str):
        found["active"] = found["active"].lower() == "true"
    for name in ("value", "reason"):
        if isinstance(found.get(name), str):
            found[name] = cells.uncell(found[name])
    return found


def _guessed(value: str) -> dict[str, Any]:
    is_address = value.replace(".", "").isdigit() or ":" in value
    kind = "CIDR" if "/" in value else "IP" if is_address else "DOMAIN"
    return {"type": kind, "value": value, "reason": "imported"}


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else cells.cell(value)


def invalid(message: str) -> errors.ValidationFailed:
    return errors.ValidationFailed(errors=[{"field": "file", "message": message}])
