"""Test processes side by side (`make test`, or `pytest -n 2`): each with stores of its own.

pytest-django gives each process a database; here each gets a Redis server, because channels of
publish and subscribe cross the numbered databases of one.

They are dealt out one by one, what may take long first; those of a file that share a fixture, such
as servers that run, stay together, so that it is made once. What wants the same thing of the
machine keeps apart by a lock of its own.

xdist compares what the processes have collected: a parameter's id that is random, or that depends
on the order of a set, ends the run and is named.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploy import services

AGAIN, AGAIN_MAX = "again", 10
SHARING = re.compile(r'scope="module"|def test\w+\([^)]*\bshared\b')
"""In a file of tests: a fixture of it that is made once (`shared`: of the conftest)."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    if not os.environ.get("REDIS_URL"):
        return  # everything is in memory
    if (program := services.find("redis")) is None:
        raise pytest.UsageError(
            "Each test process needs a Redis of its own, and redis-server is not installed here: "
            "install it, or run the tests in one process (make test N=0, or pytest -n 0)."
        )
    stack = ExitStack()
    config.add_cleanup(stack.close)
    for spec in specs:
        home = Path(tempfile.mkdtemp(prefix="gateway-tests-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        # xdist would make a specification without this word anew, from its text, and a URL's
        # two strokes are what separates the parts of that text.
        spec.execmodel = "main_thread_only"
        spec.env["REDIS_URL"] = services.start_redis(stack, program, home)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["redis_url"] = node.gateway.spec.env.get("REDIS_URL", "")


def pytest_configure(config: pytest.Config) -> None:
    expected = getattr(config, "workerinput", {}).get("redis_url", "")
    if expected and os.environ.get("REDIS_URL") != expected:
        raise pytest.UsageError("this test process was not given the Redis made for it")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """What has a limit of its own first: else a process would be left alone with it at the end."""
    yield  # for pytest-randomly's order
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@cache
def shares(path: str) -> bool:
    return SHARING.search(Path(path).read_text()) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In place of `loadgroup`: xdist 3.8 writes groups where pytest 9.2 does not look for them."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if shares(path) else nodeid

        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            """Without what is done: else all of it would be counted again after each test."""
            super().mark_test_complete(node, item_index, duration)
            scope = self._split_scope(self.registered_collections[node][item_index])
            if all(self.assigned_work[node][scope].values()):
                del self.assigned_work[node][scope]

    return Together(config, log)


@pytest.hookimpl(trylast=True)  # when the cache has been told what failed
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Say whether what failed may be asked once more, alone (`make test`).

    A few may: beside others, a test of processes or threads can be too late for its waits. What
    fails then as well, or beside many more, has failed.
    """
    config = session.config
    cache = getattr(config, "cache", None)
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if hasattr(config, "workerinput") or cache is None or terminal is None:
        return
    failed = [*terminal.stats.get("failed", ()), *terminal.stats.get("error", ())]
    may = exitstatus == 1 and 0 < len(failed) <= AGAIN_MAX
    cache.set(AGAIN, [one.nodeid for one in failed] if may else [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus:  # pytest-randomly says it in a heading, which `-q` leaves out
        seed = config.getoption("randomly_seed", None)
        terminalreporter.write_line(f"To repeat the order of this run: --randomly-seed={seed}")
