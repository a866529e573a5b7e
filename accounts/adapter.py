"""Where allauth's pages meet our accounts: registering, confirming, and who may try to sign in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from smtplib import SMTPException
from typing import Any, cast
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.account.models import EmailAddress
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from allauth.usersessions.adapter import DefaultUserSessionsAdapter
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django_ratelimit.exceptions import Ratelimited

from accounts import devices, lockout, people, services
from accounts.addresses import refusal_of
from accounts.models import AuditEvent, Invitation, User, normal_email
from accounts.services import Actor
from gateway_project.core import clock, encryption, errors, mails
from gateway_project.core.context import context_of
from gateway_project.core.language import dated, speaking, spoken
from gateway_project.core.ratelimit import get_limiter, per_hour
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached

log = get_logger("gateway.accounts")
SIGNED_IN, SIGNED_OUT = "person.signed_in", "person.signed_out"
DEVICE_REMEMBERED = timedelta(days=90)
DEVICES_LOOKED_AT = 500
ENDED_LISTED = 20
INVITED = "invited"
"""In the session: the address whose invitation was opened."""
MAILS_BEHIND = "mails_behind"
"""Of the request: what is sent when the transaction in hand is over."""


def actor_of(request: HttpRequest, email: str) -> Actor:
    """A person at a page, for the audit trail."""
    return Actor.of(email, context_of(request))


class SessionsAdapter(DefaultUserSessionsAdapter):  # type: ignore[misc]
    """Of people who end sessions of their own, on the page of them."""

    def end_sessions(self, sessions: Sequence[UserSession]) -> None:
        super().end_sessions(sessions)
        for user, ended in groupby(sessions, lambda session: session.user):
            descriptions = sorted({f"{devices.name_of(one.user_agent)}, {one.ip}" for one in ended})
            actor = actor_of(self.request, user.email)
            people.tell(user, "person.session_ended", actor, sessions=descriptions[:ENDED_LISTED])


def send_confirmation(request: HttpRequest, user: User) -> None:
    """Mail the link that confirms a new account's address. A mail that fails is only logged."""
    EmailAddress.objects.get(user=user, primary=True).send_confirmation(request, signup=True)


def send_invitation(request: HttpRequest, invitation: Invitation, url: str) -> bool:
    """Mail the link; False when it could not be sent, which the page says then."""
    known = User.objects.filter(email=invitation.email).first()
    context = {
        "invitation": invitation,
        "workspace": mails.name(invitation.workspace.name),
        "url": url,
        "request": request,
        "user": known,
    }
    return AccountAdapter(request).send_mail("accounts/email/invitation", invitation.email, context)


def send_deletion_notice(request: HttpRequest, user: User, at: datetime, url: str) -> bool:
    """Say that the account is deleted, when, and where it is undone."""
    with _speaking_to(user, request):
        when = f"{dated(at, 'minute of year')} UTC"
    context = {"at": when, "url": url, "request": request, "user": user}
    return AccountAdapter(request).send_mail("accounts/email/deletion", user.email, context)


def _speaking_to(user: Any, request: HttpRequest) -> AbstractContextManager[Any]:
    """The language that they chose; else that of the page, if it is theirs."""
    if user is not None and user.language:
        return speaking(user.language)
    reader: Any = getattr(request, "user", None)
    is_another = user is not None and reader is not None and reader.pk not in (None, user.pk)
    return speaking("" if is_another else spoken())


@contextmanager
def mails_behind(request: HttpRequest) -> Iterator[None]:
    """Send what is mailed meanwhile at the end, and nothing when it fails: no transaction waits
    for a mail server. Inside another of the same request it is that one's end."""
    if hasattr(request, MAILS_BEHIND):
        yield
        return
    behind: list[Callable[[], object]] = []
    setattr(request, MAILS_BEHIND, behind)
    try:
        yield
    finally:
        delattr(request, MAILS_BEHIND)
    for send in behind:
        send()


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": _(
            "The e-mail address and the password are not correct. Try again, or reset the password."
        ),
        "enter_current_password": _("This is not your password. Try again."),
        "incorrect_code": _("This code is wrong, or too old. Enter the one your app shows now."),
        "incorrect_password": _("This is not your password. Try again."),
        "same_as_current": _("This is your address already."),
        "too_many_login_attempts": _("Too many wrong codes. Wait five minutes and try again."),
    }

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        """Register as `POST /auth/register` does; a key is made on a page of its own."""
        user.email = user.username = normal_email(form.cleaned_data["email"])
        user.set_password(form.cleaned_data["password1"])
        user.language = _of_newcomer()
        services.join(user, actor=actor_of(request, user.email))
        return user

    def clean_email(self, email: str) -> str:
        """Of each form that a person types an address into."""
        email = super().clean_email(email)
        if refusal := refusal_of(email):
            raise ValidationError(refusal)
        return email

    def is_email_verified(self, request: HttpRequest, email: str) -> bool:
        """Whether the mailbox was opened already: by the link of an invitation.

        Not allauth's `stash_verified_email`, which gives the address to whoever registers, as one
        more of theirs.
        """
        return bool(request.session.get(INVITED) == normal_email(email))

    def confirm_email(self, request: HttpRequest, email_address: EmailAddress) -> bool:
        """Take the address for theirs, all of it or nothing.

        False, and the change is dropped, when it is somebody else's by now.
        """
        others = User.objects.exclude(pk=email_address.user_id)
        try:
            with mails_behind(request), transaction.atomic():
                if others.filter(email=email_address.email).exists():
                    raise IntegrityError("it is taken")
                confirmed = bool(super().confirm_email(request, email_address))
                if confirmed:
                    user = User.objects.get(pk=email_address.user_id)
                    services.confirm_email(user, actor=actor_of(request, user.email))
        except IntegrityError:  # before, or at this very moment
            EmailAddress.objects.filter(pk=email_address.pk, primary=False).delete()
            self.add_message(
                request,
                messages.ERROR,
                "account/messages/email_confirmation_failed.txt",
                {"email": email_address.email},
            )
            return False
        return confirmed

    def send_confirmation_mail(
        self, request: HttpRequest, emailconfirmation: Any, signup: bool
    ) -> None:
        """Of another address the one that is given up is told at once: whoever reads it can stop it
        by a new password."""
        super().send_confirmation_mail(request, emailconfirmation, signup)
        asked = emailconfirmation.email_address
        if asked.user.email_confirmed_at is not None and asked.email != asked.user.email:
            self.send_notification_mail(
                "account/email/email_change_asked",
                asked.user,
                {"from_email": asked.user.email, "to_email": asked.email},
                asked.user.email,
            )

    def set_password(self, user: User, password: str) -> None:
        """What the last one asked for goes with it: another address that is not confirmed yet."""
        super().set_password(user, password)
        unfinished = EmailAddress.objects.filter(user=user, verified=False)
        unfinished.exclude(email=user.email).delete()

    def send_account_already_exists_mail(self, email: str) -> None:
        # Whoever is new has a password hashed; the time it takes must not tell who is known.
        User().set_password(email)
        super().send_account_already_exists_mail(email)

    def get_client_ip(self, request: HttpRequest) -> str:
        return context_of(request).client_ip or "unknown"

    def login(self, request: HttpRequest, user: User) -> None:
        """Sign them in; of all their sessions the latest `SESSIONS_PER_USER_MAX` go on."""
        super().login(request, user)
        if user.email_confirmed_at is None:  # by an invitation, or by who signed them in
            known = EmailAddress.objects.filter(user=user, email=user.email, verified=True)
            if known.exists():
                services.confirm_email(user, actor=actor_of(request, user.email))
        self._tell_of_sign_in(request, user)
        mine = UserSession.objects.filter(user=user).order_by("-pk")  # without this one as yet
        for oldest in mine[settings.SESSIONS_PER_USER_MAX - 1 :]:
            bound_reached.labels("sessions").inc()
            oldest.end()

    def _tell_of_sign_in(self, request: HttpRequest, user: User) -> None:
        """Audit it; a browser that this person has not used lately is told to them as well."""
        device = devices.name_of(request.headers.get("user-agent", ""))
        lately = AuditEvent.objects.filter(
            action=SIGNED_IN, actor=user.email, at__gte=clock.now() - DEVICE_REMEMBERED
        )
        before = set(lately.values_list("details__device", flat=True)[:DEVICES_LOOKED_AT])
        methods = [record["method"] for record in get_authentication_records(request, user)]
        people.tell(user, SIGNED_IN, actor_of(request, user.email), methods=methods, device=device)
        if before and device not in before:
            self.send_notification_mail("account/email/new_device", user)

    def logout(self, request: HttpRequest) -> None:
        """Sign them out, and audit it; of the admin, too."""
        user = cast(User, request.user)
        device = devices.name_of(request.headers.get("user-agent", ""))
        with transaction.atomic():
            people.tell(user, SIGNED_OUT, actor_of(request, user.email), device=device)
            super().logout(request)

    def render_mail(
        self, template_prefix: str, email: str, context: Any, headers: Any = None
    ) -> EmailMessage:
        """With an HTML form of the same words. The caller's Host names no place to go to."""
        ours = urlsplit(self.request.build_absolute_uri("/"))
        names = {"our_name": ours.netloc, "our_url": f"{ours.scheme}://{ours.netloc}"}
        with _speaking_to(context.get("user"), self.request):
            plain = super().render_mail(template_prefix, email, {**context, **names}, headers)
            return mails.message(
                plain.subject,
                plain.body,
                plain.to,
                ours=f"{names['our_url']}/",
                from_email=plain.from_email,
                headers=headers,
            )

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        try:
            lockout.begin(_account(credentials), self.get_client_ip(request))
        except errors.RateLimited as limited:
            raise Ratelimited from limited

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        account = _account(credentials)
        lockout.note_failure(account, self.get_client_ip(request))
        known = User.objects.filter(email=normal_email(account)).first()
        # Else it is nobody's trail.
        if known is not None and people.is_worth_telling("sign_in", known.pk):
            people.tell(known, "person.sign_in_refused", actor_of(request, known.email))

    def send_notification_mail(
        self, template_prefix: str, user: User, context: Any = None, email: str | None = None
    ) -> None:
        """Of a password, an address or a second factor that was changed: it is audited as well."""
        super().send_notification_mail(
            template_prefix, user, {**(context or {}), "user": user}, email
        )
        what = template_prefix.rpartition("/")[2]
        details = context or {}
        emails = [details.get("from_email"), details.get("to_email")]
        more = {"changes": {"email": emails}} if what == "email_changed" else {}
        people.tell(user, f"person.{what}", actor_of(self.request, user.email), **more)

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> bool:
        """Send it, unless the address had `MAILS_PER_HOUR` from us: forms name whom they like.

        Whether it was sent, or will be.
        """
        behind: list[Callable[[], object]] | None = getattr(self.request, MAILS_BEHIND, None)
        if behind is not None:
            behind.append(partial(self.send_mail, template_prefix, email, context))
            return True
        name = hashlib.sha256(normal_email(email).encode()).hexdigest()[:32]
        limit = per_hour("mail", f"{{mail:{name}}}", settings.MAILS_PER_HOUR)
        if settings.RATE_LIMIT_ENABLED and get_limiter().check_sync((limit,), (1,)).denied:
            bound_reached.labels("mails").inc()
            log.warning("mail_withheld", template=template_prefix)
            return False
        # The account is there whatever becomes of the mail, which can be asked for again.
        try:
            super().send_mail(template_prefix, email, context)
        except (OSError, SMTPException) as exc:
            log.error("mail_failed", template=template_prefix, error=type(exc).__name__)
            view = getattr(self.request.resolver_match, "func", None)
            if not hasattr(view, "actions"):  # the API has no place for it
                messages.error(
                    self.request,
                    gettext("We could not send the e-mail just now. Try again in a few minutes."),
                    fail_silently=True,
                )
            return False
        return True


class SocialAccountAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    """Who signs in by the provider that the operator set (`OIDC_ISSUER`)."""

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Of a newcomer whose address is refused: they are asked for another, as those are of whom
        the provider names none."""
        if not sociallogin.is_existing and refusal_of(_named(sociallogin)):
            sociallogin.user.email = ""
            sociallogin.email_addresses = []

    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> User:
        """Register as everybody is, without a password."""
        user: User = sociallogin.user
        email = user.email if form is None else form.cleaned_data["email"]
        user.email = user.username = normal_email(email)
        user.set_unusable_password()
        user.language = _of_newcomer()
        services.join(user, user.first_name, actor=actor_of(request, user.email))
        sociallogin.save(request)
        return user

    def get_requests_session(self) -> Any:
        database.let_go()  # it is about to wait for the provider
        return super().get_requests_session()

    def on_authentication_error(
        self,
        request: HttpRequest,
        provider: Any,
        error: Any = None,
        exception: Exception | None = None,
        extra_context: Any = None,
    ) -> None:
        log.warning(
            "single_sign_on_failed", error=str(error or ""), exception=type(exception).__name__
        )


def _named(sociallogin: SocialLogin) -> str:
    """The address that the provider names, whole; `User.email` holds what fits into its column."""
    return str(next((one.email for one in sociallogin.email_addresses), ""))


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Secrets of authenticator apps and seeds of recovery codes are encrypted at rest."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "unverified_email": _(
            "A change of your e-mail address is not finished. Confirm the new one by the link in "
            "its mail, or keep the old one under Settings, E-mail; then turn this on."
        ),
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


def _of_newcomer() -> str:
    """Of mails to who registers on a page that is not in English; others have not chosen."""
    return "" if spoken() == settings.LANGUAGE_CODE else spoken()


def _account(credentials: dict[str, Any]) -> str:
    return str(credentials.get("email") or credentials.get("username") or "")
