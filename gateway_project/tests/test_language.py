"""Which language a page is in, and that German pages are German for people and not for programs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import reduce
from html.parser import HTMLParser

import pytest
from django.conf import settings
from django.core import mail
from django.test import Client
from django.utils import translation
from django.utils.translation import gettext

from accounts import digest, mailing
from accounts.models import User
from deploy import messages
from gateway_project.core import language
from gateway_project.core.api.fields import NOT_ONE_LINE
from gateway_project.core.api.forms import REFUSALS
from gateway_project.core.storable import unstorable
from portal.tests import furnished

HTML = "text/html"
WEST = timezone(timedelta(hours=-9))
GERMAN = {"Accept": HTML, "Accept-Language": "de-AT,de;q=0.9,en;q=0.5"}
PUBLIC = (
    *("/", "/docs", "/docs/errors", "/docs/detection", "/docs/search?q=key", "/redoc", "/status"),
    *("/problems/not_found", "/changelog", "/terms", "/privacy", "/guides/", "/guides/quickstart"),
    *("/accounts/login/", "/accounts/signup/", "/accounts/password/reset/", "/nowhere"),
)
"""For everybody."""
SETTINGS = (
    *("/accounts/email/", "/accounts/password/change/", "/accounts/2fa/", "/accounts/sessions/"),
    *("/accounts/2fa/totp/activate/", "/accounts/2fa/webauthn/", "/accounts/2fa/webauthn/add/"),
)
"""allauth's, beside those of `furnished.pages`."""


def spoken(answer):
    return re.search(r'<html lang="(\w+)"', answer.content.decode())[1]


class TestWhichLanguage:
    @pytest.mark.parametrize(
        ("accepted", "tag"),
        [
            ("", "en"),
            ("de", "de"),
            ("de-CH, fr;q=0.9", "de"),
            ("DE-de", "de"),
            ("fr, en;q=0.8, de;q=0.3", "en"),
            ("en;q=0.3, de;q=0.8", "de"),
            ("de;q=0, en", "en"),
            ("fr, *;q=0.1", "en"),
            ("x" * 600, "en"),
            ("de;q=nonsense", "en"),
        ],
    )
    def test_what_the_browser_accepts(self, gateway, accepted, tag):
        assert spoken(Client().get("/", headers={"Accept-Language": accepted})) == tag

    def test_the_cookie_comes_before_what_is_accepted(self, gateway):
        client = Client()
        client.cookies[settings.LANGUAGE_COOKIE_NAME] = "en"

        assert spoken(client.get("/", headers=GERMAN)) == "en"

    @pytest.mark.parametrize("value", ["fr", "../de", "", "x" * 5000])
    def test_a_cookie_that_names_none_is_no_choice(self, gateway, value):
        client = Client()
        client.cookies[settings.LANGUAGE_COOKIE_NAME] = value

        assert spoken(client.get("/", headers={"Accept-Language": "de"})) == "de"

    def test_a_persons_choice_comes_before_the_cookie(self, owner, alice):
        alice.language = "de"
        alice.save()
        owner.cookies[settings.LANGUAGE_COOKIE_NAME] = "en"

        answer = owner.get("/app/settings", headers={"Accept-Language": "en"})
        assert spoken(answer) == "de"
        # The page to sign in speaks it from now on.
        assert answer.cookies[settings.LANGUAGE_COOKIE_NAME].value == "de"
        stranger = Client()
        stranger.cookies = owner.cookies
        del stranger.cookies[settings.SESSION_COOKIE_NAME]
        assert spoken(stranger.get("/accounts/login/", headers={"Accept-Language": "en"})) == "de"

    def test_whoever_chose_nothing_reads_what_the_browser_asks_for(self, owner, alice):
        assert alice.language == ""
        assert spoken(owner.get("/app/settings", headers=GERMAN)) == "de"
        assert spoken(owner.get("/app/settings")) == "en"

    def test_one_page_leaves_nothing_behind_for_the_next(self, gateway):
        Client().get("/", headers=GERMAN)

        assert spoken(Client().get("/")) == "en"
        assert translation.get_language() == "en"


class TestWhatIsSaidOfIt:
    def test_pages_say_their_language_and_on_what_it_hangs(self, gateway):
        answer = Client().get("/", headers=GERMAN)

        assert answer.headers["Content-Language"] == "de"
        varies = {name.strip() for name in answer.headers["Vary"].split(",")}
        assert {"Accept-Language", "Cookie"} <= varies
        assert settings.LANGUAGE_COOKIE_NAME not in answer.cookies

    @pytest.mark.parametrize("path", ["/nowhere", "/app/keys/nothing", "/docs/nothing"])
    def test_refusals_too(self, gateway, path):
        answer = Client().get(path, headers=GERMAN)

        assert answer.status_code == 404
        assert spoken(answer) == answer.headers["Content-Language"] == "de"
        assert "Not found" not in answer.content.decode()

    def test_a_form_without_its_token_is_refused_in_it(self, gateway):
        client = Client(enforce_csrf_checks=True)

        answer = client.post("/accounts/login/", {}, headers=GERMAN)
        assert (answer.status_code, spoken(answer)) == (403, "de")
        assert "Formular abgelaufen" in answer.content.decode()

    @pytest.mark.parametrize(
        "path",
        ["/openapi.json", "/llms.txt", "/status.atom", "/guides/quickstart.md", "/v1/nowhere"],
    )
    def test_programs_are_answered_in_english(self, gateway, path):
        german = Client().get(path, headers={**GERMAN, "Accept": "*/*"})
        english = Client().get(path, headers={"Accept": "*/*"})

        ids = re.compile(r'"request_id":"[^"]+"|<updated>[^<]+')
        assert ids.sub("", german.content.decode()) == ids.sub("", english.content.decode())
        assert "Content-Language" not in german.headers

    def test_a_problem_is_english_where_a_page_is_not(self, gateway):
        page = Client().get("/nowhere", headers=GERMAN)
        problem = Client().get("/nowhere", headers={**GERMAN, "Accept": "application/json"})

        assert problem.json()["title"] == "Not found"
        assert problem.json()["detail"] not in page.content.decode()

    def test_files_of_pages_are_english(self, owner, acme):
        of = furnished.furnish(acme)
        for path in (f"/app/webhooks/{of.webhook_id}", "/app/", "/app/usage"):
            page = owner.get(path, headers=GERMAN).content.decode()
            for link in set(re.findall(r'href="\?([^"]*csv=[^"]+)"', page)):
                german = owner.get(f"{path}?{link.replace('&amp;', '&')}", headers=GERMAN)
                english = owner.get(f"{path}?{link.replace('&amp;', '&')}")
                assert furnished.bytes_of(german) == furnished.bytes_of(english)


class TestSwitch:
    def test_a_stranger_switches_without_a_script_and_stays_where_they_are(self, gateway):
        client = Client(enforce_csrf_checks=True)
        page = client.get("/docs/search?q=key", headers={"Accept": HTML}).content.decode()
        form = re.search(r'<form[^>]* action="/language".*?</form>', page)[0]
        back = re.search(r'name="next" value="([^"]+)"', form)[1]
        [tag] = re.findall(r'name="language" value="(\w+)"', form)

        answer = client.post("/language", {"language": tag, "next": back})

        assert answer.headers["Location"] == back == "/docs/search?q=key"
        cookie = answer.cookies[settings.LANGUAGE_COOKIE_NAME]
        assert (cookie.value, cookie["samesite"], bool(cookie["httponly"])) == ("de", "Lax", True)
        assert spoken(client.get(back)) == "de"

    def test_it_is_kept_with_the_account(self, owner, alice, enter):
        owner.post("/language", {"language": "de", "next": "/app/keys"})
        alice.refresh_from_db()

        assert alice.language == "de"
        assert spoken(enter(alice).get("/app/settings")) == "de"  # in another browser

    @pytest.mark.parametrize(
        "page", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", ""]
    )
    def test_it_leads_nowhere_else(self, gateway, page):
        answer = Client().post("/language", {"language": "de", "next": page})

        assert answer.headers["Location"] == "/"

    @pytest.mark.parametrize("tag", ["fr", "", "de-AT", "de\x00"])
    def test_another_language_changes_nothing(self, owner, alice, tag):
        answer = owner.post("/language", {"language": tag, "next": "/status"})
        alice.refresh_from_db()

        assert answer.status_code == 302
        assert alice.language == ""
        assert settings.LANGUAGE_COOKIE_NAME not in answer.cookies

    def test_the_settings_have_it_too(self, owner, alice):
        shown = owner.post("/app/settings", {"first_name": "Al", "language": "de"}, follow=True)
        assert spoken(shown) == "de"
        assert "Gespeichert." in shown.content.decode()

        shown = owner.post("/app/settings", {"first_name": "Al", "language": ""}, follow=True)
        alice.refresh_from_db()
        assert (alice.language, spoken(shown)) == ("", "en")
        assert owner.cookies[settings.LANGUAGE_COOKIE_NAME].value == ""


class TestMails:
    def html_of(self, message):
        return message.alternatives[0][0]

    def test_each_is_in_the_language_of_who_gets_it(self, gateway, alice, bob):
        alice.language = "de"
        written = lambda: (gettext("Your request log is ready"), language.number(1234.5, ",.1f"))  # noqa: E731
        mailing.to_people([alice, bob], "digest", written)

        german, english = mail.outbox
        assert german.subject == "Ihr Anfrageprotokoll ist fertig"
        assert german.body.startswith("1.234,5")
        assert '<html lang="de">' in self.html_of(german)
        assert english.subject == "Your request log is ready"
        assert english.body.startswith("1,234.5")
        assert '<html lang="en">' in self.html_of(english)

    def test_their_choice_comes_before_the_language_of_the_page(self, gateway, alice):
        alice.language = "de"
        alice.save()
        Client().post("/accounts/password/reset/", {"email": alice.email})

        [sent] = mail.outbox
        assert sent.subject == "Neues Passwort setzen"
        assert "Link öffnen" in self.html_of(sent)

    def test_who_registers_on_a_german_page_gets_german_mails_from_then_on(self, gateway):
        form = {"email": "neu@initech.example", "password1": "ein langes Passwort"}
        Client().post("/accounts/signup/", form, headers=GERMAN)

        [sent] = mail.outbox
        assert sent.subject == "E-Mail-Adresse bestätigen"
        assert User.objects.get(email=form["email"]).language == "de"

    def test_a_program_that_registers_gets_english_ones(self, gateway):
        body = {"email": "new@initech.example", "password": "correct horse battery"}
        answer = gateway.post("/auth/register", json=body, headers={"Accept-Language": "de"})

        assert answer.status_code == 201
        assert [sent.subject for sent in mail.outbox] == ["Confirm your e-mail address"]
        assert User.objects.get(email=body["email"]).language == ""

    def test_the_week_is_written_in_it(self, gateway, acme, alice):
        alice.language = "de"
        with language.speaking(alice.language):
            assert digest._compared(1234, 1000) == "1.234 (+23 % zur Woche davor)"
            assert digest._compared(5, 0) == "5 (in der Woche davor keine)"
        assert digest._compared(1234, 1000) == "1,234 (+23 % on the week before)"


class Page(HTMLParser):
    """Of a page what people read, and what programs do. What is marked as English is left out of
    the first."""

    VOID = {"area", "br", "hr", "img", "input", "link", "meta", "col", "source", "wbr"}
    READ = {
        "data-filter-title",
        "data-label",
        "alt",
        "aria-description",
        "aria-label",
        "label",
        "placeholder",
        "title",
    }
    MEASURES = {"max", "min", "high", "low", "optimum", "step", "maxlength", "width", "height"}

    def __init__(self, text):
        super().__init__()
        self.for_people, self.for_programs = [], []
        self._open, self._svg = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        here = dict(attrs)
        if tag not in self.VOID:
            self._open.append((tag, here.get("lang") == "en"))
        self._svg += tag == "svg"
        is_switch = here.get("name") in ("language", "next", "csrfmiddlewaretoken", "once", "token")
        for name, value in attrs:
            is_label = name == "value" and here.get("type") in ("submit", "button")
            if name in self.READ or is_label:
                self._read(value or "")
            elif is_switch or name in ("data-csrf", "data-example", "data-inline-formset"):
                continue
            elif (
                self._svg
                or name in self.MEASURES
                or name in ("datetime", "value", "href")
                or name.startswith("data-")
            ):
                self.for_programs.append((tag, name, value))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self._svg -= tag == "svg"
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0] == tag:
                del self._open[at:]
                break

    def handle_data(self, data):
        if not any(tag in ("script", "style", "textarea", "pre", "code") for tag, _ in self._open):
            self._read(data)

    def _read(self, text):
        tags = [is_english for _, is_english in self._open]
        if text.strip() and not any(tags[1:]):
            self.for_people.append(" ".join(text.split()))


def read(client, path, **headers):
    return Page(client.get(path, headers={"Accept": HTML, **headers}).content.decode())


@pytest.fixture
def addresses(acme):
    return [*PUBLIC, *SETTINGS, *furnished.pages(furnished.furnish(acme))]


def test_what_programs_read_is_the_same_on_pages_of_all_languages(owner, addresses):
    """Coordinates, values of fields, times, addresses, data for scripts: no comma is put in."""
    other = {}
    for path in addresses:
        english, german = read(owner, path), read(owner, path, **{"Accept-Language": "de"})
        pairs = zip(english.for_programs, german.for_programs, strict=False)
        found = [pair for pair in pairs if pair[0] != pair[1] and not is_of_the_moment(*pair)]
        if found or len(english.for_programs) != len(german.for_programs):
            other[path] = found[:5]

    assert other == {}


def is_of_the_moment(one, other):
    """What differs from one second to the next: a time or an id, not the way it is written."""
    # Of a signed value: when it was signed, and the signature.
    blank = re.compile(r":\w{6}:[\w-]{43}|\d|[0-9a-f]{8,}")
    return one[:2] == other[:2] and blank.sub("0", one[2] or "") == blank.sub("0", other[2] or "")


def fragments():
    """Pieces of the catalogue's English of three words or more."""
    for message in messages.read(messages.LOCALE / "de/LC_MESSAGES/django.po"):
        for english in [message.id] if isinstance(message.id, str) else message.id:
            for piece in re.split(r"%\(\w+\)s|<[^>]+>|%%|\n", english):
                is_sentence = len(re.findall(r"[^\W\d_]+", piece)) >= 3
                if is_sentence and piece not in str(message.string):
                    yield " ".join(piece.split())


BROKEN = re.compile(r"\b(?:von|mit|bei|aus|zu|nach|seit|vom|zum|beim) (?:die|das)\b")
"""A preposition before a phrase that was written to stand alone: what is glued has this fault."""


def glued(shown):
    """What of a German page no German would write."""
    return [shown[max(0, at.start() - 30) : at.end() + 30] for at in BROKEN.finditer(shown)]


def test_no_german_sentence_has_a_phrase_glued_into_it():
    wrong = []
    for message in messages.read(messages.LOCALE / "de/LC_MESSAGES/django.po"):
        wrong += [text for text in messages._forms(message.string) if text and glued(text)]

    assert wrong == []


TRANSLATED = (
    *PUBLIC,
    *SETTINGS,
    *("/app/settings", "/app/settings/mails", "/app/settings/delete"),
)
"""This list only grows."""


def test_a_german_page_has_no_english_sentence(owner, acme):
    known = sorted(set(fragments()), key=len, reverse=True)
    assert len(known) > 100
    left = {}
    for path in TRANSLATED:
        shown = " ".join(read(owner, path, **{"Accept-Language": "de"}).for_people)
        if found := [piece for piece in known if piece in shown] or glued(shown):
            left[path] = found[:5]

    assert left == {}


def test_numbers_and_dates_are_written_as_the_reader_does():
    at = datetime(2026, 11, 30, 14, 5, 9, tzinfo=UTC)
    with language.speaking("de"):
        assert language.number(1234.5, ",.1f") == "1.234,5"
        assert language.number(1234567) == "1.234.567"
        assert language.number(0.125, ".1%") == "12,5\u00a0%"
        assert language.dated(at, "minute of year") == "30. November 2026, 14:05"
        assert language.dated(at) == "30. Nov., 14:05"
    assert language.number(1234.5, ",.1f") == "1,234.5"
    assert language.dated(at, "minute of year") == "30 Nov 2026 14:05"
    with language.speaking("nonsense"):
        assert language.spoken() == "en"


def test_every_language_has_every_form_of_a_date():
    assert set(language.DATES) == language.TAGS
    assert {frozenset(forms) for forms in language.DATES.values()} == {
        frozenset(language.DATES["en"])
    }


@pytest.mark.parametrize(
    "value",
    [
        *("\x00", "\ud800", 1 << 64, float("nan"), datetime.max.replace(tzinfo=WEST)),
        reduce(lambda inner, _: [inner], range(40), "x"),
    ],
    ids=str,
)
def test_what_no_store_takes_is_refused_in_a_whole_sentence(value):
    assert f"This {unstorable(value)}." in REFUSALS


def test_so_is_a_second_line():
    assert f"This {NOT_ONE_LINE}." in REFUSALS
