"""Metrics of several processes in one folder, and what is left there of the dead.

prometheus_client gives each process files of its own and adds them all up at a scrape. A process
that ended leaves its files: its counters still count, but with every restart there is one more to
read. `sweep` adds the counters and histograms of the dead to one archive each and drops their live
gauges, so that totals never go back and the folder does not grow.

Processes are told by their number: a folder belongs to one machine, or one container.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from django.conf import settings
from prometheus_client import mmap_dict

MmapedDict: Any = mmap_dict.MmapedDict  # it has no types
SUMMED = ("counter", "histogram", "summary")
SWEEP_SECONDS = 30.0
_swept_at = 0.0
_sweeping = Lock()


@contextmanager
def scraping() -> Iterator[None]:
    """Hold the folder still for a scrape; sweeps it first when that is due."""
    global _swept_at
    folder = settings.PROMETHEUS_MULTIPROC_DIR
    if not folder:
        yield
        return
    with _sweeping:
        is_due = monotonic() - _swept_at > SWEEP_SECONDS
        if is_due:
            _swept_at = monotonic()
    if is_due:
        sweep(Path(folder))
    with _locked(Path(folder), fcntl.LOCK_SH):
        yield


def sweep(folder: Path) -> None:
    """Move what dead processes left into the archives."""
    with _locked(folder, fcntl.LOCK_EX):
        dead: dict[str, list[Path]] = defaultdict(list)
        for path in folder.glob("*.db"):
            kind, _, process = path.stem.rpartition("_")
            if process.isdigit() and not _is_alive(int(process)):
                dead[kind].append(path)
        for kind, paths in dead.items():
            if kind in SUMMED:
                _archive(folder / f"{kind}_archive.db", paths)
            elif kind.startswith("gauge_live"):
                for path in paths:
                    path.unlink()


def _archive(archive: Path, paths: list[Path]) -> None:
    draft = archive.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    totals: dict[str, float] = defaultdict(float)
    for path in [archive, *paths]:
        if path.exists() and path.stat().st_size:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                totals[key] += value
    values = MmapedDict(str(draft))
    for key, total in totals.items():
        values.write_value(key, total, 0)
    values.close()
    # The dead go first: a crash in between loses their share, once, instead of counting it twice
    # for ever; Prometheus takes it for a restart.
    for path in paths:
        path.unlink()
    draft.replace(archive)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, how)
        yield
