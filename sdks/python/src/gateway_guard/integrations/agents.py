"""Guardrails of the OpenAI Agents SDK (`openai-agents`).

Agent(…, input_guardrails=[input_guardrail(guard)], output_guardrails=[output_guardrail(guard)])
function_tool(…, tool_output_guardrails=[tool_output_guardrail(guard)])
"""

from __future__ import annotations

import json
from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    OutputGuardrail,
    RunContextWrapper,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolInputGuardrailData,
    ToolOutputGuardrail,
    ToolOutputGuardrailData,
)

from gateway_guard.chats import texts_of_request, texts_of_result
from gateway_guard.errors import Blocked
from gateway_guard.guard import AsyncGuard

NAME = "gateway_guard"


def input_guardrail(guard: AsyncGuard) -> InputGuardrail[Any]:
    """Checks what an agent begins with, each part as what it is. An attack trips the wire
    (`InputGuardrailTripwireTriggered`; `guardrail_result.output.output_info` is the `Blocked`)
    before the model is asked."""
    guard = AsyncGuard.needed(guard, "input_guardrail")

    async def check(
        context: RunContextWrapper[Any], agent: Agent[Any], given: Any
    ) -> GuardrailFunctionOutput:
        rows = [{"role": "user", "content": given}] if isinstance(given, str) else given
        try:
            await guard.check_all(texts_of_request({"input": _plain(rows)}))
        except Blocked as error:
            return GuardrailFunctionOutput(output_info=error, tripwire_triggered=True)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    return InputGuardrail(guardrail_function=check, name=NAME, run_in_parallel=False)


def output_guardrail(guard: AsyncGuard) -> OutputGuardrail[Any]:
    """Checks an agent's final answer; an attack trips the wire
    (`OutputGuardrailTripwireTriggered`)."""
    guard = AsyncGuard.needed(guard, "output_guardrail")

    async def check(
        context: RunContextWrapper[Any], agent: Agent[Any], answer: Any
    ) -> GuardrailFunctionOutput:
        text = answer if isinstance(answer, str) else json.dumps(_plain(answer), default=str)
        try:
            await guard.check(text, "model_output")
        except Blocked as error:
            return GuardrailFunctionOutput(output_info=error, tripwire_triggered=True)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    return OutputGuardrail(guardrail_function=check, name=NAME)


def tool_input_guardrail(guard: AsyncGuard) -> ToolInputGuardrail[Any]:
    """Checks a call of a tool before it is made; the model is told instead that it was refused."""
    guard = AsyncGuard.needed(guard, "tool_input_guardrail")

    async def check(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        call = {"name": data.context.tool_name, "arguments": data.context.tool_arguments}
        try:
            await guard.check(json.dumps(call), "tool_call")
        except Blocked as error:
            return ToolGuardrailFunctionOutput.reject_content(str(error), output_info=error)
        return ToolGuardrailFunctionOutput.allow()

    return ToolInputGuardrail(guardrail_function=check, name=NAME)


def tool_output_guardrail(guard: AsyncGuard, *, stop: bool = False) -> ToolOutputGuardrail[Any]:
    """Checks what a tool returned; an attack is replaced by a sentence that says so, and the agent
    goes on. `stop`: the run ends (`ToolOutputGuardrailTripwireTriggered`)."""
    guard = AsyncGuard.needed(guard, "tool_output_guardrail")

    async def check(data: ToolOutputGuardrailData) -> ToolGuardrailFunctionOutput:
        try:
            await guard.check_all(texts_of_result(_plain(data.output)))
        except Blocked as error:
            if stop:
                return ToolGuardrailFunctionOutput.raise_exception(output_info=error)
            return ToolGuardrailFunctionOutput.reject_content(str(error), output_info=error)
        return ToolGuardrailFunctionOutput.allow()

    return ToolOutputGuardrail(guardrail_function=check, name=NAME)


def _plain(value: Any) -> Any:
    """Without Pydantic's models."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else value
