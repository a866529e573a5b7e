"""What people read stands in the catalogue, whole, and each sentence of it is good German.

`TEMPLATES` and `MODULES` are what is translated already: both lists only grow.
"""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.template.base import Lexer, TokenType

from deploy import messages

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = [
    "account/**/*.html",
    "account/**/*.txt",
    "accounts/admin/*.html",
    "accounts/email/*.txt",
    "admin/*.html",
    "allauth/**/*.html",
    "mfa/**/*.html",
    "mfa/**/*.txt",
    "portal/*.html",
    "portal/mail/*.html",
    "portal/pages/*.html",
    "portal/reference/*.html",
    "socialaccount/*.html",
    "staff/*.html",
    "usersessions/**/*.html",
    "usersessions/**/*.txt",
]
"""Folders under `templates/`."""
ENGLISH = {
    "portal/reference/operations.html": "the document itself, which is English",
    "portal/reference/fields.html": "the document itself, which is English",
}
SAME = {
    *("Gateway", "OpenAPI", "Ctrl", "gw_live_…", "ms", "UTC"),
    *("llms.txt", "openapi.json"),
    *("ann@north.example", "01a206fe-78a1-766d-…"),
}
"""Names, units and keys, which no language changes."""
SHOWN = {"alt", "aria-description", "aria-label", "label", "placeholder", "title"}
UNREAD = {"code", "kbd", "pre", "script", "style", "svg"}
WORDY_FILTERS = re.compile(
    r"\|(?:default|default_if_none|yesno|pluralize|add):(\"[^\"]*\"|'[^']*')"
)
PERCENT = re.compile(r"_\((\"[^\"]*%[^\"]*\"|'[^']*%[^']*')\)")
LITERAL = re.compile(r"(_\()?(\"[^\"]*\"|'[^']*')")
BUILT_IN = {
    *("extends", "load", "url", "static", "if", "elif", "for", "block", "translate", "trans"),
    *("blocktranslate", "blocktrans", "get_static_prefix", "ifchanged", "cycle", "now", "slot"),
    *("element", "regroup", "firstof", "when", "setvar"),
}
TRANSLATES = {"endblocktranslate", "endblocktrans"}
OF_ATTRIBUTES = {"block width", "block in_portal", "block bodyclass"}
"""Blocks within a tag: classes and the like."""
LETTERS = re.compile(r"[^\W\d_]{2,}")
MODULES = [
    "accounts/admin/actions.py",
    "accounts/admin/keys.py",
    "accounts/admin/lists.py",
    "accounts/admin/people.py",
    "accounts/admin/usage.py",
    "detection/admin.py",
    "gateway_project/admin.py",
    "gateway_project/staff/actions.py",
    "gateway_project/staff/background.py",
    "gateway_project/staff/board.py",
    "gateway_project/staff/customers.py",
    "gateway_project/staff/desk.py",
    "gateway_project/staff/numbers.py",
    "gateway_project/staff/parked.py",
    "gateway_project/staff/plans.py",
    "gateway_project/staff/site.py",
    "portal/admin.py",
    "portal/audit.py",
    "portal/calibrate.py",
    "portal/engines.py",
    "portal/feedback.py",
    "portal/forms.py",
    "portal/inbox.py",
    "portal/jobs.py",
    "portal/keys.py",
    "portal/language.py",
    "portal/limits.py",
    "portal/mail/actions.py",
    "portal/mail/alerts.py",
    "portal/mail/charts.py",
    "portal/mail/entry.py",
    "portal/mail/logs.py",
    "portal/mail/queue.py",
    "portal/overview.py",
    "portal/people.py",
    "portal/policy.py",
    "portal/posting.py",
    "portal/quality.py",
    "portal/request_log.py",
    "portal/views.py",
    "portal/webhook_forms.py",
    "portal/webhooks.py",
    "accounts/people.py",
    "accounts/services.py",
    "accounts/usage/exports.py",
    "robin/admin.py",
    "robin/logs/search.py",
    "robin/queue/overview.py",
    "robin/storage/services.py",
    "webhooks/admin.py",
    "webhooks/services.py",
]
"""Whose sentences for people stand in `gettext`."""
OF_LISTS = {"search_help_text", "title"}
"""What lists and filters of the admin say."""
TEXT_ARGUMENTS = {"detail", "help_text", "label", "means"}
"""Arguments that people read, whatever is called with them."""
PLACE = re.compile(r"%\(\w+\)[sd]|%%|%[sd]|\{\w*\}")
TAG = re.compile(r"<[^>]+>")
END = re.compile(r"[.:?!…]?$")


def says_something(text: str) -> bool:
    for same in SAME:
        text = text.replace(same, "")
    return bool(LETTERS.search(re.sub(r"&\w+;", "", text)))


class Bare(HTMLParser):
    """Text and attributes for people that stand in a template by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unread += tag in UNREAD
        for name, value in attrs:
            if (name in SHOWN or name.startswith("data-text")) and says_something(value or ""):
                self.found.append(f"{name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._unread = max(0, self._unread - (tag in UNREAD))

    def handle_data(self, data: str) -> None:
        if not self._unread and says_something(data):
            self.found.append(" ".join(data.split()))


def templates() -> list[Path]:
    folder = ROOT / "templates"
    found = {path for pattern in TEMPLATES for path in folder.glob(pattern)}
    return sorted(path for path in found if str(path.relative_to(folder)) not in ENGLISH)


def outside(source: str) -> tuple[str, list[str], list[str]]:
    """What of a template no `translate` holds: its text, literals in tags, and what is wrong within
    a `blocktranslate`."""
    text, literals, wrong, within = [], [], [], ""
    for token in Lexer(source).tokenize():
        name = token.contents.split()[0] if token.token_type == TokenType.BLOCK else ""
        if token.token_type == TokenType.BLOCK and token.contents in OF_ATTRIBUTES:
            within = "endblock"
        elif name in ("blocktranslate", "blocktrans", "comment"):
            within = f"end{name}"
        elif within:
            # A variable there is a plain name: of anything else nothing is shown.
            is_plain = re.fullmatch(r"\w+", token.contents)
            if token.token_type == TokenType.VAR and not is_plain and within in TRANSLATES:
                wrong.append(token.contents)
            within = "" if name == within else within
            continue
        if token.token_type == TokenType.TEXT:
            text.append(token.contents)
        elif token.token_type == TokenType.VAR:
            literals += [
                one for one in WORDY_FILTERS.findall(token.contents) if LETTERS.search(one)
            ]
        elif name and name not in BUILT_IN:
            for marked, one in LITERAL.findall(token.contents):
                is_sentence = re.match(r"[\"'](?:[A-Z]|[^\"']* )", one) and LETTERS.search(one)
                if not marked and is_sentence:
                    literals.append(one)
    return "".join(text), literals, wrong


@pytest.mark.parametrize("path", templates(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_a_template_is_beside_the_catalogue(path):
    text, literals, wrong = outside(path.read_text())
    bare = [text] if path.suffix == ".txt" and says_something(text) else []
    if path.suffix == ".html":
        parser = Bare()
        parser.feed(text)
        bare = parser.found

    assert bare == []
    assert literals == []
    assert wrong == [], "give it a plain name: {% blocktranslate with name=… %}"
    assert PERCENT.findall(path.read_text()) == [], "Django doubles it there: use {% translate %}"


def test_what_is_left_out_is_there():
    assert {name for name in ENGLISH if not (ROOT / "templates" / name).is_file()} == set()
    assert {name for name in MODULES if not (ROOT / name).is_file()} == set()


def is_bare(node: ast.expr | None) -> bool:
    if isinstance(node, ast.BinOp):
        return is_bare(node.left)
    if isinstance(node, ast.JoinedStr):
        return any(is_bare(part) for part in node.values)
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(LETTERS.search(node.value))
    )


@pytest.mark.parametrize("name", MODULES)
def test_no_sentence_of_a_module_is_beside_the_catalogue(name):
    """Messages, refusals, labels and hints of forms."""
    bare = []
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        texts = [key.value for key in node.keywords if key.arg in TEXT_ARGUMENTS]
        if re.fullmatch(r"messages\.(success|info|warning|error)", called):
            texts += node.args[1:2]
        elif called.endswith("ValidationError") or re.fullmatch(r"errors\.[A-Z]\w+", called):
            texts += node.args[:1]
        elif called.endswith((".add_error", ".message_user")):
            texts += node.args[1:2]
        elif called in ("admin.action", "admin.display"):
            texts += [key.value for key in node.keywords if key.arg == "description"]
        elif called in ("act", "Action"):  # of the admin and of the desk
            texts += node.args[1:3]
        bare += [ast.unparse(one) for one in texts if is_bare(one)]
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in OF_LISTS:
            bare += [ast.unparse(node)] if is_bare(node.value) else []

    assert bare == []


def test_no_sentence_hides_in_an_f_string():
    """There it is not taken up."""
    hidden = []
    for app in messages.APPS:
        for path in (ROOT / app).rglob("*.py"):
            source = path.read_text()
            if "gettext" not in source or "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(source)):
                for inner in ast.walk(node) if isinstance(node, ast.JoinedStr) else ():
                    is_translated = isinstance(inner, ast.Call) and is_bare(
                        next(iter(inner.args), None)
                    )
                    called = ast.unparse(inner.func) if is_translated else ""
                    if called == "_" or called.endswith(("gettext", "gettext_lazy")):
                        hidden.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")

    assert hidden == []


CATALOGUES = list(messages.catalogues())
by_language = pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])


@by_language
def test_it_has_the_sentences_of_today(path):
    assert path.read_bytes() == messages.written(messages.update(path)), "run: make messages"


@by_language
def test_what_is_compiled_is_what_is_written(path):
    compiled = path.with_suffix(".mo").read_bytes()

    catalogue = messages.read(path)
    assert compiled == messages.compiled(catalogue), "run: make messages"
    assert messages.translations_file(catalogue).read_bytes() == messages.translations(catalogue)


def forms(message):
    """`(English, translation)` of each form."""
    if isinstance(message.id, str):
        return [(message.id, message.string)]
    singular, plural = message.id
    return list(zip((singular, *[plural] * (len(message.string) - 1)), message.string, strict=True))


@by_language
def test_each_sentence_is_translated_whole(path):
    wrong = []
    for message in messages.read(path):
        if not message.id:
            continue
        for english, translated in forms(message):
            if re.match(r"\s*[,;:.)]", english):
                wrong.append(f"half a sentence: {english}")
            elif message.fuzzy or not translated:
                wrong.append(f"not translated: {english}")
            elif sorted(PLACE.findall(english)) != sorted(PLACE.findall(translated)):
                wrong.append(f"other placeholders: {english}")
            elif sorted(TAG.findall(english)) != sorted(TAG.findall(translated)):
                wrong.append(f"other tags: {english}")
            elif english.strip() == english and translated.strip() != translated:
                wrong.append(f"blanks around: {english}")
            elif END.search(english)[0] != END.search(translated)[0]:
                wrong.append(f"another end: {english}")
    assert wrong == []


def test_every_language_has_a_catalogue_but_the_one_of_the_sources(settings):
    assert {path.parts[-3] for path in CATALOGUES} == {tag for tag, _ in settings.LANGUAGES} - {
        "en"
    }


SPOKEN = re.compile(
    r"""(?:textContent\s*=|\bsay\(|\bfail\(|\bstop\(|\bagain\(|\btrouble\(|new\ Error\(|prompt\(
    |placeholder\s*=|"aria-label",?:?|element\("(?:p|li|span|a|button)",)\s*["`]([^"`]*)""",
    re.VERBOSE,
)


@pytest.mark.parametrize("path", sorted(messages.SCRIPTS.glob("*.js")), ids=lambda path: path.name)
def test_no_sentence_of_a_script_is_beside_the_catalogue(path):
    texts = [re.sub(r"\$\{[^}]*(?:\}|$)", "", text) for text in SPOKEN.findall(path.read_text())]

    assert [text for text in texts if says_something(text)] == []
