"""What margins mean at each place of an agent: 0.6 where about two in a hundred harmless texts lie
above, of those that `python -m detection.training.held_out` names; for documents seven, since else
half of what is hidden in them would be missed.
"""

from __future__ import annotations

Points = list[tuple[float, float]]


def _points(margin: float, *, begins: float) -> Points:
    """Nothing at `begins` below the margin that is 0.6, certain 3.9 above it."""
    return [(round(margin - begins, 2), 0.0), (margin, 0.6), (round(margin + 3.9, 2), 0.94)]


_ASSISTANT_READS = _points(7.0, begins=2.0)
"""There, what is an attack as a prompt is mostly a text about prompts."""
POINTS: dict[str, dict[str, Points]] = {
    "prompt": {
        "": _points(1.3, begins=2.6),
        "model_output": _points(4.5, begins=2.6),
        "tool_call": _points(1.0, begins=2.6),
        "system": _points(13.0, begins=2.0),
        "document": _ASSISTANT_READS,
        "tool_output": _ASSISTANT_READS,
        "tool_definition": _ASSISTANT_READS,
        "memory_write": _ASSISTANT_READS,
    },
    "data": {
        "": _points(0.3, begins=1.0),
        "tool_call": _points(0.0, begins=1.0),
        "system": _points(6.0, begins=1.0),
        "document": _points(-1.39, begins=1.0),
        "tool_output": _points(0.3, begins=0.6),
        "tool_definition": _points(1.2, begins=0.6),
        "memory_write": _points(2.5, begins=0.6),
    },
}
"""By head and content type, "" for all others: (margin, score), in rising order."""
