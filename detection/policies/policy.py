"""What a key's detections mean when they do not say, and what no request of it may change.

A policy belongs to a key, and goes over to its successors; a key without one has its workspace's.
What is in force lies on the key, or on the workspace (`detection_policy`), where the data plane
finds it with the key; every state that it ever had is a `PolicyVersion`. A key that never works
again keeps none (`prune`).

Entries match the **whole** text, normalised, and never a part of it. They are kept as digests; the
texts are not.

A policy is bounded in bytes (`POLICY_BYTES_MAX`) and in versions, and so is what a worker remembers
of policies: entries are packed there, 32 bytes each.
"""

from __future__ import annotations

import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

import orjson
from cachetools import LRUCache
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext_noop

from accounts import authentication
from accounts.events import audit
from accounts.models import ApiKey, Workspace, ended_by
from accounts.services import Actor
from detection.content_types import ContentType
from detection.engines.addresses import DEFAULT as DEFAULT_ENGINE
from detection.engines.registry import DIRECT, Route, Second, Shadow
from detection.models import Job, PolicyVersion
from detection.schemas import DetectConfig, OnUnavailable, PolicyRef
from gateway_project.core import clock, errors
from gateway_project.core.sentences import Sentence
from gateway_project.core.sharing import Turn
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.metrics import bound_reached, cache_bytes, policy_matches

ENTRIES_MAX = 1000
ThreatType = Literal[
    "jailbreak",
    "system_prompt_leak",
    "injection",
    "data_extraction",
    "encoding_attack",
    "delimiter_attack",
]
THREAT_TYPES: tuple[str, ...] = get_args(ThreatType)
DEFAULT_THRESHOLD = 0.6
VERSIONS_SHOWN = 20
KEYS_AT_ONCE = 5_000
"""Through so many keys one round looks for policies that nothing needs any more."""
ENDED_FOR = timedelta(minutes=5)
"""Longer than a request that began with the key takes, which may still make a job."""
SIZE = 32  # bytes of a digest
POLICY_BYTES, ENTRY_CHARS = 1_500, 80
THRESHOLD_BYTES = 200  # of one by engine or content type
Source = Literal["engine", "fallback", "none"]
Match = Literal["allow", "deny"]


class Digests(Set[str]):
    """SHA-256 digests in hexadecimal, in as many bytes as they stand for: sorted, end to end."""

    __slots__ = ("_packed",)

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._packed = b"".join(sorted({bytes.fromhex(digest) for digest in digests}))

    def __contains__(self, digest: object) -> bool:
        wanted = bytes.fromhex(str(digest))
        at = SIZE * bisect_left(range(len(self)), wanted, key=self._at)
        return self._packed[at : at + SIZE] == wanted

    def __iter__(self) -> Iterator[str]:
        return (self._at(position).hex() for position in range(len(self)))

    def __len__(self) -> int:
        return len(self._packed) // SIZE

    def __hash__(self) -> int:
        return hash(self._packed)

    def _at(self, position: int) -> bytes:
        return self._packed[SIZE * position : SIZE * (position + 1)]


class Thresholds(NamedTuple):
    """By who answered: an engine of that name, any engine, or the embedded detector for want of
    one. None: not said."""

    engine: float | None = None
    fallback: float | None = None
    engines: Mapping[str, float] = MappingProxyType({})

    def of(self, source: Source, engine: str) -> float | None:
        if source == "fallback":
            return self.fallback
        return self.engines.get(engine, self.engine)


NO_THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class DetectionPolicy:
    """The policy in force. A threshold of None: the default."""

    id: str = "default"
    version: int = 1
    thresholds: Thresholds = NO_THRESHOLDS
    thresholds_by_type: Mapping[str, Thresholds] = field(default_factory=dict)
    route: Route = DIRECT
    shadow: Shadow | None = None
    mode: Literal["enforce", "monitor"] = "enforce"
    on_unavailable: OnUnavailable = "fallback"
    locked: frozenset[str] = frozenset()
    switched_off: frozenset[str] = frozenset()
    allow: Set[str] = Digests()
    deny: Set[str] = Digests()
    store_text: bool = False

    @property
    def memory_bytes(self) -> int:
        """About what remembering it takes, the JSON it was read from included."""
        entries = len(self.allow) + len(self.deny)
        named = len(self.thresholds.engines)
        named += sum(1 + len(one.engines) for one in self.thresholds_by_type.values())
        return POLICY_BYTES + entries * (SIZE + ENTRY_CHARS) + named * THRESHOLD_BYTES

    @property
    def threshold_engine(self) -> float | None:
        return self.thresholds.engine

    @property
    def threshold_fallback(self) -> float | None:
        return self.thresholds.fallback

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of those that see texts under it, each once."""
        others = (one.engine for one in (self.route.second, self.shadow) if one is not None)
        return tuple(dict.fromkeys([self.route.first, *others]))

    def ref(self, matched: Match | None = None) -> PolicyRef:
        return _ref(self.id, self.version, matched)

    def threshold(
        self,
        source: Source,
        asked: float | None,
        content_type: ContentType = "user_input",
        engine: str | None = None,
    ) -> tuple[float, Literal["request", "policy", "default"]]:
        """The one to apply to whoever answered, and where it is from.

        Of the policy's, one for the content type goes before one for all, and one for the engine's
        name before one for any engine.
        """
        if asked is not None:
            return asked, "request"
        name = self.route.first if engine is None else engine
        by_type = self.thresholds_by_type.get(content_type)
        own = None if by_type is None else by_type.of(source, name)
        if own is None:
            own = self.thresholds.of(source, name)
        return (DEFAULT_THRESHOLD, "default") if own is None else (own, "policy")

    def check(self, config: DetectConfig) -> None:
        """Refuse a request that wants something else than the policy where that is locked, or that
        wants to fail open without leave."""
        wanted = config.on_unavailable
        if wanted == "fail_open" and self.on_unavailable != "fail_open":
            raise errors.FailOpenForbidden
        if not self.locked:
            return
        asked = {
            "threshold": (
                config.confidence_threshold,
                self.threshold("engine", None, config.content_type)[0],
            ),
            "mode": (config.mode, self.mode),
            "on_unavailable": (wanted, self.on_unavailable),
        }
        for name in sorted(self.locked):
            value, ours = asked[name]
            if value is not None and value != ours:
                raise errors.PolicyLocked(
                    f"This key's policy locks '{name}' at {ours}. Leave it out of the request, or "
                    "change the policy (PUT /v1/policy)."
                )

    def match(self, text: str) -> Match | None:
        """Which list the text stands on; a text on both is denied."""
        if not self.allow and not self.deny:
            return None
        digest = digest_of(text)
        found: Match | None = (
            "deny" if digest in self.deny else "allow" if digest in self.allow else None
        )
        if found is not None:
            policy_matches.labels(found).inc()
        return found

    def counts(self, threat_types: tuple[str, ...]) -> bool:
        """Whether a score counts: not when every type it names is switched off."""
        return not (
            self.switched_off and threat_types and self.switched_off.issuperset(threat_types)
        )


@lru_cache(maxsize=1_024)
def _ref(policy_id: str, version: int, matched: Match | None) -> PolicyRef:
    return PolicyRef(id=policy_id, version=version, matched=matched)


DEFAULT = DetectionPolicy()
PIECE_CHARS, MARKS_MAX = 256, 64


def normalised(text: str) -> str:
    """As entries compare texts: NFKC, case folded, whitespace collapsed."""
    if not text.isascii():
        text = "".join(unicodedata.normalize("NFKC", piece) for piece in _pieces(text))
    return " ".join(text.casefold().split())


def _pieces(text: str) -> Iterator[str]:
    """The text, cut where nothing joins over the cut.

    Combining marks are put in order by a sort whose time grows by the square of their number, in
    one go, while all else waits: ten thousand take two seconds.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        cut = text.rfind(" ", start + 1, end)
        if cut < 0:
            apart = (at for at in range(end, end - MARKS_MAX, -1) if not _joins(text[at]))
            cut = next(apart, end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _joins(character: str) -> bool:
    """Whether it may become one with what is before it: marks, and the later parts of a Hangul."""
    is_mark = unicodedata.combining(character) > 0 or character in "\uff9e\uff9f"
    return is_mark or "\u1160" <= character <= "\u11ff"


def digest_of(text: str) -> str:
    """SHA-256 in hexadecimal, of the normalised text in UTF-8."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def mark_of(workspace_id: UUID, digest: str, pepper: bytes | None = None) -> str:
    """Of a text by its `digest_of`, for the log: equal for equal texts of a workspace, and of use
    to nobody without the pepper."""
    key = (pepper or settings.KEY_PEPPERS.by_version[0][1])[:64]
    material = f"{workspace_id}\0{digest}".encode()
    return blake2b(material, key=key, digest_size=12, person=b"text").hexdigest()


def marks_of(workspace_id: UUID, digests: Iterable[str]) -> dict[str, str]:
    """`{mark: digest}`, by all peppers that rows of the log may have been marked with."""
    peppers = [pepper for _, pepper in settings.KEY_PEPPERS.by_version]
    return {mark_of(workspace_id, d, pepper): d for d in digests for pepper in peppers}


_read_already: LRUCache[str, DetectionPolicy] = LRUCache(
    settings.POLICY_CACHE_BYTES_MAX, getsizeof=lambda policy: policy.memory_bytes
)
_reading = Lock()


def in_force(text: str) -> DetectionPolicy:
    """The policy of a key from its JSON (`Caller.detection_policy`); empty: the default."""
    if not text:
        return DEFAULT
    with _reading:
        known = _read_already.get(text)
        if known is None:
            known = read(orjson.loads(text))
            with suppress(ValueError):  # larger than all of the cache
                _read_already[text] = known
            cache_bytes.labels("policies").set(_read_already.currsize)
    return known


Owner = ApiKey | Workspace
"""Whose policy it is."""


def of_key(key: ApiKey) -> DetectionPolicy:
    """The one in force: its own, its workspace's, or the default."""
    return of_document(key.policy_in_force)


def of_owner(owner: Owner) -> DetectionPolicy:
    """As `of_key`; of a workspace the one for keys that have none of their own."""
    return of_key(owner) if isinstance(owner, ApiKey) else of_document(owner.detection_policy)


def of_document(document: Mapping[str, Any]) -> DetectionPolicy:
    return read(document) if document else DEFAULT


def read(document: Mapping[str, Any]) -> DetectionPolicy:
    threshold = document.get("threshold") or {}
    categories = document.get("categories") or {}
    engines = document.get("engines") or {}
    second, shadow = engines.get("second"), engines.get("shadow")
    first = engines.get("first") or DEFAULT_ENGINE
    return DetectionPolicy(
        id=document.get("id", "key"),
        version=document.get("version", 1),
        thresholds=_thresholds(threshold),
        thresholds_by_type={
            name: _thresholds(one) for name, one in (threshold.get("content_types") or {}).items()
        },
        route=Route(first, Second(second["engine"], second["from"], second["to"]))
        if second
        else DIRECT
        if first == DEFAULT_ENGINE
        else Route(first),
        shadow=Shadow(shadow["engine"], shadow["share"]) if shadow else None,
        mode=document.get("mode", "enforce"),
        on_unavailable=document.get("on_unavailable", "fallback"),
        locked=frozenset(document.get("locked") or ()),
        switched_off=frozenset(name for name, is_on in categories.items() if not is_on),
        allow=Digests(entry["digest"] for entry in document.get("allow") or ()),
        deny=Digests(entry["digest"] for entry in document.get("deny") or ()),
        store_text=bool(document.get("store_text")),
    )


def _thresholds(document: Mapping[str, Any]) -> Thresholds:
    return Thresholds(
        document.get("engine"), document.get("fallback"), document.get("engines") or {}
    )


def version_of(owner: Owner) -> int:
    """Of its own policy in force; 0: it has none."""
    version: int = owner.detection_policy.get("version", 0)
    return version


def body_of(owner: Owner) -> dict[str, Any]:
    """The policy in force, as `save` takes it."""
    document: dict[str, Any] = (
        owner.policy_in_force if isinstance(owner, ApiKey) else owner.detection_policy
    )
    return {
        name: document[name] for name in document if name not in ("id", "version", "updated_at")
    }


def subject_of(owner: Owner) -> UUID:
    """Whose versions are counted: a key and its successors are one."""
    return (owner.limit_subject if isinstance(owner, ApiKey) else None) or owner.pk


def save(
    owner: Owner, policy: Mapping[str, Any], *, expected: Sequence[int] = (), actor: Actor
) -> PolicyVersion:
    """Put `policy` (without `id` and `version`) in force for the key, or for all keys of the
    workspace that have none of their own, as its next version.

    `expected`: raise 412 when none of these versions is in force (0: none yet). Raises 422 for a
    policy that is larger than `POLICY_BYTES_MAX`, and 409 for a key that never works again. Of all
    versions the last `POLICY_VERSIONS_MAX` are kept.
    """
    size = len(orjson.dumps(dict(policy)))
    if size > settings.POLICY_BYTES_MAX:
        bound_reached.labels("policy").inc()
        message = f"is {size} bytes as JSON; at most {settings.POLICY_BYTES_MAX}. Shorten the notes"
        raise errors.ValidationFailed(errors=[{"field": "", "message": message}])
    with transaction.atomic():
        held = _hold(owner)
        now = version_of(held)
        if expected and now not in expected:
            raise errors.PreconditionFailed(
                Sentence(
                    gettext_noop(
                        "Version %(now)s of the policy is in force, not %(expected)s: somebody "
                        "changed it meanwhile. Read it again, and decide anew."
                    ),
                    now=str(now),
                    expected=", ".join(map(str, expected)),
                )
            )
        subject = subject_of(held)
        last = PolicyVersion.objects.filter(subject_id=subject).order_by("-version").first()
        version = PolicyVersion.objects.create(
            subject_id=subject,
            version=(last.version if last is not None else 0) + 1,
            api_key=held if isinstance(held, ApiKey) else None,
            workspace=held if isinstance(held, Workspace) else None,
            policy=dict(policy),
            actor=actor.name,
        )
        PolicyVersion.objects.filter(
            subject_id=subject, version__lte=version.version - settings.POLICY_VERSIONS_MAX
        ).delete()
        document = {
            "id": str(subject),
            "version": version.version,
            "updated_at": clock.now().isoformat(),
            **policy,
        }
        _put(held, document, actor, version=version.version)
    owner.detection_policy = held.detection_policy
    return version


def follow_workspace(key: ApiKey, *, actor: Actor) -> None:
    """Drop the key's own policy: its workspace's is in force from now on. Versions stay."""
    with transaction.atomic():
        held = _hold(key)
        if held.detection_policy:
            _put(held, {}, actor, follows="workspace")
    key.detection_policy = {}


def allow(owner: Owner, digest: str, note: str, *, actor: Actor) -> int:
    """Put one more text on the allow list; returns the version that it is in force by. Twice is
    once. Raises 409 when it stands on the deny list, which goes first, or when the list is full."""
    with transaction.atomic():
        held = _hold(owner)
        body = body_of(held)
        listed = {name: list(body.get(name) or ()) for name in ("allow", "deny")}
        if any(entry["digest"] == digest for entry in listed["deny"]):
            raise errors.Conflict(
                gettext_noop(
                    "This text stands on the deny list, which goes first. Take it off there."
                )
            )
        if any(entry["digest"] == digest for entry in listed["allow"]) and version_of(held):
            return version_of(held)
        if len(listed["allow"]) >= ENTRIES_MAX:
            raise errors.Conflict(
                Sentence(
                    gettext_noop("The allow list has %(most)s texts. Take one off first."),
                    most=ENTRIES_MAX,
                )
            )
        body["allow"] = [*listed["allow"], {"digest": digest, "note": note}]
        saved = save(held, body, actor=actor)
    owner.detection_policy = held.detection_policy
    return saved.version


def _hold(owner: Owner) -> Owner:
    """The row, held for this transaction. Raises 409 for a key that never works again."""
    if isinstance(owner, Workspace):
        return Workspace.objects.select_for_update(no_key=True).get(pk=owner.pk)
    held = ApiKey.objects.select_for_update(no_key=True).get(pk=owner.pk)
    if held.is_ended:
        raise errors.Conflict(
            gettext_noop(
                "This key was revoked or replaced, and has no policy any more. Change its "
                "successor's, or another key's."
            )
        )
    return held


def _put(held: Owner, document: dict[str, Any], actor: Actor, **details: Any) -> None:
    before = body_of(held)
    held.detection_policy = document
    held.save(update_fields=["detection_policy"])
    audit(
        "policy.changed",
        workspace=held.workspace if isinstance(held, ApiKey) else held,
        target=held.pk,
        changes=changes_between(before, body_of(held)),
        **details,
        **actor.fields(),
    )
    if isinstance(held, ApiKey):
        authentication.forget(held.pk)
    else:
        authentication.forget_workspace(held.pk)


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`{field: [before, after]}`: of lists how long they are, never what is on them."""

    def plain(value: Any) -> Any:
        return f"{len(value)} texts" if isinstance(value, list) else value

    changed = {}
    for name in ("threshold", "mode", "on_unavailable", "categories", "locked", "store_text"):
        if before.get(name) != after.get(name):
            changed[name] = [before.get(name), after.get(name)]
    for name in ("allow", "deny"):
        if (before.get(name) or []) != (after.get(name) or []):
            changed[name] = [plain(before.get(name) or []), plain(after.get(name) or [])]
    return changed


def versions_of(owner: Owner) -> list[PolicyVersion]:
    """The newest first; at most `VERSIONS_SHOWN`."""
    found = PolicyVersion.objects.filter(subject_id=subject_of(owner)).order_by("-version")
    return list(found[:VERSIONS_SHOWN])


_turn = Turn()
"""Of this process, through all keys."""


def prune() -> int:
    """Forget what nothing needs any more; returns how many policies and versions."""
    return _empty_ended() + _prune_versions()


def _empty_ended() -> int:
    """Empty the policies of keys that never work again.

    Not before the jobs that they made are finished: those are judged by them.
    """
    after = _turn.after
    keys = ApiKey.objects.filter(pk__gt=after).order_by("pk")
    seen = list(keys.values_list("pk", flat=True)[:KEYS_AT_ONCE])
    _turn.go_on(seen, KEYS_AT_ONCE)
    if not seen:
        return 0
    ended = keys.filter(pk__lte=seen[-1]).ended(clock.now() - ENDED_FOR)
    ids = set(ended.exclude(detection_policy={}).values_list("pk", flat=True))
    running = Job.objects.filter(finished_at=None, api_key_id__in=ids)
    ids.difference_update(running.values_list("api_key_id", flat=True))
    return ApiKey.objects.filter(pk__in=ids).update(detection_policy={})


def _prune_versions() -> int:
    """Of those past `AUDIT_RETENTION_DAYS` none stay but what may be in force."""
    if not settings.AUDIT_RETENTION_DAYS:
        return 0
    now = clock.now()
    begins = now - timedelta(days=settings.AUDIT_RETENTION_DAYS)
    subject = OuterRef("subject_id")
    later = PolicyVersion.objects.filter(subject_id=subject, version__gt=OuterRef("version"))
    lasting = ApiKey.objects.filter(Q(pk=subject) | Q(limit_subject=subject), ~ended_by(now))
    is_needless = Exists(later) | Q(~Exists(lasting), workspace=None)
    old = PolicyVersion.objects.filter(is_needless, created_at__lt=begins)
    return Round().delete(old.order_by("created_at"))
