"""What every form keeps to: it does its work once, leads on, and no address is a dead end."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse

import portal
from accounts import services
from accounts.models import ApiKey, AuditEvent
from gateway_project.tests.test_staff_saves import Fields
from portal import posting
from portal.posting import SIGNED_OUT, TWICE
from portal.urls import urlpatterns
from webhooks import services as webhooks
from webhooks.models import Webhook

SITE = Path(__file__).resolve().parents[2] / "static/portal/site.css"
HTML = {"HTTP_ACCEPT": "text/html"}
PURE = {
    "portal-webhook-debugger": "it examines what is pasted, changes nothing and stores nothing",
    "portal-key-calibrate": "it counts an uploaded file, changes nothing and stores nothing",
    "portal-playground-key": "a script fetches it",
    "portal-mail-queue-ticket": "a script fetches it",
}
"""Addresses whose POSTs answer with a page or JSON of their own, and why."""
SAME = {
    **dict.fromkeys(
        (
            *("portal-key-edit", "portal-webhook-edit", "portal-workspace", "portal-settings"),
            *("portal-preferences", "portal-mail-alerts", "portal-member-role"),
            *("portal-request-feedback", "portal-request-allow", "portal-webhook-switch"),
            *("portal-workspace-switch", "portal-key-use-threshold", "portal-key-use-budget"),
            *("portal-policy-restore", "portal-key-policy-restore", "portal-domain-verify"),
        ),
        "it stands as the form says, then as before",
    ),
    **dict.fromkeys(
        ("portal-key-policy", "portal-policy", "portal-key-engines"), "its version is in force once"
    ),
    **dict.fromkeys(
        (
            *("portal-key-revoke", "portal-key-end", "portal-key-policy-follow"),
            *("portal-job-cancel", "portal-mail-action-cancel", "portal-webhook-delete"),
            *("portal-inbox-clear", "portal-invitation-withdraw", "portal-member-remove"),
            *("portal-domain-remove", "portal-end-session", "portal-delete-account"),
            *("portal-delete-undo", "portal-member-hand-over"),
        ),
        "what is over is over",
    ),
    **dict.fromkeys(
        (
            *("portal-key-rotate", "portal-inbox-webhook", "portal-domain-add"),
            *("portal-invitation-accept", "portal-domain-join", "portal-join"),
        ),
        "there can be but one: the second is refused",
    ),
    "portal-webhook-recover": "what is on its way again has not failed",
    "portal-archive": "a file, and nothing is changed",
}
"""Forms that may be sent twice, and why."""
WRAPPERS = {"members.shows_secrets"}
"""Of views, in a module that has some itself."""
PAGES = [pattern for pattern in urlpatterns if str(pattern.pattern).startswith("app/")]
POSTED = [pattern for pattern in PAGES if hasattr(pattern.callback, "form_is_on")]


def address(pattern: Any, **ids: Any) -> str:
    names = re.findall(r"<(\w+):(\w+)>", str(pattern.pattern))
    known = {name: ids.get(name, 1 if kind == "int" else uuid4()) for kind, name in names}
    return reverse(pattern.name, kwargs=known)


def is_dead_end(answer):
    """Not found, for there is no such key here, is a page as well."""
    return answer.status_code >= 400 and b"Back to the portal" not in answer.content


def test_no_address_answers_an_opened_bookmark_with_405(owner, settings):
    settings.RATE_LIMIT_ENABLED = False
    answers = {pattern.name: owner.get(address(pattern), **HTML) for pattern in PAGES}

    assert len(answers) == len(PAGES)
    wrong = {
        name: answer.status_code
        for name, answer in answers.items()
        if is_dead_end(answer) or answer.status_code == 405
    }
    assert wrong == {}


def test_every_post_leads_on_or_says_why_not():
    """What answers a POST with a page of its own is sent again when that page is reloaded."""
    wrong = []
    for path in Path(portal.__file__).parent.rglob("*.py"):
        if path.stem in ("limits", "posting") or "tests" in path.parts:  # wrappers of views
            continue
        source = path.read_text()
        lines = source.splitlines()
        for part in ast.parse(source).body:
            view = "\n".join(lines[part.lineno - 1 : part.end_lineno])
            is_view = isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
            if is_view and 'request.method == "POST"' in view and "redirect(" not in view:
                wrong.append(f"{path.stem}.{part.name}")
            if is_view and "show_once(" in view and "redirect(" not in view:
                wrong.append(f"{path.stem}.{part.name}")

    wrong = sorted(set(wrong) - WRAPPERS)

    # These compute something of what was sent, and change nothing; a mail program that turns mails
    # off follows no redirect, and twice is once.
    assert wrong == ["calibrate.calibrate", "views.mails_off", "webhooks.debug"]
    assert set(PURE) <= {pattern.name for pattern in PAGES}


def test_what_only_takes_posts_is_marked_as_such():
    """Whoever adds one with `require_POST` makes the next dead end."""
    sources = Path(__file__).resolve().parents[1].rglob("[!t]*.py")
    unmarked = [path.name for path in sources if "require_POST" in path.read_text()]

    assert len(POSTED) >= 20
    assert unmarked == []


def test_it_leads_to_the_page_of_its_form(owner, settings):
    settings.RATE_LIMIT_ENABLED = False
    for pattern in POSTED:
        answer = owner.get(address(pattern), **HTML)

        assert answer.status_code == 302, pattern.name
        assert not is_dead_end(owner.get(answer["Location"], **HTML)), pattern.name


def test_a_post_without_a_session_says_what_was_not_done(gateway, acme, settings):
    settings.RATE_LIMIT_ENABLED = False
    for pattern in PAGES:
        if pattern.name == "portal-join":
            continue
        stranger = Client()
        answer = stranger.post(address(pattern), {"name": "x"}, **HTML)

        if answer.status_code == 405:  # a page without a form
            assert "Open the page again" in answer.content.decode(), pattern.name
            continue
        assert answer.status_code == 302, pattern.name
        assert answer["Location"].startswith("/accounts/login/?next=/app/"), pattern.name
        assert SIGNED_OUT in stranger.get(answer["Location"]).content.decode(), pattern.name


class TestUnsent:
    """A form that came when its session was over is offered again, to who may send it."""

    def leave(self, acme, **fields):
        answer = Client().post("/app/keys", {"workspace": acme.pk, **FORM, **fields}, **HTML)
        return unquote(answer["Location"].partition("?next=")[2])

    def test_what_was_typed_is_sent_after_signing_in(self, owner, acme):
        kept = self.leave(acme, allowed_cidrs="203.0.113.0/24\n198.51.100.0/24", name="<Shop>")
        page = owner.get(kept, **HTML).content.decode()
        [form] = re.findall(r'<form class="card form".*?</form>', page, re.DOTALL)

        assert 'action="/app/keys"' in form
        assert owner.post("/app/keys", Fields(form).values).status_code == 302
        made = ApiKey.objects.get()
        assert (made.name, made.workspace) == ("<Shop>", acme)
        assert made.allowed_cidrs == ["203.0.113.0/24", "198.51.100.0/24"]

    @pytest.mark.hostile
    def test_nobody_else_sees_it(self, owner, stranger, acme):
        kept = self.leave(acme)

        assert kept.startswith("/app/unsent/")
        assert Client().get(kept, **HTML)["Location"].startswith("/accounts/login/")
        assert stranger.get(kept, **HTML)["Location"] == "/app/"
        assert owner.get("/app/unsent/nothing", **HTML)["Location"] == "/app/"

    @pytest.mark.hostile
    def test_a_secret_or_a_book_is_not_kept(self, owner, acme):
        assert self.leave(acme, name="x" * posting.KEPT_CHARS_MAX) == "/app/keys"
        kept = self.leave(acme, secret="whsec_x", password="x")

        assert not {"secret", "password"} & set(posting.unsent(kept.rpartition("/")[2])[1])

    @pytest.mark.hostile
    def test_a_stranger_fills_no_store(self, acme, monkeypatch):
        monkeypatch.setattr(posting, "KEPT_AN_HOUR", 2)

        assert [self.leave(acme) == "/app/keys" for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    "path", ["/app/", "/app/keys", "/app/requests", "/app/nowhere", "/guides/quickstart"]
)
def test_other_methods_get_a_page_too(owner, path):
    answer = owner.put(path, **HTML)

    assert answer.status_code in (404, 405)
    assert "Back to the portal" in answer.content.decode()


FORM = {
    "name": "Shop",
    "scopes": ["detect"],
    "rate_limit_per_minute": 5,
    "rate_limit_per_day": 5,
}


class TestOnce:
    def test_a_key_is_made_once_however_often_its_form_is_sent(self, owner):
        mark = str(uuid4())
        first, *others = (owner.post("/app/keys", {**FORM, "once": mark}) for _ in range(3))

        key = ApiKey.objects.get()
        assert first["Location"] == f"/app/keys/{key.pk}"
        assert {other["Location"] for other in others} == {"/app/keys"}
        assert TWICE in owner.get("/app/keys").content.decode()

    def test_its_text_is_on_the_page_once_and_readable_nowhere(self, owner):
        made = owner.post("/app/keys", {**FORM, "once": str(uuid4())})
        kept = str(dict(owner.session))
        first, second = owner.get(made["Location"]), owner.get(made["Location"])

        text = max(re.findall(r"gw_live_\w+", first.content.decode()), key=len)
        assert first["Cache-Control"] == "no-store, no-transform"
        assert text not in second.content.decode()
        assert text not in kept

    def test_a_webhook_is_made_once(self, owner, receiver_address):
        form = {"url": receiver_address, "events": ["webhook.test"], "once": str(uuid4())}
        first, *others = (owner.post("/app/webhooks", form) for _ in range(3))

        made = Webhook.objects.get()
        assert first["Location"] == f"/app/webhooks/{made.pk}"
        assert {other["Location"] for other in others} == {"/app/webhooks"}
        shown = owner.get(first["Location"]).content.decode()
        assert "whsec_" in shown
        assert "whsec_" not in owner.get(first["Location"]).content.decode()

    def test_a_form_that_was_wrong_is_new_when_it_is_mended(self, owner):
        mark = str(uuid4())
        owner.post("/app/keys", {**FORM, "name": "", "once": mark})
        owner.post("/app/keys", {**FORM, "once": mark})

        assert ApiKey.objects.count() == 1

    def test_a_key_gets_one_day_more_and_a_webhook_one_secret(self, owner, acme, acme_key):
        services.rotate_key(acme_key.row, grace_seconds=3_600, actor=services.Actor("test"))
        hook, _ = webhooks.register(
            acme.pk, "https://198.41.0.4/hook", ["quota.80"], actor=services.Actor("test")
        )
        for path, form in (
            (reverse("portal-key-extend", args=[acme_key.row.pk]), {}),
            (reverse("portal-webhook-rotate", args=[hook.pk]), {"overlap_seconds": 0}),
        ):
            mark = str(uuid4())
            assert owner.post(path, {**form, "once": mark}).status_code == 302
            again = owner.post(path, {**form, "once": mark}, follow=True)
            assert TWICE in again.content.decode()

        done = AuditEvent.objects.values_list("action", flat=True)
        assert list(done).count("key.grace_extended") == 1
        assert list(done).count("webhook.secret_rotated") == 1

    def test_every_form_asks_or_does_the_same_when_it_is_sent_twice(self):
        """And each that asks is marked: `is_first` alone would let everything through."""
        views = {pattern.name: inspect.unwrap(pattern.callback) for pattern in PAGES}
        sources = {name: inspect.getsource(view) for name, view in views.items()}
        posted = {pattern.name for pattern in POSTED}
        posted |= {name for name, source in sources.items() if '"POST"' in source}
        asking = {name for name in posted if "is_first(request)" in sources[name]}
        templates = Path(__file__).resolve().parents[2] / "templates"
        forms = [
            form
            for page in templates.rglob("*.html")
            for form in re.findall(r"<form.*?</form>", page.read_text(), re.DOTALL)
        ]
        unmarked = {
            name
            for name in asking
            for form in forms
            if 'method="post"' in form and f"url '{name}'" in form.split(">")[0]
            if "{% once %}" not in form
        }

        assert posted - asking == set(SAME) | set(PURE)
        assert len(asking) > 10
        assert unmarked == set()


@pytest.fixture
def receiver_address(settings, name_server):
    name_server.resolves("receiver.example", "93.184.216.34")
    return "https://receiver.example/"


def test_a_reloaded_rotation_rotates_nothing(owner, acme_key):
    rotate = f"/app/keys/{acme_key.row.pk}/rotate"
    answer = owner.post(rotate, {"grace_seconds": 3600})
    successor = ApiKey.objects.exclude(pk=acme_key.row.pk).get()

    assert answer["Location"] == f"/app/keys/{successor.pk}"
    for _ in range(2):
        assert owner.get(rotate)["Location"] == f"/app/keys/{acme_key.row.pk}"
        assert owner.get(answer["Location"]).status_code == 200
    assert ApiKey.objects.count() == 2


def test_all_that_is_wrong_with_a_key_is_said_at_once(owner):
    wrong = {"name": "", "allowed_cidrs": "10.0.0.0/33", "rate_limit_per_minute": 6_000}
    page = owner.post("/app/keys", {**FORM, **wrong})

    assert set(page.context["form"].errors) == set(wrong)
    assert "3 fields below need another look" in page.content.decode()


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_what_is_stacked_in_a_plot_is_apart_in_lightness(theme):
    """Without colour (print, colour-blindness) clean, flagged and errors are still three."""
    found = re.findall(r"--plot-([123]): light-dark\((#\w+), (#\w+)\)", SITE.read_text())
    light = {name: luminance(colours[theme]) for name, *colours in found}

    assert set(light) == {"1", "2", "3"}
    for one, other in (("1", "2"), ("2", "3"), ("1", "3")):
        low, high = sorted((light[one], light[other]))
        assert (high + 0.05) / (low + 0.05) >= 1.45, (one, other)
