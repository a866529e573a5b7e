"""What the gateway answers. Fields that this version does not know are kept, not refused.

Words such as `decision` are plain strings: a newer gateway may know more of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator


class RateLimit(BaseModel):
    """What is left of one limit: `minute`, `day`, `workspace_minute`, `workspace_day`."""

    name: str
    limit: Optional[int]
    remaining: int
    reset_seconds: Optional[int]


class Meta(BaseModel):
    """About the answer that an object came with."""

    status: int = 0
    request_id: str = ""
    attempts: int = 0
    replayed: bool = False
    from_cache: bool = False
    rate_limits: tuple[RateLimit, ...] = ()


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())
    _meta: Meta = PrivateAttr(default_factory=Meta)

    @property
    def meta(self) -> Meta:
        """Request id, attempts and what is left of the limits."""
        return self._meta


class PolicyRef(Model):
    id: str
    version: int
    matched: Optional[str] = None


class Location(Model):
    """Where the highest score stood: in which of `messages`, or at which path of a JSON text."""

    message: Optional[int] = None
    path: Optional[str] = None


class Coverage(Model):
    """How much of a text was looked at; `unseen` says what was not, and why."""

    scanned_chars: int
    total_chars: int
    unseen: list[dict[str, Any]] = []


class Detection(Model):
    """A verdict. `failed_open`: there is none, and the caller chose to go on without."""

    request_id: str
    is_malicious: bool
    confidence: float
    threat_types: list[str] = []
    processing_time_ms: int = 0
    reason: Optional[str] = None
    endpoint: Optional[str] = None
    engine: Optional[str] = None
    location: Optional[Location] = None
    coverage: Optional[Coverage] = None
    threshold: Optional[float] = None
    threshold_source: str = ""
    decision: str
    would_flag: Optional[bool] = None
    status: str = "complete"
    source: str = ""
    degraded_reason: Optional[str] = None
    cached: bool = False
    cache_age_seconds: int = 0
    policy: Optional[PolicyRef] = None
    metadata: Optional[dict[str, Any]] = None
    details: Optional[dict[str, Any]] = None
    failed_open: bool = False

    @property
    def flagged(self) -> bool:
        """Whether the policy in force says to stop this text."""
        return self.decision == "flag"


class CategoryScore(Model):
    type: str
    score: float


class Score(Model):
    """The bare score, without a policy."""

    confidence: float
    categories: list[CategoryScore] = []
    threat_types: list[str] = []
    source: str
    detector: dict[str, Any] = {}


class ItemError(Model):
    code: str
    message: str


class ItemResult(Model):
    """Of one text of a batch: a verdict (`status` ok) or why there is none (`status` error)."""

    id: str
    status: str
    result: Optional[Detection] = None
    error: Optional[ItemError] = None

    @model_validator(mode="after")
    def _has_outcome(self) -> ItemResult:
        if self.result is None and self.error is None:
            raise ValueError("neither a verdict nor why there is none")
        return self


class Job(Model):
    """A batch on its way, or done: `queued`, `processing`, `complete`, `partial`, `failed`,
    `cancelled`."""

    batch_id: str
    status: str
    total: int
    status_url: str
    successful_count: int = 0
    failed_count: int = 0
    flagged_count: int = 0
    estimated_completion_seconds: Optional[int] = None
    created_at: Optional[datetime] = None
    started_at: Optional[datetime] = None
    finished_at: Optional[datetime] = None
    expires_at: Optional[datetime] = None
    webhook_url: Optional[str] = None
    metadata: Optional[dict[str, Any]] = None

    @property
    def done(self) -> int:
        return self.successful_count + self.failed_count

    @property
    def is_over(self) -> bool:
        return self.status not in ("queued", "processing")


class AsyncDetection(Model):
    """One text that is judged behind the answer."""

    request_id: str
    status: str = "queued"
    result: Optional[Detection] = None
    error: Optional[ItemError] = None
    status_url: Optional[str] = None
    estimated_completion_seconds: Optional[int] = None
    created_at: Optional[datetime] = None
    started_at: Optional[datetime] = None
    finished_at: Optional[datetime] = None
    expires_at: Optional[datetime] = None
    webhook_url: Optional[str] = None
    metadata: Optional[dict[str, Any]] = None

    @property
    def is_over(self) -> bool:
        return self.status not in ("queued", "processing")


class Limit(Model):
    name: str
    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int


class Limits(Model):
    policies: list[Limit]


class Policy(Model):
    """What counts as an attack for the calling key."""

    id: str
    version: int
    mode: str
    on_unavailable: str
    threshold: dict[str, Any] = {}
    locked: list[str] = []
    categories: dict[str, bool] = {}
    allow: list[dict[str, Any]] = []
    deny: list[dict[str, Any]] = []
    store_text: bool = False
    engines: dict[str, Any] = {}
    updated_at: Optional[datetime] = None


class Feedback(Model):
    id: str
    request_id: str
    verdict: str
    note: Optional[str] = None
    confidence: float
    created_at: datetime


class Key(Model):
    """`key` is there only in the answer that made it."""

    id: str
    prefix: str
    last4: str
    name: str
    status: str
    scopes: list[str] = []
    allowed_cidrs: list[str] = []
    rate_limit_per_minute: int
    rate_limit_per_day: int
    created_at: datetime
    expires_at: Optional[datetime] = None
    grace_until: Optional[datetime] = None
    revoked_at: Optional[datetime] = None
    replaced_by: Optional[str] = None
    last_used_at: Optional[datetime] = None
    last_used_ip: Optional[str] = None
    tags: list[str] = []
    owner: str = ""
    is_test: bool = False
    key: Optional[str] = Field(default=None, repr=False)


class PreviousKey(Model):
    id: str
    grace_until: datetime


class Rotation(Model):
    api_key: Key
    previous: PreviousKey


class Profile(Model):
    api_key: Key
    workspace: dict[str, Any]
    plan: dict[str, Any]
    usage: dict[str, Any]


class LoggedRequest(Model):
    request_id: str
    created_at: datetime
    api_key_id: str
    endpoint: str
    http_status: int
    error_code: Optional[str] = None
    why: dict[str, Any] = {}
    request_bytes: int = 0
    timing: dict[str, Any] = {}
    status: Optional[str] = None
    source: Optional[str] = None
    decision: Optional[str] = None
    is_malicious: Optional[bool] = None
    confidence: Optional[float] = None
    cached: bool = False


class AuditRecord(Model):
    """`changes` has [before, after] of each field; `number` and `digest` seal the chain."""

    id: str
    number: Optional[int] = None
    at: datetime
    action: str
    actor: str
    target: str = ""
    client_ip: Optional[str] = None
    request_id: Optional[str] = None
    changes: dict[str, list[Any]] = {}
    details: dict[str, Any] = {}
    digest: str = ""


class Webhook(Model):
    """`secret` is there only in the answer that made it."""

    id: str
    url: str
    events: list[str] = []
    description: str = ""
    retry_count: Optional[int] = None
    is_active: bool
    created_at: datetime
    health: dict[str, Any] = {}
    secret: Optional[str] = Field(default=None, repr=False)


class NewSecret(Model):
    secret: str = Field(repr=False)
    previous_valid_until: datetime


class Delivery(Model):
    id: str
    webhook_id: str
    event_id: str
    event: str
    url: str
    status: str
    created_at: datetime
    finished_at: Optional[datetime] = None
    next_attempt_at: Optional[datetime] = None
    http_status: Optional[int] = None
    error: Optional[str] = None
    attempts: list[dict[str, Any]] = []
    body: Optional[dict[str, Any]] = None


class Queued(Model):
    """An event that was put on its way."""

    delivery_id: str


class Recovery(Model):
    deliveries: int
    is_complete: bool


class Page(Model):
    results: list[dict[str, Any]]
    next: Optional[str] = None
