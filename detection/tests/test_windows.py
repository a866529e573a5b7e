"""Windows of a long text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.engines import windows

texts = st.text(
    st.sampled_from("aé€😀"),  # one to four bytes
    min_size=1,
    max_size=3000,
)


@given(texts, st.sampled_from([16, 64, 500]))
def test_each_is_short_enough_whole_in_characters_and_together_they_are_everything(text, size):
    data = text.encode()

    spans = windows.spans(data, size)

    parts = [data[start:end].decode() for start, end in spans]  # raises inside a character
    assert all(0 < len(part.encode()) <= size for part in parts)
    if len(spans) < windows.WINDOWS_MAX:
        assert windows.covered_chars(data, spans) == len(text)
    assert len(spans) <= windows.WINDOWS_MAX


@given(texts)
def test_what_is_covered_is_counted_once(text):
    data = text.encode()
    spans = windows.spans(data, 64)

    assert windows.covered_chars(data, [*spans, *spans]) == windows.covered_chars(data, spans)
    assert windows.covered_chars(data, []) == 0


def test_head_and_tail_come_first():
    assert windows.spans(b"a" * 1400, 500) == [(0, 500), (900, 1400), (375, 875), (750, 1250)]


@pytest.mark.parametrize("size", [0, 500])
def test_a_short_text_is_one(size):
    assert windows.spans(b"a" * 500, size) == [(0, 500)]


def test_an_engine_that_reads_everything_is_shown_everything():
    assert windows.spans(b"a" * 40_000, 0) == [(0, 40_000)]


def test_of_the_longest_text_at_most_32_are_shown():
    data = ("😀" * 10_000).encode()

    spans = windows.spans(data, 500)

    assert len(spans) == 32
    assert spans[1][1] == len(data)
    assert windows.covered_chars(data, spans) < 10_000
