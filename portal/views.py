"""A developer's settings. Sign-in pages are allauth's, in our design."""

from __future__ import annotations

from typing import Any

from allauth.account.decorators import reauthentication_required
from allauth.usersessions.adapter import get_adapter
from allauth.usersessions.models import UserSession
from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_exempt

from accounts import mailing, people, services
from accounts.adapter import actor_of, send_deletion_notice
from accounts.models import User
from gateway_project.core import clock
from gateway_project.core.api.forms import EditForm, Form, ModelForm
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.api.responses import streamed
from portal import archive, language, posting
from portal.clocks import written, zone_name
from portal.members import Member, shows_secrets, workspace_page
from portal.posting import posts_for, signed_in


def base_url(request: HttpRequest) -> str:
    """What a caller puts before a path, as this reader reached us: for their terminal, no link."""
    return settings.PUBLIC_URL or f"{request.scheme}://{request.get_host()}"


class ProfileForm(ModelForm):
    class Meta:
        model = User
        fields = ["first_name", "language"]
        labels = {"first_name": _("Name"), "language": _("Language")}
        help_texts = {
            "first_name": _("How we address you. Only you and members of staff see it."),
            "language": _("Of these pages, and of mails to you."),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choice: Any = self.fields["language"]
        choice.choices = [("", _("As the browser asks")), *settings.LANGUAGES]


class DeleteForm(Form):
    typed = forms.CharField(label=_("Your e-mail address, to be sure"))

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._email = email
        self.fields["typed"].widget.attrs["autocomplete"] = "off"

    def clean_typed(self) -> str:
        typed: str = self.cleaned_data["typed"]
        if typed.strip().lower() != self._email:
            raise forms.ValidationError(
                gettext("Type %(email)s to delete this account.") % {"email": self._email}
            )
        return typed


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def settings_page(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    form = ProfileForm(request.POST or None, instance=user)
    if request.method == "POST" and form.is_valid():
        form.save()
        answer = redirect("portal-settings")
        if "language" in form.changed_data:
            language.choose(request, answer, user.language)
        messages.success(request, gettext("Saved."))
        return answer
    return render(request, "portal/settings.html", {"form": form})


@require_safe
@workspace_page
def unsent(request: HttpRequest, member: Member, token: str) -> HttpResponseBase:
    """A form that came when its session was over, to send it now; for who is in its workspace."""
    found = posting.unsent(token)
    places = {str(place.workspace_id) for place in (member.membership, *member.others)}
    if found is None or not places.issuperset(found[1]["workspace"]):
        return redirect("portal-overview")
    path, fields = found
    return render(
        request, "portal/pages/unsent.html", {"member": member, "path": path, "fields": fields}
    )


@posts_for("usersessions_list", bare=True)
@signed_in
def end_session(request: HttpRequest, session_id: int) -> HttpResponse:
    """One of the user's own sessions; another person's is the same 404 as none."""
    session = get_object_or_404(UserSession, pk=session_id, user=request.user)
    get_adapter().end_sessions([session])
    messages.success(request, gettext("That session is ended."))
    return redirect("usersessions_list")


class MailsForm(EditForm):
    kinds = forms.MultipleChoiceField(
        required=False,
        label=_("Write to me about"),
        choices=list(mailing.KINDS.items()),
        widget=forms.CheckboxSelectMultiple,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def mails(request: HttpRequest) -> HttpResponse:
    """Which mails of our own accord one gets; those about the account itself always come."""
    user: Any = request.user
    wanted = [kind for kind in mailing.KINDS if mailing.wants(user, kind)]
    form = MailsForm(request.POST if request.method == "POST" else None, initial={"kinds": wanted})
    if request.method == "POST" and form.is_valid():
        mailing.choose(user, form.changes().get("kinds", wanted))
        messages.success(request, gettext("Saved."))
        return redirect("portal-preferences")
    return render(request, "portal/mails.html", {"form": form})


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def mails_off(request: HttpRequest, token: str) -> HttpResponse:
    """From the link in a mail, signed in or not; a mail program posts to it by itself (RFC 8058).
    It can do no more than this, so that nothing but the token is asked for."""
    found = mailing.of_token(token)
    if found is None:
        raise Http404
    user, kind = found
    if request.method == "POST":
        mailing.turn_off(user, kind)
    is_off = not mailing.wants(user, kind)
    facts = {"kind": mailing.KINDS[kind], "is_off": is_off, "email": user.email}
    return render(request, "portal/mails_off.html", facts)


@posts_for("portal-settings", bare=True)
@signed_in
@shows_secrets
def download_archive(request: HttpRequest) -> HttpResponseBase:
    """Everything, as a ZIP that is made while it is read."""
    user: Any = request.user
    people.tell(user, "person.archive_taken", actor_of(request, user.email))
    name = f"gateway-{clock.now():%Y-%m-%d}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return streamed(archive.pieces(user), content_type="application/zip", **headers)


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
@reauthentication_required  # type: ignore[untyped-decorator]
def delete_account(request: HttpRequest) -> HttpResponse:
    """Ask for it. It is carried out seven days later, unless it is taken back."""
    user: Any = request.user
    form = DeleteForm(request.POST or None, email=user.email)
    if request.method == "POST" and form.is_valid():
        actor = actor_of(request, user.email)
        at = services.ask_deletion(user, actor=actor)
        link = request.build_absolute_uri(reverse("portal-delete-account"))
        send_deletion_notice(request, user, at, link)
        messages.success(
            request,
            gettext("Your account is deleted on %(at)s %(zone)s. Until then you can undo it.")
            % {"at": written(at), "zone": zone_name()},
        )
        return redirect("portal-delete-account")
    return render(request, "portal/delete_account.html", {"form": form})


@posts_for("portal-delete-account")
@signed_in
def undo_deletion(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    if services.undo_deletion(user, actor=actor_of(request, user.email)):
        messages.success(request, gettext("Your account stays, and your keys work again."))
    else:
        messages.info(request, gettext("Nobody asked for it to be deleted. Nothing was changed."))
    return redirect("portal-settings")
