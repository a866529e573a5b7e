"""Roles and sessions in the Django admin: who may give one, and ending the other."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import RequestFactory

from accounts.models import AuditEvent, User
from robin import tasks
from robin.models import RefreshFamily, RobinAccess


@pytest.fixture
def request_of(gateway, monkeypatch):
    def make(**rights):
        request = RequestFactory().get("/admin/")
        request.user = User.objects.create_user("root@gateway.example", is_staff=True, **rights)
        return request

    for model in (RefreshFamily, RobinAccess):
        site = admin.site._registry[model]
        monkeypatch.setattr(site, "message_user", lambda *args: None)
    return make


def test_only_superusers_give_roles(request_of):
    site, request = admin.site._registry[RobinAccess], request_of()

    def rights():
        return [
            check(request)
            for check in (
                site.has_add_permission,
                site.has_change_permission,
                site.has_delete_permission,
            )
        ]

    assert rights() == [False] * 3
    request.user.is_superuser = True
    assert rights() == [True] * 3


def test_giving_and_taking_is_audited(request_of, member):
    site, request = admin.site._registry[RobinAccess], request_of(is_superuser=True)
    dev = member(None, signed_in=False).user

    form = site.get_form(request)({"user": dev.pk, "role": "ROLE_USER"})
    site.save_model(request, form.save(commit=False), form, change=False)
    access = RobinAccess.objects.get()
    form = site.get_form(request, access)({"user": dev.pk, "role": "ROLE_ADMIN"}, instance=access)
    site.save_model(request, form.save(commit=False), form, change=True)
    site.delete_queryset(request, RobinAccess.objects.all())

    assert not RobinAccess.objects.exists()
    events = AuditEvent.objects.filter(target=str(dev.pk), action__startswith="robin.access")
    recorded = [(e.action, e.details.get("changes")) for e in events.order_by("id")]
    assert recorded == [
        ("robin.access_given", {"role": [None, "ROLE_USER"]}),
        ("robin.access_given", {"role": ["ROLE_USER", "ROLE_ADMIN"]}),
        ("robin.access_taken", None),
    ]
    assert {e.actor for e in events} == {"root@gateway.example"}


def test_a_session_can_be_ended_and_nothing_else(request_of, member):
    site, request = admin.site._registry[RefreshFamily], request_of(is_superuser=True)
    ada = member()

    site.revoke(request, RefreshFamily.objects.all())

    assert ada.get("/api/v1/auth/me").status_code == 401
    assert not site.has_add_permission(request)
    assert not site.has_change_permission(request)
    assert not site.has_delete_permission(request)


def test_the_worker_prunes(member):
    member()

    assert tasks.prune() == 0
