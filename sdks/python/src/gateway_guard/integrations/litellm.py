"""A custom guardrail of LiteLLM's proxy, for who would rather run a file than configure
`generic_guardrail_api` (docs/litellm.md). In `config.yaml`, with `gateway-guard` installed beside:

guardrails:
  - guardrail_name: gateway
    litellm_params:
      guardrail: gateway_guard.integrations.litellm.GatewayGuardrail
      mode: [pre_call, post_call]
      default_on: true

GATEWAY_URL and GATEWAY_API_KEY say where the gateway is; `fail_open: true` beside `mode` lets a
chat pass when it is away, and logs that.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator
from typing import Any, Optional

from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail

from gateway_guard.chats import Text, texts_of_answer, texts_of_request
from gateway_guard.errors import Blocked, GatewayError
from gateway_guard.guard import AsyncGuard
from gateway_guard.integrations._models import STREAM_CHARS, Streamed, plain


class _Raw(Streamed):
    """A stream as it came from a provider, too: of Anthropic's and Google's own routes the proxy
    hands on bytes, cut anywhere. What is no server-sent event is held back to the end."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line: list[str] = []
        self._data: list[str] = []
        self._other: list[str] = []

    def read(self, piece: Any) -> None:
        if isinstance(piece, bytes):
            piece = self._decoder.decode(piece)
        if not isinstance(piece, str):
            super().read(piece)
            return
        first, *lines = piece.split("\n")
        self._line.append(first)
        for line in lines:
            self._read_line("".join(self._line).rstrip("\r"))
            self._line = [line]

    def is_time(self) -> bool:
        return super().is_time() and not any((*self._line, *self._data, *self._other))

    def texts(self, *, at_end: bool = False) -> list[Text]:
        if not at_end:
            return super().texts()
        self.read(self._decoder.decode(b"", True) + "\n\n")
        return [*super().texts(at_end=True), *self._rest()]

    def _read_line(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value)
        elif not line:
            data, self._data = "\n".join(self._data).strip(), []
            if data and data != "[DONE]":
                self._read_event(data)
        elif name not in ("", "event", "id", "retry"):
            self._other.append(line)

    def _read_event(self, data: str) -> None:
        try:
            super().read(json.loads(data))
        except (ValueError, RecursionError):
            self._other.append(data)

    def _rest(self) -> list[Text]:
        """JSON without events, which Gemini sends unless it is asked for them; else a text."""
        rest = "\n".join(self._other)
        if not rest.strip():
            return []
        try:
            found = json.loads(rest)
        except (ValueError, RecursionError):
            found = []
        answers = found if isinstance(found, list) else [found]
        texts = [text for answer in answers for text in texts_of_answer(plain(answer))]
        return texts or [Text(rest, "model_output")]


class GatewayGuardrail(CustomGuardrail):
    """Answers 400 to what is flagged and 503 where there is no verdict."""

    def __init__(
        self, guard: Optional[AsyncGuard] = None, *, fail_open: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self._guard = guard and AsyncGuard.needed(guard, "GatewayGuardrail")
        self._fail_open = fail_open

    @property
    def guard(self) -> AsyncGuard:
        """Made with the first chat: on the loop that it is used on."""
        if self._guard is None:
            self._guard = AsyncGuard(fail_open=self._fail_open)
        return self._guard

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any]:
        await self._check(texts_of_request(data))
        return data

    async def async_moderation_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, call_type: Any
    ) -> None:
        await self._check(texts_of_request(data))

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any
    ) -> Any:
        await self._check(texts_of_answer(plain(response)))
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        output = _Raw(STREAM_CHARS)
        async for piece in response:
            if output.take(piece):
                await self._check(output.texts())
                for one in output.released():
                    yield one
        await self._check(output.texts(at_end=True))
        for one in output.released():
            yield one

    async def _check(self, texts: Any) -> None:
        try:
            await self.guard.check_all(texts)
        except Blocked as error:
            detail = {"error": str(error), "code": "prompt_injection"}
            raise HTTPException(status_code=400, detail=detail) from error
        except GatewayError as error:
            detail = {"error": f"No verdict of the guardrail: {error}", "code": "no_verdict"}
            raise HTTPException(status_code=503, detail=detail) from error
