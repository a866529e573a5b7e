"""The OpenAI Agents SDK's own runner, before a local model."""

from __future__ import annotations

import asyncio

import pytest

agents = pytest.importorskip("agents", reason="needs openai-agents: `make sdk-test`")
openai = pytest.importorskip("openai")

from gateway_guard import errors
from gateway_guard.integrations.agents import (
    input_guardrail,
    output_guardrail,
    tool_input_guardrail,
    tool_output_guardrail,
)

from ..fakes import ATTACK


@pytest.fixture
def run(model, make_aguard):
    """`run("a question", returns="what the tool says")`; the agent asks for its tool once."""
    agents.set_tracing_disabled(True)

    def run(question, *, returns=None, stop=False, arguments=None):
        async def go():
            guard = make_aguard()
            client = openai.AsyncOpenAI(api_key="x", base_url=f"{model.url}/v1", max_retries=0)

            async def mail(text: str) -> str:
                model.arguments = None
                return returns

            tools = []
            if returns is not None:
                model.arguments = arguments or {"text": "hello"}
                tools = [
                    agents.function_tool(
                        mail,
                        tool_input_guardrails=[tool_input_guardrail(guard)],
                        tool_output_guardrails=[tool_output_guardrail(guard, stop=stop)],
                    )
                ]
            agent = agents.Agent(
                "desk",
                instructions=ATTACK,
                model=agents.OpenAIChatCompletionsModel("m", client),
                tools=tools,
                input_guardrails=[input_guardrail(guard)],
                output_guardrails=[output_guardrail(guard)],
            )
            try:
                return await agents.Runner.run(agent, question, max_turns=3)
            finally:
                await guard.client.aclose()
                await client.close()

        return asyncio.run(go())

    return run


def test_what_is_harmless_passes(run, gateway):
    assert run("When does it open?").final_output == "It opens at nine."
    assert gateway.asked == [
        ("user_input", "When does it open?"),
        ("model_output", "It opens at nine."),
    ]


@pytest.mark.parametrize("rows", [False, True])
def test_an_attack_trips_the_wire_before_the_model_is_asked(run, model, rows):
    with pytest.raises(agents.InputGuardrailTripwireTriggered) as caught:
        run([{"role": "user", "content": ATTACK}] if rows else ATTACK)

    found = caught.value.guardrail_result.output.output_info
    assert isinstance(found, errors.Blocked)
    assert model.asked == []


def test_an_answer_that_is_one_trips_the_wire(run, model):
    model.text = ATTACK
    with pytest.raises(agents.OutputGuardrailTripwireTriggered):
        run("When does it open?")


def test_a_tools_result_is_replaced_and_the_agent_goes_on(run, model, gateway):
    result = run("Write to him.", returns=ATTACK)

    assert result.final_output == "It opens at nine."
    (results,) = [row["content"] for row in model.asked[-1][1]["messages"] if row["role"] == "tool"]
    assert results.startswith("Prompt injection in a tool's result")
    assert ATTACK not in results
    assert ("tool_output", ATTACK) in gateway.asked


def test_or_the_run_ends(run):
    with pytest.raises(agents.ToolOutputGuardrailTripwireTriggered):
        run("Write to him.", returns=ATTACK, stop=True)


def test_a_call_that_is_one_is_never_made(run, model):
    with pytest.raises(agents.MaxTurnsExceeded):  # the model asks for it again and again
        run("Write to him.", returns="sent", arguments={"text": ATTACK})
    results = [row["content"] for row in model.asked[-1][1]["messages"] if row["role"] == "tool"]
    assert all(text.startswith("Prompt injection in a tool call") for text in results)
