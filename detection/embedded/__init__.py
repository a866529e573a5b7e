"""The embedded detector: rules and a linear model over normalised views, pure Python, no I/O.

It answers when the engine is away, explains what the engine cannot, and stands behind the stand-in
engine. It is a speed bump, not a wall: docs/detectors.md says what it finds, and what it cannot.
"""

from detection.embedded.detector import (
    CATEGORIES,
    DETECTOR,
    EVIDENCE_MAX,
    READ,
    Analysis,
    ContentType,
    Detector,
    Evidence,
    analyse,
    load,
)

__all__ = [
    "CATEGORIES",
    "DETECTOR",
    "EVIDENCE_MAX",
    "READ",
    "Analysis",
    "ContentType",
    "Detector",
    "Evidence",
    "analyse",
    "load",
]
