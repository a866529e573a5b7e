"""`/v1/engines/costs`: what engines with a price cost the workspace."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import UUID

from django.http import HttpResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rest_framework.request import Request

from accounts.viewsets import KeyedViewSet
from detection import comparisons
from gateway_project.core import clock
from gateway_project.core.api.endpoint import Asked, asked, endpoint
from gateway_project.core.api.fields import Day
from gateway_project.core.api.responses import reply


class CostsQuery(Asked):
    model_config = ConfigDict(extra="forbid")

    first_day: Day | None = Field(
        None, description="Of UTC; without it 30 days up to the last one."
    )
    last_day: Day | None = Field(None, description="Likewise; without it today.")
    key: UUID | None = Field(None, description="The id of a key; without it all keys together.")

    @model_validator(mode="after")
    def _in_order(self) -> CostsQuery:
        if self.first_day and self.last_day and self.first_day > self.last_day:
            raise ValueError("first_day must not lie behind last_day")
        return self


class EngineCost(BaseModel):
    """Of one engine, as the one that answers and as a shadow, what gave no verdict among it."""

    engine: str
    calls: int
    tokens_in: int
    tokens_out: int
    cost: float = Field(description="In the unit of the prices that the operator set.")


class EngineCosts(BaseModel):
    first_day: date
    last_day: date
    results: list[EngineCost]


class CostViewSet(KeyedViewSet):
    @endpoint(
        operation="listEngineCosts",
        summary="Tokens and cost by engine",
        description=(
            "Of engines that have a price or count tokens. Sums are kept for 95 days and follow "
            "within a minute."
        ),
        tags=("requests",),
        answer=EngineCosts,
        scope="usage:read",
        query=CostsQuery,
    )
    def list(self, request: Request) -> HttpResponse:
        query = asked(request._request, CostsQuery)
        last = query.last_day or clock.now().date()
        first = query.first_day or last - timedelta(
            days=min(comparisons.DAYS - 1, last.toordinal() - 1)
        )
        spent = comparisons.spent_in(self.principal.workspace_id, first, last, query.key)
        results = [
            EngineCost(**{name: getattr(one, name) for name in comparisons.SPENT}) for one in spent
        ]
        return reply(EngineCosts(first_day=first, last_day=last, results=results))
