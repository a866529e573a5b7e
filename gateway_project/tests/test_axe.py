"""Every page of the portal and of the admin, of a workspace with 200 keys, names of a hundred
characters and names that read from the right: axe-core finds nothing of any weight, in both themes,
at a desk and on a phone; none is wider than the window, and none is heavy.
"""

from __future__ import annotations

import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from accounts.models import Parked, UsageRollup, User, Workspace
from accounts.usage import reports
from gateway_project.staff import actions, desk
from gateway_project.tests.test_browser import (  # noqa: F401 - fixtures
    MEMBERS_PAGES,
    PASSWORD,
    STRANGERS_PAGES,
    _served_site,
    dana,
    mail_folder,
    mailbox,
    served_site,
    sign_in,
    site,
    staff,
)
from portal.models import Announcement, Incident, StaffAct, StaffNote
from portal.tests import furnished
from portal.tests.browser import DESK, NARROW, PAGE_BYTES_MAX
from portal.tests.furnished import HEBREW, furnish, many_keys
from robin.models import BlocklistEntry, Document, RefreshFamily, RobinAccess

pytestmark = [pytest.mark.slow, pytest.mark.served, pytest.mark.timeout(400)]
ADMIN_BYTES_MAX = 400_000
"""With Django's own scripts (its lists of choices come with jQuery)."""
CONFIRMED = [("workspace", "change_plan"), ("workspace", "suspend"), ("apikey", "change_limits")]
SUPERUSERS = SimpleNamespace(
    user=SimpleNamespace(is_superuser=True, is_active=True, is_staff=True, has_perm=lambda *_: True)
)
KEYS = 200
ACCOUNTS_PAGES = [path for path in MEMBERS_PAGES if path.startswith("/accounts/")]
"""allauth's, behind the sign-in."""


@pytest.fixture
def full(dana):  # noqa: F811
    """Dana's workspace; the ids of its things."""
    workspace = Workspace.objects.get(members=dana)
    many_keys(workspace, KEYS)
    return furnish(workspace, HEBREW)


def test_axe_finds_nothing_and_no_page_is_heavy(site, full, open_tab):  # noqa: F811
    tab = open_tab(site, width=DESK)
    wrong = []
    for path in STRANGERS_PAGES:
        wrong += look(tab, path)
    sign_in(tab)
    tab.page.wait_for_url("**/app/")
    for path in [*furnished.pages(full), *ACCOUNTS_PAGES]:
        wrong += look(tab, path)

    assert not wrong, "\n".join(wrong)


def test_nor_does_it_in_the_admin(site, full, dana, staff, open_tab):  # noqa: F811
    workspace = Workspace.objects.get(members=dana)
    rows = furnish_admin(workspace, dana)
    tab = open_tab(site, width=DESK)
    sign_in(tab, email=staff.email)
    tab.page.wait_for_url(lambda url: "/login/" not in url)
    wrong = []
    for path in [*admin_pages(rows), *desk_pages(workspace, full)]:
        wrong += look(tab, path, bytes_max=ADMIN_BYTES_MAX)
    for name, act in CONFIRMED:
        tab.go(f"/admin/accounts/{name}/")
        tab.page.locator("#action-toggle").click()
        tab.page.locator("select[name=action]").select_option(act)
        tab.press("Go")
        tab.page.get_by_role("link", name="No, take me back").wait_for()
        wrong += at_all_sizes(tab, f"{name}: {act}")

    assert not wrong, "\n".join(wrong)


def look(tab, path, bytes_max=PAGE_BYTES_MAX):
    """What is wrong with a page, which is loaded once."""
    weight = tab.weight(path)
    if "/accounts/reauthenticate/" in tab.page.url:
        tab.fill(Password=PASSWORD)
        tab.press("Continue")
    found = [f"{path}: {weight:,} bytes"] if weight >= bytes_max else []
    return found + at_all_sizes(tab, path)


def at_all_sizes(tab, path):
    """At a desk and on a phone, all of axe's rules in one theme and contrasts in the other."""
    found = []
    for width, theme in ((NARROW, "dark"), (DESK, "light")):
        tab.turn(theme, width)
        found += [f"{width}, {theme}: {one}" for one in tab.findings()]
        if (over := tab.overflow()) > 0:
            found.append(f"{width}: {over} px wider than the window")
    found += tab.troubles + tab.violations()
    tab.troubles.clear()
    return [f"{path}: {one}" for one in found]


# -- The admin ------------------------------------------------------------------------------------


def furnish_admin(workspace, dana):  # noqa: F811
    """One row of each table that the admin has, by model."""
    later = timezone.now() + timedelta(hours=1)
    incident = Incident.objects.create(title="Slow answers", components=["engine"])
    incident.updates.create(text="We are looking.", written_by="ann@gateway.example")
    Announcement.objects.create(text="Down on Sunday.", ends_at=later)
    StaffAct.objects.create(
        workspace=workspace, act="suspend", reason="They asked.", done_by="x", until=later
    )
    StaffNote.objects.create(workspace=workspace, text=f"{HEBREW}, likes tea.", written_by="x")
    Parked.objects.create(kind="usage.row", origin="x", error="DataError")
    RobinAccess.objects.create(user=dana, role="ROLE_ADMIN")
    RefreshFamily.objects.create(user=dana, password_stamp="x", user_agent="Firefox",
                                 expires_at=later)  # fmt: skip
    Document.objects.get_or_create(name="dovecot", defaults={"content": {}, "updated_by": "x"})
    BlocklistEntry.objects.create(value="192.0.2.1", type="ip", reason="spam", created_by="x")
    every, _ = IntervalSchedule.objects.get_or_create(every=60, period="seconds")
    PeriodicTask.objects.get_or_create(
        name="undo-acts", defaults={"task": "gateway_project.tasks.undo_acts", "interval": every}
    )
    Group.objects.get_or_create(name="support")
    UsageRollup.objects.get_or_create(
        period="day", bucket=reports.floor(timezone.now(), "day"), subject_id=workspace.pk,
        endpoint="/v1/detect", http_status=200, defaults={"requests": 3},
    )  # fmt: skip
    return {model: model._default_manager.first() for model in admin.site._registry}


def admin_pages(rows):
    """Each page of Django's admin that is opened by its address."""
    yield "/admin/"
    for model, page in admin.site._registry.items():
        begin = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        assert rows[model] is not None, f"furnish_admin makes none of {model.__name__}"
        yield begin
        yield reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change",
                      args=[rows[model].pk])  # fmt: skip
        if page.has_add_permission(SUPERUSERS):
            yield f"{begin}add/"
        if page.has_delete_permission(SUPERUSERS):
            yield f"{begin}{rows[model].pk}/delete/"
    yield from ("/admin/accounts/", "/admin/breakers/", "/admin/password_change/")
    user = reverse("admin:auth_user_password_change", args=[rows[User].pk])
    yield from (user, f"/admin/accounts/user/{rows[User].pk}/history/")
    yield "/admin/accounts/usagelog/?range=last+30+days"


def desk_pages(workspace, full):
    asked = full.request_id
    yield from ("/admin/desk/", "/admin/desk/?q=nobody", "/admin/desk/?q=@initech.example")
    yield from (f"/admin/desk/{workspace.pk}/", f"/admin/desk/{workspace.pk}/?request={asked}")
    yield from (f"/admin/desk/{workspace.pk}/{name}/" for name in actions.ACTIONS)
    for pattern in desk.urls(admin.site):
        if not re.search(r"<|note|stop-seeing", str(pattern.pattern)):
            yield f"/admin/{pattern.pattern}"
