"""`embedded:`: the embedded detector as an engine, inside the gateway's own process.

For an installation that wants nothing beside the gateway, and as a cheap first engine that asks
another one when it is unsure. Other than as a fallback its verdicts are not `degraded`.
"""

from __future__ import annotations

from typing import ClassVar

from detection import embedded
from detection.engines import analysts
from detection.engines.addresses import Address
from detection.engines.engine import Call, Engine
from detection.engines.scores import Score
from gateway_project.core.telemetry import health


class BuiltinEngine(Engine):
    reads_json: ClassVar[bool] = True

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        known = embedded.DETECTOR
        self.version = f"{known.version} {known.weights_sha256[:12]}"

    @property
    def is_busy(self) -> bool:
        return analysts.is_busy()

    async def close(self) -> None:
        """The detector belongs to the process."""

    async def probe(self) -> health.Status:
        return "up"

    async def _score(self, text: str, call: Call) -> Score:
        return score_of(await analysts.analyse(text, call.content_type, call.holder), "embedded")


def score_of(found: analysts.Finding, endpoint: str) -> Score:
    """What the detector found, as engines say it."""
    known = found.analysis
    return Score(
        known.score,
        known.threat_types,
        known.reason,
        endpoint,
        known.scanned_chars,
        known.total_chars,
        path=found.path,
        unseen=found.unseen,
    )
