"""What will go from a version of the API: declared once, said in headers and in the document.

    @endpoint(…, deprecated=Deprecation(date(2026, 12, 1), date(2027, 12, 1), "POST /v1/detect"))

    class Body(…):
        speed: Annotated[int | None, Deprecation(…, "timeout_seconds")] = None

Every answer of a deprecated operation has `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and a
`Link` to the guide on versions. Of a deprecated field of a body or a query, those answers have them
whose request sent it. A field of an answer is marked in the document alone: nobody can tell who
reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from email.utils import format_datetime
from typing import Any, get_args

from django.http import HttpRequest, HttpResponseBase
from pydantic import BaseModel

NOTICE = timedelta(days=180)
"""How long at least something works on after it was deprecated: docs/guides/versions.md says so."""
GUIDE = "/guides/versions"
NAMES = ("Deprecation", "Sunset", "Link")
"""The headers, for the document."""
NOTICE_KEY = "x-deprecated"


@dataclass(frozen=True, slots=True)
class Deprecation:
    """`since`, `sunset`: the days, from midnight UTC, on which it is deprecated and may be gone.

    `instead`: what to use, as a noun. Raises `ValueError` for less than `NOTICE` between the two.
    """

    since: date
    sunset: date
    instead: str

    def __post_init__(self) -> None:
        if self.sunset - self.since < NOTICE:
            raise ValueError(
                f"What is deprecated on {self.since} works for {NOTICE.days} days more, at least "
                f"until {self.since + NOTICE}. Name that day, or a later one, as its sunset."
            )

    @property
    def notice(self) -> str:
        return (
            f"Deprecated since {self.since}, and may be gone on {self.sunset}: use {self.instead}."
        )

    def mark(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """An operation or a schema of the OpenAPI document; `spoken` puts the words in place."""
        marks = {"deprecated": True, "x-sunset": str(self.sunset), NOTICE_KEY: self.notice}
        return {**schema, **marks}

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return self.mark(handler(core_schema))


def spoken(schema: dict[str, Any]) -> dict[str, Any]:
    """What `mark` marked, with its words behind the description.

    Pydantic puts the description of a field over whatever an annotation has made of its schema.
    """
    if NOTICE_KEY not in schema:
        return schema
    rest = {name: value for name, value in schema.items() if name != NOTICE_KEY}
    return {**rest, "description": f"{rest.get('description', '')} {schema[NOTICE_KEY]}".strip()}


@dataclass(frozen=True, slots=True)
class DeprecatedField:
    """`path`: names from the outermost model to the field; those of lists are of each item."""

    path: tuple[str, ...]
    deprecation: Deprecation

    def is_in(self, value: Any) -> bool:
        return _is_set(value, self.path)


def fields_of(model: type[BaseModel] | None) -> tuple[DeprecatedField, ...]:
    """The deprecated fields of a model and of those in it."""
    return () if model is None else tuple(_fields(model, (), frozenset()))


def _fields(
    model: type[BaseModel], at: tuple[str, ...], above: frozenset[type]
) -> Iterator[DeprecatedField]:
    for name, field in model.model_fields.items():
        for found in field.metadata:
            if isinstance(found, Deprecation):
                yield DeprecatedField((*at, name), found)
        for inner in _models(field.annotation):
            if inner not in above and inner is not model:
                yield from _fields(inner, (*at, name), above | {model})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from _models(one)


def _is_set(value: Any, path: Sequence[str]) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_set(one, path) for one in value)
    if not isinstance(value, BaseModel) or path[0] not in value.model_fields_set:
        return False
    return len(path) == 1 or _is_set(getattr(value, path[0]), path[1:])


@dataclass(frozen=True, slots=True)
class Deprecations:
    """Of one operation: itself, and what it may be sent."""

    operation: Deprecation | None
    body: tuple[DeprecatedField, ...] = ()
    query: tuple[DeprecatedField, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.operation or self.body or self.query)

    def note(self, response: HttpResponseBase, request: HttpRequest, body: Any) -> None:
        """Put the headers on an answer, where they belong; of several, those of the first to go."""
        met = [self.operation] if self.operation else []
        if response.status_code < 400:
            met += [one.deprecation for one in self.body if one.is_in(body)]
            met += [one.deprecation for one in self.query if one.path[0] in request.GET]
        for name, value in headers_of(met).items():
            response.headers[name] = value


NONE = Deprecations(None)


def headers_of(deprecations: Sequence[Deprecation]) -> dict[str, str]:
    if not deprecations:
        return {}
    first = min(deprecations, key=lambda one: (one.sunset, one.since))
    since, sunset = (datetime.combine(day, time.min, UTC) for day in (first.since, first.sunset))
    return {
        "Deprecation": f"@{int(since.timestamp())}",
        "Sunset": format_datetime(sunset, usegmt=True),
        "Link": f'<{GUIDE}>; rel="deprecation"; type="text/html"',
    }
