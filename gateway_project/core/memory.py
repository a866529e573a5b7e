"""The garbage collector of a long-lived process."""

from __future__ import annotations

import gc


def tune_gc() -> None:
    """Let cycle collections leave out what stays for ever, and come rarely.

    With Python's defaults each walks modules, models and URL patterns again: pauses of 50 ms and
    more, which were most of the 99th percentile. Nearly everything of a request is freed without.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
