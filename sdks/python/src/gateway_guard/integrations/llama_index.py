"""LlamaIndex: a postprocessor that checks the question and leaves out nodes that are attacks.

index.as_query_engine(node_postprocessors=[GuardPostprocessor(guard=Guard())])

Models are guarded by their clients: `OpenAI(openai_client=guard_openai(…))`.
"""

from __future__ import annotations

from typing import Any, Optional

from llama_index.core.bridge.pydantic import Field, field_validator
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from gateway_guard.errors import Blocked
from gateway_guard.guard import AsyncGuard, Guard


class GuardPostprocessor(BaseNodePostprocessor):
    """The question is checked as `user_input`: `errors.Blocked` is raised. Nodes are checked as
    `document`, as the model would read them: those that are attacks are left out, and stand in
    `dropped` of the last call. Give `aguard` for engines that are called with `await`.
    """

    guard: Any = Field(default_factory=Guard, exclude=True)
    aguard: Any = Field(default=None, exclude=True)
    check_question: bool = True
    dropped: list[str] = Field(default_factory=list, description="Ids of nodes.")

    @field_validator("guard")
    @classmethod
    def _judges(cls, guard: Any) -> Guard:
        return Guard.needed(guard, "guard of GuardPostprocessor")

    @field_validator("aguard")
    @classmethod
    def _ajudges(cls, guard: Any) -> Optional[AsyncGuard]:
        return guard and AsyncGuard.needed(guard, "aguard of GuardPostprocessor")

    @classmethod
    def class_name(cls) -> str:
        return "GatewayGuardPostprocessor"

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: Optional[QueryBundle] = None,
    ) -> list[NodeWithScore]:
        guard: Guard = self.guard
        if self.check_question and query_bundle is not None:
            guard.check(query_bundle.query_str)
        kept, dropped = [], []
        for node in nodes:
            try:
                guard.check(node.node.get_content(MetadataMode.LLM), "document")
            except Blocked:
                dropped.append(node.node.node_id)
            else:
                kept.append(node)
        self.dropped = dropped
        return kept

    async def _apostprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: Optional[QueryBundle] = None,
    ) -> list[NodeWithScore]:
        guard: Optional[AsyncGuard] = self.aguard
        if guard is None:
            return await super()._apostprocess_nodes(nodes, query_bundle)
        if self.check_question and query_bundle is not None:
            await guard.check(query_bundle.query_str)
        kept, dropped = [], []
        for node in nodes:
            try:
                await guard.check(node.node.get_content(MetadataMode.LLM), "document")
            except Blocked:
                dropped.append(node.node.node_id)
            else:
                kept.append(node)
        self.dropped = dropped
        return kept
