"""Staff's view of who may use Robin, and of their sessions."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin.lists import actor_of
from accounts.events import audit
from robin import sessions
from robin.models import RefreshFamily, RobinAccess


@admin.register(RobinAccess)
class RobinAccessAdmin(admin.ModelAdmin):
    """Only superusers give roles; others of staff may look, when they have the right to."""

    list_display = ["user", "role", "created_at"]
    list_filter = ["role"]
    list_select_related = ["user"]
    search_fields = ["user__email", "user__username"]
    autocomplete_fields = ["user"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(getattr(request.user, "is_superuser", False))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_add_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_add_permission(request)

    def save_model(self, request: HttpRequest, obj: RobinAccess, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        fields = actor_of(request).fields()
        audit("robin.access_given", target=obj.user_id, role=obj.role, **fields)

    def delete_model(self, request: HttpRequest, obj: RobinAccess) -> None:
        audit("robin.access_taken", target=obj.user_id, role=obj.role, **actor_of(request).fields())
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[RobinAccess]) -> None:
        for access in queryset:
            self.delete_model(request, access)


@admin.register(RefreshFamily)
class SessionAdmin(admin.ModelAdmin):
    """Sessions can be ended here, and nothing else."""

    list_display = ["user", "created_at", "expires_at", "client_ip", "revoked_at", "user_agent"]
    list_filter = ["revoked_because", "created_at"]
    list_select_related = ["user"]
    search_fields = ["user__email"]
    exclude = ["password_stamp"]
    actions = ["revoke"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.action(description="End the chosen sessions", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[RefreshFamily]) -> None:
        for family in queryset:
            sessions.revoke(family.pk, because="staff", actor=actor_of(request))
        self.message_user(request, f"Ended: {queryset.count()}.")
