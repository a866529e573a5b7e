"""The admin's site: its first page with the state of the installation, and the breakers' page."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.account.views import LogoutView
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from redis.exceptions import RedisError

from accounts import moderation, roles
from accounts.services import Actor
from gateway_project.core.api.forms import ModelForm
from gateway_project.core.context import context_of
from gateway_project.core.storable import unstorable
from gateway_project.core.upstream import breaker
from gateway_project.staff import labels, numbers
from portal.members import require_fresh_sign_in

LEFT_OUT = {
    # Second factors' secrets and sessions' keys are nobody's to see, and confirming an address here
    # would leave its workspaces on trial: the page of the user does it whole.
    "account.emailaddress",
    "account.emailconfirmation",
    "mfa.authenticator",
    "socialaccount.socialaccount",
    "socialaccount.socialapp",
    "socialaccount.socialtoken",
    "usersessions.usersession",
    # Deleting one of the periodic tasks would stop what customers rely on; the code has them.
    "django_celery_beat.clockedschedule",
    "django_celery_beat.crontabschedule",
    "django_celery_beat.intervalschedule",
    "django_celery_beat.periodictask",
    "django_celery_beat.solarschedule",
}
HELD = {
    "open": _("The breaker of %(name)s is held open in every process."),
    "closed": _("The breaker of %(name)s is held closed in every process."),
    "auto": _("The breaker of %(name)s decides by itself again in every process."),
}
STATES = tuple(HELD)


def _of_known_ids(page: admin.ModelAdmin[Any]) -> Callable[..., Any]:
    """Its actions, for ids that can be ones: Django would ask the database for any text."""
    act = page.response_action

    def response_action(request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for text in request.POST.getlist(ACTION_CHECKBOX_NAME):
            try:
                is_one = unstorable(page.opts.pk.to_python(text)) is None
            except ValidationError:
                is_one = False
            if not is_one:
                messages.error(request, gettext("There is no such row. Nothing was done."))
                return None
        return act(request, queryset)

    return response_action


def _save_changes(request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
    """Django's would write all columns, as they were when the page was opened."""
    form.save_row()


class BackgroundWork(admin.ModelAdmin):  # type: ignore[type-arg]
    """What beat sends, to look at: the code has the schedule."""

    list_display = ("name", "task", "interval", "last_run_at", "total_run_count")
    list_display_links = None
    search_fields = ("name",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StaffSite(admin.AdminSite):
    index_template = "staff/index.html"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Django's writes down first what it then deletes, each by itself.
        self.add_action(transaction.atomic(delete_selected), "delete_selected")

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Staff without a second factor are led to setting one up (`STAFF_TWO_FACTORS`)."""
        inner = super().admin_view(view, cacheable)

        @wraps(inner)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if self.has_permission(request) and roles.lacks_factor(request.user):
                message = gettext("Staff sign in with two factors: add a passkey or an app first.")
                messages.error(request, message)
                return HttpResponseRedirect(reverse("mfa_index"))
            is_action = request.method == "POST" and not getattr(view, "is_no_action", False)
            if is_action and self.has_permission(request):
                require_fresh_sign_in(request)
            return inner(request, *args, **kwargs)

        return wrapped

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        models = (
            model_or_iterable
            if isinstance(model_or_iterable, list | tuple)
            else [model_or_iterable]
        )
        shown = [
            model
            for model in models
            if model._meta.label_lower not in LEFT_OUT or admin_class is BackgroundWork
        ]
        super().register(shown, admin_class, **options)
        for model in shown:
            page = self._registry.get(model)  # a model that is swapped out has none
            for each in (model, *(one.model for one in getattr(page, "inlines", ()))):
                labels.translate(each)
            if page is not None and page.form is forms.ModelForm:
                page.form = ModelForm
            if page is not None:
                page.response_action = _of_known_ids(page)  # type: ignore[method-assign]
                if type(page).save_model is admin.ModelAdmin.save_model:
                    page.save_model = _save_changes  # type: ignore[method-assign]

    def get_urls(self) -> list[Any]:
        # It stands on `accounts.admin`, which registers its models here, and so needs us first.
        from gateway_project.staff import desk

        return [
            path("breakers/", self.admin_view(self.breakers), name="breakers"),
            *desk.urls(self),
            # The portal's way out: it is audited, and asks for no password of who would leave.
            path("logout/", LogoutView.as_view(), name="logout"),
            *super().get_urls(),
        ]

    @transaction.atomic
    def password_change(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return super().password_change(request, extra_context)

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        context = {**(extra_context or {}), "board": numbers.dashboard()}
        return super().index(request, context)

    def breakers(self, request: HttpRequest) -> HttpResponse:
        """Every web process' view of every breaker; superusers hold them open or closed."""
        everywhere = breaker.ask_everywhere()
        worst = everywhere.worst()
        if request.method == "POST":
            roles.must(request.user, "run")
            self._force(request, set(worst))
            return HttpResponseRedirect(reverse("admin:breakers"))
        context = {
            **self.each_context(request),
            "title": gettext("Circuit breakers"),
            "everywhere": everywhere,
            "breakers": worst,
            "processes": [
                (process, [(name, reports.get(name)) for name in worst])
                for process, reports in everywhere.processes.items()
            ],
            "states": STATES,
            "may_force": "run" in roles.rights_of(request.user),
        }
        return TemplateResponse(request, "staff/breakers.html", context)

    @staticmethod
    def _force(request: HttpRequest, names: set[str]) -> None:
        name, state = request.POST.get("name", ""), request.POST.get("state", "")
        if name not in names or state not in STATES:
            messages.error(
                request, gettext("There is no such breaker or state. Nothing was changed.")
            )
            return
        # Not `accounts.admin`'s: that registers its models here, and so needs us first.
        actor = Actor.of(request.user.email, context_of(request))  # type: ignore[union-attr]
        try:
            moderation.force_breaker(name, state, actor=actor)  # type: ignore[arg-type]
        except (RedisError, OSError):
            text = gettext(
                "Redis did not say whether it was changed. Look below before you do it again."
            )
            messages.error(request, text)
            return
        text = HELD[state] % {"name": name}
        messages.success(request, text)
