"""The metrics of all processes in one folder: who lives, what the dead leave, one scrape.

The client library has each process write files of its own, `counter_<name>.db` and the like, and
adds them up at a scrape. Here a process also holds `<name>.lock` for as long as it lives: the
kernel lets go of it however the process ends, also for containers that share the folder and do
not know each other's process ids. Whoever starts or scrapes first adds the files of the dead to
one archive for each type of metric. docs/decisions/0009 says why.

Counting stops nobody. The library writes into memory that the kernel finds room for later: on a
full disk it kills the process, with a signal that no handler survives. So each file has its room
before it is written to, and what finds none is counted in memory, where no scrape sees it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, values
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FILE = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_([0-9a-z-]+)\.db")
ARCHIVE = "archive"
REQUESTS = '["gateway_requests", "gateway_requests_total"'
"""How the keys of its series begin."""
NOWHERE = Path(os.devnull, "metrics")
FILE_BYTES_MIN = 1 << 16
DOUBLES = struct.Struct("dd")  # value and time
ENTRY_BYTES_MAX = 32  # beside the key: its length, padding, value and time
Sample = tuple[float, float]  # value and Unix time; only `mostrecent` gauges have the latter
log = logging.getLogger("gateway.metrics")


def _added(one: Sample, other: Sample) -> Sample:
    return one[0] + other[0], 0.0


def _latest(one: Sample, other: Sample) -> Sample:
    return max(one, other, key=lambda sample: sample[1])


# How two processes' values become one. What is not here goes with its process: gauges of the
# living, and `all`, whose one series for each process would never end.
MERGED: dict[str, Callable[[Sample, Sample], Sample]] = {
    "counter": _added,
    "histogram": _added,
    "summary": _added,
    "gauge_sum": _added,
    "gauge_min": min,
    "gauge_max": max,
    "gauge_mostrecent": _latest,
}


class MetricsFolder:
    """A folder that processes share. Every change of its list of files happens under one lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def enter(self) -> tuple[str, int]:
        """A name for a process, and the open file that says that it lives."""
        with self._alone():
            self._try_to_sweep()
            name = secrets.token_hex(8)
            handle = os.open(self.path / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, f"{socket.gethostname()} {os.getpid()}\n".encode())  # for people
            return name, handle

    def collect(self) -> Iterable[Metric]:
        """The metrics of the living and the dead, each count exactly once."""
        try:
            with self._alone():
                self._try_to_sweep()
                return self._read_all()
        except OSError as exc:  # it may be read all the same
            log.warning("metrics read without a lock: %s", exc)
            return self._read_all()

    def _read_all(self) -> list[Metric]:
        # A file is empty for the moment between its making and its first value.
        files = [str(path) for path in self._files() if path.stat().st_size]
        merged = list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
        return [*merged, *self._by_process()]

    def _by_process(self) -> Iterator[Metric]:
        """How evenly the living share the requests, the eldest first: by number, so that no
        restart makes a series."""
        found = []
        for path in self._files("counter"):
            lock = path.with_name(f"{path.stem.removeprefix('counter_')}.lock")
            counts = [value for key, (value, _) in _read(path) if key.startswith(REQUESTS)]
            if counts and lock.exists():
                found.append((lock.stat().st_mtime_ns, lock.name, sum(counts)))
        if found:
            text = "Requests that each living process has answered."
            family = GaugeMetricFamily("gateway_process_requests", text, labels=["process"])
            for number, (_, _, count) in enumerate(sorted(found)):
                family.add_metric([str(number)], count)
            yield family

    @contextmanager
    def _alone(self) -> Iterator[None]:
        handle = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            # Said, not left to the closing: a child forked meanwhile has the file open as well.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def _files(self, kind: str = "*", name: str = "*") -> list[Path]:
        return [p for p in self.path.glob(f"{kind}_{name}.db") if FILE.fullmatch(p.name)]

    def _living(self) -> set[str]:
        living = set()
        for path in self.path.glob("*.lock"):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                living.add(path.stem)
            finally:
                os.close(handle)
        return living

    def _try_to_sweep(self) -> None:
        try:
            self._sweep()
        except OSError as exc:  # another time: each step can be done again
            log.warning("metrics of ended processes are left as they are: %s", exc)

    def _sweep(self) -> None:
        """Add what the dead left to the archives, and remove their files."""
        self._finish()
        living = self._living()
        dead: dict[str, list[Path]] = {}
        for path in self._files():
            kind, name = FILE.fullmatch(path.name).groups()  # type: ignore[union-attr]
            if name != ARCHIVE and name not in living:
                dead.setdefault(kind, []).append(path)
        if dead:
            for kind in dead.keys() & MERGED.keys():
                self._merge(kind, dead[kind])
            draft = self.path / "sweep.draft"
            draft.write_text("\n".join(path.name for paths in dead.values() for path in paths))
            draft.rename(self.path / "sweep")
            self._finish()
        for path in self.path.glob("*.lock"):
            if path.stem not in living:
                path.unlink()

    def _merge(self, kind: str, dead: list[Path]) -> None:
        """Write the next archive of `kind` aside."""
        merge, found = MERGED[kind], dict[str, Sample]()
        for path in [*self._files(kind, ARCHIVE), *dead]:
            for key, sample in _read(path):
                found[key] = merge(found[key], sample) if key in found else sample
        file: Any = _Reserved(str(self.path / f"{kind}_{ARCHIVE}.merged"))
        with closing(file):
            for key, (value, timestamp) in found.items():
                file.write_value(key, value, timestamp)

    def _finish(self) -> None:
        """Take over what was merged, if all of it was; `sweep`, the list of the dead, says so.

        Each step can be done again: a process that dies in between leaves the rest to the next.
        """
        listed = self.path / "sweep"
        if listed.exists():
            for path in self.path.glob("*.merged"):
                path.rename(path.with_suffix(".db"))
            for name in listed.read_text().split():
                (self.path / name).unlink(missing_ok=True)
            listed.unlink()
        for path in self.path.glob("*.merged"):
            path.unlink()


def _read(path: Path) -> list[tuple[str, Sample]]:
    try:
        rows = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        return [(key, (value, timestamp)) for key, value, timestamp, _ in rows]
    except (struct.error, RuntimeError, UnicodeDecodeError):
        # Nobody could be started or scraped any more if one broken file were to stop it.
        if path.stat().st_size:
            log.warning("metrics lost: %s cannot be read", path.name)
        return []


class _Reserved(MmapedDict):
    """The client library's, with room on the disk before anything is written; else `OSError`."""

    _f: Any
    _m: Any
    _positions: dict[str, int]
    _capacity: int
    _used: int

    def __init__(self, path: str) -> None:
        with open(path, "ab") as file:
            if os.fstat(file.fileno()).st_size < FILE_BYTES_MIN:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES_MIN)
        super().__init__(path)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._capacity
        while self._used + len(key.encode()) + ENTRY_BYTES_MAX > needed:
            needed *= 2
        if needed > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, needed)
        super()._init_value(key)  # type: ignore[no-untyped-call]


class _File(_Reserved):
    """Of this process. What has no room in it is counted all the same.

    It is closed in a forked child at once and not at its first count: by then others may have
    closed its descriptor, as Celery's embedded beat does with all of them, or use its number for a
    file of their own.
    """

    opened: ClassVar[list[_File]] = []

    def __init__(self, path: str) -> None:
        self._unseen: dict[str, Sample] = {}
        try:
            if _member is None or not _member.is_inside:
                raise OSError("this process is not in the folder")
            super().__init__(path)
        except OSError as exc:
            _note_unseen(exc)
            self._f, self._capacity, self._used = None, 0, 0
            self._positions: dict[str, int] = {}
        self.opened.append(self)

    def read_value(self, key: str) -> Sample:
        self._place(key)
        if key in self._unseen:
            return self._unseen[key]
        return super().read_value(key)  # type: ignore[no-untyped-call,no-any-return]

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        self._place(key)
        if key in self._unseen:
            self._unseen[key] = (value, timestamp)
        else:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _place(self, key: str) -> None:
        if key in self._positions or key in self._unseen:
            return
        if self._f is not None:
            try:
                self._init_value(key)
            except OSError as exc:
                _note_unseen(exc)
            else:
                return
        self._unseen[key] = (0.0, 0.0)


def _note_unseen(exc: OSError) -> None:
    if _member is not None and not _member.is_reported:
        _member.is_reported = True
        log.error("metrics of this process are not all shown: %s", exc)


class _Value:
    """One number of this process: the library's `MmapedValue`, which asks at each count who we are
    and looks for its place by a long name."""

    _multiprocess = True
    _lock: ClassVar[Lock] = Lock()  # of all: threads count the same, and a file has one end
    _files: ClassVar[dict[str, _File]] = {}
    _known: ClassVar[list[_Value]] = []
    _is_forked: ClassVar[bool] = False

    def __init__(
        self,
        kind: str,
        metric: str,
        name: str,
        label_names: Sequence[str],
        label_values: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._kind = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
        labels = list(label_names), list(label_values)
        self._key = mmap_key(metric, name, *labels, help_text)
        with self._lock:
            self._open_again_if_forked()
            self._open()
            self._known.append(self)

    @classmethod
    def begin_again(cls) -> None:
        """In a forked child, before any thread of its own."""
        cls._lock, cls._is_forked = Lock(), True

    @classmethod
    def _open_again_if_forked(cls) -> None:
        if cls._is_forked:
            cls._is_forked = False
            cls._files.clear()
            for one in cls._known:
                one._open()

    def _open(self) -> None:
        file = self._files.get(self._kind)
        if file is None:
            assert _member is not None  # noqa: S101 - `join` has made it
            path = _member.folder.path / f"{self._kind}_{_member.name()}.db"
            file = self._files[self._kind] = _File(str(path))
        self._file = file
        self._value, self._timestamp = file.read_value(self._key)
        self._begin = file._positions.get(self._key, 0)  # 0: it has found no room

    def inc(self, amount: float) -> None:
        with self._lock:
            if self._is_forked:
                self._open_again_if_forked()
            self._value += amount
            self._write(0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with self._lock:
            self._open_again_if_forked()
            self._value = value
            self._write(timestamp or 0.0)

    def _write(self, timestamp: float) -> None:
        if self._begin:
            # At once, as the library does: who reads meanwhile must see one value or the other.
            self._file._m[self._begin : self._begin + DOUBLES.size] = DOUBLES.pack(
                self._value, timestamp
            )
        else:
            self._file.write_value(self._key, self._value, timestamp)

    def get(self) -> float:
        with self._lock:
            self._open_again_if_forked()
            return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """As the library: none are kept in files."""

    def get_exemplar(self) -> None:
        return None


class Member:
    """This process in its folder. A forked child is another one, with a name of its own."""

    def __init__(self, folder: MetricsFolder) -> None:
        self.folder = folder
        self.is_inside = True
        self.is_reported = False  # that some of it is not shown
        self._held: tuple[str, int | None] | None = None

    def name(self) -> str:
        # The client library asks at every count, under a lock of its own.
        if self._held is None:
            try:
                self._held = self.folder.enter()
            except OSError as exc:
                self._held, self.is_inside = (secrets.token_hex(8), None), False
                _note_unseen(exc)
        return self._held[0]

    def begin_again(self) -> None:
        while _File.opened:
            _File.opened.pop().close()  # type: ignore[no-untyped-call]
        if self._held is not None:
            if self._held[1] is not None:
                os.close(self._held[1])  # the parent's: it must not seem to live as long as we do
            self._held = None
        self.is_inside, self.is_reported = True, False
        _Value.begin_again()


_member: Member | None = None


def join(path: Path) -> None:
    """Have all metrics that are declared from now on write into `path`."""
    global _member
    try:
        _member = Member(MetricsFolder(path))
    except OSError as exc:
        values.ValueClass = values.MutexValue
        log.error("metrics are those of one process only: %s", exc)
        return
    os.register_at_fork(after_in_child=_member.begin_again)
    values.ValueClass = _Value


def exposition(*more: Collector) -> bytes:
    """Prometheus' text: of all processes in the folder, and what `more` is asked at the scrape.

    Without a folder it is that of this process alone.
    """
    registry = CollectorRegistry()
    for collector in (REGISTRY if _member is None else _member.folder, *more):
        registry.register(collector)
    return generate_latest(registry)


def metrics_folder() -> Path:
    """The folder of Prometheus' multiprocess files: as configured, else a fresh one.

    A configured one may be shared with a Celery worker, so nothing in it is ours to remove.
    """
    if configured := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return Path(configured)
    try:
        return Path(tempfile.mkdtemp(prefix="gateway-metrics-"))
    except OSError:  # nowhere to write: `join` says so
        return NOWHERE


def drop_metrics_folder(folder: Path) -> None:
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        shutil.rmtree(folder, ignore_errors=True)
