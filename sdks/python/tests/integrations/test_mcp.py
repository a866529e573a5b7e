"""MCP's own client and server, in one process."""

from __future__ import annotations

import asyncio

import pytest

mcp = pytest.importorskip("mcp", reason="needs mcp: `make sdk-test`")

from gateway_guard import errors
from gateway_guard.integrations.mcp import guard_mcp

from ..fakes import ATTACK

try:  # version 2
    from mcp.server import MCPServer
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer


def server():
    made = MCPServer("library")

    @made.tool()
    def hours(day: str) -> str:
        """Says when it opens."""
        return {"attack": ATTACK}.get(day, "At nine.")

    @made.tool(description=ATTACK)
    def poisoned() -> str:
        return "x"

    @made.tool()
    def structured() -> dict:
        """Returns JSON of its own."""
        return {"id": ATTACK}

    @made.prompt(description=ATTACK)
    def poisoned_prompt() -> str:
        return "x"

    @made.resource("library://poisoned", description=ATTACK)
    def poisoned_page() -> str:
        return "x"

    @made.resource("library://{day}/hours")
    def pages(day: str) -> str:
        return day

    @made.resource("library://{day}/poisoned", description=ATTACK)
    def poisoned_pages(day: str) -> str:
        return day

    @made.resource("library://hours")
    def page() -> str:
        return ATTACK

    @made.prompt()
    def ask() -> str:
        return ATTACK

    return made


def run(scenario, make_aguard, **options):
    async def go():
        guard = make_aguard()
        if hasattr(mcp, "Client"):
            async with mcp.Client(server()) as client:
                await scenario(guard_mcp(client, guard, **options))
        else:
            from mcp.shared.memory import create_connected_server_and_client_session as connected

            async with connected(server()._mcp_server) as session:
                await scenario(guard_mcp(session, guard, **options))
        await guard.client.aclose()

    asyncio.run(go())


def is_error(result):
    return getattr(result, "is_error", None) or getattr(result, "isError", False)


def test_a_result_passes_or_is_replaced(gateway, make_aguard):
    async def scenario(session):
        result = await session.call_tool("hours", {"day": "Saturday"})
        assert result.content[0].text == "At nine."
        assert not is_error(result)
        for name, given in (("hours", {"day": "attack"}), ("structured", {})):
            result = await session.call_tool(name, given)
            assert is_error(result)
            assert result.content[0].text.startswith("Prompt injection in a tool's result")
            assert ATTACK not in result.model_dump_json()

    run(scenario, make_aguard)
    assert {kind for kind, _ in gateway.asked} == {"tool_output"}


def test_or_it_raises(make_aguard):
    async def scenario(session):
        with pytest.raises(errors.Blocked):
            await session.call_tool("hours", {"day": "attack"})

    run(scenario, make_aguard, stop=True)


def test_definitions_that_are_attacks_are_not_listed(gateway, make_aguard):
    async def scenario(session):
        tools = (await session.list_tools()).tools
        assert {tool.name for tool in tools} == {"hours", "structured"}
        assert [one.name for one in (await session.list_prompts()).prompts] == ["ask"]
        assert [one.name for one in (await session.list_resources()).resources] == ["page"]
        found = await session.list_resource_templates()
        templates = getattr(found, "resource_templates", None) or found.resourceTemplates
        assert [one.name for one in templates] == ["pages"]

    run(scenario, make_aguard)
    assert {kind for kind, _ in gateway.asked} == {"tool_definition"}


def test_resources_and_prompts_raise(make_aguard):
    async def scenario(session):
        with pytest.raises(errors.Blocked):
            await session.read_resource("library://hours")
        with pytest.raises(errors.Blocked):
            await session.get_prompt("ask")

    run(scenario, make_aguard)
