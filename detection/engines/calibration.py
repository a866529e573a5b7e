"""What a classifier's scores mean for each content type, from a JSON file that an operator fits.

Stands alone, as `server` does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detection.content_types import CONTENT_TYPES, ContentType
from detection.engines.classifier import ModelUnusable


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of the classifier's scores for one content type: `sigmoid(slope * logit(score) + bias)`."""

    slope: float = 1.0
    bias: float = 0.0

    def of(self, score: float) -> float:
        if (self.slope, self.bias) == (1.0, 0.0):
            return score
        held = min(1 - 1e-6, max(1e-6, score))
        return 1 / (1 + math.exp(-(self.slope * math.log(held / (1 - held)) + self.bias)))


Calibrations = Mapping[str, Calibration]
"""By content type; one that is not there leaves its scores as they are."""


def calibrated(known: Calibrations, score: float, content_type: ContentType) -> float:
    return known.get(content_type, Calibration()).of(score)


def digest(known: Calibrations) -> str:
    return hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:8]


def read(path: Path) -> Calibrations:
    """`{"tool_output": {"slope": 1.2, "bias": -0.4}}`. Raises `ModelUnusable`."""
    try:
        found = {
            name: Calibration(float(one["slope"]), float(one["bias"]))
            for name, one in json.loads(path.read_bytes()).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelUnusable(
            f'{path} is no calibration: {{"tool_output": {{"slope": 1, "bias": 0}}}}'
        ) from exc
    if unknown := set(found) - set(CONTENT_TYPES):
        raise ModelUnusable(f"{path} calibrates unknown content types: {', '.join(unknown)}")
    if not all(math.isfinite(one.slope + one.bias) and one.slope > 0 for one in found.values()):
        raise ModelUnusable(f"{path} has a slope that is not above 0")
    return found
