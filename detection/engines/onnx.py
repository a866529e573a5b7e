"""`onnx:` a text classifier inside the gateway's own process, with threads of its own.

For installations of a few processes: each loads the model for itself. `manage.py engine` serves
one to all of them.
"""

from __future__ import annotations

from pathlib import Path

from detection.content_types import DATA
from detection.engines import calibration
from detection.engines.addresses import Address
from detection.engines.batching import Batcher, Busy
from detection.engines.classifier import Classifier, ModelUnusable, NoScore
from detection.engines.engine import Call, Engine, EngineUnavailable, NotAnOutage, log, word
from detection.engines.scores import Score
from gateway_project.core.sharing import FairSemaphore
from gateway_project.core.telemetry import health

TEXTS_MAX = 32
"""At the model at once; workspaces take turns for these places."""
ATTACK_FROM = 0.5


class OnnxEngine(Engine):
    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._calibrations: calibration.Calibrations = {}
        self._batcher = Batcher(self._load)
        self._places = FairSemaphore(TEXTS_MAX)
        self._has_reported = False

    def _load(self) -> Classifier:
        options = self.address.options
        if path := options.get("calibration"):
            self._calibrations = calibration.read(Path(path))
        return Classifier(
            self.address.url,
            threads=max(1, self.address.number("threads", 1)),
            file=options.get("file", ""),
            attack=[one for one in options.get("attack", "").split(",") if one],
        )

    @property
    def version(self) -> str:
        facts = self._batcher.facts
        if facts is None or not self._calibrations:
            return "" if facts is None else facts.version
        return f"{facts.version}+{calibration.digest(self._calibrations)}"

    @version.setter
    def version(self, _: str) -> None:
        """It is the model's."""

    @property
    def is_busy(self) -> bool:
        return self._batcher.is_busy

    async def probe(self) -> health.Status:
        return "up" if self._batcher.facts is not None else "down"

    async def close(self) -> None:
        await self._batcher.close()

    async def _score(self, text: str, call: Call) -> Score:
        async with self._places.place(call.holder):
            try:
                found = await self._batcher.judge(text, is_data=call.content_type in DATA)
            except ModelUnusable as exc:
                if not self._has_reported:
                    log.error("model_unusable", engine=self.name, error=str(exc), alert=True)
                    self._has_reported = True
                raise EngineUnavailable("engine_error", is_outage=False) from exc
            except NoScore as exc:
                raise NotAnOutage("the model gives no finite number") from exc
            except Busy as exc:
                raise EngineUnavailable("engine_error") from exc
        facts = self._batcher.facts
        score = calibration.calibrated(self._calibrations, found.score, call.content_type)
        return Score(
            score,
            ("injection",) if score >= ATTACK_FROM else (),
            None,
            "onnx" if facts is None else word(facts.name),
            found.scanned_chars,
            len(text),
            unseen=found.unseen,
        )
