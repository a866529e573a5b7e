"""Guards that others sell or publish, as engines: Lakera Guard, Azure Prompt Shields, LLM Guard.

Each is believed about attacks on the model and about nothing else: what it says of personal data or
of rude words is no prompt injection. An answer in which it did not look for attacks is an error.
"""

from __future__ import annotations

from typing import Any, ClassVar

from detection.content_types import ContentType
from detection.engines.addresses import Address
from detection.engines.engine import Call, HttpEngine, NotUnderstood, fraction, read_json
from detection.engines.scores import Score, Spent
from gateway_project.core.telemetry import health


class VendorEngine(HttpEngine):
    """The bearer of the address' key; the price of a call."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        key = address.secret or address.user
        self._bearer = {"Authorization": f"Bearer {key}"} if key else {}

    async def probe(self) -> health.Status:
        # It has no health of its own that costs nothing: what the last calls met stands for it.
        return "up" if self.breaker.state == "closed" else "degraded"

    def _found(self, score: float, text: str, queued_seconds: float, endpoint: str) -> Score:
        is_attack = score >= 0.5
        return Score(
            score=score,
            threat_types=("injection",) if is_attack else (),
            reason=None,
            endpoint=endpoint,
            scanned_chars=len(text),
            total_chars=len(text),
            queued_seconds=queued_seconds,
        )

    async def _post(
        self,
        path: str,
        body: object,
        call: Call,
        headers: dict[str, str] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> tuple[bytes, float]:
        answered = await super()._post(path, body, call, headers, timeout_seconds=timeout_seconds)
        if price := self.address.fraction("price", 0.0):
            call.spent.append(Spent(cost=price))
        return answered


class LakeraEngine(VendorEngine):
    """`POST /v2/guard` with `breakdown`. The levels are Lakera's, the numbers for them ours."""

    LEVELS: ClassVar[dict[str, float]] = {"l1": 0.98, "l2": 0.9, "l3": 0.75, "l4": 0.4, "l5": 0.1}
    ATTACKS: ClassVar[tuple[str, ...]] = ("prompt_attack", "prompt_injection", "jailbreak")
    ROLES: ClassVar[dict[ContentType, str]] = {
        "user_input": "user",
        "model_output": "assistant",
        "tool_call": "assistant",
        "system": "system",
    }

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.version = "v2"

    async def _score(self, text: str, call: Call) -> Score:
        # What it is shown as a system's is trusted, so that it would not be looked at.
        role = self.ROLES.get(call.content_type, "user")
        body: dict[str, Any] = {
            "messages": [{"role": "user" if role == "system" else role, "content": text}],
            "breakdown": True,
        }
        if project := self.address.options.get("project"):
            body["project_id"] = project
        content, queued = await self._post("/v2/guard", body, call, self._bearer)
        return self._found(self._read(content), text, queued, "lakera")

    @classmethod
    def _read(cls, content: bytes) -> float:
        body = read_json(content)
        if not isinstance(body, dict) or not isinstance(body.get("flagged"), bool):
            raise NotUnderstood("`flagged` is missing")
        breakdown = body.get("breakdown")
        if not isinstance(breakdown, list):
            raise NotUnderstood("`breakdown` is missing")
        scores = [
            cls._level(one)
            for one in breakdown
            if isinstance(one, dict) and _text(one.get("detector_type")).startswith(cls.ATTACKS)
        ]
        if not scores:
            raise NotUnderstood("no detector looked for prompt attacks: see the project's policy")
        return max(scores)

    @classmethod
    def _level(cls, detector: dict[str, Any]) -> float:
        detected = detector.get("detected")
        if not isinstance(detected, bool):
            raise NotUnderstood("`detected` is no true or false")
        level = detector.get("result", detector.get("confidence"))
        if level is None:
            return cls.LEVELS["l1"] if detected else cls.LEVELS["l5"]
        known = cls.LEVELS.get(_text(level).lower()[:2])
        if known is None:
            raise NotUnderstood("a level that is not known")
        return known


class AzureEngine(VendorEngine):
    """`text:shieldPrompt` of Azure AI Content Safety. It says yes or no, and no score."""

    YES, NO = 0.95, 0.05
    USERS: ClassVar[frozenset[str]] = frozenset({"user_input", "system"})

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.version = address.options.get("version", "2024-09-01")
        self._key = {"Ocp-Apim-Subscription-Key": address.secret or address.user}

    async def _score(self, text: str, call: Call) -> Score:
        is_users = call.content_type in self.USERS
        path = f"/contentsafety/text:shieldPrompt?api-version={self.version}"
        body = {"userPrompt": text if is_users else "", "documents": [] if is_users else [text]}
        content, queued = await self._post(path, body, call, self._key)
        score = self.YES if self._is_attack(content, is_users=is_users) else self.NO
        return self._found(score, text, queued, "prompt-shields")

    @staticmethod
    def _is_attack(content: bytes, *, is_users: bool) -> bool:
        body = read_json(content)
        try:
            analysis = (
                body["userPromptAnalysis"]  # type: ignore[index]
                if is_users
                else body["documentsAnalysis"][0]  # type: ignore[index]
            )
            detected = analysis["attackDetected"]
        except (KeyError, IndexError, TypeError) as exc:
            raise NotUnderstood("no analysis of the text") from exc
        if not isinstance(detected, bool):
            raise NotUnderstood("`attackDetected` is no true or false")
        return detected


class LlmGuardEngine(VendorEngine):
    """`POST /analyze/prompt` of LLM Guard's API, of which one scanner counts.

    Its scores run from -1 to 1, with the scanner's own threshold at 0; what it finds is above 0.6
    here, as our default threshold has it.
    """

    SCANNER = "PromptInjection"
    # The scanner's model has 512 tokens, and what is longer is cut there without a word.
    reads_bytes: ClassVar[int] = 1_500

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.scanner = address.options.get("scanner", self.SCANNER)
        self.version = self.scanner

    async def probe(self) -> health.Status:
        answer = await self.probes.request(
            "GET", "/readyz", timeout_seconds=health.PROBE_SECONDS_MAX
        )
        return "up" if answer.status == 200 else "down"

    async def _score(self, text: str, call: Call) -> Score:
        content, queued = await self._post("/analyze/prompt", {"prompt": text}, call, self._bearer)
        return self._found(self._read(content), text, queued, "llm-guard")

    def _read(self, content: bytes) -> float:
        body = read_json(content)
        if not isinstance(body, dict) or not isinstance(body.get("is_valid"), bool):
            raise NotUnderstood("`is_valid` is missing")
        scanners = body.get("scanners")
        if not isinstance(scanners, dict) or self.scanner not in scanners:
            raise NotUnderstood(f"the scanner {self.scanner} did not run")
        risk = fraction(scanners[self.scanner], -1, 1)
        if risk > 0 and body["is_valid"]:
            raise NotUnderstood("`is_valid`, although a scanner found something")
        return round(0.6 + 0.4 * risk if risk > 0 else 0.5 * (1 + risk), 4)


def _text(value: object) -> str:
    """What is none is not among the words that are known."""
    return value if isinstance(value, str) else ""
