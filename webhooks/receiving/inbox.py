"""The inbox: a receiver of the workspace's own, to see events before there is a server for them.

A webhook that sends here is delivered inside this process, by `receive`, without a socket: the
guard against SSRF (`core/upstream/destinations.py`) has no exception, because nothing is dialled.
Its URL is words for people; what makes it the inbox is `Webhook.inbox`, which nobody but
`services.register` sets. The same address takes POSTs from outside (`POST /inbox/{token}`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.utils.translation import gettext_noop

from accounts.audit import RECORDED
from accounts.models import Workspace
from gateway_project.core import clock
from gateway_project.core.sentences import Sentence
from gateway_project.core.storable import cleaned
from webhooks import keyring
from webhooks.models import Inbox, InboxRequest, Webhook
from webhooks.receiving import debugger

KEPT_MAX = 50
PER_MINUTE = 120
BODY_BYTES_MAX = 64 << 10
HEADERS_MAX = 40
HEADER_CHARS_MAX = 1_000
TOKEN_BYTES = 24
# What would let a reader of the inbox act as its sender is not kept.
PRIVATE = frozenset({"authorization", "cookie", "x-api-key", "proxy-authorization"})


def of(workspace: Workspace) -> Inbox:
    """The workspace's, made when it is first asked for."""
    found, _ = Inbox.objects.get_or_create(
        workspace=workspace, defaults={"token": secrets.token_urlsafe(TOKEN_BYTES)}
    )
    return found


def webhook_of(inbox: Inbox) -> Webhook | None:
    """The webhook that sends there, if it was made."""
    return Webhook.objects.filter(inbox=inbox).first()


def received(inbox: Inbox) -> list[InboxRequest]:
    """The newest first; at most `KEPT_MAX`."""
    return list(inbox.requests.order_by("-id")[:KEPT_MAX])


def is_of_audit(received: InboxRequest) -> bool:
    """Whether it brought a record of the audit trail, which is for who may read that."""
    return f'"{RECORDED}"' in received.body


def receive(inbox_id: UUID, headers: Mapping[str, str], body: bytes) -> None:
    """Keep a request, with the verdict on its signature, and drop the oldest.

    `headers`: lower-case names. Raises `Inbox.DoesNotExist`.
    """
    inbox = Inbox.objects.get(pk=inbox_id)
    shown = {
        name: "(not kept)" if name in PRIVATE else cleaned(value[:HEADER_CHARS_MAX])
        for name, value in list(headers.items())[:HEADERS_MAX]
    }
    webhook = webhook_of(inbox)
    if webhook is None:
        verdict = debugger.Verdict()
        text = gettext_noop("No webhook sends here, so there is no secret to verify with.")
        verdict.add("warn", text)
    else:
        verdict = debugger.examine(
            headers, body, keyring.named(webhook), now=int(clock.now().timestamp())
        )
    InboxRequest.objects.create(
        inbox=inbox,
        headers=shown,
        body=cleaned(body[:BODY_BYTES_MAX].decode(errors="replace")),
        is_valid=verdict.is_valid,
        findings=[[one.tone, kept(one.sentence)] for one in verdict.findings],
    )
    surplus = inbox.requests.order_by("-id").values_list("pk", flat=True)[KEPT_MAX : KEPT_MAX + 1]
    for oldest in surplus:
        inbox.requests.filter(pk__lte=oldest).delete()


def kept(sentence: Sentence) -> dict[str, Any]:
    """As JSON holds it, without what PostgreSQL does not."""
    facts = {
        name: cleaned(one) if isinstance(one, str) else one for name, one in sentence.facts.items()
    }
    return Sentence(sentence.text, **facts).packed()


def findings_of(got: InboxRequest) -> list[tuple[str, str]]:
    """`(tone, sentence)` of what the check of the signature found, for who looks at it now."""
    return [
        # Rows of older versions have the sentence alone.
        (tone, Sentence.unpacked(sentence).translated() if isinstance(sentence, dict) else sentence)
        for tone, sentence in got.findings
    ]


def clear(inbox: Inbox) -> None:
    inbox.requests.all().delete()
