"""Each task waits in the queue of its kind: what one kind holds up is not held up for another."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import unwrap
from types import CodeType, FunctionType, ModuleType

import pytest
from celery import current_app
from django.conf import settings

from gateway_project.core import mails
from gateway_project.core.stores import queues

ROUTES = settings.CELERY_TASK_ROUTES


@pytest.fixture
def tasks():
    """Ours, by name."""
    current_app.loader.import_default_modules()
    return {name: t for name, t in current_app.tasks.items() if not name.startswith("celery.")}


def queue_of(task: str) -> str:
    return ROUTES.get(task, {"queue": settings.CELERY_TASK_DEFAULT_QUEUE})["queue"]


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def called(function: FunctionType) -> Iterator[FunctionType]:
    """The functions that its code names, by themselves or as `module.function`."""
    names = list(names_in(function.__code__))
    found = [function.__globals__.get(name) for name in names]
    for module in [one for one in found if isinstance(one, ModuleType)]:
        found += [vars(module).get(name) for name in names]
    yield from (one for one in found if isinstance(one, FunctionType))


def reaches(goal: FunctionType, start: FunctionType) -> bool:
    seen, ahead = {start}, [start]
    while ahead:
        new = set(called(ahead.pop())) - seen
        if goal in new:
            return True
        seen |= new
        ahead += new
    return False


def test_what_writes_mails_waits_with_mails(tasks):
    writing = {name for name, task in tasks.items() if reaches(mails.message, unwrap(task.run))}

    assert {"accounts.tasks.send_digests", "robin.tasks.send_alarms"} <= writing
    assert writing == {name for name in tasks if queue_of(name) == queues.MAIL}


def test_what_waits_with_mails_takes_turns(tasks):
    """A mail server that hangs has one place of a worker's, whatever number of rounds mails."""
    taking = {name for name, task in tasks.items() if task.run.__code__.co_name == "in_turn"}

    assert taking == {name for name in tasks if queue_of(name) == queues.MAIL}


def test_each_route_is_of_a_task_and_each_queue_has_one(tasks):
    assert set(ROUTES) <= set(tasks)
    assert {queue_of(name) for name in tasks} == set(queues.NAMES)
