"""The garbage collector of a long-lived process."""

from __future__ import annotations

import gc


def tune_gc() -> None:
    """Let cycle collections leave out what stays for ever: modules, models, URL patterns.

    With Python's defaults each walks them again: pauses of 50 ms and more, which were most of the
    99th percentile. How rarely they come, `gateway_project` says for every process.
    """
    gc.collect()
    gc.freeze()
