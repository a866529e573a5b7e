"""What every page of the portal keeps to, as far as its HTML tells."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import urljoin

import pytest
from django.contrib import admin
from django.urls import resolve

from portal.tests import furnished
from portal.tests.furnished import furnish


def test_no_id_is_on_a_page_twice(owner, acme):
    """A label names the first that has its id, and leaves the second without a name."""
    twice = {}
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path, follow=True).content.decode()
        counts = Counter(re.findall(r"\sid=\"([^\"]+)\"", page))
        if found := sorted(name for name, count in counts.items() if count > 1):
            twice[path] = found

    assert twice == {}


def test_every_label_names_a_field_of_its_page(owner, acme):
    loose = {}
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path, follow=True).content.decode()
        ids = set(re.findall(r"\sid=\"([^\"]+)\"", page))
        if found := sorted(set(re.findall(r"<label[^>]*\sfor=\"([^\"]+)\"", page)) - ids):
            loose[path] = found

    assert loose == {}


def test_a_key_that_is_for_tests_is_marked_wherever_its_name_stands():
    """As text of a page; titles and sentences stand beside one that is marked."""
    shown = re.compile(r"\{\{ key\.name \}\}(?:</bdi>|</a>)+(.{0,65})")
    unmarked = [
        str(template)
        for template in Path("templates/portal").rglob("*.html")
        if "key_badges.html" not in (text := template.read_text())
        and any("test_mark.html" not in after for after in shown.findall(text))
    ]

    assert unmarked == []


def test_on_a_phone_each_row_of_a_table_is_a_card_or_needs_none():
    wide = {
        "queue.html",  # what a script draws
        *("alerts.html", "message.html", "board.html", "usersession_list.html"),  # narrow as well
        *("engines.html", "index.html", "breakers.html"),  # a heading at each row
    }
    pages = [
        path for name in ("portal", "staff") for path in Path("templates", name).rglob("*.html")
    ]
    plain = {
        path.name
        for path in [*pages, Path("templates/usersessions/usersession_list.html")]
        if re.search(r"<table(?![^>]*\bcards\b)", path.read_text())
    }

    assert plain == wide


def test_no_sentence_for_people_has_the_marks_of_a_document():
    """But those of events and of one refusal, which `labels.coded` and programs read."""
    catalogue = Path("locale/de/LC_MESSAGES/django.po").read_text()
    marked = re.findall(r'#: (.+)\n(?:.*\n)*?msgid ((?:".*"\n)+)', catalogue)
    places = {place for place, sentence in marked if "`" in sentence}

    assert places <= {"webhooks/catalogue.py", "detection/feedback/services.py"}


def test_a_script_writes_times_in_the_zone_of_the_page():
    for path in Path("static/portal").glob("*.js"):
        for form in re.findall(r"DateTimeFormat\(([^)]+)\)", path.read_text()):
            assert "timeZone: root.dataset.zone" in form, path.name


FORM = re.compile(r"(<form[^>]*\smethod=\"post\"[^>]*>)(.*?)</form>", re.S)


@pytest.mark.hostile
def test_every_form_names_the_workspace_of_its_page(owner, acme):
    """Else it acts where another tab of the same person has switched to."""
    nameless, seen = {}, 0
    named = f'name="workspace" value="{acme.pk}"'
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path, follow=True).content.decode()
        for tag, inside in FORM.findall(page):
            action = re.search(r"action=\"([^\"]*)\"", tag)
            to = urljoin(path, action[1] if action else "").partition("?")[0]
            if not hasattr(resolve(to).func, "of_workspace"):
                continue
            seen += 1
            if named not in inside:
                nameless[path] = to

    assert nameless == {}
    assert seen > 40


def test_no_words_of_the_admin_have_the_colour_behind_them():
    """Django writes in that of its header's links on its first colours, which are one here."""
    styles = Path(admin.__file__).parent / "static/admin/css"
    rules = "".join(
        re.sub(r"/\*.*?\*/", "", p.read_text(), flags=re.S) for p in styles.glob("*.css")
    )
    ours = Path("static/portal/admin.css").read_text()
    found = [
        selector.strip()
        for selectors, rule in re.findall(r"([^{}]+)\{([^{}]*)\}", rules)
        if "color: var(--header-link-color)" in rule
        and re.search(r"background: var\(--(primary|secondary)\)", rule)
        for selector in selectors.split(",")
    ]

    assert ".selector-chosen-title" in found
    assert [selector for selector in found if selector not in ours] == []


def test_what_stands_beside_a_box_is_one_piece(owner, acme):
    """Labels of boxes lay their children out side by side: words and a `code` would be columns."""
    broken = []
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path).content.decode()
        for label in re.findall(r"<label[^>]*>(\s*<input[^>]*>.*?)</label>", page, re.DOTALL):
            beside = re.sub(r"<input[^>]*>", "", label).strip()
            if "<" in beside and not re.fullmatch(r"<span[^>]*>.*</span>", beside, re.DOTALL):
                broken.append((path, beside[:80]))

    assert broken == []
