"""The first page, and a developer's settings. Sign-in pages are allauth's, in our design."""

from __future__ import annotations

from typing import Any

from allauth.account.decorators import reauthentication_required
from allauth.usersessions.models import UserSession
from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from accounts import services
from accounts.adapter import actor_of
from accounts.models import User
from gateway_project.core.api.forms import Form, ModelForm
from gateway_project.core.api.methods import require_http_methods, require_safe
from portal.posting import posts_for, signed_in


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    facts = {"version": settings.VERSION, "base_url": base_url(request)}
    return render(request, "portal/landing.html", facts)


def base_url(request: HttpRequest) -> str:
    """What a caller puts before a path, as this reader reached us: for their terminal, no link."""
    return settings.PUBLIC_URL or f"{request.scheme}://{request.get_host()}"


@require_safe
def quickstart(request: HttpRequest) -> HttpResponse:
    """The guide that needs no account to read, with addresses of this installation."""
    return render(request, "portal/quickstart.html", {"base_url": base_url(request)})


class ProfileForm(ModelForm):
    class Meta:
        model = User
        fields = ["first_name"]
        labels = {"first_name": "Name"}
        help_texts = {"first_name": "How we address you. Only you and members of staff see it."}


class DeleteForm(Form):
    typed = forms.CharField(label="Your e-mail address, to be sure")

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._email = email
        self.fields["typed"].widget.attrs["autocomplete"] = "off"

    def clean_typed(self) -> str:
        typed: str = self.cleaned_data["typed"]
        if typed.strip().lower() != self._email:
            raise forms.ValidationError(f"Type {self._email} to delete this account.")
        return typed


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def settings_page(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    form = ProfileForm(request.POST or None, instance=user)
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, "Saved.")
        return redirect("portal-settings")
    return render(request, "portal/settings.html", {"form": form})


@posts_for("usersessions_list", bare=True)
@signed_in
def end_session(request: HttpRequest, session_id: int) -> HttpResponse:
    """One of the user's own sessions; another person's is the same 404 as none."""
    session = get_object_or_404(UserSession, pk=session_id, user=request.user)
    session.end()
    messages.success(request, "That session is ended.")
    return redirect("usersessions_list")


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
@reauthentication_required  # type: ignore[untyped-decorator]
def delete_account(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    form = DeleteForm(request.POST or None, email=user.email)
    if request.method == "POST" and form.is_valid():
        services.delete_account(user, actor=actor_of(request, user.email))
        logout(request)
        messages.success(request, "Your account is deleted, with its keys. Goodbye.")
        return redirect("portal-landing")
    return render(request, "portal/delete_account.html", {"form": form})
