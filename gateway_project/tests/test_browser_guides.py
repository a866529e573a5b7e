"""Examples of the guides in a browser: tabs that remember, without a script, by keyboard."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.served
SHOWN = "[...document.querySelectorAll('.example > .code')].filter(e => e.checkVisibility()).length"
CHOSEN = "[...document.querySelectorAll('.example > input:checked')].map(tab => tab.value)"
EXAMPLES = "document.querySelectorAll('.example').length"


def choose(page, label, number=0):
    page.locator(".example > label", has_text=label).nth(number).click()


@pytest.mark.slow
def test_a_language_that_was_chosen_is_shown_everywhere(shared, open_tab):
    tab = open_tab(shared.url)
    tab.go("/guides/limits")
    choose(tab.page, "Go")
    here = tab.page.evaluate(CHOSEN)
    tab.go("/guides/quickstart")
    there = tab.page.evaluate(CHOSEN)

    assert "Go" in here
    assert set(there) == {"Go"}
    assert tab.page.evaluate(SHOWN) == tab.page.evaluate(EXAMPLES)
    tab.check_quickly()


@pytest.mark.slow
def test_the_example_that_was_clicked_stays_where_it_is(shared, open_tab):
    tab = open_tab(shared.url)
    tab.go("/guides/quickstart")
    label = tab.page.locator(".example > label", has_text="Go").last
    label.scroll_into_view_if_needed()
    before = label.bounding_box()["y"]
    label.click()

    assert abs(label.bounding_box()["y"] - before) < 2


@pytest.mark.slow
def test_what_is_copied_runs_here(shared, open_tab):
    tab = open_tab(shared.url)
    tab.go("/guides/quickstart")
    tab.page.get_by_role("button", name="Copy").first.click()
    tab.page.get_by_role("button", name="Copied").wait_for()

    copied = tab.page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith(f"curl -s {shared.url}/auth/register")


def test_tabs_work_without_a_script_and_by_keyboard(shared, chromium):
    context = chromium.new_context(base_url=shared.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/guides/limits")
    first = page.locator(".example").first
    visible = first.locator(".code:visible")
    assert "curl -s" in visible.inner_text()
    choose(page, "Python")
    assert "from gateway_guard" in visible.inner_text()
    page.keyboard.press("ArrowRight")  # the label's click has left the focus at its button
    assert 'from "gateway-guard"' in visible.inner_text()
    assert visible.count() == 1
    assert page.get_by_role("button", name="Copy").count() == 0  # nobody would copy
    context.close()
