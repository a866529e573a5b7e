"""Every call of a library that sends a body, filled with an attack wherever a text may stand."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union

import typing_extensions

from ..fakes import ATTACK

DEPTH_MAX = 5


def calls(client: Any) -> Iterator[tuple[str, Any]]:
    """Methods of the client's resources, each with its dotted name; `raw` ones are the same."""
    pending = [("", client)]
    while pending:
        name, owner = pending.pop()
        for one in dir(type(owner)):
            if one.startswith(("_", "with_")) or one in ("copy", "close"):
                continue
            found = inspect.getattr_static(type(owner), one)
            if inspect.isfunction(found):
                if name and "post(" in _source(found):
                    yield f"{name}.{one}", getattr(owner, one)
            elif hasattr(found, "func"):  # a cached property
                under = getattr(owner, one)
                if hasattr(under, "_client"):
                    pending.append((f"{name}.{one}".lstrip("."), under))


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except OSError:
        return ""


def filled(method: Any) -> dict[str, Any]:
    """Arguments for a call. What names a thing in the path is no text."""
    hints = typing.get_type_hints(inspect.unwrap(method))
    path = {name for name in hints if f"{{{name}}}" in _source(inspect.unwrap(method))}
    own = {
        *("self", "return", "extra_headers", "extra_query", "extra_body", "timeout"),
        *("stream", "tool_handlers", "betas"),
    }
    found = {}
    for name in inspect.signature(method).parameters:
        if name in own or name not in hints:
            continue
        is_name = name in path or name.endswith("_id") or name == "idempotency_key"
        value = "x" if is_name else _value(hints[name], name, 0)
        if value is not None:
            found[name] = value
    return found


def _value(hint: Any, name: str, depth: int) -> Any:
    """Of a type; None where nothing can be made."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if depth > DEPTH_MAX:
        return None
    if origin is Literal:
        return inner[0]
    if typing_extensions.is_typeddict(hint):
        return _row(hint, depth)
    if origin in (Union, types.UnionType):
        if bytes in inner:
            return b"x"
        made = [_value(one, name, depth) for one in inner]
        # Of several forms the richest.
        return max((one for one in made if one is not None), key=_weight, default=None)
    if origin is not None and str(origin).endswith(("Required", "Annotated")):
        return _value(inner[0], name, depth)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        if origin is dict or (len(inner) == 2 and origin is not tuple):
            return {"a": _value(inner[1], name, depth + 1) or ATTACK}
        forms = _forms(inner[0]) if inner else (str,)
        made = [b"x"] if bytes in forms else [_value(one, name, depth + 1) for one in forms]
        return [one for one in made if one is not None] or None
    if hint is str:
        return "x" if name.endswith("_id") or name in ("id", "role", "model") else ATTACK
    return {int: 1, float: 0.5, bool: True}.get(hint, ATTACK if hint in (object, Any) else None)


def _forms(hint: Any) -> tuple[Any, ...]:
    """Each that something in a list may have."""
    if str(typing.get_origin(hint)).endswith("Annotated"):
        hint = typing.get_args(hint)[0]
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _row(hint: Any, depth: int) -> dict[str, Any]:
    try:
        hints = typing_extensions.get_type_hints(hint)
    except NameError:
        return {}
    made = {name: _value(one, name, depth + 1) for name, one in hints.items()}
    return {name: value for name, value in made.items() if value is not None}


def _weight(value: Any) -> int:
    return str(value).count(ATTACK) * 10_000 + len(str(value))
