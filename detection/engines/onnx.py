"""`onnx:` a text classifier inside the gateway's own process, with threads of its own.

For installations of a few processes: each loads the model for itself. `manage.py engine` serves
one to all of them.
"""

from __future__ import annotations

from functools import partial

from detection.content_types import DATA
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
        labels = [one for one in address.options.get("attack", "").split(",") if one]
        load = partial(
            Classifier,
            address.url,
            threads=max(1, address.number("threads", 1)),
            file=address.options.get("file", ""),
            attack=labels,
        )
        self._batcher = Batcher(load)
        self._places = FairSemaphore(TEXTS_MAX)
        self._has_told = False

    @property
    def version(self) -> str:
        facts = self._batcher.facts
        return "" if facts is None else facts.version

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
                if not self._has_told:
                    log.error("model_unusable", engine=self.name, error=str(exc), alert=True)
                    self._has_told = True
                raise EngineUnavailable("engine_error", is_outage=False) from exc
            except NoScore as exc:
                raise NotAnOutage("the model gives no finite number") from exc
            except Busy as exc:
                raise EngineUnavailable("engine_error") from exc
        facts = self._batcher.facts
        return Score(
            found.score,
            ("injection",) if found.score >= ATTACK_FROM else (),
            None,
            "onnx" if facts is None else word(facts.name),
            found.scanned_chars,
            len(text),
            unseen=found.unseen,
        )
