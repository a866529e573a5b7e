"""/api/v1/users: who has a role, and who may change that."""

from __future__ import annotations

import re

import pytest
from allauth.account.models import EmailAddress
from django.conf import settings
from django.utils import timezone

from accounts.models import AuditEvent, Membership, User, Workspace
from accounts.moderation import suspend_user
from accounts.services import Actor, confirm_email, register
from accounts.tests.shapes import refusal
from gateway_project.core.stores import deletion
from robin import tasks
from robin.models import QueueJob, RobinAccess
from robin.permissions import PERMISSIONS, Permission
from robin.queue import jobs
from robin.tests.conftest import PASSWORD

URL = "/api/v1/users"
NEW = {
    "username": "newcomer",
    "email": "new@robin.example",
    "password": "correct horse battery",
    "roles": ["ROLE_USER"],
}


@pytest.fixture
def root(member):
    return member("ROLE_ADMIN", by_hand=True, is_superuser=True)


@pytest.fixture
def admin(member):
    return member("ROLE_ADMIN", by_hand=True)


def put(person, user, **changes):
    return person.request("PUT", f"{URL}/{user.username}", json=changes)


class TestList:
    def test_it_shows_those_with_a_role_and_nobody_else(self, member, admin):
        member(None, by_hand=True)

        r = admin.get(URL)

        assert [u["email"] for u in r.json()["results"]] == [admin.user.email]
        assert r.json()["next"] is None
        assert "password" not in r.text

    def test_it_has_pages(self, gateway, member, admin):
        for _ in range(3):
            member("ROLE_USER", by_hand=True)
        first = admin.get(URL + "?limit=3").json()
        second = admin.get(first["next"].removeprefix("http://testserver")).json()

        emails = {u["email"] for u in [*first["results"], *second["results"]]}
        assert len(first["results"]) == 3
        assert len(emails) == 4


class TestCreate:
    def test_a_superuser_makes_one_who_can_sign_in(self, gateway, root):
        r = root.post(URL, NEW)

        assert r.status_code == 201
        assert r.json()["roles"] == ["ROLE_USER"]
        body = {"username": "newcomer", "password": NEW["password"]}
        assert gateway.post("/api/v1/auth/login", body).status_code == 200
        [event] = AuditEvent.objects.filter(action="robin.user_created")
        assert event.actor == root.user.email

    @pytest.mark.parametrize("role", ["ROLE_READONLY", "ROLE_USER", "ROLE_OPERATOR", "ROLE_ADMIN"])
    def test_an_administrator_gives_roles_up_to_their_own(self, admin, role):
        r = admin.post(URL, {**NEW, "roles": [role]})

        assert r.status_code == 201
        assert r.json()["roles"] == [role]

    @pytest.mark.parametrize("role", ["ROLE_OPERATOR", "ROLE_ADMIN"])
    def test_nobody_gives_what_is_above_their_own(self, member, settings, monkeypatch, role):
        from robin import permissions

        # A role that manages users and is no administrator: there is none by default.
        powers = {**permissions.PERMISSIONS}
        powers["ROLE_USER"] = powers["ROLE_USER"] | {permissions.Permission.MANAGE_USERS}
        monkeypatch.setattr(permissions, "PERMISSIONS", powers)
        clerk = member("ROLE_USER", by_hand=True)

        r = clerk.post(URL, {**NEW, "roles": [role]})

        assert refusal(r) == (403, "permission_denied")
        assert "above your own" in r.json()["message"]
        assert not User.objects.filter(email=NEW["email"]).exists()

    @pytest.mark.parametrize("address", ["ada@robin.local", "ada@LOCAL.local"])
    def test_addresses_of_the_house_are_a_setting(self, admin, settings, address):
        body = {**NEW, "email": address}
        r = admin.post(URL, body)
        assert refusal(r) == (422, "validation_error")
        assert "ROBIN_LOCAL_DOMAINS" in r.text
        assert "Value error" not in r.text

        settings.ROBIN_LOCAL_DOMAINS = ["local", "internal"]
        assert admin.post(URL, body).json()["email"] == address.lower()
        more = {**body, "email": "bob@mx.internal", "username": "bob"}
        assert admin.post(URL, more).status_code == 201
        for bad in ("ada@", "@robin.local", "a da@robin.local", "ada@ro bin.local", "ada@.local"):
            assert refusal(admin.post(URL, {**body, "email": bad, "username": "other"})) == (
                422, "validation_error",
            )  # fmt: skip

    @pytest.mark.parametrize("field", ["username", "email"])
    def test_a_taken_name_is_409(self, member, root, field):
        taken = {"username": "newcomer"} if field == "username" else {"email": NEW["email"]}
        member("ROLE_USER", signed_in=False, **taken)

        assert refusal(root.post(URL, NEW)) == (409, "conflict")

    @pytest.mark.parametrize(
        "change",
        [
            {"username": "a/b"},
            {"username": "ab"},
            {"username": "other@robin.example"},
            {"email": "x"},
            {"password": "short"},
            {"password": "1234567890"},
            {"password": "x" * 129},
            {"roles": []},
            {"roles": ["ROLE_GOD"]},
            {"roles": ["ROLE_USER", "ROLE_ADMIN"]},
            {"roles": "ROLE_USER"},
            {"isSuperuser": True},
        ],
    )
    def test_bad_fields_are_422(self, root, change):
        r = root.post(URL, {**NEW, **change})

        assert r.status_code == 422
        assert not User.objects.filter(email=NEW["email"]).exists()


class TestChange:
    def test_a_superuser_gives_a_developer_a_role(self, member, root, gateway):
        dev = member(None, signed_in=False)

        r = put(root, dev.user, roles=["ROLE_OPERATOR"])

        assert r.json()["roles"] == ["ROLE_OPERATOR"]
        assert dev.sign_in().status_code == 200

    def test_what_is_left_out_stays(self, member, root):
        ada = member("ROLE_USER", by_hand=True)

        assert put(root, ada.user).json()["email"] == ada.user.email

    def test_an_administrator_sets_a_password_and_that_ends_sessions(self, member, admin):
        ada = member("ROLE_USER")

        assert put(admin, ada.user, password="another long password").status_code == 200

        assert refusal(ada.get("/api/v1/auth/me")) == (401, "invalid_token")
        assert refusal(ada.sign_in()) == (401, "sign_in_refused")
        assert ada.sign_in("another long password").status_code == 200

    def test_a_shut_account_is_out_at_once(self, member, admin):
        ada = member("ROLE_USER", by_hand=True)
        assert ada.get("/api/v1/auth/me").status_code == 200

        assert put(admin, ada.user, isActive=False).json()["isActive"] is False

        assert ada.get("/api/v1/auth/me").status_code == 401

    def test_an_administrator_changes_roles_but_not_their_own(self, member, admin):
        ada = member("ROLE_USER", by_hand=True)

        assert put(admin, ada.user, roles=["ROLE_OPERATOR"]).json()["roles"] == ["ROLE_OPERATOR"]
        assert refusal(put(admin, admin.user, roles=["ROLE_USER"])) == (409, "conflict")
        changed = AuditEvent.objects.get(action="robin.user_changed")
        assert changed.details["changes"] == {"role": ["ROLE_USER", "ROLE_OPERATOR"]}
        put(admin, ada.user, roles=["ROLE_USER"])
        assert put(admin, ada.user, roles=["ROLE_USER"]).status_code == 200  # as it is

    @pytest.mark.parametrize("kind", ["developer", "staff", "superuser"])
    def test_an_administrator_cannot_take_over_who_has_more(self, member, admin, kind):
        victim = member(
            "ROLE_USER", by_hand=True, is_staff=kind == "staff", is_superuser=kind == "superuser"
        ).user
        if kind == "developer":
            workspace = Workspace.objects.create(slug="acme", name="Acme")
            Membership.objects.create(workspace=workspace, user=victim, role="owner")

        for changes in ({"password": "another long password"}, {"email": "eve@robin.example"}):
            assert put(admin, victim, **changes).status_code == 403
        assert admin.request("DELETE", f"{URL}/{victim.username}").status_code == 403
        assert User.objects.get(pk=victim.pk).email == victim.email

    @pytest.mark.parametrize("kind", ["developer", "staff", "superuser"])
    @pytest.mark.hostile
    def test_a_stolen_session_changes_nobody_s_own_account_beyond_robin(self, member, kind):
        """The portal asks for the password again; here there is only the token."""
        ada = member(
            "ROLE_ADMIN", by_hand=True, **{f"is_{kind}": True} if kind != "developer" else {}
        )
        if kind == "developer":
            workspace = Workspace.objects.create(slug="acme", name="Acme")
            Membership.objects.create(workspace=workspace, user=ada.user, role="owner")

        for changes in ({"password": "another long password"}, {"email": "eve@robin.example"}):
            r = put(ada, ada.user, **changes)
            assert refusal(r) == (403, "permission_denied")
            assert "in the portal" in r.json()["message"]
        assert put(ada, ada.user, email=ada.user.email).status_code == 200  # as it is
        assert User.objects.get(pk=ada.user.pk).check_password(PASSWORD)

    def test_one_s_own_is_changed_where_it_is_for_robin_alone(self, admin):
        r = put(admin, admin.user, email="ada@robin.example", password="another long password")

        assert (r.status_code, r.json()["email"]) == (200, "ada@robin.example")

    @pytest.mark.parametrize(("by", "stays"), [("admin", False), ("root", True)])
    def test_an_address_is_confirmed_by_who_has_it_or_by_a_superuser(
        self, request, member, by, stays
    ):
        person = member("ROLE_USER", by_hand=True, email_confirmed_at=timezone.now())
        EmailAddress.objects.create(user=person.user, email=person.user.email, verified=True)
        put(request.getfixturevalue(by), person.user, email="new@robin.example")

        person.user.refresh_from_db()
        assert (person.user.email_confirmed_at is not None) == stays
        assert EmailAddress.objects.get(user=person.user).verified == stays

    def test_who_has_no_role_is_not_there_for_an_administrator(self, member, admin):
        dev = member(None, signed_in=False)

        assert refusal(put(admin, dev.user, isActive=False)) == (404, "not_found")
        assert refusal(put(admin, dev.user, roles=["ROLE_USER"])) == (404, "not_found")

    def test_nobody_shuts_themselves_out(self, root):
        assert refusal(put(root, root.user, isActive=False)) == (409, "conflict")
        assert refusal(put(root, root.user, roles=["ROLE_USER"])) == (409, "conflict")
        assert refusal(root.request("DELETE", f"{URL}/{root.user.username}")) == (409, "conflict")

    def test_anothers_e_mail_is_409(self, member, root):
        ada, bob = (member("ROLE_USER", by_hand=True) for _ in range(2))

        assert refusal(put(root, ada.user, email=bob.user.email)) == (409, "conflict")

    def test_an_address_that_was_left_is_free_and_opens_nothing(self, gateway, member, root):
        dev = register("old@robin.example", "correct horse battery").user
        confirm_email(dev, actor=Actor("test"))

        assert put(root, dev, roles=["ROLE_USER"], email="new@robin.example").status_code == 200

        dev.refresh_from_db()
        assert dev.username == dev.email == "new@robin.example"
        address = EmailAddress.objects.get(user=dev)
        assert (address.email, address.verified, address.primary) == (dev.email, True, True)
        again = register("old@robin.example", "correct horse battery").user
        assert again.pk != dev.pk

    def test_an_unknown_user_is_404(self, root):
        r = root.request("PUT", f"{URL}/nobody", json={})

        assert (r.status_code, r.json()["code"]) == (404, "not_found")


class TestDelete:
    def test_an_account_for_robin_alone_goes_with_its_role(self, member, admin):
        ada = member("ROLE_USER")

        assert admin.request("DELETE", f"{URL}/{ada.user.username}").status_code == 204

        assert not User.objects.filter(pk=ada.user.pk).exists()
        assert ada.get("/api/v1/auth/me").status_code == 401

    def test_a_developer_keeps_the_account(self, member, root):
        ada = member("ROLE_USER")
        workspace = Workspace.objects.create(slug="acme", name="Acme")
        Membership.objects.create(workspace=workspace, user=ada.user, role="owner")

        assert root.request("DELETE", f"{URL}/{ada.user.username}").status_code == 204

        assert User.objects.filter(pk=ada.user.pk).exists()
        assert not RobinAccess.objects.filter(user=ada.user).exists()
        assert ada.get("/api/v1/auth/me").status_code == 401


class TestSessions:
    def test_where_somebody_is_signed_in_and_how_to_end_it(self, member, admin):
        ada = member("ROLE_USER")
        phone = ada.sign_in()
        assert phone.status_code == 200
        rows = {u["username"]: u for u in admin.get(URL).json()["results"]}
        assert rows[ada.user.username]["openSessions"] == 2
        assert rows[ada.user.username]["lastLoginAt"].endswith("Z")

        path = f"{URL}/{ada.user.username}/sessions"
        found = admin.get(path).json()["results"]
        assert len(found) == 2
        assert ada.get("/api/v1/auth/me").status_code == 200
        for one in found:
            assert admin.request("DELETE", f"{path}/{one['id']}").status_code == 204
        assert refusal(ada.get("/api/v1/auth/me")) == (401, "invalid_token")
        assert admin.get(path).json()["results"] == []

    def test_another_s_session_is_not_theirs(self, member, admin):
        ada, bob = member("ROLE_USER", by_hand=True), member("ROLE_USER", by_hand=True)
        [session] = admin.get(f"{URL}/{bob.user.username}/sessions").json()["results"]
        r = admin.request("DELETE", f"{URL}/{ada.user.username}/sessions/{session['id']}")
        assert refusal(r) == (404, "not_found")
        assert bob.get("/api/v1/auth/me").status_code == 200


STAFF = Actor("staff@robin.example")
ENDS = {
    "removed": lambda root, user: root.request("DELETE", f"{URL}/{user.username}"),
    "shut": lambda root, user: put(root, user, isActive=False),
    "lowered": lambda root, user: put(root, user, roles=["ROLE_USER"]),
    "suspended": lambda _, user: suspend_user(user, actor=STAFF),
    "taken in the admin": lambda _, user: RobinAccess.objects.filter(user=user).delete(),
    "lowered in the admin": lambda _, user: RobinAccess.objects.filter(user=user).update(
        role="ROLE_READONLY"
    ),
}


@pytest.mark.hostile
class TestWhatTheyBegan:
    """Whoever may not any more, for whatever reason, goes on with nothing on the queue."""

    def begin(self, ada, robin, **more):
        uids = [item.uid for item in robin.seed.queue.select(["READY"])[:60]]
        body = {"action": "delete", "uids": uids, **more}
        return ada.post("/api/v1/queue/actions", body).headers["location"]

    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
    def test_it_is_cancelled_and_says_why(self, root, member, robin, end):
        ada = member("ROLE_ADMIN", by_hand=True)
        begun = self.begin(ada, robin)
        end(root, ada.user)
        deletion.erase()
        tasks.work_on_queue()

        found = root.get(begun).json()
        assert (found["state"], found["sent"]) == ("cancelled", 0)
        assert "may no longer do this" in found["message"]
        assert QueueJob.objects.get().by == ada.user.email
        assert AuditEvent.objects.filter(action="robin.queue.delete.result").count() == 1
        assert AuditEvent.objects.get(action="robin.queue.action.cancelled").actor == "gateway"

    def test_it_is_stopped_between_two_pieces(self, root, member, robin, monkeypatch):
        ada = member("ROLE_ADMIN", by_hand=True)
        begun = self.begin(ada, robin)
        note = jobs._note

        def noted(job, **counts):
            note(job, **counts)
            suspend_user(ada.user, actor=STAFF)

        monkeypatch.setattr(jobs, "_note", noted)
        tasks.work_on_queue()

        found = root.get(begun).json()
        assert (found["state"], found["done"]) == ("cancelled", jobs.PIECE_BEGIN)

    @pytest.mark.parametrize(
        ("action", "force", "state"),
        [
            ("retry", False, "complete"),
            ("retry", True, "cancelled"),
            ("delete", False, "cancelled"),
        ],
    )
    def test_it_takes_what_it_took_to_begin_it(
        self, root, member, robin, monkeypatch, action, force, state
    ):
        begun = self.begin(member("ROLE_OPERATOR", by_hand=True), robin, action=action, force=force)
        less = PERMISSIONS["ROLE_OPERATOR"] - {Permission.DELETE_QUEUE_ITEMS}
        monkeypatch.setitem(PERMISSIONS, "ROLE_OPERATOR", less)
        tasks.work_on_queue()

        assert root.get(begun).json()["state"] == state


CREDENTIALS = re.compile(r"\.set_password\(|(?<!self)\.email = ")
SETTERS = {
    "accounts/adapter.py": "at sign-up",
    "accounts/moderation.py": "by staff, of a new account",
    "accounts/services.py": "at registration; when an account goes",
    "gateway_project/management/commands/run.py": "of the demo",
    "robin/access/people.py": "of users of Robin alone; of others by a superuser",
}


def test_nothing_else_sets_a_password_or_an_address():
    """allauth's own pages do, and ask for the password: what is new here has to ask, too."""
    found = {
        str(path.relative_to(settings.BASE_DIR))
        for app in ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
        for path in (settings.BASE_DIR / app).rglob("*.py")
        if "tests" not in path.parts and CREDENTIALS.search(path.read_text())
    }
    assert found == SETTERS.keys()
