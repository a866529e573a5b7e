"""`/v1/policy`: what the calling key's detections mean when they do not say."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from rest_framework.request import Request

from accounts import idempotency
from accounts.models import ApiKey
from accounts.viewsets import KeyedViewSet
from detection.content_types import ContentType
from detection.engines import registry
from detection.models import TEXT_CHARS_MAX
from detection.policies import policy
from detection.policies.policy import ENTRIES_MAX, THREAT_TYPES, ThreatType
from detection.schemas import OnUnavailable
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Body, endpoint
from gateway_project.core.api.fields import Time
from gateway_project.core.api.responses import reply

TAGS = ("policy",)
Lock = Literal["threshold", "mode", "on_unavailable"]
Threshold = Annotated[float, Field(ge=0, le=1)]


NAMES_MAX = 32
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


def _is_configured(name: str) -> str:
    known = registry.configured()
    if name not in known:
        raise ValueError(f"is no engine of this installation. It has: {', '.join(known)}")
    return name


EngineName = Annotated[Name, AfterValidator(_is_configured)]


class Thresholds(Body):
    """By who answered; null: the default, 0.6."""

    engine: Threshold | None = Field(None, description="Any engine.")
    fallback: Threshold | None = Field(
        None, description="The embedded detector, when the engine was away."
    )
    engines: Annotated[dict[Name, Threshold], Field(max_length=NAMES_MAX)] = Field(
        {}, description="An engine of that name; goes before `engine`."
    )


class AllThresholds(Thresholds):
    content_types: dict[ContentType, Thresholds] = Field(
        {}, description="For texts of that type; goes before the others."
    )


class SecondEngine(Body):
    """Asked as well when the first is unsure; its score counts then."""

    engine: EngineName
    from_: Threshold = Field(0.3, alias="from")
    to: Threshold = 0.8

    @model_validator(mode="after")
    def _in_order(self) -> SecondEngine:
        if self.from_ > self.to:
            raise ValueError("`from` is above `to`")
        return self


class ShadowEngine(Body):
    """Asked behind the answer, which it never changes: to compare engines on one's own traffic."""

    engine: EngineName
    share: float = Field(0.1, gt=0, le=1, description="Of the texts, 0 to 1.")


class Engines(Body):
    """Which engines of this installation judge."""

    first: EngineName = "default"
    second: SecondEngine | None = None
    shadow: ShadowEngine | None = None

    @model_validator(mode="after")
    def _differ(self) -> Engines:
        if self.second is not None and self.second.engine == self.first:
            raise ValueError("`second` is the first engine")
        return self


class Entry(Body):
    """A whole text: as its digest, or as `text`, of which only the digest is kept."""

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        description=(
            "SHA-256 in hexadecimal of the text after NFKC, case folding, and collapsing of "
            "whitespace."
        ),
    )
    text: Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARS_MAX)] | None = None
    note: Annotated[str, StringConstraints(max_length=200)] = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> Entry:
        if (self.digest is None) == (self.text is None):
            raise ValueError("needs either digest or text")
        return self

    def kept(self) -> dict[str, str]:
        digest = self.digest or policy.digest_of(self.text or "")
        return {"digest": digest, "note": self.note}


Entries = Annotated[list[Entry], Field(max_length=ENTRIES_MAX)]


class PolicyRequest(Body):
    """The whole policy: what is left out is at its default again."""

    threshold: AllThresholds = Field(default_factory=AllThresholds)
    engines: Engines = Field(default_factory=Engines)
    locked: list[Lock] = Field([], description="What no request of this key may change.")
    mode: Literal["enforce", "monitor"] = "enforce"
    on_unavailable: OnUnavailable = "fallback"
    categories: dict[ThreatType, bool] = Field(
        {},
        description=(
            "Threat types switched off (false). If every type that was found is off, the text is "
            "not malicious; a score without any type is still judged by the threshold."
        ),
    )
    allow: Entries = Field([], description="Never malicious, whatever the score.")
    deny: Entries = Field([], description="Always malicious; goes before `allow`.")
    store_text: bool = Field(
        False,
        description="Keep texts, encrypted, for the days of the request log: to look at in it.",
    )

    def kept(self) -> dict[str, Any]:
        document = self.model_dump(exclude={"allow", "deny", "locked"}, by_alias=True)
        document["locked"] = sorted(set(self.locked))
        for name in ("allow", "deny"):
            entries = [entry.kept() for entry in getattr(self, name)]
            document[name] = list({entry["digest"]: entry for entry in entries}.values())
        return document


class KeptEntry(BaseModel):
    digest: str
    note: str


class ThresholdView(BaseModel):
    """What is not said of names and types is left out."""

    engine: float | None
    fallback: float | None
    engines: dict[str, float] | None = None

    @model_serializer(mode="wrap")
    def _what_is_set(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        found = serialize(self)
        return {k: v for k, v in found.items() if v or k in ("engine", "fallback")}

    @classmethod
    def of(cls, known: policy.Thresholds) -> Self:
        return cls(
            engine=known.engine, fallback=known.fallback, engines=dict(known.engines) or None
        )


class ThresholdsView(ThresholdView):
    content_types: dict[str, ThresholdView] | None = None


class SecondView(BaseModel):
    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    engine: str
    from_: float = Field(alias="from")
    to: float


class ShadowView(BaseModel):
    engine: str
    share: float


class EnginesView(BaseModel):
    first: str
    second: SecondView | None
    shadow: ShadowView | None

    @classmethod
    def of(cls, known: policy.DetectionPolicy) -> EnginesView:
        second, shadow = known.route.second, known.shadow
        return cls(
            first=known.route.first,
            second=None
            if second is None
            else SecondView(engine=second.engine, from_=second.least, to=second.most),
            shadow=None if shadow is None else ShadowView(engine=shadow.engine, share=shadow.share),
        )


class PolicyView(BaseModel):
    id: str
    version: int = Field(description="For `If-Match`; 0: the key has no policy of its own yet.")
    updated_at: Time | None
    threshold: ThresholdsView
    engines: EnginesView
    locked: list[str]
    mode: str
    on_unavailable: str
    categories: dict[str, bool]
    allow: list[KeptEntry]
    deny: list[KeptEntry]
    store_text: bool

    @classmethod
    def of(cls, key: ApiKey) -> PolicyView:
        document = key.policy_in_force
        updated_at = document.get("updated_at")
        known = policy.of_key(key)
        return cls(
            id=known.id,
            version=policy.version_of(key),
            updated_at=datetime.fromisoformat(updated_at) if updated_at else None,
            threshold=ThresholdsView(
                engine=known.threshold_engine,
                fallback=known.threshold_fallback,
                engines=dict(known.thresholds.engines) or None,
                content_types={
                    name: ThresholdView.of(one) for name, one in known.thresholds_by_type.items()
                },
            ),
            engines=EnginesView.of(known),
            locked=sorted(known.locked),
            mode=known.mode,
            on_unavailable=known.on_unavailable,
            categories={name: name not in known.switched_off for name in THREAT_TYPES},
            allow=[KeptEntry(**entry) for entry in document.get("allow") or ()],
            deny=[KeptEntry(**entry) for entry in document.get("deny") or ()],
            store_text=known.store_text,
        )


class PolicyViewSet(KeyedViewSet):
    @endpoint(
        operation="getPolicy",
        summary="The calling key's policy",
        description=(
            '`ETag` is for `If-Match` of PUT. `"0"`: the key has no policy of its own, and this '
            "is its workspace's, or the default."
        ),
        tags=TAGS,
        answer=PolicyView,
        headers=["ETag"],
        scope="detect",
    )
    def retrieve(self, request: Request) -> HttpResponse:
        return _shown(self.calling_key())

    @endpoint(
        operation="updatePolicy",
        summary="Change the calling key's policy",
        description=(
            "Replaces the whole policy and makes a version. In force in every worker within a "
            "second. With `If-Match` only when nobody changed it since."
        ),
        tags=TAGS,
        body=PolicyRequest,
        answer=PolicyView,
        headers=["ETag"],
        scope="keys:write",
        problems=[errors.PreconditionFailed, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[
            OpenApiParameter(
                "If-Match", OpenApiTypes.STR, OpenApiParameter.HEADER, description="An `ETag`."
            ),
            idempotency.HEADER,
        ],
    )
    def update(self, request: Request) -> HttpResponse:
        body = self.parsed(PolicyRequest)
        expected = _versions_of(request.headers.get("If-Match"))

        def save() -> HttpResponse:
            key = self.calling_key()
            policy.save(key, body.kept(), expected=expected, actor=self.actor)
            return _shown(key)

        return self.once(save)


def _shown(key: ApiKey) -> HttpResponse:
    return reply(PolicyView.of(key), headers={"ETag": f'"{policy.version_of(key)}"'})


def _versions_of(tags: str | None) -> tuple[int, ...]:
    """Of an `If-Match`, which may name several (RFC 9110 §13.1.1); empty: whatever is there.

    Raises 412 when none of them is one of ours.
    """
    if tags is None or tags.strip() == "*":
        return ()
    found = [one.strip().removeprefix("W/").strip('"') for one in tags.split(",")]
    ours = tuple(int(one) for one in found if one.isascii() and one.isdigit() and len(one) < 10)
    if not ours:
        raise errors.PreconditionFailed("If-Match takes the ETag of GET /v1/policy, or *.")
    return ours
