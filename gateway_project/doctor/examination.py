"""What a check is, and running all of them: none that hangs or fails stops the others.

A check is a function that yields findings. Each runs in a thread of its own, all at once; one that
takes longer than it may is a finding by itself, and is left behind. A store that is away is told by
its own check (`database`, `redis`); the others that need it are skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from django import db
from redis.exceptions import RedisError

Status = Literal["ok", "warning", "error", "skipped"]
SECONDS_MAX = 10.0
RANK: dict[Status, int] = {"ok": 0, "skipped": 1, "warning": 2, "error": 3}


@dataclass(frozen=True, slots=True)
class Finding:
    """`do` is the next step, in words or as a command; each warning and error has one."""

    status: Status
    message: str
    do: str = ""
    check: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """`url`: the gateway as its clients reach it. `mail_to`: whom a test mail goes to."""

    url: str = ""
    mail_to: str = ""


Examine = Callable[[Options], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    examine: Examine
    seconds_max: float = SECONDS_MAX


CHECKS: dict[str, Check] = {}


def check(name: str, *, seconds_max: float = SECONDS_MAX) -> Callable[[Examine], Examine]:
    """Register a check under the name that its findings carry."""

    def register(examine: Examine) -> Examine:
        CHECKS[name] = Check(name, examine, seconds_max)
        return examine

    return register


def ok(message: str) -> Finding:
    return Finding("ok", message)


def skipped(message: str, do: str = "") -> Finding:
    return Finding("skipped", message, do)


def warning(message: str, do: str) -> Finding:
    return Finding("warning", message, do)


def error(message: str, do: str) -> Finding:
    return Finding("error", message, do)


def examine(
    options: Options, names: Iterable[str] = (), checks: Iterable[Check] | None = None
) -> Iterator[Finding]:
    """Run the checks (of these names, or all), and give their findings in the checks' order.

    It takes as long as the slowest of them, and no longer than that one may.
    """
    wanted = set(names)
    every = CHECKS.values() if checks is None else checks
    running = [_Running(one, options) for one in every if not wanted or one.name in wanted]
    for one in running:
        yield from one.findings()


class _Running:
    def __init__(self, check: Check, options: Options) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._until = monotonic() + check.seconds_max
        # A daemon: a thread that hangs keeps nobody from ending.
        self._thread = threading.Thread(
            target=self._run, args=(options,), name=f"doctor-{check.name}", daemon=True
        )
        self._thread.start()

    def _run(self, options: Options) -> None:
        try:
            for finding in self._check.examine(options):
                self._found.append(finding)
        except db.Error as exc:
            self._found.append(
                skipped(
                    f"The database could not be asked ({type(exc).__name__}): see `database` and "
                    "`database.migrations`."
                )
            )
        except RedisError as exc:
            self._found.append(
                skipped(f"Redis could not be asked ({type(exc).__name__}): see `redis`.")
            )
        except Exception as exc:  # noqa: BLE001 - a check that is broken must not stop the others
            self._found.append(
                error(
                    f"The check itself failed: {type(exc).__name__}: {exc}",
                    "Report this, with what stands here; the other checks went on.",
                )
            )
        finally:
            db.connections.close_all()

    def findings(self) -> list[Finding]:
        self._thread.join(max(0.0, self._until - monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            found.append(
                error(
                    f"No end within {self._check.seconds_max:g} seconds.",
                    "Something that it asks does not answer: look at the address in the settings, "
                    "and at what stands between.",
                )
            )
        return [replace(one, check=self._check.name) for one in found]


def worst(findings: Iterable[Finding]) -> Status:
    return max((one.status for one in findings), key=RANK.__getitem__, default="ok")
