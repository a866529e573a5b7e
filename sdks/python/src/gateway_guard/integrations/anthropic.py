"""Clients of the `anthropic` library.

client = guard_anthropic(Anthropic(), Guard())
client.messages.create(model=…, max_tokens=…, messages=[…])  # raises gateway_guard.errors.Blocked
"""

from __future__ import annotations

from typing import Optional, TypeVar, Union

import anthropic

from gateway_guard.guard import AsyncGuard, Guard
from gateway_guard.integrations import _models

C = TypeVar("C", bound=Union[anthropic.Anthropic, anthropic.AsyncAnthropic])


def guard_anthropic(
    client: C,
    guard: Optional[Union[Guard, AsyncGuard]] = None,
    *,
    answers: bool = True,
    stream_chars: int = _models.STREAM_CHARS,
) -> C:
    """A client like `client` that checks what it sends: what the user says, what
    tools returned, documents, definitions of tools, each as what it is, and, with `answers`, what
    the model says and the calls it asks for. Raises `errors.Blocked` before anything is sent, or
    before an answer is given out.

    A stream is held back until what is in it was judged, `stream_chars` at a time, and, from the
    first call of a tool on, until its end. Instructions (`system`) and pictures are
    not judged.
    """
    if guard is None:
        guard = AsyncGuard() if isinstance(client, anthropic.AsyncAnthropic) else Guard()
    return _models.guarded(client, guard, answers=answers, stream_chars=stream_chars)
