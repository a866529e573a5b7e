"""Where allauth's pages meet our accounts: registering, confirming, and who may try to sign in."""

from __future__ import annotations

import hashlib
from smtplib import SMTPException
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest
from django_ratelimit.exceptions import Ratelimited

from accounts import lockout, services
from accounts.models import User, normal_email
from accounts.services import Actor
from gateway_project.core import encryption, errors
from gateway_project.core.context import context_of
from gateway_project.core.ratelimit import get_limiter, per_hour
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached

log = get_logger("gateway.accounts")


def actor_of(request: HttpRequest, email: str) -> Actor:
    """A person at a page, for the audit trail."""
    return Actor.of(email, context_of(request))


def send_confirmation(request: HttpRequest, user: User) -> None:
    """Mail the link that confirms a new account's address. A mail that fails is only logged."""
    EmailAddress.objects.get(user=user, primary=True).send_confirmation(request, signup=True)


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": (
            "The e-mail address and the password are not correct. Try again, or reset the password."
        ),
        "enter_current_password": "This is not your password. Try again.",
        "incorrect_code": "This code is wrong, or too old. Enter the one your app shows now.",
        "incorrect_password": "This is not your password. Try again.",
        "same_as_current": "This is your address already.",
        "too_many_login_attempts": "Too many wrong codes. Wait five minutes and try again.",
    }

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        """Register as `POST /auth/register` does; a key is made on a page of its own."""
        user.email = user.username = normal_email(form.cleaned_data["email"])
        user.set_password(form.cleaned_data["password1"])
        services.join(user, actor=actor_of(request, user.email))
        return user

    def confirm_email(self, request: HttpRequest, email_address: EmailAddress) -> bool:
        confirmed = bool(super().confirm_email(request, email_address))
        if confirmed:
            user = User.objects.get(pk=email_address.user_id)
            services.confirm_email(user, actor=actor_of(request, user.email))
        return confirmed

    def send_account_already_exists_mail(self, email: str) -> None:
        # Whoever is new has a password hashed; the time it takes must not tell who is known.
        User().set_password(email)
        super().send_account_already_exists_mail(email)

    def get_client_ip(self, request: HttpRequest) -> str:
        return context_of(request).client_ip or "unknown"

    def login(self, request: HttpRequest, user: User) -> None:
        """Sign them in; of all their sessions the latest `SESSIONS_PER_USER_MAX` go on."""
        super().login(request, user)
        mine = UserSession.objects.filter(user=user).order_by("-pk")  # without this one as yet
        for oldest in mine[settings.SESSIONS_PER_USER_MAX - 1 :]:
            bound_reached.labels("sessions").inc()
            oldest.end()

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        try:
            lockout.begin(_account(credentials), self.get_client_ip(request))
        except errors.RateLimited as limited:
            raise Ratelimited from limited

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        lockout.note_failure(_account(credentials), self.get_client_ip(request))

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send it, unless the address had `MAILS_PER_HOUR` from us: forms name whom they like."""
        name = hashlib.sha256(normal_email(email).encode()).hexdigest()[:32]
        limit = per_hour("mail", f"{{mail:{name}}}", settings.MAILS_PER_HOUR)
        if settings.RATE_LIMIT_ENABLED and get_limiter().check_sync((limit,), (1,)).denied:
            bound_reached.labels("mails").inc()
            log.warning("mail_withheld", template=template_prefix)
            return
        # The account is there whatever becomes of the mail, which can be asked for again.
        try:
            super().send_mail(template_prefix, email, context)
        except (OSError, SMTPException) as exc:
            log.error("mail_failed", template=template_prefix, error=type(exc).__name__)
            messages.error(
                self.request,
                "We could not send the e-mail just now. Try again in a few minutes.",
                fail_silently=True,  # the API has no place for it
            )


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Secrets of authenticator apps and seeds of recovery codes are encrypted at rest."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": AccountAdapter.error_messages["incorrect_code"],
    }

    def encrypt(self, text: str) -> str:
        return encryption.encrypt(text)

    def decrypt(self, encrypted_text: str) -> str:
        try:
            return encryption.decrypt(encrypted_text)
        except encryption.Undecryptable as exc:
            log.error("second_factor_undecryptable")
            # No wrong code: another host may have the key (a roll is under way).
            raise errors.StoreUnavailable from exc


def _account(credentials: dict[str, Any]) -> str:
    return str(credentials.get("email") or credentials.get("username") or "")
