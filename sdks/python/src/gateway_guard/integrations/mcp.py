"""Sessions and clients of MCP: what comes from a server is checked before anybody reads it.

session = guard_mcp(session, AsyncGuard())
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, Callable, Optional, TypeVar

from gateway_guard.chats import Text, texts_of_mcp
from gateway_guard.errors import Blocked
from gateway_guard.guard import AsyncGuard

S = TypeVar("S")
Ask = Callable[..., Awaitable[Any]]
log = logging.getLogger("gateway_guard")


def guard_mcp(session: S, guard: Optional[AsyncGuard] = None, *, stop: bool = False) -> S:
    """The same session (`mcp.ClientSession`, or `mcp.Client`), which from now on checks

    * what tools return, as `tool_output`: an attack is replaced by an error result that says so,
      or, with `stop`, raised as `errors.Blocked`;
    * resources and prompts: an attack raises `errors.Blocked`;
    * definitions of tools: those that are attacks are not listed, and a warning is logged.
    """
    own: Any = session
    checks = guard or AsyncGuard()
    call_tool: Ask = own.call_tool
    list_tools: Ask = own.list_tools

    async def checked_call(*args: Any, **options: Any) -> Any:
        result = await call_tool(*args, **options)
        name = args[0] if args else options.get("name", "")
        try:
            await checks.check_all(texts_of_mcp(_plain(result)))
        except Blocked as error:
            if stop:
                raise
            log.warning("The result of the tool %s was left out: %s", name, error)
            return _replaced(result, str(error))
        return result

    async def checked_list(*args: Any, **options: Any) -> Any:
        result = await list_tools(*args, **options)
        kept = []
        for tool in result.tools:
            definition = tool.model_dump_json(by_alias=True, exclude_none=True)
            try:
                await checks.check_all([Text(definition, "tool_definition")])
            except Blocked as error:
                log.warning("The tool %s was left out: %s", tool.name, error)
            else:
                kept.append(tool)
        return result.model_copy(update={"tools": kept})

    def checking(ask: Ask) -> Ask:
        async def checked(*args: Any, **options: Any) -> Any:
            result = await ask(*args, **options)
            await checks.check_all(texts_of_mcp(_plain(result)))
            return result

        return checked

    own.call_tool, own.list_tools = checked_call, checked_list
    for name in ("read_resource", "get_prompt"):
        setattr(own, name, checking(getattr(own, name)))
    return session


def _plain(result: Any) -> Any:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def _replaced(result: Any, message: str) -> Any:
    """Names of fields differ between versions of the library; those on the wire do not."""
    plain = {"content": [{"type": "text", "text": message}], "isError": True}
    return type(result).model_validate(plain)
