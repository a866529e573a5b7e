"""Robin UI as a person uses it, in Chromium: every page, and what goes wrong behind it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Response,
    sync_playwright,
)
from playwright.sync_api import (
    TimeoutError as TooLate,
)

from benchmarks.processes import BenchError
from deploy.robin_real.checks import ask, wait_for
from deploy.robin_real.mta import Mta
from deploy.robin_real.people import ADMIN
from deploy.robin_real.sink import NEVER
from deploy.robin_real.stack import PASSWORD, Gateway
from deploy.robin_real.table import Table

ROUTES = (
    *("/dashboard", "/email/queue", "/email/storage"),
    *("/security/clamav", "/security/rspamd", "/security/blocklist"),
    *("/routing/relay", "/routing/webhooks", "/monitoring/metrics", "/monitoring/logs"),
    *("/settings/server", "/settings/users", "/settings/dovecot"),
)
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
WRONG = re.compile(r"Invalid Date|\bNaN\b|\b1970\b|\bundefined\b|\[object Object\]")
TELLS_OF_REFUSAL = re.compile("Failed to |Auto-refresh failed")
LOOK_SECONDS = 1.0
EXPIRY_SECONDS = 60 + 15 + 5
"""A token of a minute, the leeway for clocks that differ, and a little."""
FONTS = ("fonts.googleapis.com", "fonts.gstatic.com")
BLOCKED = "type,value,reason\nIP,192.0.2.77,Walked in\nDOMAIN,spam.example,Walked in too\n"
Answered = tuple[str, str, int]


class Tab:
    """One person's browser, and what went wrong in it since it was last asked."""

    def __init__(self, browser: Browser, url: str, pictures: Path) -> None:
        self.context = browser.new_context(
            base_url=url, ignore_https_errors=True, viewport={"width": 1440, "height": 900}
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.pictures = pictures
        self.errors: list[str] = []
        self.refused: list[Answered] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}"[:200]))
        self.page.on("response", self._on_response)
        self.page.on("dialog", lambda dialog: dialog.accept())

    def _on_console(self, message: ConsoleMessage) -> None:
        url = str(message.location.get("url", ""))
        # Of what failed to load, `refused` tells more.
        is_known = (
            message.text.startswith("Failed to load resource") or "HttpErrorResp" in message.text
        )
        if message.type == "error" and not is_known and not any(host in url for host in FONTS):
            self.errors.append(message.text[:200])

    def _on_response(self, answer: Response) -> None:
        if answer.status >= 400:
            path = urlsplit(answer.url).path
            self.refused.append((answer.request.method, path, answer.status))

    def taken(self) -> tuple[list[str], list[Answered]]:
        found = self.errors, self.refused
        self.errors, self.refused = [], []
        return found

    def go(self, path: str) -> str:
        """Load the page anew; its text, after a while."""
        self.page.goto(path, wait_until="domcontentloaded")
        return self.look()

    def look(self) -> str:
        self.page.wait_for_timeout(1000 * LOOK_SECONDS)
        with suppress(TooLate):  # of those that poll
            self.page.wait_for_load_state("networkidle", timeout=5000)
        return self.text()

    def text(self) -> str:
        return self.page.locator("body").inner_text()

    def sign_in(self, email: str) -> None:
        self.page.locator("#username").fill(email)
        self.page.locator("#password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign In").click()
        self.wait_for_path(lambda path: "/auth/login" not in path)

    def wait_for_path(self, is_right: Callable[[str], bool]) -> None:
        """It is a page of one document, whose fonts may never come: its load means nothing."""
        self.page.wait_for_url(lambda url: is_right(urlsplit(url).path), wait_until="commit")

    @property
    def path(self) -> str:
        return urlsplit(self.page.url).path

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png")


@contextmanager
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        raise BenchError("Chromium is not installed (Debian: apt-get install chromium).")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


class UiPages:
    """`how` names the way to the gateway in the table: `http`, `https`, `ng serve`."""

    def __init__(self, browser_: Browser, table: Table, how: str, url: str, pictures: Path) -> None:
        self.browser, self.table, self.how, self.url = browser_, table, how, url
        self.pictures = pictures
        pictures.mkdir(parents=True, exist_ok=True)

    def tab(self) -> Tab:
        return Tab(self.browser, self.url, self.pictures)

    def pages(self, email: str, *, may: frozenset[int] = frozenset()) -> None:
        """Every page as that person; `may` are the statuses that the role explains."""
        who, tab = email.partition("@")[0], self.tab()
        with self.table.check("7", f"{self.how}, {who}: a deep link, signed out") as row:
            tab.go("/monitoring/logs")
            asked = tab.path
            tab.sign_in(email)
            tab.look()
            row.found(f"{asked}, then {tab.path}", tab.path == "/monitoring/logs")
        tab.taken()
        for route in ROUTES:
            with self.table.check("7", f"{self.how}, {who}: {route}, loaded anew") as row:
                text = tab.go(route)
                errors, refused = tab.taken()
                wrong = sorted(set(WRONG.findall(text)))
                unexplained = [one for one in refused if one[2] not in may]
                if may and not unexplained:  # and what pages say of those
                    errors = [one for one in errors if not TELLS_OF_REFUSAL.match(one)]
                tab.picture(f"{who}{route.replace('/', '-')}")
                summary = f"{len(text)} characters, refused: {len(refused)}"
                seen = [f"at {tab.path}"] * (tab.path != route)
                seen += [f"text {wrong}"] * bool(wrong) + [f"console {errors}"] * bool(errors)
                seen += [f"answers {unexplained}"] * bool(unexplained)
                is_ok = not seen and len(text) > 100
                row.found("; ".join(seen) or summary, is_ok)
        tab.context.close()

    def dead_item(self, gateway: Gateway) -> None:
        recipient, client, tab = f"c@{NEVER}", gateway.signed_in(ADMIN), self.tab()

        def item() -> Any:
            path = f"/api/v1/queue/json?size=200&state=DEAD&search={recipient}"
            return next(iter(ask(client, path)["items"]), None)

        with self.table.check("7", f"{self.how}: a dead item seen and retried") as row:
            before = item()
            self._at(tab, "/email/queue", ADMIN)
            # By its uid: bounces of it go to the same recipient.
            row_of_it = tab.page.locator("tr", has_text=before["uid"][:8])
            while not row_of_it.count():  # it has no search
                tab.page.get_by_role("button", name="Next").click()
                tab.look()
            row_of_it.get_by_title("Retry Delivery").click()
            tab.look()
            tab.picture("queue-retried")
            again = wait_for("another try", lambda: _more_tries(item(), before))
            row.found(f"tries {before['retryCount']} → {again['retryCount']}", True)
        tab.context.close()

    def blocklist(self) -> None:
        tab = self.tab()
        with self.table.check("7", f"{self.how}: a blocklist imported") as row:
            self._at(tab, "/security/blocklist", ADMIN)
            file: Any = {"name": "list.csv", "mimeType": "text/csv", "buffer": BLOCKED.encode()}
            tab.page.locator("input[type=file]").set_input_files(file)
            text = tab.look()
            tab.picture("blocklist-imported")
            row.found("both are listed", "192.0.2.77" in text and "spam.example" in text)
        tab.context.close()

    def dovecot(self) -> None:
        tab = self.tab()
        with self.table.check("7", f"{self.how}: Dovecot's first document saved") as row:
            self._at(tab, "/settings/dovecot", ADMIN)
            tab.taken()
            save = tab.page.get_by_role("button", name="Save")
            can_be = save.is_enabled()
            if can_be:
                save.click()
                tab.look()
            tab.picture("dovecot-saved")
            _, refused = tab.taken()
            row.found(f"can be saved {can_be}, refused {refused}", can_be and not refused)
        tab.context.close()

    def export(self) -> None:
        tab = self.tab()
        with self.table.check("7", f"{self.how}: the log exported") as row:
            self._at(tab, "/monitoring/logs", ADMIN)
            with tab.page.expect_download(timeout=30_000) as found:
                tab.page.get_by_role("button", name="TXT").click()
            content = Path(found.value.path()).read_text()
            lines = content.splitlines()
            row.found(f"{found.value.suggested_filename}, {len(lines)} lines", len(lines) > 10)
        tab.context.close()

    def robin_down(self, mta: Mta) -> None:
        tab = self.tab()
        self._at(tab, "/dashboard", ADMIN)
        with self.table.check("7", f"{self.how}: the dashboard while Robin is down") as row:
            mta.stop()
            time.sleep(2)
            text = tab.go("/dashboard")
            tab.picture("dashboard-down")
            is_shown = "Unable to connect" in text or "DOWN" in text
            row.found(f"{_states_in(text)}", is_shown and "All delivered" not in text)
        with self.table.check("7", f"{self.how}: the queue and the log while Robin is down") as row:
            tab.taken()
            text = tab.go("/email/queue") + tab.go("/monitoring/logs")
            errors, answers = tab.taken()
            codes = sorted({code for _, _, code in answers})
            errors = [one for one in errors if not TELLS_OF_REFUSAL.match(one)]
            row.found(f"{codes}, console {errors}", set(codes) <= {502, 503, 504} and not errors)
        with self.table.check("7", f"{self.how}: the dashboard when Robin is back") as row:
            mta.start()
            text = ""
            for _ in range(10):
                text = tab.go("/dashboard")
                if "Unable to connect" not in text and "DOWN" not in text:
                    break
            tab.picture("dashboard-up")
            is_down = "Unable to connect" in text or "DOWN" in text
            row.found(_states_in(text), "UP" in text and not is_down)
        tab.context.close()

    def expiry(self) -> None:
        """The gateway gives tokens for a minute."""
        with self.table.check("7", f"{self.how}: the token expires on the queue's page") as row:
            tab = self.tab()
            self._at(tab, "/email/queue", ADMIN)
            tab.taken()
            tab.page.wait_for_timeout(1000 * EXPIRY_SECONDS)
            tab.page.get_by_role("button", name="Refresh").click()
            tab.look()
            _, refused = tab.taken()
            here = tab.path
            tab.go("/email/queue")
            row.found(f"{refused}, at {here}; loaded anew: {tab.path}", tab.path == "/email/queue")
            tab.context.close()

    def _at(self, tab: Tab, path: str, email: str) -> None:
        tab.go(path)
        tab.sign_in(email)
        tab.wait_for_path(lambda now: now == path)
        tab.look()


def _more_tries(now: Any, before: Any) -> Any:
    return now if now is not None and now["retryCount"] > before["retryCount"] else None


def _states_in(text: str) -> str:
    """What a page says, in short."""
    states = ("Unable to connect", "All delivered", "pending", "No pending messages", "DOWN", "UP")
    return ", ".join(word for word in states if word in text)
