"""The secrets of a webhook, decrypted."""

from __future__ import annotations

from django.utils.translation import gettext_noop

from gateway_project.core import clock, encryption
from gateway_project.core.sentences import Sentence
from gateway_project.core.telemetry.logging import get_logger
from webhooks.models import Webhook
from webhooks.receiving import debugger

log = get_logger("gateway.webhooks")


def in_force(webhook: Webhook) -> tuple[str, ...]:
    """Those that sign now, the newest first. None at all when one of them is not for this process:

    whoever has its key signs with all of them.
    """
    now, found = clock.now(), []
    for secret in webhook.secrets.all():
        if secret.expires_at is not None and secret.expires_at <= now:
            continue
        try:
            found.append(encryption.decrypt_secret(secret.encrypted))
        except encryption.Undecryptable:
            log.error("webhook_secret_undecryptable", webhook=str(webhook.pk))
            return ()
    return tuple(found)


def named(webhook: Webhook) -> list[debugger.Secret]:
    """All that are known, those that have ended too, for the debugger."""
    found, now = [], clock.now()
    for secret in webhook.secrets.all():
        if secret.expires_at is None:
            label = Sentence(gettext_noop("the current secret"))
        elif secret.expires_at > now:
            at = f"{secret.expires_at:%Y-%m-%d %H:%M} UTC"
            label = Sentence(gettext_noop("the old secret that signs until %(at)s"), at=at)
        else:
            at = f"{secret.expires_at:%Y-%m-%d %H:%M} UTC"
            label = Sentence(gettext_noop("a secret that ended at %(at)s"), at=at)
        try:
            found.append(debugger.Secret(label, encryption.decrypt(secret.encrypted)))
        except encryption.Undecryptable:
            continue  # deliveries say so
    return found
