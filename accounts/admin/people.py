"""People and workspaces. Plans are in `gateway_project/admin.py`: a change may wait for two."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.hashers import identify_hasher
from django.contrib.auth.password_validation import validate_password
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts import moderation, services
from accounts.addresses import refusal_of
from accounts.admin.actions import act
from accounts.admin.lists import Choice, SuperusersAct, actor_of, as_uuid, link_to
from accounts.events import audit
from accounts.models import ApiKey, Membership, Plan, User, Workspace, new_id, normal_email
from accounts.usage import reports
from gateway_project.core import clock
from gateway_project.core.api.forms import Form, ModelForm
from gateway_project.core.language import dated, number

USAGE_DAYS = 30
KEYS_SHOWN_MAX = 20


def recent() -> Any:
    return clock.now() - timedelta(days=USAGE_DAYS)


# -- Users ----------------------------------------------------------------------------------------


def named(queryset: QuerySet[User], term: str) -> QuerySet[User]:
    """Those whose e-mail begins with `term`, or whose id it is."""
    wanted = as_uuid(term)
    if wanted is not None:
        return queryset.filter(pk=wanted)
    # Addresses are kept in small letters, and their index serves the beginning of one.
    return queryset.filter(email__startswith=normal_email(term))


class UserForm(ModelForm):
    def clean_is_superuser(self) -> bool:
        wanted: bool = self.cleaned_data["is_superuser"]
        if (
            self.instance.is_superuser
            and not wanted
            and moderation.is_last_superuser(self.instance)
        ):
            raise forms.ValidationError(
                gettext("This is the last active superuser. Make another first.")
            )
        return wanted


class NewUserForm(ModelForm):
    password = forms.CharField(
        label=_("Password"), widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )

    def clean_email(self) -> str:
        email = normal_email(self.cleaned_data["email"])
        if refusal := refusal_of(email):
            raise forms.ValidationError(refusal)
        if User.objects.filter(email=email).exists():
            raise forms.ValidationError(gettext("An account with this e-mail exists."))
        return email

    def clean_password(self) -> str:
        password: str = self.cleaned_data["password"]
        validate_password(password)
        return password

    def save(self, commit: bool = True) -> Any:
        return self.instance  # `save_model` does it

    def save_m2m(self) -> None:
        pass


class UserKind(Choice):
    title = _("kind")
    parameter_name = "kind"
    options = {
        "staff": (_("Staff"), {"is_staff": True}),
        "suspended": (_("Suspended"), {"is_active": False}),
    }


class MemberInline(admin.StackedInline):
    """Who is in: rows are added and taken away; another role is both."""

    model = Membership
    extra = 0
    autocomplete_fields = ["user"]
    fields = [("user", "role")]
    verbose_name = _("membership")
    verbose_name_plural = _("memberships")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        found: QuerySet[Membership] = super().get_queryset(request)
        return found.select_related("user", "workspace").order_by("created_at")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # of the workspace, which one has to see first

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(getattr(request.user, "is_superuser", False))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(getattr(request.user, "is_superuser", False))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class PeopleAdmin(SuperusersAct, UserAdmin):
    form = UserForm
    add_form = NewUserForm
    list_display = ["email", "is_confirmed", "is_active", "is_staff", "date_joined", "last_login"]
    list_filter = [UserKind]
    ordering = ["-id"]
    search_help_text = _("The beginning of an e-mail address, or an id.")
    actions = [
        act(
            "confirm_email",
            _("Confirm the e-mail"),
            means=_("You vouch for the address; the workspaces they own leave their trial."),
            run=services.confirm_email,
            applies=lambda user: user.email_confirmed_at is None,
        ),
        act(
            "suspend",
            _("Suspend"),
            means=_(
                "They cannot sign in and their sessions end at once. Keys belong to workspaces and "
                "work on: suspend the workspace to stop those."
            ),
            run=moderation.suspend_user,
            is_grave=True,
            applies=lambda user: user.is_active,
        ),
        act(
            "reinstate",
            _("Reinstate"),
            means=_("They can sign in again."),
            run=moderation.reinstate_user,
            applies=lambda user: not user.is_active,
        ),
    ]
    fieldsets = [
        (None, {"fields": ["email", "password_kind", "first_name", "last_name"]}),
        (_("Rights"), {"fields": ["can_sign_in", "is_staff", "is_superuser", "groups"]}),
        (_("Workspaces"), {"fields": ["their_workspaces"]}),
        (_("Dates"), {"fields": ["email_confirmed_at", "last_login", "date_joined"]}),
    ]
    add_fieldsets = [(None, {"fields": ["email", "first_name", "is_staff", "password"]})]
    filter_horizontal = []

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> list[str]:
        if obj is None:
            return []
        facts = ["email", "password_kind", "can_sign_in", "their_workspaces"]
        return [*facts, "last_login", "date_joined", "email_confirmed_at"]

    def find(self, queryset: QuerySet[User], term: str) -> QuerySet[User]:
        return named(queryset, term)

    @admin.display(boolean=True, description=_("confirmed"))
    def is_confirmed(self, user: User) -> bool:
        return user.email_confirmed_at is not None

    @admin.display(boolean=True, description=_("active"))
    def can_sign_in(self, user: User) -> bool:
        return user.is_active

    @admin.display(description=_("password"))
    def password_kind(self, user: User) -> str:
        if not user.has_usable_password():
            return gettext("none")
        url = reverse("admin:auth_user_password_change", args=[user.pk])
        kind = identify_hasher(user.password).algorithm
        message = gettext('kept as {kind} (<a href="{url}">set another</a>)')
        return format_html(message, kind=kind, url=url)

    @admin.display(description=_("workspaces"))
    def their_workspaces(self, user: User) -> str:
        found = user.memberships.select_related("workspace").order_by("created_at")[:50]
        rows = ((link_to(member.workspace), member.get_role_display()) for member in found)
        return format_html_join(mark_safe("<br>"), "{}: {}", rows) or gettext("none")

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        values = form.cleaned_data
        if change:
            changes = {name: values[name] for name in form.changed_data if name != "groups"}
            moderation.change_user(obj, changes, actor=actor_of(request))
        else:
            moderation.add_user(obj, values["password"], actor=actor_of(request))

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        before = sorted(form.instance.groups.values_list("name", flat=True))
        super().save_related(request, form, formsets, change)
        if "groups" in form.changed_data:
            groups = sorted(group.name for group in form.cleaned_data["groups"])
            audit(
                "user.groups_set",
                target=form.instance.pk,
                groups=groups,
                changes={"groups": [before, groups]},
                **actor_of(request).fields(),
            )

    @transaction.atomic
    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> Any:  # noqa: A002
        rows = User.objects.filter(pk=as_uuid(id) or new_id()).values_list("password", flat=True)
        before = rows.first()
        response = super().user_change_password(request, id, form_url)
        if rows.first() != before:
            audit("user.password_set", target=id, **actor_of(request).fields())
        return response


# -- Workspaces -----------------------------------------------------------------------------------


class PlanForm(Form):
    plan = forms.ModelChoiceField(
        Plan.objects.order_by("rate_limit_per_day"), label=_("Plan"), empty_label=None
    )
    fit_keys = forms.BooleanField(
        initial=True,
        required=False,
        label=_("Lower keys that are above it"),
        help_text=_("Keys keep their own limits otherwise, also those beyond the new plan."),
    )


class WorkspaceState(Choice):
    title = _("state")
    parameter_name = "state"
    options = {"suspended": (_("Suspended"), {"suspended_at__isnull": False})}


class WorkspacePlan(admin.SimpleListFilter):
    title = _("plan")
    parameter_name = "plan"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in Plan.objects.values_list("name", flat=True)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Workspace]) -> QuerySet[Workspace]:
        return queryset.filter(plan=self.value()) if self.value() else queryset


@admin.register(Workspace)
class WorkspaceAdmin(SuperusersAct):
    list_display = ["slug", "name", "plan", "state", "keys", "requests", "created_at"]
    list_filter = [WorkspaceState, WorkspacePlan]
    list_select_related = ["plan"]
    search_help_text = _(
        "The beginning of a name or slug, a member's whole e-mail address, or an id."
    )
    inlines = [MemberInline]
    own_fields = [
        *("slug", "name", "plan", "rate_limit_per_minute", "rate_limit_per_day"),
        *("is_confirmed", "is_robin_operator"),
    ]
    facts = ["state", "created_at", "their_keys", "usage"]
    readonly_fields = facts
    actions = [
        act(
            "change_plan",
            _("Change the plan"),
            means=_("The new limits count from the next call on."),
            run=moderation.change_plan,
            form=PlanForm,
        ),
        act(
            "suspend",
            _("Suspend"),
            means=_(
                "Every key of theirs is refused within a second, with 403 workspace_suspended. "
                "Nothing is deleted."
            ),
            run=moderation.suspend_workspace,
            is_grave=True,
            applies=lambda workspace: not workspace.is_suspended_by_staff,
        ),
        act(
            "reinstate",
            _("Reinstate"),
            means=_("Their keys work again."),
            run=moderation.reinstate_workspace,
            applies=lambda workspace: workspace.is_suspended_by_staff,
        ),
    ]

    def get_fields(self, request: HttpRequest, obj: Workspace | None = None) -> list[Any]:
        return [*self.own_fields, *(self.facts if obj else [])]

    def get_inlines(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return self.inlines if obj else []

    def find(self, queryset: QuerySet[Workspace], term: str) -> QuerySet[Workspace]:
        wanted = as_uuid(term)
        if wanted is not None:
            return queryset.filter(pk=wanted)
        if "@" in term:
            member = User.objects.filter(email=normal_email(term))
            return queryset.filter(
                pk__in=Membership.objects.filter(user__in=member).values("workspace")
            )
        return queryset.filter(Q(slug__startswith=term.lower()) | Q(name__istartswith=term))

    def adorn(self, rows: list[Any]) -> None:
        ids = [row.pk for row in rows]
        key_counts = ApiKey.objects.in_use(ids)
        sums = reports.by_subject(ids, recent(), "day")
        for row in rows:
            row.key_count = key_counts.get(row.pk, 0)
            row.request_count = sums.get(row.pk, {}).get("requests", 0)

    @admin.display(description=_("keys in use"))
    def keys(self, workspace: Any) -> int:
        return int(workspace.key_count)

    @admin.display(description=_("requests, 30 days"))
    def requests(self, workspace: Any) -> str:
        return number(workspace.request_count)

    @admin.display(description=_("state"))
    def state(self, workspace: Workspace) -> str:
        if workspace.suspended_at is not None:
            at = dated(workspace.suspended_at, "minute of year")
            return gettext("suspended since %(at)s UTC") % {"at": at}
        return gettext("active") if workspace.is_confirmed else gettext("on trial")

    @admin.display(description=_("API keys"))
    def their_keys(self, workspace: Workspace) -> str:
        found = list(
            workspace.keys.listed().without_policies().order_by("-id")[: KEYS_SHOWN_MAX + 1]
        )
        shown = found[:KEYS_SHOWN_MAX]
        rows: list[tuple[str, str]] = [(link_to(key), gettext(key.status)) for key in shown]
        if len(found) > KEYS_SHOWN_MAX:
            rows.append((gettext("and older ones"), "…"))
        return format_html_join(mark_safe("<br>"), "{}: {}", rows) or gettext("none")

    @admin.display(description=_("usage of 30 days"))
    def usage(self, workspace: Workspace) -> str:
        return usage_of(workspace.pk)

    def save_model(self, request: HttpRequest, obj: Workspace, form: Any, change: bool) -> None:
        if change:
            changes = {name: form.cleaned_data[name] for name in form.changed_data}
            moderation.change_workspace(obj, changes, actor=actor_of(request))
        else:
            moderation.add_workspace(obj, actor=actor_of(request))

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        for member in formset.save(commit=False):
            moderation.add_member(
                member.workspace, member.user, member.role, actor=actor_of(request)
            )
        for member in formset.deleted_objects:
            moderation.remove_member(member, actor=actor_of(request))


def usage_of(subject_id: Any) -> str:
    """The last 30 days of a key or workspace in a line, with the way to its requests."""
    sums = reports.by_subject([subject_id], recent(), "day").get(subject_id)
    if sums is None:
        return gettext("no requests")
    message = gettext(
        "{requests} requests, {flagged} flagged, {errors} errors "
        '(<a href="{log}">requests</a>, <a href="{sums}">by day</a>)'
    )
    return format_html(
        message,
        requests=number(sums["requests"]),
        flagged=number(sums["flagged"]),
        errors=number(sums["errors"]),
        log=f"{reverse('admin:accounts_usagelog_changelist')}?q={subject_id}",
        sums=f"{reverse('admin:accounts_usagerollup_changelist')}?q={subject_id}",
    )
