"""Bodies and answers of the detection API. Requests refuse unknown fields; clients must ignore
unknown fields of answers, which may grow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from detection.content_types import ContentType
from detection.messages import TRUSTED, Message, as_text, chars_of
from detection.models import ITEMS_MAX, TEXT_CHARS_MAX
from gateway_project.core.api.endpoint import Asked, Body
from gateway_project.core.api.fields import IdText, Time
from gateway_project.core.api.pagination import Limit
from gateway_project.core.storable import storable
from webhooks.delivery.callbacks import CallbackUrl

METADATA_BYTES_MAX = 1024
MESSAGES_MAX = 100

OnUnavailable = Literal["fallback", "fail_closed", "fail_open"]


def _is_small(value: dict[str, Any]) -> dict[str, Any]:
    size = len(orjson.dumps(storable(value)))
    if size > METADATA_BYTES_MAX:
        raise ValueError(f"is {size} bytes as JSON; at most {METADATA_BYTES_MAX} are echoed")
    return value


# Control characters are judged like all others: terminals colour with them, page breaks and old
# encodings leave them, and who hides an attack among them has to be seen.
Text = Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARS_MAX)]
Metadata = Annotated[dict[str, Any], AfterValidator(_is_small)]


class DetectConfig(Body):
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="Default: the policy's, 0.6."
    )
    include_reasoning: bool = Field(True, description="Whether `reason` is in the answer.")
    detailed_response: bool = Field(False, description="Adds `details`.")
    timeout_seconds: float | None = Field(
        None,
        ge=0.1,
        le=60,
        description="The whole budget; default 30.",
    )
    content_type: ContentType = Field(
        "user_input",
        description=(
            "Where in an agent the text stands. Of `messages` the roles say it. A JSON text is "
            "judged by its strings."
        ),
    )
    on_unavailable: OnUnavailable | None = Field(
        None, description="When the engine is away. Default: the policy's, `fallback`."
    )
    mode: Literal["enforce", "monitor"] | None = Field(
        None,
        description=(
            "`monitor`: nothing is flagged, so `is_malicious` is false and `decision` is `allow`; "
            "`would_flag` says what `enforce` would have found."
        ),
    )
    use_cache: bool = True


class _Asks(Body):
    # A factory: Pydantic would deep-copy a default for each request.
    config: DetectConfig = Field(default_factory=DetectConfig)
    webhook_url: CallbackUrl | None = Field(
        None,
        description=(
            "The verdict is sent there as well, as a signed `detection.completed`: https on port "
            "443 or 8443, at a public address. GET /webhooks/per-request has its log and secret."
        ),
    )
    metadata: Metadata | None = Field(
        None, description="At most 1 kB as JSON; echoed, never sent to the engine."
    )


class TextRequest(_Asks):
    text: Text = Field(description="1 to 10,000 characters, analysed exactly as sent.")


class DetectRequest(_Asks):
    """Either `text` or `messages`."""

    model_config = ConfigDict(
        # Not `oneOf`, of which generators of clients make a union of two classes without fields.
        json_schema_extra={
            "if": {
                "required": ["messages"],
                "properties": {"messages": {"type": "array", "items": {}}},
            },
            "then": {"properties": {"text": {"type": "null"}}},
            "else": {"required": ["text"], "properties": {"text": {"type": "string"}}},
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)] | None = Field(
        None,
        description=(
            "A conversation as chat APIs send it, instead of `text`; 10,000 characters in all. "
            "What `system` and `developer` say is trusted and not judged, all else is."
        ),
    )
    text: Text | None = Field(
        None,
        validate_default=True,
        description="1 to 10,000 characters, analysed exactly as sent. It or `messages`.",
    )

    @field_validator("messages")
    @classmethod
    def _can_be_judged(cls, messages: list[Message] | None) -> list[Message] | None:
        if messages is None:
            return None
        chars = chars_of(messages)
        if chars > TEXT_CHARS_MAX:
            raise ValueError(f"hold {chars:,} characters; at most {TEXT_CHARS_MAX:,} in all")
        if all(message.role in TRUSTED for message in messages):
            raise ValueError("hold only trusted roles, of which none is judged")
        return messages

    @field_validator("text")
    @classmethod
    def _either(cls, text: str | None, info: ValidationInfo) -> str | None:
        # Messages that are not valid are told of themselves.
        if "messages" in info.data and (text is None) == (info.data["messages"] is None):
            raise ValueError("is needed, or messages" if text is None else "or messages, not both")
        return text

    @property
    def whole_text(self) -> str:
        return self.text if self.text is not None else as_text(self.messages or ())


class PolicyRef(BaseModel):
    id: str
    version: int
    matched: Literal["allow", "deny"] | None = Field(
        None, description="The list of the policy that the whole text stands on."
    )


class CategoryScore(BaseModel):
    type: str
    score: float
    detected: bool
    threshold: float


class EvidenceSpan(BaseModel):
    start: int
    end: int
    rule_id: str
    category: str
    view: str
    score: float
    by: Literal["embedded"] = "embedded"
    message: int | None = Field(None, description="Of `messages`: in which, from 0.")


class UnseenPart(BaseModel):
    reason: str = Field(
        description=(
            "`cut`: longer than the engine reads. `nested_too_deep`: JSON below its 32nd level. "
            "`not_decoded`: more encoded text than is decoded. "
            "`language_without_rules`: words of a language that the detector does not know. "
            "`picture`, `audio`, `file`, `not_text`: parts of messages. "
            "`trusted_role`: a system's message. `no_engine`: nobody judged. May grow."
        )
    )
    message: int | None = Field(None, description="Of `messages`: which, from 0.")


class Scanned(BaseModel):
    scanned_chars: int
    total_chars: int


class Coverage(Scanned):
    """How much of the text was looked at, and what was not."""

    unseen: list[UnseenPart]


class Location(BaseModel):
    """Where the highest score stood."""

    message: int | None = Field(None, description="Of `messages`: which, from 0.")
    path: str | None = Field(None, description="In a JSON text: `$.items[3].body`.")


class Timing(BaseModel):
    queue_ms: float
    engine_ms: float
    fallback_ms: float
    total_ms: float


class DetectorRef(BaseModel):
    name: str
    version: str | None = None
    weights_sha256: str | None = None


class Details(BaseModel):
    categories: list[CategoryScore]
    evidence: list[EvidenceSpan]
    offset_unit: Literal["code_point"] = "code_point"
    views: list[str] = Field(
        description="As what the text was read: as sent, and what was decoded from it."
    )
    language: str
    coverage: Scanned
    timing: Timing
    detector: DetectorRef
    floor: bool = Field(
        False, description="The engine's score is its floor: it says nothing about this text."
    )


class ScoreRequest(Body):
    text: Text
    content_type: ContentType = "user_input"


class RankedScore(BaseModel):
    type: str
    score: float


class Scores(BaseModel):
    """What the detector thinks, before any threshold or policy. The highest category first."""

    confidence: float
    categories: list[RankedScore]
    threat_types: list[str]
    source: Literal["engine", "fallback"]
    detector: DetectorRef


class Detection(BaseModel):
    request_id: IdText
    is_malicious: bool = Field(
        description=(
            "`confidence >= threshold`, unless the policy's lists or categories decide. False in "
            "`monitor` mode: see `would_flag`."
        )
    )
    confidence: float = Field(description="0 to 1: how surely this text is an attack.")
    threat_types: list[str] = Field(
        description=(
            "`jailbreak`, `system_prompt_leak`, `injection`, `data_extraction`, "
            "`encoding_attack`, `delimiter_attack`; may grow."
        )
    )
    processing_time_ms: int
    reason: str | None = None
    endpoint: str | None = Field(None, description="Who answered behind the engine, or `fallback`.")
    engine: str | None = Field(
        None, description="Which engine judged, when it is not the installation's default."
    )
    location: Location | None = Field(
        None, description="Where it stood, in `messages` or in a JSON text."
    )
    coverage: Coverage
    threshold: float
    threshold_source: Literal["request", "policy", "default"]
    decision: Literal["allow", "flag", "review"]
    would_flag: bool | None = Field(
        None, description="Only in `monitor` mode: what `is_malicious` would be in `enforce`."
    )
    status: Literal["complete", "partial", "degraded"]
    source: Literal["engine", "fallback", "none"]
    degraded_reason: Literal["connect_error", "timeout", "engine_error", "circuit_open"] | None = (
        None
    )
    cached: bool = False
    cache_age_seconds: int = 0
    policy: PolicyRef
    metadata: dict[str, Any] | None = None
    details: Details | None = None


# -- Batches and jobs -----------------------------------------------------------------------------

ITEMS_AT_ONCE_MAX = 100
"""A batch of more is worked on behind its request."""
JobStatus = Literal["queued", "processing", "complete", "partial", "failed", "cancelled"]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(storable)]
_item_id: TypeAdapter[str] = TypeAdapter(ItemId, config=ConfigDict(strict=True))


class BatchItem(Body):
    id: ItemId = Field(description="The caller's name for it; each once.")
    text: Text
    config: DetectConfig | None = Field(None, description="What it sets goes before the batch's.")
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Unfit:
    """An item that is not valid but has an id: it fails, and the others do not."""

    id: str
    error: ValidationError


def _item_or_unfit(value: Any, validate: ValidatorFunctionWrapHandler) -> BatchItem | Unfit:
    try:
        item: BatchItem = validate(value)
    except ValidationError as exc:
        if not isinstance(value, dict):
            raise
        return Unfit(_item_id.validate_python(value.get("id")), exc)
    return item


def _ids_once(items: list[BatchItem | Unfit]) -> list[BatchItem | Unfit]:
    counts = Counter(item.id for item in items)
    twice = [item_id for item_id, count in counts.items() if count > 1]
    if twice:
        shown = ", ".join(twice[:10]) + (", …" if len(twice) > 10 else "")
        raise ValueError(f"each id may stand once; more than once: {shown}")
    return items


class BatchRequest(Body):
    requests: Annotated[
        list[Annotated[BatchItem, WrapValidator(_item_or_unfit)]],
        Field(min_length=1, max_length=ITEMS_MAX),
        AfterValidator(_ids_once),
    ]
    config: DetectConfig = Field(
        default_factory=DetectConfig,
        description="For all items; `timeout_seconds` is the budget of the whole batch.",
    )
    webhook_url: CallbackUrl | None = None
    metadata: Metadata | None = None


class AsyncRequest(TextRequest):
    webhook_url: CallbackUrl | None = Field(
        None,
        description="May be left out when a webhook of the workspace asks for `detection.*`.",
    )


class ItemError(BaseModel):
    code: str = Field(
        description="`validation_error`, `deadline`, or that of a problem (see /problems/{code})."
    )
    message: str


class ItemResult(BaseModel):
    id: str
    status: Literal["ok", "error"]
    result: Detection | None
    error: ItemError | None


class BatchResponse(BaseModel):
    """All in the order of the request."""

    batch_id: IdText
    status: Literal["complete", "partial", "failed"]
    results: list[ItemResult]
    successful_count: int
    failed_count: int
    flagged_count: int
    total_processing_time_ms: int
    metadata: dict[str, Any] | None = None


class BatchAccepted(BaseModel):
    batch_id: UUID
    status: Literal["queued"] = "queued"
    total: int
    status_url: str
    estimated_completion_seconds: int


class BatchView(BaseModel):
    """A batch that is, or was, worked on. Times are null until they are."""

    batch_id: UUID
    status: JobStatus
    total: int
    successful_count: int
    failed_count: int
    flagged_count: int
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time
    webhook_url: str | None
    metadata: dict[str, Any] | None
    status_url: str


class ResultsQuery(Asked):
    limit: Limit = 50
    cursor: int = Field(0, ge=0, le=999_999, description="From `next`.")


class BatchPage(BatchView):
    results: list[ItemResult] = Field(
        description="In the order of the request, up to the first unfinished item."
    )
    next: str | None = Field(description="The next page; null when there is no more of them now.")


class AsyncAccepted(BaseModel):
    request_id: UUID
    status: Literal["queued"] = "queued"
    estimated_completion_seconds: int
    webhook_url: str | None
    status_url: str


class AsyncView(BaseModel):
    request_id: UUID
    status: JobStatus
    result: Detection | None
    error: ItemError | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time
    webhook_url: str | None
    metadata: dict[str, Any] | None
