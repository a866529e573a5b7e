"""Mail: sent while nothing of the database is held; in `make run` shown in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.filebased import EmailBackend as FileBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend

from gateway_project.core.stores import database


class Unheld(BaseEmailBackend):
    """In front of a back-end: gives connections back first, because a mail server is slow."""

    def open(self) -> bool | None:
        """Not inside a transaction."""
        database.let_go()
        return super().open()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Not inside a transaction."""
        database.let_go()
        return super().send_messages(email_messages) or 0


class SMTPBackend(Unheld, DjangoSMTPBackend):
    """What `EMAIL_URL` names."""


class LocalBackend(Unheld, FileBackend):
    """A mail of `make run` is also kept as a file under `var/mail/`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        folder = settings.VAR_DIR / "mail"
        super().__init__(*args, **{**kwargs, "file_path": str(folder)})

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            head = f"--- Mail to {', '.join(message.to)}: {message.subject}"
            with suppress(OSError):  # nobody reads the terminal any more
                # That is where a developer looks for it.
                print(f"\n{head}\n{message.body}\n---", flush=True)  # noqa: T201
        return super().send_messages(email_messages)
