"""`manage.py breaker`: every breaker by name, shown, held and let go."""

from __future__ import annotations

import asyncio
import io

import pytest
from django.core.management import CommandError, call_command

from accounts.models import AuditEvent
from detection.engines import registry
from gateway_project.core.stores import redis
from gateway_project.core.upstream import breaker
from gateway_project.core.upstream.breaker import FORCED_KEY
from gateway_project.management.commands.breaker import NAMES
from robin.upstream import client as robin_client

pytestmark = pytest.mark.needs_redis


@pytest.fixture
def breakers(gateway, engine, settings):
    """Those of this process, which has all of them, by name."""
    settings.ROBIN_CLIENT_API_URL = settings.ROBIN_SERVICE_API_URL = "http://127.0.0.1:1"

    async def open_robin():
        return robin_client.open_robin()

    robin = gateway.run(open_robin())
    of_robin = (*robin.client.breakers.values(), *robin.service.breakers.values())
    found = (registry.default().breaker, *of_robin)
    yield {one.name: one for one in found}
    for one in found:
        one.force(None)
    gateway.run(robin_client.close_robin())


def output_of(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("breaker", *arguments, stdout=out)
    return out.getvalue().splitlines()


def until(gateway, condition):
    async def wait():
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - a word under way cannot be awaited
                await asyncio.sleep(0.02)

    gateway.run(wait())


def test_it_knows_every_breaker_that_a_process_has(breakers):
    assert set(breakers) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_held_and_let_go_by_name_and_no_other(gateway, breakers, name):
    def forced():
        return {each: one.forced for each, one in breakers.items()}

    free = dict.fromkeys(NAMES)

    for state in ("open", "closed"):
        assert output_of(name, state) == [f"{name}: {state}"]
        until(gateway, lambda state=state: breakers[name].forced == state)
        assert forced() == {**free, name: state}
        assert output_of(name) == [f"{name:<16}{state}, held {state} by an operator, processes: 1"]
    output_of(name, "auto")
    until(gateway, lambda: breakers[name].forced is None)

    assert forced() == free
    assert set(AuditEvent.objects.values_list("action", "target")) == {("breaker.forced", name)}


def test_without_a_name_it_lists_them_all_with_their_state(gateway, breakers):
    for _ in range(2):
        breakers["robin_client"].acquire().failed()
    for _ in range(5):
        breakers["robin_service"].acquire().failed()

    lines = output_of()
    assert len(lines) == len(NAMES)
    engine_line, client_line, service_line = lines[0], lines[1], lines[4]

    assert engine_line == "engine          closed, processes: 1"
    assert client_line == "robin_client    closed, failures in a row: 2, processes: 1"
    assert service_line.startswith("robin_service   open, for ")


def test_one_that_is_held_before_its_process_runs(gateway, engine, monkeypatch):
    monkeypatch.delitem(breaker._registry, "robin_client", raising=False)  # of other tests
    output_of("robin_client", "open")

    assert redis.client().hgetall(FORCED_KEY) == {b"robin_client": b"open"}
    assert output_of("robin_client") == [
        "robin_client    in no web process, held open by an operator"
    ]
    output_of("robin_client", "auto")
    assert output_of("robin_client") == ["robin_client    in no web process"]


@pytest.mark.parametrize("arguments", [("engin",), ("engin", "open")])
def test_an_unknown_name_gets_the_list_and_changes_nothing(gateway, engine, arguments):
    with pytest.raises(CommandError) as caught:
        output_of(*arguments)

    assert str(caught.value) == (f"There is no breaker 'engin'. There are: {', '.join(NAMES)}.")
    assert redis.client().hgetall(FORCED_KEY) == {}
    assert not AuditEvent.objects.exists()
