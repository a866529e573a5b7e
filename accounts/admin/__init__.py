"""Staff's view of tenants and keys. A key's text is shown once, when it is made."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from pydantic import ValidationError

from accounts import authentication, services
from accounts.events import audit
from accounts.models import ApiKey, AuditEvent, Membership, Plan, UsageLog, User, Workspace
from accounts.schemas import KeyRequest
from accounts.services import Actor
from gateway_project.core.middleware import context_of


def actor_of(request: HttpRequest) -> Actor:
    context = context_of(request)
    email = getattr(request.user, "email", "staff")
    return Actor(email, context.client_ip, context.request_id)


def audit_form(action: str, request: HttpRequest, obj: Any, form: Any) -> None:
    fields = sorted(form.changed_data)
    audit(action, target=obj.pk, fields=fields, **actor_of(request).fields())


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ["user", "workspace"]


@admin.register(User)
class AccountAdmin(UserAdmin):
    list_display = ["email", "is_confirmed", "is_active", "is_staff", "date_joined", "last_login"]
    list_filter = ["is_active", "is_staff", "is_superuser"]
    search_fields = ["email", "username", "first_name"]
    ordering = ["-date_joined"]
    inlines = [MembershipInline]
    actions = ["confirm_email", "deactivate"]
    fieldsets = [
        (None, {"fields": ["email", "username", "password"]}),
        ("Person", {"fields": ["first_name", "last_name", "email_confirmed_at"]}),
        ("Rights", {"fields": ["is_active", "is_staff", "is_superuser", "groups"]}),
        ("Dates", {"fields": ["last_login", "date_joined"]}),
    ]
    add_fieldsets = [
        (None, {"classes": ["wide"], "fields": ["email", "username", "password1", "password2"]}),
    ]
    readonly_fields = ["last_login", "date_joined", "email_confirmed_at"]

    @admin.display(boolean=True, description="confirmed", ordering="email_confirmed_at")
    def is_confirmed(self, user: User) -> bool:
        return user.email_confirmed_at is not None

    @admin.action(description="Confirm the e-mail of the chosen users")
    def confirm_email(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.confirm_email(user, actor=actor_of(request))
        self.message_user(request, f"Confirmed: {queryset.count()}.")

    @admin.action(description="Deactivate the chosen users")
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            audit("user.deactivated", target=user.pk, **actor_of(request).fields())
        count = queryset.update(is_active=False)
        self.message_user(request, f"Deactivated: {count}.")


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):
    list_display = ["name", "rate_limit_per_minute", "rate_limit_per_day", "log_days"]

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit_form("plan.changed", request, obj, form)
        authentication.forget_all()


@admin.register(Workspace)
class WorkspaceAdmin(admin.ModelAdmin):
    list_display = ["slug", "name", "plan", "is_confirmed", "keys", "created_at"]
    list_filter = ["plan", "is_confirmed"]
    search_fields = ["slug", "name", "members__email"]
    inlines = [MembershipInline]
    readonly_fields = ["created_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Workspace]:
        found: QuerySet[Workspace] = super().get_queryset(request)
        return found.annotate(key_count=Count("keys", distinct=True))

    @admin.display(ordering="key_count")
    def keys(self, workspace: Any) -> int:
        return int(workspace.key_count)

    def save_model(self, request: HttpRequest, obj: Workspace, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit_form("workspace.changed", request, obj, form)
        authentication.forget_all()


class KeyForm(forms.ModelForm):
    """The API's rules for the fields of a key, except that staff may go beyond the plan."""

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if "allowed_cidrs" in values:
            values["allowed_cidrs"] = values["allowed_cidrs"] or []
        for field in set(values) & (set(KeyRequest.model_fields) - {"expires_at"}):
            model = KeyRequest.model_construct()
            try:
                KeyRequest.__pydantic_validator__.validate_assignment(model, field, values[field])
            except ValidationError as exc:
                self.add_error(field, "; ".join(error["msg"] for error in exc.errors()))
            else:
                values[field] = getattr(model, field)
        return values


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    form = KeyForm
    list_display = ["name", "workspace", "shown", "status", "last_used_at", "created_at"]
    list_filter = ["revoked_at", "created_at"]
    list_select_related = ["workspace"]
    search_fields = ["name", "prefix", "last4", "workspace__slug"]
    autocomplete_fields = ["workspace"]
    date_hierarchy = "created_at"
    actions = ["revoke"]
    own_fields = [
        "name",
        "scopes",
        "allowed_cidrs",
        "rate_limit_per_minute",
        "rate_limit_per_day",
        "expires_at",
    ]
    facts = ["shown", "status", "created_at", "last_used_at", "last_used_ip", "grace_until"]

    @admin.display(description="key")
    def shown(self, key: ApiKey) -> str:
        return f"{key.prefix}…{key.last4}"

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[Any]:
        return ["workspace", *self.own_fields, *(self.facts if obj else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        if obj is None:
            return []
        if obj.revoked_at is not None:
            return ["workspace", *self.own_fields, *self.facts]
        return ["workspace", *self.facts]

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        values = {field: form.cleaned_data[field] for field in form.cleaned_data}
        if change:
            changed = {field: values[field] for field in form.changed_data}
            if changed:
                services.update_key(obj, changed, actor=actor_of(request), within_plan=False)
            return
        workspace = values.pop("workspace")
        made, text = services.issue_key(workspace, actor=actor_of(request), **values)
        obj.__dict__.update(made.__dict__)
        messages.success(request, format_html("The key, shown this once: <code>{}</code>", text))

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False  # revoked keys stay, or the log would point nowhere

    @admin.action(description="Revoke the chosen keys")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset.select_related("workspace"):
            services.revoke_key(key, actor=actor_of(request))
        self.message_user(request, f"Revoked: {queryset.count()}.", messages.WARNING)


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that only the gateway writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(UsageLog)
class UsageLogAdmin(ReadOnlyAdmin):
    list_display = [
        "created_at",
        "endpoint",
        "http_status",
        "decision",
        "source",
        "response_time_ms",
        "api_key_id",
    ]
    list_filter = ["http_status", "decision", "source"]
    search_fields = ["request_id", "api_key_id"]
    ordering = ["-created_at"]
    show_full_result_count = False


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ["at", "action", "actor", "workspace", "target", "client_ip"]
    list_filter = ["action"]
    list_select_related = ["workspace"]
    search_fields = ["actor", "target", "workspace__slug", "request_id"]
    date_hierarchy = "at"
