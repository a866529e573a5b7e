"""Staff's view of who may use Robin, and of their sessions."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.admin.actions import each
from accounts.admin.lists import Choice, ReadOnly, actor_of, as_uuid
from accounts.events import audit
from accounts.models import User, normal_email
from gateway_project.core.language import number
from robin.access import sessions
from robin.config import documents
from robin.models import BlocklistEntry, Document, RefreshFamily, RobinAccess


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
        form.save_row()
        changes = (
            {"role": [form.initial.get("role"), obj.role]} if "role" in form.changed_data else {}
        )
        fields = actor_of(request).fields()
        audit("robin.access_given", target=obj.user_id, role=obj.role, changes=changes, **fields)

    def delete_model(self, request: HttpRequest, obj: RobinAccess) -> None:
        audit("robin.access_taken", target=obj.user_id, role=obj.role, **actor_of(request).fields())
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[RobinAccess]) -> None:
        for access in queryset:
            self.delete_model(request, access)


class Ended(Choice):
    title = _("state")
    parameter_name = "state"
    options = {
        "open": (_("Not ended"), {"revoked_at": None}),
        "ended": (_("Ended"), {"revoked_at__isnull": False}),
    }


@admin.register(RefreshFamily)
class SessionAdmin(ReadOnly):
    """Sessions can be ended here, and nothing else."""

    list_display = ["user", "created_at", "expires_at", "client_ip", "revoked_at", "user_agent"]
    list_filter = [Ended]
    list_select_related = ["user"]
    search_help_text = _("A person's whole e-mail address, or an id.")
    exclude = ["password_stamp"]
    actions = ["revoke"]

    def find(self, queryset: QuerySet[RefreshFamily], term: str) -> QuerySet[RefreshFamily]:
        wanted = as_uuid(term)
        if wanted is not None:
            return queryset.filter(pk=wanted)
        people = User.objects.filter(email=normal_email(term)).values_list("pk", flat=True)
        return queryset.filter(user__in=list(people))

    @admin.action(description=_("End the chosen sessions"), permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[RefreshFamily]) -> None:
        actor = actor_of(request)
        done = each(
            self,
            request,
            list(queryset),
            lambda row: sessions.revoke(row.pk, because="staff", actor=actor),
        )
        self.message_user(request, gettext("Ended: %(n)s.") % {"n": number(done)})

    revoke.applies = lambda family: family.revoked_at is None  # type: ignore[attr-defined]


@admin.register(Document)
class DocumentAdmin(ReadOnly):
    """Changed in Robin UI alone. A password in it is not shown."""

    list_display = ["name", "updated_at", "updated_by"]
    ordering = ["name"]
    fields = ["name", "shown", "updated_at", "updated_by"]
    search_help_text = _("dovecot, clamav or rspamd.")

    def find(self, queryset: QuerySet[Document], term: str) -> QuerySet[Document]:
        return queryset.filter(pk=term.lower())

    @admin.display(description=_("content"))
    def shown(self, document: Document) -> str:
        return json.dumps(documents.shown(document.content), indent=2)


@admin.register(BlocklistEntry)
class BlocklistEntryAdmin(ReadOnly):
    """Changed in Robin UI, or by import."""

    list_display = ["value", "type", "active", "reason", "expires_at", "created_by", "created_at"]
    search_help_text = _("A whole address, network or domain.")

    def find(self, queryset: QuerySet[BlocklistEntry], term: str) -> QuerySet[BlocklistEntry]:
        # By both columns of its index.
        return queryset.filter(type__in=BlocklistEntry.Type.values, value=term.lower())
