"""`/v1/requests`: the log of the workspace's requests. No text is in it."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from rest_framework.request import Request

from accounts.schemas import LoggedRequest, LoggedRequests, RequestsQuery
from accounts.usage import reading
from accounts.viewsets import KeyedViewSet
from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked, endpoint
from gateway_project.core.api.responses import reply

LOG = ("requests",)


class RequestViewSet(KeyedViewSet):
    @endpoint(
        operation="listRequests",
        summary="Requests of the workspace, newest first",
        description=(
            "Of as many days as the plan keeps. A request is in it a second or two after its "
            "answer, and is found by its id at once; texts are in none."
        ),
        tags=LOG,
        answer=LoggedRequests,
        scope="usage:read",
        query=RequestsQuery,
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
        operation="getRequest",
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
                "The log has no such request of this workspace. Take the `request_id` of the "
                "answer; it is kept for the days of the plan."
            )
        return reply(LoggedRequest.of(row))
