"""LlamaIndex's own query engine, with its mocks for models."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core", reason="needs llama-index-core: `make sdk-test`")

from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from gateway_guard import errors
from gateway_guard.integrations.llama_index import GuardPostprocessor

from ..fakes import ATTACK


class Pages(BaseRetriever):
    def _retrieve(self, query_bundle):
        pages = {"one": "It opens at nine.", "two": ATTACK, "three": "It closes at six."}
        return [NodeWithScore(node=TextNode(id_=i, text=t), score=1.0) for i, t in pages.items()]


def engine(*processors):
    return RetrieverQueryEngine(
        Pages(),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[*processors],
    )


def test_nodes_that_are_attacks_are_left_out(gateway, guard):
    processor = GuardPostprocessor(guard=guard)
    answer = engine(processor).query("When does it open?")

    assert [node.node.node_id for node in answer.source_nodes] == ["one", "three"]
    assert "Ignore all" not in answer.response
    assert processor.dropped == ["two"]
    assert gateway.asked[0] == ("user_input", "When does it open?")
    assert {kind for kind, _ in gateway.asked[1:]} == {"document"}


def test_a_question_that_is_one_raises(guard):
    with pytest.raises(errors.Blocked):
        engine(GuardPostprocessor(guard=guard)).query(ATTACK)
    processor = GuardPostprocessor(guard=guard, check_question=False)
    assert engine(processor).query(ATTACK).source_nodes


def test_the_same_with_asyncio(guard, make_aguard):
    async def run():
        aguard = make_aguard()
        for processor in (
            GuardPostprocessor(guard=guard, aguard=aguard),
            GuardPostprocessor(guard=guard),
        ):
            answer = await engine(processor).aquery("When does it open?")
            assert [node.node.node_id for node in answer.source_nodes] == ["one", "three"]
        await aguard.client.aclose()

    asyncio.run(run())
