"""The forms that pages show, filled in, so that a new one is found by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import unescape
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urljoin, urlsplit

from django.test import Client
from django.urls import Resolver404, resolve

from gateway_project.tests.test_staff_saves import Fields

HTML: Any = {"HTTP_ACCEPT": "text/html"}
FORM = re.compile(r"<form\b[^>]*>.*?</form>", re.DOTALL)
BUTTON = re.compile(r"<(?:button|input)\b[^>]*>")
SELECT = re.compile(r'<select\b[^>]*name="([^"]+)"[^>]*>(.*?)</select>', re.DOTALL)
LINK = re.compile(r'href="([^"#]+)"')
CHOSEN, ROWS = "_selected_action", 4
SAVES_AS_WELL = ("_addanother", "_continue")
"""Buttons of the admin that do what saving does, and lead elsewhere."""


class Found(NamedTuple):
    name: str
    address: str
    fields: dict[str, list[str]]


def name_of(address: str) -> str:
    """Of the view, with what in the address is no id. Raises `Resolver404`."""
    parts = urlsplit(address)
    match = resolve(parts.path)
    more = [match.kwargs.get("name", ""), *parse_qs(parts.query).get("action", ())]
    return ":".join([match.view_name, *filter(None, more)])


def forms_of(
    page: str, text: str, typed: Mapping[str, str], *, is_sure: bool = False
) -> Iterator[Found]:
    """Those of a page's text, one for each button with a name; `typed` where they begin empty.

    Without those that choose rows of the admin for an act, unless they ask whether it `is_sure`.
    """
    for form in FORM.findall(text):
        head = form.partition(">")[0]
        chooses = f'name="{CHOSEN}"' in form or 'id="changelist-form"' in head
        if 'method="post"' not in head or chooses != is_sure:
            continue
        action = _attribute(head, "action")
        address = urljoin(page, action) if action else page
        fields = Fields(form).values
        for field, options in SELECT.findall(form):
            offered = [one for one in re.findall(r'<option value="([^"]*)"', options) if one]
            if offered and not any(fields.get(field, ())):
                fields[field] = [unescape(offered[0])]
        for field in set(re.findall(r'name="([^"]+)"', form)) & set(typed):
            if set(fields.get(field, ())) <= {"", "null"}:
                fields[field] = [typed[field]]
        for button, value in _buttons(form):
            pressed = {button: [value]} if button else {}
            said = fields.get("action", [])
            said = [value or button] if button and not button.startswith("_") else said
            yield Found(":".join([name_of(address), *said]), address, {**fields, **pressed})


def _buttons(form: str) -> Iterator[tuple[str, str]]:
    named = 0
    for tag in BUTTON.findall(form):
        is_button = tag.startswith("<button") or _attribute(tag, "type") == "submit"
        name = _attribute(tag, "name")
        if is_button and name and name not in SAVES_AS_WELL:
            named += 1
            yield name, unescape(_attribute(tag, "value"))
    if not named:
        yield "", ""


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'\s{name}="([^"]*)"', tag)
    return unescape(found[1]) if found else ""


def opened(browser: Client, addresses: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each with the text of its page."""
    for address in addresses:
        yield address, browser.get(address, **HTML).content.decode(errors="replace")


def linked(browser: Client, prefix: str, *begin: str) -> Iterator[tuple[str, str]]:
    """`opened`, of whatever `begin` leads to below `prefix`; one of each name."""
    waiting, seen = list(begin), set()
    while waiting:
        address = waiting.pop(0)
        try:
            name = name_of(address)
        except Resolver404:
            continue
        if name in seen or name.endswith("_history") or "csv=" in address:
            continue
        seen.add(name)
        answer = browser.get(address, **HTML)
        if answer.status_code != 200 or "html" not in answer["Content-Type"]:
            continue
        text = answer.content.decode(errors="replace")
        found = (urljoin(address, unescape(link)) for link in LINK.findall(text))
        waiting += [one for one in found if one.startswith(prefix)]
        yield address, text


def acts_of(
    browser: Client, page: str, text: str, typed: Mapping[str, str], undo: Callable[[], None]
) -> Iterator[Found]:
    """What the admin's list offers to do to its first rows, each with the form that asks first.

    Some do it at once: so `undo`.
    """
    rows = re.findall(rf'name="{CHOSEN}" value="([^"]+)"', text)[:ROWS]
    for name, options in SELECT.findall(text):
        for act in re.findall(r'<option value="([^"]+)"', options) if name == "action" else ():
            fields = {"action": [act], CHOSEN: rows}
            answer = browser.post(page, fields, **HTML)
            asks = forms_of(page, answer.content.decode(), typed, is_sure=True)
            undo()
            asked = next(asks, None) or Found("", page, fields)
            yield asked._replace(name=f"{name_of(page)}:{act}")
