"""Processes of another host: their clock is off by libfaketime, as a host's own would be."""

from __future__ import annotations

from pathlib import Path

import pytest

TEN_AHEAD, TEN_BEHIND = "+10s", "-10s"


def off_by(offset: str) -> dict[str, str]:
    """The environment of a process whose clock is off; what measures durations is not."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("needs libfaketime: `make test` installs it (package faketime)")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "PYTHONPATH": str(Path(__file__).parent / "other_host"),
    }
