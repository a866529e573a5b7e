"""Addresses that a request names (`webhook_url`): vetted when named, signed and logged like others.

A workspace has one webhook for all of them, made when it is first needed. It has no address of its
own (each event says where it goes), asks for no events, and is never disabled for failures: an
address that fails was named once. Its secret is the workspace's signing secret.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from django.db import transaction
from pydantic import AfterValidator, Field, StringConstraints

from gateway_project.core import encryption, errors
from gateway_project.core.context import current
from gateway_project.core.upstream import destinations, names
from webhooks import signing
from webhooks.models import Webhook, WebhookDelivery, WebhookSecret

FIELD = "webhook_url"


def _readable(url: str) -> str:
    try:
        destinations.read(url)
    except destinations.Refused as exc:
        raise ValueError(exc.of_field) from None
    return url


CallbackUrl = Annotated[
    str,
    StringConstraints(max_length=destinations.URL_CHARS_MAX),
    AfterValidator(_readable),
    Field(json_schema_extra={"format": "uri"}),
]
"""Of a request on the data plane: `vetted` does the look-up, which would block here."""
LANE_CHARS_MAX = WebhookDelivery._meta.get_field("lane").max_length


def of(workspace_id: UUID) -> Webhook:
    """The workspace's, made when it is first asked for."""
    with transaction.atomic():  # whoever loses a race waits until the secret is there
        webhook, is_new = Webhook.objects.get_or_create(
            workspace_id=workspace_id, is_per_request=True
        )
        if is_new:
            secret = encryption.encrypt(signing.make_secret())
            WebhookSecret.objects.create(webhook=webhook, encrypted=secret)
    return webhook


def lane_of(url: str) -> str:
    """What deliveries to `url` wait for each other by: it without its query, which may be unique.

    Empty for none, which is the lane of a webhook with an address of its own.
    """
    return url.partition("?")[0][:LANE_CHARS_MAX]


async def vetted(url: str) -> None:
    """Raise the 422 that names `webhook_url` when we do not send to `url`.

    A name that is not found in time passes, as one that does not exist yet: each delivery looks
    again.
    """
    context = current.get()
    try:
        with names.asked_by((context and context.workspace) or ""):
            await destinations.acheck(url)
    except destinations.Refused as exc:
        problem = {"field": FIELD, "message": exc.of_field}
        raise errors.ValidationFailed(errors=[problem]) from None
