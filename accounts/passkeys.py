"""What is sent for a passkey: by a browser that was asked for it, or by anybody who writes forms.

The library that takes it apart raises whatever its parsers meet: a member that is missing, half of
a CBOR map, a list in lists a thousand deep. To who sent it each is the same: it was not right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allauth.mfa.adapter import get_adapter
from allauth.mfa.webauthn import forms as webauthn
from django import forms
from django.core.exceptions import ValidationError
from django.db import Error as DatabaseError

from gateway_project.core import errors
from gateway_project.core.api.forms import Form, JSONField
from gateway_project.core.telemetry.logging import get_logger

NAME_CHARS_MAX = 100
log = get_logger("gateway.accounts")


def _credential() -> JSONField:
    return JSONField(widget=forms.HiddenInput)


def _name(*, required: bool) -> forms.CharField:
    return forms.CharField(required=required, max_length=NAME_CHARS_MAX)


@contextmanager
def _taking_apart() -> Iterator[None]:
    try:
        yield
    except (ValidationError, DatabaseError, errors.GatewayError):
        raise
    except Exception as exc:  # noqa: BLE001 - whatever a parser raises, it is what was sent
        log.info("passkey_unreadable", error=type(exc).__name__)
        raise get_adapter().validation_error("incorrect_code") from None


class _Sign(Form):
    def clean_credential(self) -> Any:
        with _taking_apart():
            return super().clean_credential()  # type: ignore[misc]  # of allauth's form


class LoginForm(_Sign, webauthn.LoginWebAuthnForm):  # type: ignore[misc]
    credential = _credential()


class AuthenticateForm(_Sign, webauthn.AuthenticateWebAuthnForm):  # type: ignore[misc]
    credential = _credential()


class ReauthenticateForm(_Sign, webauthn.ReauthenticateWebAuthnForm):  # type: ignore[misc]
    credential = _credential()


class AddForm(Form, webauthn.AddWebAuthnForm):  # type: ignore[misc]
    name = _name(required=False)
    credential = _credential()

    def clean(self) -> Any:
        with _taking_apart():
            return super().clean()


class EditForm(Form, webauthn.EditWebAuthnForm):  # type: ignore[misc]
    name = _name(required=True)
