"""Where in an agent a text stands, and what that means for how it is read. Pure."""

from __future__ import annotations

from typing import Literal, get_args

from detection import embedded

ContentType = Literal[
    "user_input",
    "document",
    "tool_output",
    "model_output",
    "tool_definition",
    "tool_call",
    "memory_write",
    "system",
]
CONTENT_TYPES: tuple[ContentType, ...] = get_args(ContentType)
DATA: frozenset[str] = frozenset({"document", "tool_output", "tool_definition", "memory_write"})
"""What a model reads as facts, so that an order to it is out of place: read in smaller windows,
and with the weights of documents."""
FIELDS_APART: frozenset[str] = frozenset({"tool_definition", "tool_call"})
"""Each string is a text of its own here: a description, an argument."""

_EMBEDDED: dict[str, embedded.ContentType] = {
    "user_input": "user_input",
    "document": "document",
    "tool_output": "tool_output",
    "model_output": "model_output",
    # Short and full of orders to a reader: with the threshold of what tools return.
    "tool_definition": "tool_output",
    "memory_write": "tool_output",
    # What the model says to a tool; what its owner says to it.
    "tool_call": "model_output",
    "system": "model_output",
}


def for_embedded(content_type: ContentType) -> embedded.ContentType:
    """What the embedded detector calls it."""
    return _EMBEDDED[content_type]


NO_RULES = "language_without_rules"
CUT = "cut"
_REASONS = {"time": CUT, "decoding": "not_decoded", "language": NO_RULES}


def unseen_of(found: embedded.Analysis) -> tuple[str, ...]:
    """Why the embedded detector could not look at all of a text, in the words of answers."""
    return tuple(_REASONS.get(one, one) for one in found.unseen)
