"""A body of JSON: read as one thing, and what is wrong with it is said with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_project.core import errors
from gateway_project.core.api import json_body
from gateway_project.core.api.endpoint import Asked
from gateway_project.core.storable import NESTING_MAX


class Anything(Asked):
    a: Any = None
    b: Any = None


def refused(body: bytes | str) -> errors.GatewayError:
    with pytest.raises(errors.GatewayError) as caught:
        json_body.validated(body if isinstance(body, bytes) else body.encode(), Anything)
    return caught.value


def fields(body: str) -> list[str]:
    return [error["field"] for error in refused(body).errors]


class TestTwice:
    @pytest.mark.parametrize(
        ("body", "named"),
        [
            ('{"a": 1, "a": 1}', ["a"]),
            ('{"a": 1, "b": 2, "a": 3, "b": 4}', ["a", "b"]),
            ('{"a": 1, "\\u0061": 1}', ["a"]),
            ('{"a": {"x": {"y": 1, "y": 2}}}', ["a.x.y"]),
            ('{"a": [1, [{"y": 1, "y": 2}]]}', ["a.1.0.y"]),
            ('{"a": {"": 1, "": 2}}', ["a."]),
            ('{"a": {"\U0001f600": 1, "\\ud83d\\ude00": 2}}', ["a.\U0001f600"]),
            ('{"a": null, "a": null, "a": null}', ["a"]),
        ],
    )
    def test_it_is_refused_and_named(self, body: str, named: list[str]) -> None:
        assert fields(body) == named

    @pytest.mark.parametrize(
        "body",
        [
            '{"a": {"x": 1}, "b": {"x": 1}}',
            '{"a": [{"x": 1}, {"x": 1}]}',
            '{"a": {"x": 1, "X": 1}}',
            # Composed and not: two names for every JSON reader (RFC 8259 §8.3).
            '{"a": {"\u00e4": 1, "a\u0308": 1}}',
            '{"a": "a\\": 1, \\"a\\": 2"}',
        ],
    )
    def test_names_of_different_objects_are_different(self, body: str) -> None:
        assert json_body.validated(body.replace('\\":', "':").encode(), Anything)

    @given(
        st.recursive(
            st.none() | st.integers(-5, 5) | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
        )
    )
    def test_what_a_json_library_writes_has_none(self, value: Any) -> None:
        json_body.refuse_twice(json.dumps(value).encode())


class TestWhere:
    @pytest.mark.parametrize(
        ("body", "named", "says"),
        [
            ('{"a": {"x": "\\ud800"}}', ["a.x"], "half of a surrogate pair"),
            ('{"a": ["\\udc00\\ud800"]}', ["a.0"], "whole characters"),
            ('{"a": {"\\ud800": 1}}', ["a"], "a name that"),
            ('{"a": "\\ud800", "b": "\\ud800"}', ["a", "b"], "half"),
            (f'{{"a": {"9" * 5000}}}', ["a"], "as text"),
        ],
    )
    def test_what_the_parser_gives_up_on(self, body: str, named: list[str], says: str) -> None:
        error = refused(body)

        assert error.status_code == 422
        assert [one["field"] for one in error.errors] == named
        assert says in error.errors[0]["message"]

    @pytest.mark.parametrize("depth", [NESTING_MAX + 1, 190, 900, 100_000])
    def test_what_is_too_deep(self, depth: int) -> None:
        error = refused('{"a": ' + "[" * depth + "]" * depth + "}")

        assert error.status_code == 422
        assert "levels deep; flatten it" in error.errors[0]["message"]

    def test_a_place_is_as_short_as_an_error_may_be(self) -> None:
        [error] = refused(f'{{"a": {{"{"x" * 9000}": "\\ud800"}}}}').errors

        assert len(error["field"]) <= 200

    def test_no_more_are_shown_than_somebody_reads(self) -> None:
        assert len(fields(json.dumps({"a": ["\ud800"] * 5000}))) == 20


class TestEncodings:
    TEXT = '{"a": "Gr\u00fc\u00dfe"}'

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (TEXT.encode("utf-8-sig"), "byte order mark"),
            (TEXT.encode("utf-16"), "UTF-16"),
            (TEXT.encode("utf-16-le"), "UTF-16"),
            (TEXT.encode("utf-16-be"), "UTF-16"),
            (TEXT.encode("utf-32"), "UTF-32"),
            (TEXT.encode("utf-32-le"), "UTF-32"),
            (TEXT.encode("utf-32-be"), "UTF-32"),
            (TEXT.encode("latin-1"), "FC at 9"),
            (TEXT.encode("cp1252"), "Windows-1252"),
            ('{"a": "\u20ac"}'.encode("cp1252"), "80 at 7"),
            (TEXT.encode()[:-4], "is part of no character"),
            (b'{"a": "\xed\xa0\x80"}', "ED at 7"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"", "empty"),
            (b"{'a': 1}", "could not be read as JSON"),
        ],
    )
    def test_the_refusal_names_it(self, body: bytes, says: str) -> None:
        error = refused(body)

        assert (error.status_code, error.code) == (400, "invalid_json")
        assert says in str(error.detail)
