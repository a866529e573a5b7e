"""Bodies and answers of the webhook endpoints. Times are UTC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
)

from gateway_project.core.api.endpoint import Body
from gateway_project.core.api.fields import WHOLE, Moment, Time
from gateway_project.core.api.pagination import Paging
from gateway_project.core.upstream import destinations
from webhooks import catalogue
from webhooks.delivery.schedule import ATTEMPTS_MAX
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery

Status = Literal["pending", "delivered", "failed"]


def _destination(url: str) -> str:
    try:
        destinations.check(url)
    except destinations.Refused as exc:
        raise ValueError(exc.of_field) from None
    return url


def _event(name: str) -> str:
    name = catalogue.ALIASES.get(name, name)
    if name not in catalogue.BY_NAME:
        raise ValueError(f"unknown event; known are {', '.join(catalogue.BY_NAME)}")
    return name


def _each_once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


Url = Annotated[
    str,
    StringConstraints(max_length=2048),
    AfterValidator(_destination),
    Field(json_schema_extra={"format": "uri"}),
]
Event = Annotated[
    str,
    StringConstraints(max_length=60),
    AfterValidator(_event),
    WithJsonSchema({"type": "string", "enum": [*catalogue.BY_NAME, *catalogue.ALIASES]}),
]
Events = Annotated[list[Event], Field(min_length=1, max_length=50), AfterValidator(_each_once)]
Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]
Retries = Annotated[int, Field(ge=0, le=ATTEMPTS_MAX - 1), WHOLE]


class RegisterWebhookRequest(Body):
    url: Url = Field(description="https on port 443 or 8443, at a public address.")
    events: Events = ["detection.completed"]
    description: Description = ""
    retry_count: Retries | None = Field(
        None, description="Attempts after the first. Default: the whole schedule, 9."
    )


class WebhookPatch(Body):
    """What is left out, or null, stays as it is; `retry_count: null` is the default again."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    is_active: bool | None = Field(
        None, description="True probes first: the webhook must answer a `webhook.test` with 2xx."
    )
    retry_count: Retries | None = None


class TestWebhookRequest(Body):
    webhook_id: Annotated[UUID, Field(strict=False)]
    event: Event = Field("webhook.test", description="Whose example is sent.")


class RotateSecretRequest(Body):
    overlap_seconds: Annotated[int, Field(ge=0, le=604_800), WHOLE] = 86_400


class RecoverRequest(Body):
    since: Moment
    until: Moment | None = None


class DeliveriesQuery(Paging):
    status: Status | None = None
    event: Event | None = Field(None, description="Its name, as GET /webhooks/events lists it.")
    since: Moment | None = Field(None, description="Made at that time or later.")


class Health(BaseModel):
    """`delivered` and `failed` are of the last seven days. Each is counted up to 10,000."""

    delivered: int
    failed: int
    pending: int
    disabled_reason: Literal["paused", "failing", "gone"] | None

    @classmethod
    def of(cls, webhook: Webhook, counts: dict[str, int]) -> Health:
        return cls(
            delivered=counts.get("delivered", 0),
            failed=counts.get("failed", 0),
            pending=counts.get("pending", 0),
            disabled_reason=webhook.disabled_reason or None,
        )


class PerRequestView(BaseModel):
    """What stands for the addresses that requests name."""

    id: UUID = Field(description="For rotating its secret, and for its deliveries.")
    created_at: Time
    health: Health


class WebhookView(BaseModel):
    """A webhook without its secret."""

    id: UUID
    url: str
    events: list[str]
    description: str
    retry_count: int | None
    is_active: bool
    created_at: Time
    health: Health

    @classmethod
    def of(cls, webhook: Webhook, counts: dict[str, int]) -> WebhookView:
        return cls(
            id=webhook.pk,
            url=webhook.url,
            events=webhook.events,
            description=webhook.description,
            retry_count=webhook.retry_count,
            is_active=webhook.is_active,
            created_at=webhook.created_at,
            health=Health.of(webhook, counts),
        )


class NewWebhookView(WebhookView):
    """A webhook with its secret, which is shown this once."""

    secret: str = Field(description="`whsec_…`; verify signatures with it.")


class WebhookList(BaseModel):
    results: list[WebhookView]
    next: str | None


class NewSecret(BaseModel):
    """Shown this once. Deliveries carry a signature of each until the old one ends."""

    secret: str
    previous_valid_until: Time


class Accepted(BaseModel):
    delivery_id: UUID


class Recovery(BaseModel):
    deliveries: int = Field(description="How many are on their way again; call again for more.")
    is_complete: bool


class AttemptView(BaseModel):
    at: Time
    http_status: int | None
    response_body: str = Field(
        description=(
            "At most 16 KiB of it; of the last two attempts, in lists of the last one. Empty in "
            "others."
        )
    )
    error: str | None
    duration_ms: int
    next_attempt_at: Time | None

    @classmethod
    def of(cls, attempt: WebhookAttempt, response_body: str) -> AttemptView:
        return cls(
            at=attempt.at,
            http_status=attempt.http_status,
            response_body=response_body,
            error=attempt.error or None,
            duration_ms=attempt.duration_ms,
            next_attempt_at=attempt.next_attempt_at,
        )


class DeliveryView(BaseModel):
    id: UUID
    webhook_id: UUID
    event_id: UUID = Field(description="What `webhook-id` says; receivers dedupe by it.")
    event: str
    url: str = Field(description="Where it goes: of the webhook, or named in the request.")
    status: Status
    created_at: Time
    finished_at: Time | None
    next_attempt_at: Time | None
    http_status: int | None = Field(description="Of the last attempt.")
    error: str | None
    attempts: list[AttemptView] = Field(description="The last ten, the oldest first.")

    @classmethod
    def of(cls, delivery: WebhookDelivery, answers: Mapping[int, str]) -> DeliveryView:
        """`answers`: of attempts by their ids, as `services.newest_answers` finds them."""
        return cls(**_delivery(delivery, answers))


class DeliveryDetail(DeliveryView):
    """A delivery with the body that is sent."""

    body: dict[str, Any]

    @classmethod
    def of(
        cls, delivery: WebhookDelivery, answers: Mapping[int, str] | None = None
    ) -> DeliveryDetail:
        if answers is None:
            answers = {attempt.pk: attempt.response_body for attempt in delivery.attempts.all()}
        return cls(**_delivery(delivery, answers), body=delivery.event.body)


def _delivery(delivery: WebhookDelivery, answers: Mapping[int, str]) -> dict[str, Any]:
    is_waiting = delivery.status == WebhookDelivery.Status.PENDING and not delivery.is_claimed
    return {
        "id": delivery.pk,
        "webhook_id": delivery.webhook_id,
        "event_id": delivery.event_id,
        "event": delivery.event_type,
        "url": delivery.url,
        "status": delivery.status,
        "created_at": delivery.created_at,
        "finished_at": delivery.finished_at,
        "next_attempt_at": delivery.next_attempt_at if is_waiting else None,
        "http_status": delivery.http_status,
        "error": delivery.error or None,
        "attempts": [
            AttemptView.of(attempt, answers.get(attempt.pk, ""))
            for attempt in delivery.attempts.all()
        ],
    }


class DeliveryList(BaseModel):
    results: list[DeliveryView]
    next: str | None


class EventView(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)

    name: str
    description: str
    schema_: dict[str, Any] = Field(
        serialization_alias="schema", description="JSON Schema of the body."
    )
    example: dict[str, Any]


class Catalogue(RootModel[list[EventView]]):
    """Every event there is."""
