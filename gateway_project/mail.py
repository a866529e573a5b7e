"""Mail of `make run`: shown in the terminal and kept as a file under `var/mail/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.filebased import EmailBackend as FileBackend


class LocalBackend(FileBackend):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        folder = settings.VAR_DIR / "mail"
        super().__init__(*args, **{**kwargs, "file_path": str(folder)})

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            print(  # noqa: T201 - the terminal is where a developer looks for it
                f"\n--- Mail to {', '.join(message.to)}: {message.subject}\n{message.body}\n---",
                flush=True,
            )
        return super().send_messages(email_messages) or 0
