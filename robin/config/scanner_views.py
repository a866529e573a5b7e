"""`/api/v1/scanners`: whether ClamAV and Rspamd answer. Shapes: `robin/schemas.py`."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from gateway_project.core import clock, errors
from gateway_project.core.api.responses import reply
from gateway_project.core.clock import utc_text
from robin.config import documents, scanners
from robin.config.schemas import ScannerStatusView, ScannerTestRequest, ScannerTestView
from robin.config.views import current_document
from robin.permissions import Permission
from robin.upstream.viewset import RobinViewSet, endpoint

SCANNERS = ("robin scanners",)


class ScannerViewSet(RobinViewSet):
    @endpoint(
        operation="getScannerStatus",
        summary="Whether a scanner answers",
        description=(
            "`clamav` or `rspamd`, at the address of its document. `UNKNOWN` when the gateway may "
            "not ask there."
        ),
        tags=SCANNERS,
        answer=ScannerStatusView,
        scope=Permission.VIEW_SECURITY,
        problems=[errors.NotFound],
    )
    async def status(self, request: HttpRequest, scanner: str) -> HttpResponse:
        _check(scanner)
        found = await scanners.ask(scanner, await current_document(scanner))
        answer = {"status": "UNKNOWN", "lastCheck": utc_text(clock.now()), **found.facts}
        if found.state in ("UP", "DOWN"):
            answer["status"] = found.state
        elif found.state == "TIMEOUT":
            answer["status"] = "DOWN"
        if found.state != "UP":
            answer["error"] = found.message
        return reply(answer)

    @endpoint(
        operation="testScanner",
        summary="Try a scanner with other settings",
        description="With the fields of its document, which is not changed by it.",
        tags=SCANNERS,
        body=ScannerTestRequest,
        answer=ScannerTestView,
        scope=Permission.MANAGE_SECURITY,
        problems=[errors.NotFound],
    )
    async def test(self, request: HttpRequest, scanner: str) -> HttpResponse:
        _check(scanner)
        body: ScannerTestRequest = self.body
        stored = await current_document(scanner)
        document = documents.checked(scanner, body.config, stored)
        found = await scanners.ask(scanner, document)
        await self.audit("robin.scanner.tested", target=f"{scanner} {document['host']}")
        answer = {
            "success": found.state == "UP",
            "status": found.state,
            "message": found.message,
            "responseTime": round(found.seconds * 1000, 1),
        }
        return reply({**answer, "details": found.facts} if found.facts else answer)


def _check(scanner: str) -> None:
    if scanner not in ("clamav", "rspamd"):
        raise errors.NotFound("There are two scanners. Use clamav or rspamd.")
