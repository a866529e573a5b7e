"""Where in an agent a text stands, and what that means for how it is read. Pure."""

from __future__ import annotations

from typing import TypeAlias, get_args

from detection import embedded

ContentType: TypeAlias = embedded.ContentType
CONTENT_TYPES: tuple[ContentType, ...] = get_args(ContentType)
DATA = embedded.READ
"""Read in smaller windows, and with the weights of documents."""
FIELDS_APART: frozenset[str] = frozenset({"tool_definition", "tool_call"})
"""Each string is a text of its own here: a description, an argument."""

NO_RULES = "language_without_rules"
CUT = "cut"
_REASONS = {"time": CUT, "decoding": "not_decoded", "language": NO_RULES}


def unseen_of(found: embedded.Analysis) -> tuple[str, ...]:
    """Why the embedded detector could not look at all of a text, in the words of answers."""
    return tuple(_REASONS.get(one, one) for one in found.unseen)
