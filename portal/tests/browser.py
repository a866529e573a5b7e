"""A real Chromium for tests: what went wrong on a page is kept, and has to be nothing.

`chromium` starts one per test. A `Tab` is a browser of its own (cookies, theme, width): it drives
Playwright's page (`tab.page`) and notes console errors, policy violations and failed answers.
`tab.check()` asks axe-core and looks at all of it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from django.db import connections
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, sync_playwright

PROGRAM = shutil.which("chromium")
AXE = Path(__file__).parent / "axe" / "axe.min.js"
FLAGS = [
    "--no-sandbox",  # tests may run as root, where Chromium's own sandbox refuses to start
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DESK, WIDE, NARROW = 1440, 1280, 390
PAGE_BYTES_MAX = 150_000  # with all that it loads
# A violation is an event of the document. Collected by a script of the browser's own, which no
# policy applies to, so that the policy of the page stays as it is served.
COLLECT_VIOLATIONS = """
  window.__violations = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    window.__violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
  });
"""
SERIOUS = {"serious", "critical"}
ALL_RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']"
CONTRASTS = "{type: 'rule', values: ['color-contrast']}"
DRAWN = """async () => {
  await document.fonts.ready;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
QUIET_MS, QUIET_TRIES = 25, 120
Theme = Literal["light", "dark"]


@cache
def axe() -> str:
    return AXE.read_text()


def height_of(width: int) -> int:
    return 844 if width == NARROW else 900


class Tab:
    """One person's browser at one site."""

    def __init__(
        self, browser: Browser, url: str, *, width: int, theme: Theme, locale: str = "en-GB"
    ) -> None:
        self.url = url
        self.width = width
        self.theme = theme
        self.context = browser.new_context(
            base_url=url,
            viewport={"width": width, "height": height_of(width)},
            color_scheme=theme,
            reduced_motion="reduce",
            locale=locale,
            timezone_id="Europe/Berlin",  # not UTC, so that times in the reader's zone show
            bypass_csp=False,
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.context.add_init_script(COLLECT_VIOLATIONS)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.troubles: list[str] = []
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))
        self.page.on("response", self._note_response)
        self._may_fail: set[int] = set()

    def _note_console(self, message: ConsoleMessage) -> None:
        # A page that answers 4xx on purpose is logged as well; `_note_response` judges those.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.troubles.append(f"{message.type}: {message.text}")

    def _note_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self._may_fail:
            self.troubles.append(f"{response.status}: {response.url}")

    def expect_status(self, *statuses: int) -> None:
        """From now on these are no trouble: a refusal is what the test is about."""
        self._may_fail |= set(statuses)

    def go(self, path: str) -> None:
        self.page.goto(path)

    def fill(self, **fields: str) -> None:
        """Fields by their label: `tab.fill(New_password="…")`; `_` is a blank or a hyphen."""
        for label, text in fields.items():
            words = re.compile(f"^{label.replace('_', '[ -]')}$")
            self.page.get_by_label(words).fill(text)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def follow(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).first.click()

    def focused(self) -> str:
        """What the keyboard is at: its name in the form, or what it says."""
        return str(
            self.page.evaluate(
                "() => { const at = document.activeElement; "
                "return at.name || at.ariaLabel || at.textContent.trim(); }"
            )
        )

    def tab_to(self, name: str) -> None:
        """Press Tab until the focus is there, as a person without a mouse does."""
        for _ in range(60):
            if self.focused() == name:
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab on {self.page.url}")

    def background(self) -> str:
        return str(self.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    def heading(self, words: str) -> None:
        """Wait for the page that is headed so."""
        self.page.get_by_role("heading", name=words, exact=True).wait_for()

    def check(self) -> None:
        """No console error, no policy violation, nothing wider than the window, axe content.

        Axe sees the page in the tab's theme, and its contrasts in the other one too.
        """
        self.check_quickly()
        found = self.findings(SERIOUS)
        assert not found, f"{self.page.url}: " + "\n".join(found)

    def findings(self, impacts: set[str] | None = None, *, in_both: bool = True) -> list[str]:
        """What axe finds, of these weights (any), in the tab's theme; contrasts in both."""
        self.page.wait_for_load_state()
        found = self._ask_axe(ALL_RULES, impacts)
        if in_both:
            theme = self.theme
            self.turn("dark" if theme == "light" else "light")
            found += self._ask_axe(CONTRASTS, impacts)
            self.turn(theme)
        return found

    def turn(self, theme: Theme, width: int | None = None) -> None:
        """The page as it is, in another theme, and perhaps another width, once it is drawn so."""
        self.theme, self.width = theme, width or self.width
        if width is not None:
            self.page.set_viewport_size({"width": width, "height": height_of(width)})
        self.page.emulate_media(color_scheme=theme)
        self.page.evaluate(DRAWN)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(
            self.page.evaluate(
                "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def violations(self) -> list[str]:
        """Of the page's policy."""
        return list(self.page.evaluate("() => window.__violations"))

    def check_quickly(self) -> None:
        """The same without axe."""
        self.page.wait_for_load_state()
        overflow, violations = self.overflow(), self.violations()
        where = self.page.url
        assert not self.troubles, f"{where}: {self.troubles}"
        assert not violations, f"{where}: {violations}"
        assert overflow <= 0, f"{where} is {overflow} px wider than the window"

    def _ask_axe(self, rules: str, impacts: set[str] | None) -> list[str]:
        if not self.page.evaluate("() => 'axe' in window"):
            # Through the debugger's own channel, which the page's policy does not stop.
            self.page.evaluate(axe())
        # The page says what is wrong, and not all that is right, which is a hundred times as much.
        report = self.page.evaluate(
            f"""async () => (
                await axe.run({{runOnly: {rules}, resultTypes: ["violations"], preload: false}})
            ).violations.map(({{id, impact, nodes}}) => ({{
                id, impact, nodes: nodes.map(({{html, failureSummary}}) => [html, failureSummary])
            }}))"""
        )
        return [
            f"{finding['id']}: {html[:160]} ({summary})"
            for finding in report
            if impacts is None or finding["impact"] in impacts
            for html, summary in finding["nodes"]
        ]

    def weight(self, path: str) -> int:
        """Bytes on the wire of a first visit: the page with all it loads, as compressed."""
        session = self.context.new_cdp_session(self.page)
        session.send("Network.enable")
        session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        total = 0
        under_way: set[str] = set()

        def add(event: dict[str, Any]) -> None:
            nonlocal total
            total += int(event.get("encodedDataLength", 0))
            under_way.discard(event["requestId"])

        session.on("Network.requestWillBeSent", lambda event: under_way.add(event["requestId"]))
        session.on("Network.loadingFinished", add)
        session.on("Network.loadingFailed", add)
        self.page.goto(path)
        self.page.evaluate(DRAWN)  # fonts, and what scripts ask for first
        # Playwright's `networkidle` would wait for half a second of silence on each page.
        for _ in range(QUIET_TRIES):
            if not under_way:
                break
            self.page.wait_for_timeout(QUIET_MS)
        session.detach()
        return total


Open = Callable[..., Tab]


@pytest.fixture
def chromium(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("needs Chromium: `make test` installs it where it may")
    # Playwright's loop runs in this very thread, and only here: the ORM beside it is safe.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_playwright() as playwright:
        # Beside that loop Django has connections of its own, which a test about an outage of the
        # database may have left dead.
        connections.close_all()
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield browser
        browser.close()
        connections.close_all()  # those beside that loop, which nobody would find again


@pytest.fixture
def open_tab(chromium: Browser) -> Open:
    """`open_tab(served.url, width=NARROW, theme="dark")`: a browser that nobody has used."""

    def open_one(
        url: str, *, width: int = WIDE, theme: Theme = "light", locale: str = "en-GB"
    ) -> Tab:
        return Tab(chromium, url, width=width, theme=theme, locale=locale)

    return open_one
