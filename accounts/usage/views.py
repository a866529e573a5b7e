"""`/v1/requests`: the log of the workspace's requests. No text is in it."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from accounts.schemas import DECISIONS, LoggedRequest, LoggedRequests, RequestsQuery
from accounts.usage import reading
from accounts.viewsets import KeyedViewSet
from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked, endpoint
from gateway_project.core.api.pagination import PAGING
from gateway_project.core.api.responses import reply

LOG = ("requests",)
FILTERS = (
    OpenApiParameter("key", UUID, description="The id of a key."),
    OpenApiParameter("status", str, description="`422`, or `2xx`, `4xx`, `5xx`."),
    OpenApiParameter("decision", str, enum=DECISIONS),
    OpenApiParameter("since", str, description="ISO 8601 with an offset or Z; inclusive."),
    OpenApiParameter("until", str, description="Likewise; exclusive."),
)


class RequestViewSet(KeyedViewSet):
    @endpoint(
        summary="Requests of the workspace, newest first",
        description=(
            "Of as many days as the plan keeps. A request is in it a second or two after its "
            "answer, and is found by its id at once; texts are in none."
        ),
        tags=LOG,
        answer=LoggedRequests,
        scope="usage:read",
        problems=[errors.ValidationFailed],
        parameters=[*FILTERS, *PAGING],
    )
    def list(self, request: Request) -> HttpResponse:
        query = asked(request._request, RequestsQuery)
        try:
            found = reading.page(
                self.workspace(),
                api_key_id=query.key,
                statuses=query.statuses,
                decision=query.decision or "",
                since=query.since,
                until=query.until,
                cursor=query.cursor,
                size=query.limit,
            )
        except ValueError:
            message = "is not one of ours: take it from 'next'"
            raise errors.ValidationFailed(
                errors=[{"field": "cursor", "message": message}]
            ) from None
        following = None
        if found.older is not None:
            address = request.GET.copy()
            address["cursor"] = found.older
            following = request.build_absolute_uri(f"?{address.urlencode()}")
        results = [LoggedRequest.of(row) for row in found.rows]
        return reply(LoggedRequests(results=results, next=following))

    @endpoint(
        summary="One request",
        description="By the `request_id` of its answer.",
        tags=LOG,
        answer=LoggedRequest,
        scope="usage:read",
        problems=[errors.NotFound],
    )
    def retrieve(self, request: Request, request_id: UUID) -> HttpResponse:
        row = reading.find(self.workspace(), request_id)
        if row is None:
            raise errors.NotFound(
                "The log has no such request of this workspace. It keeps them for the days of the "
                "plan."
            )
        return reply(LoggedRequest.of(row))
