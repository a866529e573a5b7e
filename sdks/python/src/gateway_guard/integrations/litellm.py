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

from collections.abc import AsyncIterator
from typing import Any, Optional

from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail

from gateway_guard.chats import texts_of_answer, texts_of_request
from gateway_guard.errors import Blocked, GatewayError
from gateway_guard.guard import AsyncGuard
from gateway_guard.integrations._models import STREAM_CHARS, Streamed


class GatewayGuardrail(CustomGuardrail):
    """Answers 400 to what is flagged and 503 where there is no verdict."""

    def __init__(
        self, guard: Optional[AsyncGuard] = None, *, fail_open: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self._guard = guard
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
        await self._check(texts_of_answer(response.model_dump(mode="json", exclude_none=True)))
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        said = Streamed(STREAM_CHARS)
        async for piece in response:
            if said.take(piece):
                await self._check(said.texts())
                for one in said.released():
                    yield one
        await self._check(said.texts(at_end=True))
        for one in said.released():
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
