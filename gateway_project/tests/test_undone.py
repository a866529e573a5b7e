"""What is answered with 503 has not happened, at whichever write its store fails.

Every operation that writes and every form that the portal's pages show, so a new one is among
them: each is sent with a store that is away at its first commit, and with one that is slow at one
write after the other, until it is done. None is answered 500, and what is answered 503 has changed
nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import unescape
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.urls import resolve

from accounts import services
from accounts.models import Membership, WorkspaceDomain
from accounts.services import Actor
from detection import tasks
from detection.policies import policy as policies
from gateway_project.core.stores.database import UNKNOWN
from gateway_project.tests.failing_store import FailingStore
from gateway_project.tests.test_generated import (  # noqa: F401 - a fixture
    BODIES,
    KNOWN,
    OPERATIONS,
    _neighbours,
    own_id,
)
from gateway_project.tests.test_staff_saves import Fields
from gateway_project.tests.test_waiting import ENDS_ACCESS, QUEUE, contents
from portal.tests.furnished import STRANGERS_PAGES, furnish, pages
from portal.tests.test_posting import POSTED, PURE
from robin.models import BlocklistEntry
from webhooks.receiving import inbox

pytestmark = [
    *(pytest.mark.hostile, pytest.mark.needs_postgresql, pytest.mark.needs_redis),
    pytest.mark.timeout(300),
]
ACTOR = Actor("test")
WRITES_MAX = 40
WRITING = sorted(
    (one for one in OPERATIONS if one[0] != "GET"),
    key=lambda one: (" ".join(one) in ENDS_ACCESS, one[0] == "DELETE"),
)
"""Last what ends this access, or what others are about."""
DONE_ALL_THE_SAME = {
    # Robin does these, and says so. That their audit could not be written is in the log.
    ("POST", "/api/v1/queue/actions"),
    ("POST", "/api/v1/config/reload"),
    ("PUT", "/api/v1/config/{section}"),
    ("POST", "/api/v1/scanners/{scanner}/test"),
    # It is paused. What was on its way is given up by the worker, which closes the rest anyway.
    "portal-webhook-switch",
}
"""What is answered as done although a write failed, and why."""
ASKED_OF_ROBIN = frozenset({"accounts_auditevent"})
"""What is asked of its queue is in the trail before it is asked, and that it failed."""
NOT_DONE = {
    **dict.fromkeys(("account_login", "account_reset_password"), "there is nobody of that name"),
    "account_logout": "Django takes the cookie back even when the session could not be ended",
    "mfa_login_webauthn": "it asks for what a key signed",
    "portal-landing": "it judges a text, and keeps nothing",
    "portal-language": "a cookie holds it",
}
"""Forms that stay forms, as they are filled in here: nothing is written by them."""
ENDING = (
    *("portal-key-end", "portal-webhook-switch"),
    *("portal-domain-remove", "portal-webhook-delete", "portal-key-revoke"),
    *("portal-member-remove", "portal-member-hand-over", "portal-workspace-new"),
    *("portal-delete-account", "account_logout"),
)
"""Forms in whose wake others are refused; the last ones last."""
NOT_SHOWN = {
    **dict.fromkeys(
        ("portal-mail-do", "portal-mail-action-cancel", "portal-mail-queue-ticket"),
        "on pages of Robin: what they call is among the operations",
    ),
    "portal-playground-key": "a script asks for it",
    "portal-end-session": "on a list of browsers that signed in by the form",
    "portal-invitation-accept": "on the page of who has no workspace, as the next",
    "portal-domain-join": "",
    "portal-delete-undo": "on the page of who asked to be deleted",
}
"""Forms of the portal that no page of a workspace shows."""


@pytest.fixture
def store(gateway: Any, monkeypatch: Any) -> FailingStore:
    return FailingStore(monkeypatch)


class Tried:
    """One request until it is done. `answer`: the last; `wrong`: what should not have been."""

    def __init__(
        self, store: FailingStore, send: Callable[[], Any], may_change: frozenset[str] = frozenset()
    ) -> None:
        self._store, self._may_change = store, may_change
        self._before = contents()
        self.wrong: list[Any] = []
        self.is_done = False
        self.is_hidden = False
        with store.away_at_commit():
            self.answer = send()
        if not store.has_failed:
            self.is_done = bool(store.passed) and self.answer.status_code < 400
            return
        self._look()
        # What came before that commit is undone or not, whichever write of it fails.
        for writes in range(max(0, store.passed - 1), WRITES_MAX):
            with store.slow_after(writes):
                self.answer = send()
            if not store.has_failed:
                self.is_done |= bool(store.passed) and self.answer.status_code < 400
                return
            self._look()
        raise AssertionError("it never ends")

    def _look(self) -> None:
        status, failed_at = self.answer.status_code, self._store.failed_at
        if status == 503 and not self._store.passed:
            return
        held = contents()
        if status == 503 and UNKNOWN.encode() in self.answer.content:  # after all else was done
            self.is_done, self._before = held != self._before, held
            return
        if status == 503:
            changed = {name for name in held if held[name] != self._before[name]} - self._may_change
            self.wrong += [(failed_at, changed)] if changed else []
        elif status == 500 or 400 <= status < 404:
            self.wrong.append((failed_at, status))
        self.is_hidden |= status < 400
        self._before = held


@pytest.fixture
def known(neighbours: Any) -> dict[str, str]:
    """What names in paths stand for, of what no id of the neighbours is."""
    entry = BlocklistEntry.objects.create(type="DOMAIN", value="old.example")
    return {**KNOWN, "username": neighbours.robin.user.email, "entry": str(entry.pk)}


def test_no_operation_is_refused_and_done(
    neighbours: Any, known: dict[str, str], store: FailingStore, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tasks, "take_turns_behind", lambda: None)  # nothing happens by itself
    wrong, hidden = {}, set()
    for method, path in WRITING:
        own = known["entry"] if "blocklist" in path else own_id(path, neighbours.ids)
        parts = [part[1:-1] for part in path.split("/") if "{" in part]
        address = path.format(**{part: known.get(part, own) for part in parts})
        body = json.dumps(BODIES[method, path]) if (method, path) in BODIES else ""
        content = body.replace('"{id}"', f'"{own}"').encode() or None

        tried = Tried(
            store,
            partial(neighbours.request, method, address, "", {}, content),
            ASKED_OF_ROBIN if path.startswith(QUEUE) else frozenset(),
        )

        if tried.wrong:
            wrong[method, path] = tried.wrong
        if tried.is_hidden:
            hidden.add((method, path))
    assert wrong == {}
    assert hidden <= DONE_ALL_THE_SAME


FORM = re.compile(r"<form\b[^>]*>.*?</form>", re.DOTALL)
FILLED = {
    "name": "Another", "email": "new@initech.example", "domain": "initech.example", "note": "x",
    "url": "https://198.41.0.4/other", "text": "x", "password": "x", "login": "nobody@x.example",
    "password1": "correct horse battery", "first_name": "Ann", "verdict": "correct",
}  # fmt: skip
"""What people type where a form begins empty."""


class Found(NamedTuple):
    name: str
    address: str
    fields: dict[str, list[str]]


def forms_of(browser: Client, page: str) -> Iterator[Found]:
    """Filled in; by the names of their views."""
    text = browser.get(page, HTTP_ACCEPT="text/html").content.decode(errors="replace")
    for form in FORM.findall(text):
        head = form.partition(">")[0]
        if 'method="post"' not in head:
            continue
        action = re.search(r'action="([^"]+)"', head)
        address = unescape(action[1]) if action else page
        fields = Fields(form).values
        for field in set(re.findall(r'name="([^"]+)"', form)) & set(FILLED):
            if not any(fields.get(field, ())):
                fields[field] = [FILLED[field]]
        yield Found(resolve(urlsplit(address).path).view_name, address, fields)


def all_forms(browser: Client, pages: Iterable[str]) -> Iterator[Found]:
    """Each once, as its page shows it at that moment."""
    seen = set()
    ending = {}
    for page in pages:
        while found := next((one for one in forms_of(browser, page) if one.name not in seen), None):
            seen.add(found.name)
            if found.name in ENDING:
                ending[found.name] = page
            else:
                yield found
    for name in sorted(ending, key=ENDING.index):
        yield from [one for one in forms_of(browser, ending[name]) if one.name == name][:1]


@pytest.fixture
def addresses(owner: Any, charlie: Any, acme: Any) -> list[str]:
    """Pages of a workspace that has something on each of them."""
    of = furnish(acme)
    policies.save(acme, {"mode": "enforce"}, actor=ACTOR)
    rotated, _ = services.issue_key(acme, actor=ACTOR, name="old")
    services.rotate_key(rotated, grace_seconds=3_600, actor=ACTOR)
    WorkspaceDomain.objects.create(workspace=acme, domain="acme.example", token="t", role="member")
    inbox.receive(inbox.of(acme).pk, {}, b"{}")
    Membership.objects.create(workspace=acme, user=charlie, role="member")
    return [*pages(of), f"/app/keys/{rotated.pk}"]


def test_no_form_is_refused_and_done(
    owner: Any, addresses: list[str], engine: Any, settings: Any, store: FailingStore
) -> None:
    settings.RATE_LIMIT_ENABLED = False
    wrong, not_done, hidden, names = {}, {}, set(), set()
    for browser, of_browser in ((owner, addresses), (Client(), STRANGERS_PAGES)):
        browser.raise_request_exception = False
        for name, address, fields in all_forms(browser, of_browser):
            tried = Tried(store, partial(browser.post, address, fields, HTTP_ACCEPT="text/html"))

            names.add(name)
            if tried.wrong:
                wrong[name] = tried.wrong
            if tried.is_hidden:
                hidden.add(name)
            if not tried.is_done and name not in PURE:
                not_done[name] = tried.answer.status_code
    assert wrong == {}
    assert hidden <= DONE_ALL_THE_SAME
    assert sorted(not_done) == sorted(NOT_DONE), "fill it in above, or furnish its page"
    assert {pattern.name for pattern in POSTED} - names == set(NOT_SHOWN)
