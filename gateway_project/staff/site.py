"""The admin's site: its first page with the state of the installation, and the breakers' page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from redis.exceptions import RedisError

from accounts import moderation
from accounts.services import Actor
from gateway_project.core.api.forms import ModelForm
from gateway_project.core.context import context_of
from gateway_project.core.storable import unstorable
from gateway_project.core.upstream import breaker
from gateway_project.staff import numbers

LEFT_OUT = {
    # Second factors' secrets and sessions' keys are nobody's to see, and confirming an address here
    # would leave its workspaces on trial: the page of the user does it whole.
    "account.emailaddress",
    "account.emailconfirmation",
    "mfa.authenticator",
    "usersessions.usersession",
}
STATES = ("open", "closed", "auto")


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
                messages.error(request, "There is no such row. Nothing was done.")
                return None
        return act(request, queryset)

    return response_action


class StaffSite(admin.AdminSite):
    index_template = "staff/index.html"

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        models = (
            model_or_iterable
            if isinstance(model_or_iterable, list | tuple)
            else [model_or_iterable]
        )
        shown = [model for model in models if model._meta.label_lower not in LEFT_OUT]
        super().register(shown, admin_class, **options)
        for model in shown:
            page = self._registry.get(model)  # a model that is swapped out has none
            if page is not None and page.form is forms.ModelForm:
                page.form = ModelForm
            if page is not None:
                page.response_action = _of_known_ids(page)  # type: ignore[method-assign]

    def get_urls(self) -> list[Any]:
        return [
            path("breakers/", self.admin_view(self.breakers), name="breakers"),
            *super().get_urls(),
        ]

    def index(self, request: HttpRequest, extra_context: Any = None) -> TemplateResponse:
        context = {**(extra_context or {}), "board": numbers.dashboard()}
        return super().index(request, context)

    def breakers(self, request: HttpRequest) -> HttpResponse:
        """Every web process' view of every breaker; superusers hold them open or closed."""
        everywhere = breaker.ask_everywhere()
        worst = everywhere.worst()
        if request.method == "POST":
            if not getattr(request.user, "is_superuser", False):
                raise PermissionDenied
            self._force(request, set(worst))
            return HttpResponseRedirect(reverse("admin:breakers"))
        context = {
            **self.each_context(request),
            "title": "Circuit breakers",
            "everywhere": everywhere,
            "breakers": worst,
            "processes": [
                (process, [(name, reports.get(name)) for name in worst])
                for process, reports in everywhere.processes.items()
            ],
            "states": STATES,
            "may_force": getattr(request.user, "is_superuser", False),
        }
        return TemplateResponse(request, "staff/breakers.html", context)

    @staticmethod
    def _force(request: HttpRequest, names: set[str]) -> None:
        name, state = request.POST.get("name", ""), request.POST.get("state", "")
        if name not in names or state not in STATES:
            messages.error(request, "There is no such breaker or state. Nothing was changed.")
            return
        # Not `accounts.admin`'s: that registers its models here, and so needs us first.
        actor = Actor.of(request.user.email, context_of(request))  # type: ignore[union-attr]
        try:
            moderation.force_breaker(name, state, actor=actor)  # type: ignore[arg-type]
        except (RedisError, OSError):
            messages.error(request, "Redis did not answer. Nothing was changed.")
            return
        text = "decides by itself again" if state == "auto" else f"is held {state}"
        messages.success(request, f"The breaker of {name} {text} in every process.")
