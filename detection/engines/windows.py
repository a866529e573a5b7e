"""Which parts of a long text an engine is shown that reads only so many bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

WINDOWS_MAX = 32
STRIDE = 0.75  # of a window: neighbours share a quarter, so that no sentence is cut in both
STRIDE_OF_DATA = 0.5  # where an order is a sentence among many of another kind

Span = tuple[int, int]


def spans(data: bytes, window_bytes: int, *, is_data: bool = False) -> list[Span]:
    """Byte ranges of UTF-8 `data`, each at most `window_bytes` long and on character boundaries.

    Head and tail come first, where instructions hide most often, then the rest in order; at most
    `WINDOWS_MAX`. Those of `is_data` overlap more, where all of it fits so. A `window_bytes` of 0
    means that the engine reads everything.
    """
    size = len(data)
    if not window_bytes or size <= window_bytes:
        return [(0, size)]
    stride = max(1, int(window_bytes * STRIDE))
    of_data = max(1, int(window_bytes * STRIDE_OF_DATA))
    if is_data and (size - window_bytes) / of_data < WINDOWS_MAX - 1:
        stride = of_data
    starts = [_boundary(data, at) for at in range(0, size - window_bytes, stride)]
    found = [(start, _boundary(data, start + window_bytes)) for start in starts]
    tail = size - window_bytes
    while tail < size and not _is_boundary(data, tail):
        tail += 1
    return [found[0], (tail, size), *found[1 : WINDOWS_MAX - 1]]


def _boundary(data: bytes, at: int) -> int:
    """The first byte of the character at `at`."""
    while at > 0 and not _is_boundary(data, at):
        at -= 1
    return at


def _is_boundary(data: bytes, at: int) -> bool:
    return at >= len(data) or data[at] & 0xC0 != 0x80


def covered_chars(data: bytes, seen: Iterable[Span]) -> int:
    """How many characters of `data` lie in the union of `seen`."""
    count = reached = 0
    for start, end in sorted(seen):
        start = max(start, reached)
        if end > start:
            count += len(data[start:end].decode())
            reached = end
    return count
