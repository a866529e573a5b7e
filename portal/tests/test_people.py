"""Inviting, roles, leaving, handing over, several workspaces, domains; and what goes wrong."""

from __future__ import annotations

import io
import re
import zipfile
from contextlib import suppress
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from django.core import mail
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import people, services
from accounts.models import (
    ApiKey,
    AuditEvent,
    Invitation,
    Membership,
    User,
    Workspace,
    WorkspaceDomain,
)
from accounts.tests.shapes import refusal
from gateway_project.core import errors
from portal.tests import furnished
from portal.urls import urlpatterns

PAGE = "/app/people"
NEW = "dora@new.example"
PASSWORD = "a good long password"
ACTOR = services.Actor("test")


class Undone(Exception):
    """Ends a transaction of which nothing is to stay."""


def invited(client, email=NEW, role="member"):
    """The path of the link that was mailed."""
    mail.outbox.clear()
    answer = client.post(PAGE, {"email": email, "role": role})
    assert answer.status_code == 302, answer.content.decode()
    [message] = mail.outbox
    assert message.to == [email]
    return re.search(r"https?://[^/\s]+(/app/join/\S+)", message.body)[1]


@pytest.fixture
def make_person(gateway):
    def make(email, *, is_confirmed=True):
        user = services.register(email, PASSWORD).user
        if is_confirmed:
            services.confirm_email(user, actor=ACTOR)
        return User.objects.get(pk=user.pk)

    return make


@pytest.fixture
def dora(make_person):
    return make_person(NEW)


def place(user, workspace):
    return Membership.objects.get(user=user, workspace=workspace)


def texts(client, path=PAGE):
    return client.get(path, follow=True).content.decode()


class TestInviting:
    def test_from_the_mail_to_the_workspace(self, owner, acme, dora, enter):
        link = invited(owner, role="auditor")
        browser = enter(dora)

        assert "invites you as Auditor" in browser.get(link).content.decode()
        assert browser.post(link)["Location"] == "/app/"
        assert place(dora, acme).role == "auditor"
        assert browser.get("/app/people").context["member"].workspace == acme
        events = set(AuditEvent.objects.filter(workspace=acme).values_list("action", "actor"))
        assert {("member.invited", "alice@acme.example"), ("member.joined", NEW)} <= events

    def test_nobody_floods_mailboxes_by_inviting_and_withdrawing(
        self, owner, acme, enter, monkeypatch
    ):
        """Nor from a workspace that is made for it."""
        monkeypatch.setattr(people, "INVITATIONS_A_DAY", 2)
        for number in range(2):
            invited(owner, f"stranger{number}@x.example")
            Invitation.objects.update(withdrawn_at=timezone.now())
        owner.post("/app/workspaces/new", {"name": "Other"})
        Workspace.objects.update(is_confirmed=True)
        mail.outbox.clear()

        answer = owner.post(PAGE, {"email": "stranger2@x.example", "role": "member"})

        assert "2 invitations today" in answer.content.decode()
        assert not mail.outbox
        assert Invitation.objects.count() == 2

    def test_a_newcomer_registers_and_needs_no_second_mail(self, owner, acme):
        link = invited(owner)
        browser = Client()
        page = browser.get(link).content.decode()
        assert f"/accounts/signup/?next={link.replace('/', '%2F')}" in page

        done = browser.post(
            f"/accounts/signup/?next={link}", {"email": NEW, "password1": PASSWORD, "next": link}
        )

        assert done["Location"] == link
        assert browser.post(link)["Location"] == "/app/"
        user = User.objects.get(email=NEW)
        assert user.email_confirmed_at is not None
        assert place(user, acme).role == "member"

    def test_a_stashed_address_vouches_for_no_other(self, owner, acme):
        link = invited(owner)
        browser = Client()
        browser.get(link)

        form = {"email": "mallory@x.example", "password1": PASSWORD, "next": link}
        done = browser.post(f"/accounts/signup/?next={link}", form)

        assert done["Location"] == link
        mallory = User.objects.get(email="mallory@x.example")
        assert mallory.email_confirmed_at is None
        assert refusal(browser.post(link)) == (403, "permission_denied")
        assert not Membership.objects.filter(user=mallory, workspace=acme).exists()

    @pytest.mark.hostile
    def test_another_address_cannot_use_it(self, owner, acme, enter, charlie):
        services.confirm_email(charlie, actor=ACTOR)
        link = invited(owner)
        thief = enter(charlie)

        assert "This is for another address" in thief.get(link).content.decode()
        assert refusal(thief.post(link)) == (403, "permission_denied")
        assert not Membership.objects.filter(user=charlie, workspace=acme).exists()

    @pytest.mark.hostile
    def test_an_unconfirmed_address_cannot_use_it(self, owner, acme, make_person, enter):
        squatter = make_person(NEW, is_confirmed=False)
        link = invited(owner)

        assert refusal(enter(squatter).post(link)) == (403, "permission_denied")
        assert not Membership.objects.filter(user=squatter, workspace=acme).exists()

    def test_it_works_once(self, owner, acme, dora, enter):
        link = invited(owner)
        browser = enter(dora)
        browser.post(link)
        assert browser.get(link)["Location"] == "/app/"  # open the mail again: one is in
        place(dora, acme).delete()

        again = browser.post(link, follow=True).content.decode()

        assert "This invitation was used already" in again
        assert not Membership.objects.filter(user=dora, workspace=acme).exists()

    @pytest.mark.parametrize("what", ["withdrawn", "expired"])
    def test_a_closed_one_says_why_to_everybody(self, owner, acme, dora, enter, what):
        link = invited(owner)
        found = Invitation.objects.get()
        if what == "withdrawn":
            owner.post(f"{PAGE}/invitations/{found.pk}/withdraw")
        else:
            Invitation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

        page = enter(dora).post(link, follow=True).content.decode()

        assert "This invitation is closed" in page
        assert "Ask alice@acme.example for a new one" in page
        assert "This invitation is closed" in Client().get(link).content.decode()
        assert not Membership.objects.filter(user=dora, workspace=acme).exists()

    def test_sending_again_makes_a_new_link_and_ends_the_old(self, owner, acme, dora, enter):
        old = invited(owner)
        mail.outbox.clear()
        owner.post(f"{PAGE}/invitations/{Invitation.objects.get().pk}/resend")
        new = re.search(r"(/app/join/\S+)", mail.outbox[0].body)[1]
        browser = enter(dora)

        assert Invitation.objects.count() == 1
        assert refusal(browser.post(old)) == (404, "not_found")
        assert browser.post(new)["Location"] == "/app/"

    def test_inviting_twice_is_one_invitation(self, owner, acme):
        invited(owner)
        invited(owner, role="viewer")

        assert Invitation.objects.get().role == "viewer"

    def test_a_member_is_not_invited_again(self, owner, acme, bob):
        answer = owner.post(PAGE, {"email": bob.email, "role": "viewer"})

        assert "is a member already" in answer.content.decode()
        assert not Invitation.objects.exists()

    @pytest.mark.parametrize("form", [{"email": "no address"}, {"role": "root"}, {"email": ""}])
    def test_what_is_wrong_is_reported(self, owner, acme, form):
        answer = owner.post(PAGE, {"email": NEW, "role": "member", **form})

        assert set(answer.context["form"].errors) == set(form)
        assert not Invitation.objects.exists()

    @pytest.mark.hostile
    def test_no_token_is_in_the_database(self, owner, acme):
        token = invited(owner).rpartition("/")[2]

        assert token not in str(Invitation.objects.values_list().get())

    @pytest.mark.hostile
    def test_there_is_an_end_to_open_ones(self, owner, acme, monkeypatch):
        monkeypatch.setattr(people, "INVITATIONS_MAX", 2)
        for number in range(2):
            invited(owner, f"p{number}@x.example")

        answer = owner.post(PAGE, {"email": NEW, "role": "viewer"})

        assert "2 invitations are open already" in answer.content.decode()

    def test_waiting_people_see_where_they_land(self, owner, acme, make_person, enter):
        dora = make_person(NEW)
        dora.memberships.all().delete()
        invited(owner)

        browser = enter(dora)
        page = browser.get("/app/").content.decode()
        assert "alice@acme.example invites you to" in page
        browser.post(f"/app/invitations/{Invitation.objects.get().pk}")
        assert place(dora, acme).role == "member"

    def test_a_mail_that_fails_is_said_and_can_be_sent_again(self, owner, acme, monkeypatch):
        def fail(self, messages):
            raise OSError("no mail server")

        monkeypatch.setattr("gateway_project.tests.waiting.Mail.send_messages", fail)
        page = owner.post(PAGE, {"email": NEW, "role": "member"}, follow=True).content.decode()

        assert "We could not send the e-mail" in page
        assert Invitation.objects.get().is_open


@pytest.fixture
def as_role(acme, bob, enter):
    def enter_as(role):
        Membership.objects.filter(user=bob, workspace=acme).update(role=role)
        return enter(bob)

    return enter_as


RIGHTS = {
    "owner": {"change", "people", "workspace"},
    "admin": {"change", "people"},
    "member": {"change"},
    "viewer": set(),
    "auditor": set(),
}
ACTS = {
    "change": ("/app/keys", {"name": "k", "scopes": ["detect"]}),
    "people": (PAGE, {"email": NEW, "role": "viewer"}),
    "workspace": ("/app/workspace", {"name": "Acme 2"}),
}


class TestRoles:
    @pytest.mark.parametrize("role", sorted(RIGHTS))
    @pytest.mark.parametrize("right", sorted(ACTS))
    @pytest.mark.hostile
    def test_each_does_what_it_may_and_no_more(self, as_role, role, right):
        path, form = ACTS[right]
        answer = as_role(role).post(path, form)

        if right in RIGHTS[role]:
            assert answer.status_code in (200, 302)
        else:
            assert refusal(answer) == (403, "permission_denied")

    def test_every_role_is_explained(self):
        roles = set(people.Role.values)

        assert roles == set(people.MAY) == set(people.ROLE_HELP) == set(RIGHTS)

    @pytest.mark.hostile
    def test_a_role_that_is_taken_away_ends_with_the_next_click(self, as_role, acme, bob):
        browser = as_role("admin")
        assert browser.post(PAGE, {"email": NEW, "role": "viewer"}).status_code == 302
        Membership.objects.filter(user=bob).update(role="viewer")

        answer = browser.post(PAGE, {"email": "x@x.example", "role": "viewer"})

        assert refusal(answer) == (403, "permission_denied")
        Membership.objects.filter(user=bob).delete()
        assert b"Make a workspace" in browser.post("/app/keys", {"name": "k"}).content
        assert not ApiKey.objects.filter(name="k").exists()

    @pytest.mark.hostile
    def test_refusals_are_recorded_and_fill_no_trail(self, as_role, acme, monkeypatch):
        monkeypatch.setattr(people, "REFUSALS_AN_HOUR", 3)
        browser = as_role("viewer")
        for _ in range(5):
            browser.post(PAGE, {"email": NEW, "role": "viewer"})

        refusals = AuditEvent.objects.filter(action="access.refused", workspace=acme)
        assert {(row.actor, row.target) for row in refusals} == {
            ("bob@acme.example", "portal-people")
        }
        assert refusals.count() == 3

    @pytest.mark.hostile
    def test_an_admin_makes_and_touches_no_owner(self, as_role, alice, bob, acme):
        browser = as_role("admin")
        answer = browser.post(PAGE, {"email": NEW, "role": "owner"})
        assert list(answer.context["form"].errors) == ["role"]
        for act, form in (("role", {"role": "viewer"}), ("remove", {}), ("hand-over", {})):
            target = place(alice, acme).pk
            answer = browser.post(f"{PAGE}/{target}/{act}", form)
            assert refusal(answer) == (403, "permission_denied"), act
        own = browser.post(f"{PAGE}/{place(bob, acme).pk}/role", {"role": "owner"})
        assert refusal(own) == (403, "permission_denied")

        assert place(alice, acme).role == "owner"

    def test_the_owner_changes_and_removes(self, owner, acme, bob):
        row = place(bob, acme)
        owner.post(f"{PAGE}/{row.pk}/role", {"role": "auditor"})
        assert place(bob, acme).role == "auditor"
        event = AuditEvent.objects.get(action="member.changed")
        assert event.details == {"changes": {"role": ["member", "auditor"]}}

        owner.post(f"{PAGE}/{row.pk}/remove")
        assert not Membership.objects.filter(user=bob, workspace=acme).exists()

    @pytest.mark.hostile
    def test_the_last_owner_stays(self, owner, acme, alice):
        mine = place(alice, acme).pk
        for act, form in (("remove", {}), ("role", {"role": "viewer"})):
            page = owner.post(f"{PAGE}/{mine}/{act}", form, follow=True).content.decode()
            assert "This is the only owner" in page

        assert place(alice, acme).role == "owner"

    def test_handing_over_swaps(self, owner, acme, alice, bob):
        owner.post(f"{PAGE}/{place(bob, acme).pk}/hand-over")

        assert (place(bob, acme).role, place(alice, acme).role) == ("owner", "admin")

    def test_leaving_lands_in_another_workspace_or_on_a_page_that_leads_on(
        self, as_role, acme, bob
    ):
        browser = as_role("viewer")
        page = browser.post(f"{PAGE}/{place(bob, acme).pk}/remove", follow=True)

        assert "You left “Acme”" in page.content.decode()
        assert b"Make a workspace" in page.content

    @pytest.mark.hostile
    def test_people_of_others_are_as_missing_as_none(self, stranger, acme, bob):
        row = place(bob, acme).pk
        for act in ("role", "remove", "hand-over"):
            answer = stranger.post(f"{PAGE}/{row}/{act}", {"role": "viewer"})
            assert refusal(answer) == (404, "not_found")


class TestWorkspaces:
    def test_one_is_made_and_switched_to_and_back(self, owner, acme, alice):
        owner.post("/app/workspaces/new", {"name": "Second"})
        second = Workspace.objects.get(name="Second")
        assert owner.get("/app/").context["member"].workspace == second
        assert second.is_confirmed is (alice.email_confirmed_at is not None)

        owner.post(f"/app/workspaces/{acme.pk}")
        assert owner.get("/app/").context["member"].workspace == acme

    @pytest.mark.hostile
    def test_nobody_switches_to_anothers(self, owner, globex):
        answer = owner.post(f"/app/workspaces/{globex.pk}")

        assert refusal(answer) == (404, "not_found")
        assert owner.get("/app/").context["member"].workspace != globex

    @pytest.mark.hostile
    def test_a_form_acts_where_its_page_was_whatever_another_tab_did(self, owner, acme, alice):
        second = people.make_workspace(alice, "Second", actor=ACTOR)
        owner.post(f"/app/workspaces/{second.pk}")  # the other tab
        form = {"name": "of the first tab", "scopes": ["detect"], "workspace": str(acme.pk)}

        owner.post("/app/keys", form)

        assert ApiKey.objects.get(name="of the first tab").workspace == acme

    def test_it_leads_to_a_page_of_that_workspace(self, owner, acme, acme_key, alice):
        second = people.make_workspace(alice, "Second", actor=ACTOR)
        owner.post(f"/app/workspaces/{second.pk}")  # the other tab
        form = {"grace_seconds": 0, "workspace": str(acme.pk)}

        answer = owner.post(f"/app/keys/{acme_key.row.pk}/rotate", form, follow=True)

        assert answer.context["member"].workspace == acme

    @pytest.mark.hostile
    def test_a_form_of_a_workspace_that_one_has_left_does_nothing(self, owner, acme, globex):
        form = {"name": "lost", "scopes": ["detect"], "workspace": str(globex.pk)}

        assert refusal(owner.post("/app/keys", form)) == (403, "permission_denied")
        assert not ApiKey.objects.filter(name="lost").exists()

    def test_a_deleted_one_is_left_for_another(self, owner, acme, alice):
        second = people.make_workspace(alice, "Second", actor=ACTOR)
        owner.post(f"/app/workspaces/{second.pk}")
        Workspace.objects.filter(pk=second.pk).update(deleted_at=timezone.now())

        assert owner.get("/app/").context["member"].workspace == acme

    def test_who_has_none_makes_one(self, enter, bob, gateway):
        browser = enter(bob)
        bob.memberships.all().delete()
        assert b"/app/keys" not in browser.get("/app/").content  # no room that is a dead end
        browser.post("/app/workspaces/new", {"name": "Mine"})

        assert browser.get("/app/keys").context["member"].role == "owner"

    @pytest.mark.hostile
    def test_there_is_an_end_to_them(self, owner, acme, monkeypatch):
        monkeypatch.setattr(people, "WORKSPACES_MAX", 1)
        answer = owner.post("/app/workspaces/new", {"name": "Second"})

        assert "You own 1 workspaces" in answer.content.decode()

    def test_queries_do_not_grow_with_people(
        self, owner, acme, make_person, django_assert_max_num_queries
    ):
        for number in range(12):
            user = User.objects.create_user(f"p{number}@x.example")
            Membership.objects.create(user=user, workspace=acme, role="viewer")

        with django_assert_max_num_queries(9):
            assert len(owner.get(PAGE).context["people"]) >= 14


class TestAtOnce:
    """Acts that were begun with rows as they were before another act: what comes out is as if the
    second had begun after the first."""

    ACTS = {
        "lower": lambda a, b, c: people.change_role(b, "viewer", by=a, actor=ACTOR),
        "remove": lambda a, b, c: people.remove(b, by=a, actor=ACTOR),
        "take_over": lambda a, b, c: people.change_role(a, "viewer", by=b, actor=ACTOR),
        "throw_out": lambda a, b, c: people.remove(a, by=b, actor=ACTOR),
        "give_away": lambda a, b, c: people.hand_over(c, by=b, actor=ACTOR),
        "raise": lambda a, b, c: people.change_role(c, "owner", by=b, actor=ACTOR),
        "drop": lambda a, b, c: people.remove(c, by=b, actor=ACTOR),
        "leave": lambda a, b, c: people.remove(b, by=b, actor=ACTOR),
    }

    @pytest.fixture
    def three(self, acme, alice, bob, dora):
        """`three()`: alice and bob own it, dora works there; read anew, None where gone."""
        Membership.objects.filter(workspace=acme).update(role="owner")
        places = {one.pk: one for one in (place(alice, acme), place(bob, acme))}
        last = Membership.objects.create(workspace=acme, user=dora, role="member")
        ids = [*places, last.pk]

        def read():
            found = acme.memberships.select_related("user", "workspace").in_bulk(ids)
            return [found.get(pk) for pk in ids]

        return read

    @pytest.mark.hostile
    @pytest.mark.parametrize("second", ACTS)
    @pytest.mark.parametrize("first", ACTS)
    def test_the_second_sees_what_the_first_did(self, acme, three, first, second):
        outcomes = []
        for is_stale in (True, False):
            with suppress(Undone), transaction.atomic():
                rows = three()
                self.ACTS[first](*three())
                if not is_stale:
                    rows = [now or gone for now, gone in zip(three(), rows, strict=True)]
                with suppress(errors.GatewayError):
                    self.ACTS[second](*rows)
                outcomes.append(dict(acme.memberships.values_list("user__email", "role")))
                raise Undone

        assert outcomes[0] == outcomes[1]

    def test_joining_twice_is_joining_once(self, acme, dora):
        domain = WorkspaceDomain.objects.create(
            workspace=acme, domain="new.example", role="viewer", verified_at=timezone.now()
        )
        joined = [people.join_by_domain(domain, dora, actor=ACTOR) for _ in range(2)]

        assert joined[0] == joined[1]

    @pytest.mark.hostile
    def test_a_domain_that_was_taken_off_meanwhile_lets_nobody_in(self, acme, dora):
        domain = WorkspaceDomain.objects.create(
            workspace=acme, domain="new.example", role="viewer", verified_at=timezone.now()
        )
        people.remove_domain(WorkspaceDomain.objects.get(), actor=ACTOR)

        with pytest.raises(errors.Conflict, match="does not let you in"):
            people.join_by_domain(domain, dora, actor=ACTOR)


class TestTwoFactors:
    def test_a_workspace_may_ask_for_them(self, owner, acme, alice, enter, bob):
        form = {"name": "Acme", "requires_two_factors": "on"}
        page = owner.post("/app/workspace", form).content.decode()
        assert "Set up your own second factor first" in page
        Authenticator.objects.create(user=alice, type="totp", data={})

        assert owner.post("/app/workspace", form).status_code == 302
        colleague = enter(bob)
        page = colleague.get("/app/keys").content.decode()
        assert "A second factor is needed" in page
        assert 'href="/accounts/2fa/"' in page
        answer = colleague.post("/app/keys", {"name": "no", "scopes": ["detect"]})
        assert "A second factor is needed" in answer.content.decode()
        assert not ApiKey.objects.filter(name="no").exists()
        Authenticator.objects.create(user=bob, type="webauthn", data={})
        assert colleague.get("/app/keys").context["member"].workspace == acme

    @pytest.mark.hostile
    def test_without_one_nothing_of_it_is_seen_anywhere(self, enter, bob, acme):
        """Neither on a page of the workspace, nor on one of no workspace, nor in a file."""
        of = furnished.furnish(acme, "Unseen")
        Workspace.objects.filter(pk=acme.pk).update(requires_two_factors=True)
        browser = enter(bob)
        key = ApiKey.objects.get(pk=of.key_id)
        routes = [pattern for pattern in urlpatterns if getattr(pattern, "name", "")]
        answers = {}
        for pattern in routes:
            wanted = re.findall(r"<\w+:(\w+)>", str(pattern.pattern))
            if "app/mail" in str(pattern.pattern) or not set(wanted) <= set(of._fields):
                continue
            path = reverse(pattern.name, kwargs={one: getattr(of, one) for one in wanted})
            for answer in (browser.get(path), browser.post(path)):
                whole = furnished.bytes_of(answer) if answer.streaming else answer.content
                answers[path] = answers.get(path, b"") + whole
        archive = zipfile.ZipFile(io.BytesIO(answers["/app/settings/archive"]))
        answers |= {name: archive.read(name) for name in archive.namelist()}
        for path in ("/docs/detection", "/guides/quickstart"):
            answers[path] = browser.get(path).content

        assert len(answers) > 60
        for word in (b"Unseen", key.prefix.encode(), key.last4.encode() + b"<"):
            assert [path for path, content in answers.items() if word in content] == []


class TestDomains:
    def add(self, client, domain="new.example"):
        client.post(f"{PAGE}/domains", {"domain": domain, "role": "viewer"})
        return WorkspaceDomain.objects.get(domain=domain.lower())

    def test_an_address_at_a_verified_one_may_join(self, owner, acme, dora, enter, name_server):
        row = self.add(owner, "New.Example")
        browser = enter(dora)
        assert browser.get("/app/welcome").context["domains"] == []
        name_server.says("new.example", "v=spf1 -all", f"{people.DOMAIN_RECORD}={row.token}")

        owner.post(f"{PAGE}/domains/{row.pk}/verify")
        assert "may join" in browser.get("/app/welcome").content.decode()
        browser.post(f"/app/domains/{row.pk}/join")

        assert place(dora, acme).role == "viewer"

    @pytest.mark.hostile
    @pytest.mark.parametrize("texts", [(), ("gateway-verification=other",)])
    def test_without_the_proof_it_counts_for_nothing(self, owner, acme, name_server, texts):
        row = self.add(owner)
        if texts:
            name_server.says("new.example", *texts)
        page = owner.post(f"{PAGE}/domains/{row.pk}/verify", follow=True).content.decode()

        assert "has no TXT record" in page
        row.refresh_from_db()
        assert row.verified_at is None

    def test_silent_name_servers_are_told_apart(self, owner, acme, name_server):
        row = self.add(owner)
        name_server.hangs("new.example")

        page = owner.post(f"{PAGE}/domains/{row.pk}/verify", follow=True).content.decode()

        assert "did not answer. Try again" in page

    @pytest.mark.hostile
    def test_an_unconfirmed_address_does_not_join(self, owner, acme, make_person, enter):
        row = self.add(owner)
        WorkspaceDomain.objects.update(verified_at=timezone.now())
        squatter = make_person("root@new.example", is_confirmed=False)

        page = enter(squatter).post(f"/app/domains/{row.pk}/join", follow=True)

        assert "does not let you in any more" in page.content.decode()
        assert not Membership.objects.filter(user=squatter, workspace=acme).exists()

    @pytest.mark.hostile
    def test_one_domain_is_one_workspaces(self, owner, stranger, acme, globex, name_server):
        row = self.add(owner)
        stranger.post(f"{PAGE}/domains", {"domain": "new.example", "role": "viewer"})
        other = WorkspaceDomain.objects.get(workspace=globex)
        tokens = [f"{people.DOMAIN_RECORD}={one.token}" for one in (row, other)]
        name_server.says("new.example", *tokens)
        owner.post(f"{PAGE}/domains/{row.pk}/verify")

        page = stranger.post(f"{PAGE}/domains/{other.pk}/verify", follow=True).content.decode()

        assert "Another workspace has verified new.example" in page

    @pytest.mark.parametrize("domain", ["https://x.example", "localhost", "x..example", "x" * 300])
    def test_what_is_no_domain_is_refused(self, owner, acme, domain):
        owner.post(f"{PAGE}/domains", {"domain": domain, "role": "viewer"})

        assert not WorkspaceDomain.objects.exists()
