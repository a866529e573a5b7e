"""Who works in the workspace: people, invitations, domains; and the workspaces of a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.validators import RegexValidator
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy, gettext_noop

from accounts import people
from accounts.adapter import INVITED, actor_of, send_invitation
from accounts.addresses import refusal_of
from accounts.models import Membership, User, Workspace, WorkspaceDomain
from gateway_project.core import errors
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.api.forms import EditForm, Form
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.upstream.names import text_records
from portal import exports
from portal.members import CURRENT, Member, workspace_page
from portal.posting import is_first, posts_for, signed_in

DOMAIN = RegexValidator(
    r"^(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$",
    gettext_lazy("Write it like example.com, without https:// and without a path."),
)

MEMBERS = {"email": "user.email", "name": "user.first_name", "role": "role", "since": "created_at"}
INVITATIONS = ("email", "role", "invited_by", "sent_at", "expires_at")


class InviteForm(Form):
    email = forms.EmailField(label=gettext_lazy("E-mail address"))
    role = forms.ChoiceField(label=gettext_lazy("Role"))

    def clean_email(self) -> str:
        email: str = self.cleaned_data["email"]
        if refusal := refusal_of(email):
            raise forms.ValidationError(refusal)
        return email

    def __init__(self, by: Membership, data: Any = None) -> None:
        super().__init__(data, initial={"role": people.Role.MEMBER})
        field = cast(forms.ChoiceField, self.fields["role"])
        field.choices = [
            (role, f"{role.label}: {people.ROLE_HELP[role]}") for role in people.grantable(by.role)
        ]


class DomainForm(Form):
    ids = "domain_%s"
    domain = forms.CharField(max_length=253, label=gettext_lazy("Domain"))
    role = forms.ChoiceField(
        label=gettext_lazy("Whoever joins is"),
        choices=[(role, role.label) for role in (people.Role.VIEWER, people.Role.MEMBER)],
    )

    def clean_domain(self) -> str:
        domain: str = self.cleaned_data["domain"].strip().lower().rstrip(".")
        DOMAIN(domain)
        return domain


class WorkspaceForm(EditForm):
    name = forms.CharField(max_length=100, label=gettext_lazy("Name"))
    requires_two_factors = forms.BooleanField(
        required=False, label=gettext_lazy("Members need a second factor or a passkey")
    )


class NewWorkspaceForm(Form):
    name = forms.CharField(max_length=100, label=gettext_lazy("Name"))


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def people_page(request: HttpRequest, member: Member) -> HttpResponseBase:
    """List them, and invite one."""
    form = InviteForm(member.membership, request.POST if request.method == "POST" else None)
    if request.method == "POST":
        member.must("people")
        if form.is_valid():
            if not is_first(request):
                return redirect("portal-people")
            email, role = form.cleaned_data["email"], form.cleaned_data["role"]
            if _try(request, lambda: _invite(request, member, email, role)):
                return redirect("portal-people")
    facts: dict[str, Any] = {
        "member": member,
        "people": member.workspace.memberships.select_related("user").order_by("created_at", "pk"),
        "invitations": member.workspace.invitations.filter(accepted_at=None, withdrawn_at=None)
        if member.can_manage_people
        else (),
        "form": form,
        "roles": people.grantable(member.role),
        "record": people.DOMAIN_RECORD,
        "domains": member.workspace.domains.all() if member.can_manage_workspace else (),
        "domain_form": DomainForm(),
    }
    files = {
        "members": lambda: exports.table(MEMBERS, facts["people"]),
        "invitations": lambda: exports.table(INVITATIONS, facts["invitations"]),
    }
    return exports.page(request, "portal/pages/people.html", facts, files)


def _invite(request: HttpRequest, member: Member, email: str, role: str) -> None:
    made, token = people.invite(
        member.workspace, email, role, by=member.membership, actor=member.actor(request)
    )
    path = reverse("portal-join", kwargs={"token": token})
    if send_invitation(request, made, request.build_absolute_uri(path)):
        text = gettext("%(email)s is invited. The link works for seven days.")
        messages.success(request, text % {"email": made.email})


def _try(request: HttpRequest, act: Callable[[], object]) -> bool:
    """Do it, or say why not."""
    try:
        act()
    except errors.PermissionDenied:
        raise PermissionDenied from None
    except errors.NotFound:
        raise Http404 from None
    except errors.GatewayError as exc:
        messages.error(request, exc.for_people())
        return False
    return True


@posts_for("portal-people", bare=True)
@workspace_page
def resend(request: HttpRequest, member: Member, invitation_id: UUID) -> HttpResponse:
    """A new link; the one before it stops working."""
    member.must("people")
    found = member.workspace.invitations.filter(pk=invitation_id).first()
    if found is None:
        raise Http404
    if not is_first(request):
        return redirect("portal-people")
    _try(request, lambda: _invite(request, member, found.email, found.role))
    return redirect("portal-people")


@posts_for("portal-people", bare=True)
@workspace_page
def withdraw(request: HttpRequest, member: Member, invitation_id: UUID) -> HttpResponse:
    member.must("people")

    def act() -> None:
        done = people.withdraw(member.workspace, invitation_id, actor=member.actor(request))
        text = gettext("The invitation of %(email)s is withdrawn.")
        messages.success(request, text % {"email": done.email})

    _try(request, act)
    return redirect("portal-people")


def _colleague(member: Member, membership_id: int) -> Membership:
    found = (
        member.workspace.memberships.filter(pk=membership_id)
        .select_related("user", "workspace")
        .first()
    )
    if found is None:
        raise Http404
    return found


@posts_for("portal-people", bare=True)
@workspace_page
def change_role(request: HttpRequest, member: Member, membership_id: int) -> HttpResponse:
    member.must("people")
    found, role = _colleague(member, membership_id), request.POST.get("role", "")
    if role not in people.MAY:
        raise Http404

    def act() -> None:
        people.change_role(found, role, by=member.membership, actor=member.actor(request))
        label = people.Role(role).label
        text = gettext("%(email)s is %(role)s from now on.")
        messages.success(request, text % {"email": found.user.email, "role": label})

    _try(request, act)
    return redirect("portal-people")


@posts_for("portal-people", bare=True)
@workspace_page
def remove(request: HttpRequest, member: Member, membership_id: int) -> HttpResponse:
    """Somebody else, or oneself: that is leaving, and everybody may."""
    found = _colleague(member, membership_id)
    is_leaving = found.pk == member.membership.pk
    if not is_leaving:
        member.must("people")

    def act() -> None:
        people.remove(found, by=member.membership, actor=member.actor(request))
        if is_leaving:
            text = gettext("You left “%(name)s”. Keys belong to the workspace and work on.")
            text %= {"name": member.workspace.name}
        else:
            text = gettext("%(email)s is removed. Keys belong to the workspace and work on.")
            text %= {"email": found.user.email}
        messages.success(request, text)

    done = _try(request, act)
    return redirect("portal-overview" if done and is_leaving else "portal-people")


@posts_for("portal-people", bare=True)
@workspace_page
def hand_over(request: HttpRequest, member: Member, membership_id: int) -> HttpResponse:
    member.must("workspace")
    found = _colleague(member, membership_id)

    def act() -> None:
        people.hand_over(found, by=member.membership, actor=member.actor(request))
        text = gettext("%(email)s owns this workspace now; you are an admin.")
        messages.success(request, text % {"email": found.user.email})

    _try(request, act)
    return redirect("portal-people")


# -- The workspace --------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def workspace_settings(request: HttpRequest, member: Member) -> HttpResponse:
    form = WorkspaceForm(
        request.POST if request.method == "POST" else None,
        initial={
            "name": member.workspace.name,
            "requires_two_factors": member.workspace.requires_two_factors,
        },
    )
    if request.method == "POST":
        member.must("workspace")
        wants = form.is_valid() and form.changes().get("requires_two_factors")
        if wants and not people.has_second_factor(member.user):
            form.add_error(
                "requires_two_factors",
                gettext("Set up your own second factor first, or you were locked out."),
            )
        if form.is_valid():
            people.change_workspace(member.workspace, actor=member.actor(request), **form.changes())
            messages.success(request, gettext("Saved."))
            return redirect("portal-workspace")
    return render(request, "portal/pages/workspace.html", {"member": member, "form": form})


@signed_in
def switch(request: HttpRequest, workspace_id: UUID) -> HttpResponse:
    """Work in another of one's workspaces; from its overview on."""
    user = cast(User, request.user)
    if request.method == "POST":
        mine = {place.workspace_id for place in people.workspaces_of(user)}
        if workspace_id not in mine:
            raise Http404
        request.session[CURRENT] = str(workspace_id)
    return redirect("portal-overview")


@signed_in
@require_http_methods(["GET", "HEAD", "POST"])
def new_workspace(request: HttpRequest) -> HttpResponse:
    form = NewWorkspaceForm(request.POST if request.method == "POST" else None)
    user = cast(User, request.user)
    if request.method == "POST" and form.is_valid():
        if not is_first(request):
            return redirect("portal-overview")
        try:
            made = people.make_workspace(
                user, form.cleaned_data["name"], actor=actor_of(request, user.email)
            )
        except (errors.TooMany, errors.Conflict) as exc:
            form.add_error(None, exc.for_people())
        else:
            request.session[CURRENT] = str(made.pk)
            text = gettext("“%(name)s” is made. You own it.")
            messages.success(request, text % {"name": made.name})
            return redirect("portal-overview")
    places = people.workspaces_of(user)
    facts = {"form": form, "has_no_workspace": not places}
    return render(request, "portal/pages/new_workspace.html", facts)


# -- Domains --------------------------------------------------------------------------------------


@posts_for("portal-people", bare=True)
@workspace_page
def add_domain(request: HttpRequest, member: Member) -> HttpResponse:
    member.must("workspace")
    form = DomainForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(str(e) for found in form.errors.values() for e in found))
        return redirect("portal-people")

    def act() -> None:
        people.add_domain(member.workspace, **form.cleaned_data, actor=member.actor(request))

    _try(request, act)
    return redirect("portal-people")


def _domain(member: Member, domain_id: UUID) -> WorkspaceDomain:
    found = member.workspace.domains.filter(pk=domain_id).select_related("workspace").first()
    if found is None:
        raise Http404
    return found


@posts_for("portal-people", bare=True)
@workspace_page
def verify_domain(request: HttpRequest, member: Member, domain_id: UUID) -> HttpResponse:
    member.must("workspace")
    found = _domain(member, domain_id)

    def act() -> None:
        people.verify_domain(found, text_records, actor=member.actor(request))
        text = gettext("%(domain)s is yours. Its people may join.")
        messages.success(request, text % {"domain": found.domain})

    _try(request, act)
    return redirect("portal-people")


@posts_for("portal-people", bare=True)
@workspace_page
def remove_domain(request: HttpRequest, member: Member, domain_id: UUID) -> HttpResponse:
    member.must("workspace")
    people.remove_domain(_domain(member, domain_id), actor=member.actor(request))
    messages.success(request, gettext("The domain is taken off. Who joined stays a member."))
    return redirect("portal-people")


# -- Joining --------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
def join(request: HttpRequest, token: str) -> HttpResponse:
    """What the link of an invitation opens: for strangers, for the invited, for anybody else."""
    found = people.by_token(token)
    if found is None:
        text = gettext_noop(
            "This invitation does not exist. Open the link of the mail as it stands there."
        )
        return refuse(request, errors.NotFound(text))
    if not request.user.is_authenticated:
        if found.is_open:
            # The link came to that mailbox: whoever registers with it needs no second mail.
            request.session[INVITED] = found.email
        facts = {"invitation": found, "here": request.get_full_path()}
        return render(request, "portal/pages/join.html", facts)
    user = request.user
    if request.method == "POST":
        return _accept(request, user, token)
    place = Membership.objects.filter(user=user, workspace=found.workspace).first()
    if place is not None and found.accepted_at is not None:
        request.session[CURRENT] = str(found.workspace_id)
        return redirect("portal-overview")
    facts = {
        "invitation": found,
        "is_theirs": user.email == found.email,
        "has_no_workspace": not people.workspaces_of(user),
    }
    return render(request, "portal/pages/join.html", facts)


def _welcome(workspace: Workspace) -> str:
    return gettext("Welcome to “%(name)s”.") % {"name": workspace.name}


def _accept(request: HttpRequest, user: User, token: str) -> HttpResponse:
    found = people.by_token(token)
    if found is None:
        raise Http404
    done = _try(request, lambda: people.accept(found, user, actor=actor_of(request, user.email)))
    if not done:
        return redirect("portal-join", token=token)
    request.session[CURRENT] = str(found.workspace_id)
    messages.success(request, _welcome(found.workspace))
    return redirect("portal-overview")


@posts_for("portal-overview", bare=True)
@signed_in
def accept(request: HttpRequest, invitation_id: UUID) -> HttpResponse:
    """An invitation that waits for one's confirmed address, without its mail."""
    user = cast(User, request.user)
    found = next((one for one in people.waiting_for(user) if one.pk == invitation_id), None)
    if found is None:
        messages.error(request, gettext("This invitation is not open any more. Ask for a new one."))
    elif _try(request, lambda: people.accept(found, user, actor=actor_of(request, user.email))):
        request.session[CURRENT] = str(found.workspace_id)
        messages.success(request, _welcome(found.workspace))
    return redirect("portal-overview")


@posts_for("portal-overview", bare=True)
@signed_in
def join_by_domain(request: HttpRequest, domain_id: UUID) -> HttpResponse:
    user = cast(User, request.user)
    found = next((one for one in people.joinable(user) if one.pk == domain_id), None)
    if found is None:
        messages.error(
            request, gettext("This domain does not let you in any more. Ask for an invitation.")
        )
    elif _try(
        request, lambda: people.join_by_domain(found, user, actor=actor_of(request, user.email))
    ):
        request.session[CURRENT] = str(found.workspace_id)
        messages.success(request, _welcome(found.workspace))
    return redirect("portal-overview")


@require_safe
@signed_in
def welcome(request: HttpRequest) -> HttpResponse:
    """Where one lands who wants to see what they may join."""
    user = cast(User, request.user)
    facts = {
        "invitations": people.waiting_for(user),
        "domains": people.joinable(user),
        "has_no_workspace": not people.workspaces_of(user),
    }
    return render(request, "portal/pages/no_workspace.html", facts)
