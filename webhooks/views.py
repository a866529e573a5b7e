"""Webhooks of the calling key's workspace. Shapes: `webhooks/schemas.py`."""

from __future__ import annotations

from functools import cache, partial
from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from django.http import HttpResponse
from rest_framework.request import Request

from accounts import idempotency
from accounts.audit import RECORDED
from accounts.models import AUDIT_SCOPE
from accounts.viewsets import KeyedViewSet
from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked, endpoint
from gateway_project.core.api.pagination import Paging, page
from gateway_project.core.api.responses import SECRET_HEADERS, reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet
from gateway_project.core.ratelimit import per_minute
from webhooks import catalogue, services
from webhooks.delivery import callbacks
from webhooks.models import Inbox, Webhook, WebhookAttempt, WebhookDelivery
from webhooks.receiving import inbox
from webhooks.schemas import (
    Accepted,
    Catalogue,
    DeliveriesQuery,
    DeliveryDetail,
    DeliveryList,
    DeliveryView,
    EventView,
    Health,
    NewSecret,
    NewWebhookView,
    PerRequestView,
    RecoverRequest,
    Recovery,
    RegisterWebhookRequest,
    RotateSecretRequest,
    TestWebhookRequest,
    WebhookList,
    WebhookPatch,
    WebhookView,
)

SCOPE = "webhooks"
TAGS = ("webhooks",)


class WebhookViewSet(KeyedViewSet):
    def own(self) -> QuerySet[Webhook]:
        return Webhook.objects.listed().filter(workspace_id=self.principal.workspace_id)

    def get_own(self, webhook_id: UUID, *, is_any: bool = False) -> Webhook:
        """The webhook, or 404: another tenant's is as missing as one that never was.

        `is_any`: the one of addresses named in requests too.
        """
        mine = Webhook.objects.filter(workspace_id=self.principal.workspace_id)
        webhook = (mine if is_any else self.own()).filter(pk=webhook_id).first()
        if webhook is None:
            raise errors.NotFound(
                "This workspace has no such webhook. GET /webhooks/list lists its webhooks."
            )
        return webhook

    def get_own_delivery(self, delivery_id: UUID) -> WebhookDelivery:
        delivery = (
            WebhookDelivery.objects.filter(
                pk=delivery_id,
                webhook__workspace_id=self.principal.workspace_id,
                webhook__deleted_at=None,
            )
            .select_related("event", "webhook")
            .prefetch_related("attempts")
            .first()
        )
        if delivery is None:
            raise errors.NotFound(
                "This workspace has no such delivery. GET /webhooks/{id}/deliveries lists them."
            )
        return delivery

    @staticmethod
    def shown(webhook: Webhook) -> WebhookView:
        return WebhookView.of(webhook, services.counts_of([webhook]).get(webhook.pk, {}))

    @property
    def _can_audit(self) -> bool:
        return AUDIT_SCOPE in self.principal.scopes

    def _may_read(self, delivery: WebhookDelivery) -> bool:
        """Of the audit trail neither what is sent, nor the answer, which may repeat it."""
        return delivery.is_test or self._can_audit or delivery.event_type != RECORDED

    @endpoint(
        operation="registerWebhook",
        summary="Register a webhook",
        description=(
            "Its events are sent as signed POSTs (Standard Webhooks): at least once, in no "
            "promised order; dedupe by `webhook-id`. The secret is shown this once. `url` must "
            "lead to a public address; `detection_complete` means `detection.completed`."
        ),
        tags=TAGS,
        body=RegisterWebhookRequest,
        answer=NewWebhookView,
        status=201,
        headers=["Location"],
        scope=SCOPE,
        problems=[errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def create(self, request: Request) -> HttpResponse:
        body = self.parsed(RegisterWebhookRequest)
        services.must_audit(self._can_audit, body.events)
        return self.once(partial(self._create, body))

    def _create(self, body: RegisterWebhookRequest) -> HttpResponse:
        webhook, secret = services.register(
            self.principal.workspace_id,
            body.url,
            body.events,
            description=body.description,
            retry_count=body.retry_count,
            actor=self.actor,
        )
        answer = NewWebhookView(**WebhookView.of(webhook, {}).model_dump(), secret=secret)
        headers = {"Location": f"/webhooks/{webhook.pk}", **SECRET_HEADERS}
        return reply(answer, status=201, headers=headers)

    @endpoint(
        operation="listWebhooks",
        summary="List webhooks",
        tags=TAGS,
        answer=WebhookList,
        scope=SCOPE,
        query=Paging,
        problems=[errors.NotFound],  # of a broken cursor
    )
    def list(self, request: Request) -> HttpResponse:
        webhooks, following = page(request, self.own(), ordering=("-created_at", "-id"))
        counts = services.counts_of(webhooks)
        results = [WebhookView.of(webhook, counts.get(webhook.pk, {})) for webhook in webhooks]
        return reply(WebhookList(results=results, next=following))

    @endpoint(
        operation="getPerRequestWebhook",
        summary="The webhook of addresses named in requests",
        description=(
            "`webhook_url` of a request is signed with the secret of this webhook, whatever the "
            "address. POST /webhooks/{id}/rotate-secret shows a new one; "
            "GET /webhooks/{id}/deliveries is its log. It is in no list, and cannot be changed, "
            "paused or deleted."
        ),
        tags=TAGS,
        answer=PerRequestView,
        scope=SCOPE,
    )
    def per_request(self, request: Request) -> HttpResponse:
        webhook = callbacks.of(self.principal.workspace_id)
        health = Health.of(webhook, services.counts_of([webhook]).get(webhook.pk, {}))
        answer = PerRequestView(id=webhook.pk, created_at=webhook.created_at, health=health)
        return reply(answer)

    @endpoint(
        operation="getWebhook",
        summary="One webhook",
        tags=TAGS,
        answer=WebhookView,
        scope=SCOPE,
        problems=[errors.NotFound],
    )
    def retrieve(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002 - the URL's name
        return reply(self.shown(self.get_own(id)))

    @endpoint(
        operation="updateWebhook",
        summary="Change a webhook",
        description=(
            "`is_active: false` pauses it and gives up what is on its way. `is_active: true` "
            "probes first: 409 with the reason when the receiver does not answer a "
            "`webhook.test` with 2xx within 15 s."
        ),
        tags=TAGS,
        body=WebhookPatch,
        answer=WebhookView,
        scope=SCOPE,
        problems=[errors.NotFound, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def partial_update(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        body = self.parsed(WebhookPatch)
        given: dict[str, Any] = body.model_dump(exclude_unset=True)
        changes = {k: v for k, v in given.items() if v is not None or k == "retry_count"}
        webhook = self.get_own(id)
        is_wanted = changes.get("is_active")
        if is_wanted is webhook.is_active or is_wanted is True:
            del changes["is_active"]

        def update() -> None:
            if changes:
                services.update(webhook, changes, can_audit=self._can_audit, actor=self.actor)

        def enable() -> None:
            # Not in a transaction: it waits for the receiver. Doing it twice is doing it once.
            update()
            if not webhook.is_active:
                services.enable(webhook, actor=self.actor)

        def shown() -> HttpResponse:
            if not is_wanted:
                update()
            return reply(self.shown(webhook))

        return self.once(shown, prepare=enable if is_wanted else lambda: None)

    @endpoint(
        operation="deleteWebhook",
        summary="Delete a webhook",
        description="With its log. What is on its way is given up.",
        tags=TAGS,
        status=204,
        scope=SCOPE,
        minute_cost=0,  # closing a leak must never wait for a limit
        problems=[errors.NotFound, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def destroy(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        def delete() -> HttpResponse:
            services.delete(self.get_own(id), actor=self.actor)
            return reply(None, status=204)

        return self.once(delete)

    @endpoint(
        operation="testWebhook",
        summary="Send a test",
        description=(
            "The example of an event, once, with `data.metadata.test: true`. Without `event` a "
            "`webhook.test`."
        ),
        tags=TAGS,
        body=TestWebhookRequest,
        answer=Accepted,
        status=202,
        headers=["Location"],
        scope=SCOPE,
        problems=[errors.NotFound, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def test(self, request: Request) -> HttpResponse:
        body = self.parsed(TestWebhookRequest)
        webhook = self.get_own(body.webhook_id)
        return self.once(
            lambda: _accepted(services.test(webhook, body.event)),
            prepare=lambda: services.check_address(webhook),
        )

    @endpoint(
        operation="rotateWebhookSecret",
        summary="Give a webhook a new secret",
        description=(
            "Deliveries carry the signatures of both for `overlap_seconds`, so that receivers "
            "can change over. The new secret is shown this once."
        ),
        tags=TAGS,
        body=RotateSecretRequest,
        answer=NewSecret,
        scope=SCOPE,
        problems=[errors.NotFound, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def rotate_secret(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        body = self.parsed(RotateSecretRequest)
        return self.once(partial(self._rotate_secret, id, body))

    def _rotate_secret(self, webhook_id: UUID, body: RotateSecretRequest) -> HttpResponse:
        secret, valid_until = services.rotate_secret(
            self.get_own(webhook_id, is_any=True),
            overlap_seconds=body.overlap_seconds,
            actor=self.actor,
        )
        answer = NewSecret(secret=secret, previous_valid_until=valid_until)
        return reply(answer, headers=SECRET_HEADERS)

    @endpoint(
        operation="listDeliveries",
        summary="Deliveries of a webhook",
        description="The newest first, each with its attempts.",
        tags=TAGS,
        answer=DeliveryList,
        scope=SCOPE,
        query=DeliveriesQuery,
        problems=[errors.NotFound],
    )
    def deliveries(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        filters = _filters(asked(request._request, DeliveriesQuery))
        of_time = {name: at for name, at in filters.items() if name.startswith("created_at")}
        among = self.get_own(id, is_any=True).deliveries.filter(**of_time)
        found = (
            among.filter(**filters)
            .select_related("event", "webhook")
            .defer("event__body")
            .prefetch_related(Prefetch("attempts", WebhookAttempt.objects.defer("response_body")))
        )
        rows, following = page(request, found, ordering=("-created_at", "-id"), among=among)
        answers = services.newest_answers([row for row in rows if self._may_read(row)])
        results = [DeliveryView.of(row, answers) for row in rows]
        return reply(DeliveryList(results=results, next=following))

    @endpoint(
        operation="getDelivery",
        summary="One delivery, with its attempts and its body",
        tags=TAGS,
        answer=DeliveryDetail,
        scope=SCOPE,
        problems=[errors.NotFound],
    )
    def delivery(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        delivery = self.get_own_delivery(id)
        if not self._may_read(delivery):
            services.must_audit(self._can_audit, [delivery.event_type])
        return reply(DeliveryDetail.of(delivery))

    @endpoint(
        operation="resendDelivery",
        summary="Send a delivery again",
        description="Now, and from the beginning of the schedule; with the same `webhook-id`.",
        tags=TAGS,
        answer=Accepted,
        status=202,
        headers=["Location"],
        scope=SCOPE,
        problems=[errors.NotFound, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def resend(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        delivery = self.get_own_delivery(id)

        def resend() -> HttpResponse:
            services.resend(delivery, actor=self.actor)
            return _accepted(delivery)

        return self.once(resend)

    @endpoint(
        operation="recoverDeliveries",
        summary="Send again what did not arrive",
        description=(
            "Of the events from `since` to `until` (now): those given up, and those that were "
            "never tried because the webhook was disabled or did not ask for them yet. At most "
            "10,000 a call."
        ),
        tags=TAGS,
        body=RecoverRequest,
        answer=Recovery,
        status=202,
        scope=SCOPE,
        problems=[errors.NotFound, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def recover(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        body = self.parsed(RecoverRequest)
        webhook = self.get_own(id, is_any=True)

        def recover() -> HttpResponse:
            count, is_complete = services.recover(webhook, body.since, body.until, actor=self.actor)
            return reply(Recovery(deliveries=count, is_complete=is_complete), status=202)

        return self.once(recover)


class CatalogueViewSet(ControlPlaneViewSet):
    authentication_classes = []

    @endpoint(
        operation="listEvents",
        summary="The events there are",
        description="Each with the JSON Schema of its body and an example.",
        tags=TAGS,
        answer=Catalogue,
        public=True,
    )
    def list(self, request: Request) -> HttpResponse:
        return reply(_catalogue())


@cache
def _catalogue() -> Catalogue:
    """The same for everybody, and the schemas of all results take some milliseconds."""
    return Catalogue(
        [
            EventView(
                name=event.name,
                description=event.description,
                schema_=catalogue.schema_of(event),
                example=catalogue.example_of(event),
            )
            for event in catalogue.TYPES
        ]
    )


class InboxViewSet(ControlPlaneViewSet):
    authentication_classes = []

    @endpoint(
        operation="sendToInbox",
        summary="Send something to an inbox",
        description=(
            "The receiver that the gateway has for a workspace; its address is in the portal. "
            "Takes any body of at most 64 KiB, keeps the last 50 requests, and verifies their "
            "signatures with the secrets of the webhook that sends there."
        ),
        tags=TAGS,
        takes={"application/octet-stream": bytes},
        status=202,
        public=True,
        problems=[errors.NotFound],
    )
    def receive(self, request: Request, token: str) -> HttpResponse:
        found = Inbox.objects.filter(token=token).values_list("pk", flat=True).first()
        if found is None:
            raise errors.NotFound("There is no such inbox. Read its address in the portal.")
        self.limit((per_minute("inbox", f"{{inbox:{found}}}", inbox.PER_MINUTE),), 1)
        body = request._request.body
        if len(body) > inbox.BODY_BYTES_MAX:
            raise errors.BodyTooLarge("An inbox takes bodies of at most 64 KiB. Send less.")
        headers = {name.lower(): value for name, value in request.headers.items()}
        inbox.receive(found, headers, body)
        return reply(None, status=202)


def _accepted(delivery: WebhookDelivery) -> HttpResponse:
    location = f"/webhooks/deliveries/{delivery.pk}"
    return reply(Accepted(delivery_id=delivery.pk), status=202, headers={"Location": location})


def _filters(query: DeliveriesQuery) -> dict[str, Any]:
    found = {"status": query.status, "event_type": query.event, "created_at__gte": query.since}
    return {name: value for name, value in found.items() if value is not None}
