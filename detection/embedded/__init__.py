"""The embedded detector: rules over normalised views, pure Python, no I/O.

It answers when the engine is away, explains what the engine cannot, and stands behind the stand-in
engine. It is a speed bump, not a wall: a new wording without any of its patterns passes.
"""

from detection.embedded.detector import (
    CATEGORIES,
    DETECTOR,
    Analysis,
    ContentType,
    Detector,
    Evidence,
    analyse,
)

__all__ = [
    "CATEGORIES",
    "DETECTOR",
    "Analysis",
    "ContentType",
    "Detector",
    "Evidence",
    "analyse",
]
