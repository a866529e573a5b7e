"""Registering in the browser: one is signed in at once, and may play before confirming."""

from __future__ import annotations

from typing import Any

from allauth.account.app_settings import EmailVerificationMethod
from allauth.account.internal import flows
from allauth.account.views import SignupView
from allauth.core.exceptions import ImmediateHttpResponse
from django.db import transaction
from django.http import HttpResponseBase

from accounts.adapter import mails_behind


class SignUp(SignupView):  # type: ignore[misc]
    """allauth's, but that this browser does not wait for the mail.

    Until the address is confirmed the workspace is on trial, and signing in anywhere else asks for
    it. Whoever registers an address that has an account is led to their inbox, as before.
    """

    def form_valid(self, form: Any) -> HttpResponseBase:
        with mails_behind(self.request), transaction.atomic():
            return self._signed_up(form)

    def _signed_up(self, form: Any) -> HttpResponseBase:
        self.user, response = form.try_save(self.request)
        if response is not None:
            return response  # type: ignore[no-any-return]
        # They chose the password just now: no page asks for it again so soon.
        flows.login.record_authentication(self.request, self.user, method="password")
        try:
            return flows.signup.complete_signup(  # type: ignore[no-any-return]
                self.request,
                user=self.user,
                email_verification=EmailVerificationMethod.OPTIONAL,
                redirect_url=self.get_success_url(),
            )
        except ImmediateHttpResponse as exc:
            return exc.response  # type: ignore[no-any-return]


signup = SignUp.as_view()
