"""Sessions and clients of MCP: what a server answers is checked before anybody reads it.

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
# What a list is called in its answer differs between versions of the library.
LISTS = {
    "list_tools": ("tools",),
    "list_prompts": ("prompts",),
    "list_resources": ("resources",),
    "list_resource_templates": ("resource_templates", "resourceTemplates"),
}


def guard_mcp(session: S, guard: Optional[AsyncGuard] = None, *, stop: bool = False) -> S:
    """The same session (`mcp.ClientSession`, or `mcp.Client`), which from now on checks

    * what tools return, as `tool_output`: an attack is replaced by an error result that says so,
      or, with `stop`, raised as `errors.Blocked`;
    * resources and prompts: an attack raises `errors.Blocked`;
    * definitions of tools, prompts, resources and their templates: those that are attacks are not
      listed, and a warning is logged.

    A server's `instructions`, which came when the session began, are not checked.
    """
    own: Any = session
    checks = AsyncGuard.needed(guard, "guard_mcp")
    call_tool: Ask = own.call_tool

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

    def listing(ask: Ask, names: tuple[str, ...]) -> Ask:
        async def checked(*args: Any, **options: Any) -> Any:
            result = await ask(*args, **options)
            name = next(one for one in names if hasattr(result, one))
            kept = []
            for one in getattr(result, name):
                definition = one.model_dump_json(by_alias=True, exclude_none=True)
                try:
                    await checks.check_all([Text(definition, "tool_definition")])
                except Blocked as error:
                    log.warning("%s of the MCP server was left out: %s", one.name, error)
                else:
                    kept.append(one)
            return result.model_copy(update={name: kept})

        return checked

    def checking(ask: Ask) -> Ask:
        async def checked(*args: Any, **options: Any) -> Any:
            result = await ask(*args, **options)
            await checks.check_all(texts_of_mcp(_plain(result)))
            return result

        return checked

    own.call_tool = checked_call
    for name, names in LISTS.items():
        setattr(own, name, listing(getattr(own, name), names))
    for name in ("read_resource", "get_prompt"):
        setattr(own, name, checking(getattr(own, name)))
    return session


def _plain(result: Any) -> Any:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def _replaced(result: Any, message: str) -> Any:
    """Names of fields differ between versions of the library; those on the wire do not."""
    plain = {"content": [{"type": "text", "text": message}], "isError": True}
    return type(result).model_validate(plain)
