"""What `/docs` has on a word: operations by path, name and fields, error codes, guides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from django.urls import reverse

from portal import guides, problems
from portal.reference.document import Field, Operation, reference

RESULTS_MAX, GUIDES_MAX, BEST = 20, 6, 6
PAGES = (
    ("Authentication", "key header X-API-Key Authorization Bearer", "#authentication"),
    ("Errors", "problem json code detail RFC 9457", "#errors"),
    ("Limits", "rate limit quota 429 Retry-After RateLimit headers", "#limits"),
    ("Idempotency", "Idempotency-Key repeat retry twice", "#idempotency"),
    ("Paging", "cursor next limit pages", "#paging"),
)


class Found(NamedTuple):
    title: str
    hint: str
    url: str


class _Entry(NamedTuple):
    """`name` weighs more than `description`; a customer's page stands before one that is apart."""

    found: Found
    name: str
    description: str
    is_apart: bool


def find(text: str) -> list[Found]:
    """Entries that have all words of `text`, the best first."""
    wanted = [re.sub(r"[^\w./-]", "", part) for part in text.casefold().split()]
    wanted = [part for part in wanted if part]
    if not wanted:
        return []
    ranked = []
    for number, entry in enumerate(_index()):
        if all(part in entry.name or part in entry.description for part in wanted):
            missing = sum(part not in entry.name for part in wanted)
            starts = not any(entry.name.startswith(part) for part in wanted)
            ranked.append(((entry.is_apart, missing, starts, number), entry.found))
    found = [one for _, one in sorted(ranked, key=lambda one: one[0])[:RESULTS_MAX]]
    hits = guides.search(" ".join(wanted))[:GUIDES_MAX]
    in_guides = [Found(hit.section or hit.title, f"Guide: {hit.title}", hit.url) for hit in hits]
    # The best of the reference, then what is told at length, then the rest of it.
    return [*found[:BEST], *in_guides, *found[BEST:]][:RESULTS_MAX]


@lru_cache(maxsize=1)
def _index() -> tuple[_Entry, ...]:
    return tuple(_entries())


def _entries() -> Iterator[_Entry]:
    home = reverse("system-docs")
    for title, description, anchor in PAGES:
        found = Found(title, "How to call", home + anchor)
        yield _Entry(found, title.casefold(), description.casefold(), is_apart=False)
    for group in reference().groups:
        url = reverse("docs-group", args=[group.slug])
        for operation in group.operations:
            hint = f"{operation.method} {operation.path}"
            found = Found(operation.summary, hint, f"{url}#{operation.id}")
            name = f"{operation.path} {operation.id} {operation.summary} {operation.method}"
            yield _Entry(found, name.casefold(), _text_of(operation), group.is_apart)
    for kind in problems.everything():
        found = Found(kind.title, f"{kind.status} {kind.code}", kind.url)
        yield _Entry(found, f"{kind.code} {kind.title}".casefold(), kind.cause.casefold(), False)


def _text_of(operation: Operation) -> str:
    fields = [*operation.body, *(one for _, found in operation.parameters for one in found)]
    fields += [one for answer in operation.answers for one in answer.fields]
    codes = [problem.code for problem in operation.problems]
    parts = [operation.description, *(name for one in fields for name in _names(one)), *codes]
    return " ".join(parts).casefold()


def _names(field: Field) -> Iterator[str]:
    yield field.name
    for inner in field.fields:
        yield from _names(inner)
