"""Incidents on the status page and announcements in the portal, as staff write them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from accounts.admin.actions import act
from accounts.admin.lists import Listing, actor_of, as_uuid
from accounts.events import audit
from accounts.roles import rights_of
from gateway_project.core import clock
from gateway_project.core.api.forms import Form
from gateway_project.core.language import number
from portal import mailings
from portal.models import Announcement, Incident, IncidentUpdate, Mailing


class MailForm(Form):
    subject = forms.CharField(label=_("Subject"), max_length=120)
    is_important = forms.BooleanField(
        required=False,
        label=_("Important"),
        help_text=_("Goes to those as well who want no news, and cannot be turned off."),
    )


def mailing_of(row: Announcement) -> Mailing | None:
    return getattr(row, "mailing", None)


def may_run(request: HttpRequest) -> bool:
    return "run" in rights_of(request.user)


class UpdateInline(admin.StackedInline):  # type: ignore[type-arg]
    """Only added to: readers of the feed have what was said."""

    model = IncidentUpdate
    fields = ["state", "text"]
    extra = 1
    can_delete = False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # of whoever sees the incident

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_run(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class OperatorsWrite(Listing):
    """For who may `run` the gateway (`accounts/roles.py`); others look, if they may view it."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return may_run(request) or super().has_module_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_run(request) or super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return may_run(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_run(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # readers have it


@admin.register(Incident)
class IncidentAdmin(OperatorsWrite):
    list_display = ["title", "impact", "started_at", "resolved_at"]
    fields = ["title", "impact", "components", "started_at", "resolved_at"]
    inlines = [UpdateInline]
    search_help_text = _("An id.")

    def find(self, queryset: Any, term: str) -> Any:
        wanted = as_uuid(term)
        return queryset.filter(pk=wanted) if wanted else queryset.none()

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        incident: Incident = form.instance
        for update in formset.save(commit=False):
            update.written_by = actor_of(request).name
            update.save()
            if update.state == IncidentUpdate.State.RESOLVED and incident.resolved_at is None:
                incident.resolved_at = clock.now()
                incident.save(update_fields=["resolved_at"])
            audit(
                "incident.told",
                target=incident.pk,
                state=update.state,
                **actor_of(request).fields(),
            )


@admin.register(Announcement)
class AnnouncementAdmin(OperatorsWrite):
    """A banner from its begin to its end (to take it back, end it), and a mail if staff say so."""

    list_display = ["text", "level", "plan", "starts_at", "ends_at", "by_mail"]
    list_select_related = ["plan", "mailing"]
    own_fields = ["text", "level", "plan", "starts_at", "ends_at"]
    readonly_fields = ["by_mail"]
    ordering = ["-starts_at"]
    search_help_text = _("An id.")
    actions = [
        act(
            "send_by_mail",
            _("Send by mail, too"),
            means=_(
                "To each confirmed address that it is for, once, by the worker: those who want no "
                "news get none, unless it is important. It cannot be called back, only stopped."
            ),
            run=mailings.begin,
            form=MailForm,
            applies=lambda row: mailing_of(row) is None,
        ),
        act(
            "stop_mailing",
            _("Stop the mails"),
            means=_("Who has not got it by now gets none. The banner stays."),
            run=mailings.stop,
            is_grave=True,
            applies=lambda row: bool((it := mailing_of(row)) and it.finished_at is None),
        ),
        act(
            "mail_again",
            _("Send to those of whom nobody knows"),
            means=_(
                "A worker or the mail server went away while their mail was sent. Some of them "
                "have it, and get it twice."
            ),
            run=mailings.send_again,
            applies=lambda row: bool((it := mailing_of(row)) and it.unknown),
        ),
    ]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [*self.own_fields, *(["by_mail"] if obj else [])]

    @admin.display(description=_("by mail"))
    def by_mail(self, row: Announcement) -> str:
        """How far it is."""
        mailing = mailing_of(row)
        if mailing is None:
            return gettext("no")
        if mailing.total is None:
            return gettext("about to begin")
        facts = {"sent": number(mailing.sent), "total": number(mailing.total)}
        parts = [gettext("%(sent)s of %(total)s sent") % facts]
        for count, sentence in (
            (mailing.skipped, gettext_noop("%(n)s did not want it")),
            (mailing.refused, gettext_noop("%(n)s refused")),
            (len(mailing.unknown), gettext_noop("%(n)s: nobody knows")),
        ):
            parts += [gettext(sentence) % {"n": number(count)}] if count else []
        summary = ", ".join(parts)
        if mailing.finished_at is None:
            return format_html(
                '<progress max="{}" value="{}" aria-label="{}"></progress> {}',
                mailing.total or 1, mailing.done, summary, summary,
            )  # fmt: skip
        end = gettext("stopped") if mailing.is_stopped else gettext("over")
        return f"{summary}; {end}"

    def find(self, queryset: Any, term: str) -> Any:
        wanted = as_uuid(term)
        return queryset.filter(pk=wanted) if wanted else queryset.none()

    def save_model(self, request: HttpRequest, obj: Announcement, form: Any, change: bool) -> None:
        form.save_row()
        changes = {
            name: [str(form.initial.get(name, "")), str(form.cleaned_data[name])]
            for name in form.changed_data
        }
        audit(
            "announcement.saved",
            target=obj.pk,
            text=obj.text,
            changes=changes,
            **actor_of(request).fields(),
        )
