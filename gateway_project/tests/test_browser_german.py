"""German pages in a real browser: a third longer, and nothing overflows or is cut.

With `PICTURES` in the environment, a folder, each page is kept there as a picture.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accounts.models import Workspace
from gateway_project.tests.test_browser import (  # noqa: F401 - fixtures
    EMAIL,
    MEMBERS_PAGES,
    PASSWORD,
    _served_site,
    dana,
    mail_folder,
    mailbox,
    served_site,
    site,
    staff,
)
from portal.tests import furnished
from portal.tests.browser import DESK, NARROW, PAGE_BYTES_MAX

pytestmark = [pytest.mark.served, pytest.mark.slow, pytest.mark.timeout(300)]
STRANGERS_PAGES = (
    *("/", "/docs", "/docs/errors", "/docs/detection", "/docs/search?q=key", "/problems/not_found"),
    *("/status", "/changelog", "/terms", "/guides/", "/guides/?q=limit", "/guides/quickstart"),
    *("/accounts/login/", "/accounts/signup/", "/accounts/password/reset/", "/nowhere"),
)
CUT = """() => [...document.querySelectorAll("body *")].filter((one) => {
  const style = getComputedStyle(one);
  if (!/hidden|clip/.test(style.overflowX) || style.textOverflow === "ellipsis") return false;
  if (one.closest(".sr, .skip, svg, table.cards thead") || !one.textContent.trim()) return false;
  return one.scrollWidth > one.clientWidth + 1;
}).map((one) => one.outerHTML.slice(0, 160))"""


def enter(tab):
    tab.go("/accounts/login/")
    tab.page.locator("[name=login]").fill(EMAIL)
    tab.page.locator("[name=password]").fill(PASSWORD)
    tab.press("Anmelden")
    tab.page.wait_for_url("**/app/")


def look_at(tab, path):
    tab.go(path)
    if "/accounts/reauthenticate/" in tab.page.url and path not in tab.page.url:
        tab.page.locator("[name=password]").fill(PASSWORD)
        tab.press("Weiter")
    assert tab.page.evaluate("() => document.documentElement.lang") == "de", path
    tab.check_quickly()
    assert tab.page.evaluate(CUT) == [], path
    if folder := os.environ.get("PICTURES"):
        name = path.strip("/").replace("/", "-").replace("?", "-") or "start"
        tab.page.screenshot(
            path=Path(folder) / f"{name}-{tab.width}-{tab.theme}.png", full_page=True
        )


@pytest.mark.parametrize(
    ("width", "theme"), [(DESK, "light"), (NARROW, "dark"), (NARROW, "light"), (DESK, "dark")]
)
def test_nothing_overflows_or_is_cut(site, dana, open_tab, width, theme):  # noqa: F811
    tab = open_tab(site, width=width, theme=theme, locale="de-DE")
    tab.expect_status(404)
    for path in STRANGERS_PAGES:
        look_at(tab, path)
    enter(tab)
    for path in MEMBERS_PAGES:
        look_at(tab, path)


@pytest.mark.parametrize(("width", "theme"), [(DESK, "light"), (NARROW, "dark")])
def test_pages_with_something_in_them(site, dana, open_tab, width, theme):  # noqa: F811
    of = furnished.furnish(Workspace.objects.get(members=dana))
    tab = open_tab(site, width=width, theme=theme, locale="de-DE")
    enter(tab)
    for path in set(furnished.pages(of)) - set(MEMBERS_PAGES):
        look_at(tab, path)
        assert width != DESK or tab.weight(path) < PAGE_BYTES_MAX, path


def test_the_box_on_the_first_page_speaks_german(site, open_tab):  # noqa: F811
    tab = open_tab(site, locale="de-DE")
    tab.go("/")
    tab.press("Ist es ein Angriff?")
    tab.page.locator("[data-pieces] mark").first.wait_for()
    assert "," in tab.page.locator("[data-confidence]").inner_text()
    tab.expect_status(422)
    tab.page.locator("#try-text").fill(" ")
    tab.press("Ist es ein Angriff?")
    tab.page.get_by_text("Der Text ist leer; bitte einen schreiben.").wait_for()
    tab.press("English")
    tab.page.wait_for_url("**/")
    tab.heading("Catch prompt injection before your model reads it.")


def test_one_wide_page_weighs_no_more(site, open_tab):  # noqa: F811
    assert open_tab(site, locale="de-DE").weight("/") < PAGE_BYTES_MAX
