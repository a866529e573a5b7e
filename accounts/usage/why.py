"""Why a request was answered as it was: all that can be said of it without its text.

Kept in `UsageLog.why`, under these names; what there is nothing to say of is left out:

    ip, agent                    who sent it
    correlation                  the `X-Request-ID` that the caller sent
    detail, errors               of a refusal: its sentence, and each field at fault
    threats, reason              of a verdict
    threshold, threshold_from    what the score was held against, and who set it
    policy, matched              the version that was in force, and its list that the text stands on
    degraded                     why the engine did not judge
    would_flag                   in monitor mode
    batch                        what it was an item of
    type                         of the text, where it is not `user_input`
    text                         of one that was flagged: a keyed digest, by which equal texts of
                                 the workspace are found
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway_project.core.context import RequestContext
from gateway_project.core.storable import cleaned

NAME = "why"
AGENT_CHARS_MAX = 200
REASON_CHARS_MAX = 300
DETAIL_CHARS_MAX = 300
ERRORS_MAX = 10
FIELD_CHARS_MAX, MESSAGE_CHARS_MAX = 100, 200
QUOTED_CHARS = 24
"""So much of a text in a reason would be a quote of it."""


class Verdict(Protocol):
    """What the log keeps of `detection.schemas.DetectResponse`."""

    @property
    def status(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def decision(self) -> str: ...
    @property
    def is_malicious(self) -> bool: ...
    @property
    def confidence(self) -> float: ...
    @property
    def cached(self) -> bool: ...
    @property
    def threat_types(self) -> Sequence[str]: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def threshold(self) -> float: ...
    @property
    def threshold_source(self) -> str: ...
    @property
    def degraded_reason(self) -> str | None: ...
    @property
    def would_flag(self) -> bool | None: ...
    @property
    def policy(self) -> PolicyInForce: ...


class PolicyInForce(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def matched(self) -> str | None: ...


def of_verdict(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "threshold": verdict.threshold,
        "threshold_from": verdict.threshold_source,
    }
    if verdict.threat_types:
        found["threats"] = list(verdict.threat_types)
    if verdict.reason:
        found["reason"] = cleaned(verdict.reason[:REASON_CHARS_MAX])
    if verdict.policy.id != "default":
        found["policy"] = verdict.policy.version
    if verdict.policy.matched:
        found["matched"] = verdict.policy.matched
    if verdict.degraded_reason:
        found["degraded"] = verdict.degraded_reason
    if verdict.would_flag is not None:
        found["would_flag"] = verdict.would_flag
    return found


def of_context(context: RequestContext) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if context.client_ip:
        found["ip"] = context.client_ip
    if context.user_agent:
        found["agent"] = cleaned(context.user_agent[:AGENT_CHARS_MAX])
    if context.correlation_id:
        found["correlation"] = context.correlation_id
    if context.wrong is not None:
        detail, errors = context.wrong
        found["detail"] = cleaned(detail[:DETAIL_CHARS_MAX])
        if errors:
            found["errors"] = [_short(error) for error in errors[:ERRORS_MAX]]
    return found


def _short(error: Mapping[str, str]) -> dict[str, str]:
    return {
        "field": cleaned(error["field"][:FIELD_CHARS_MAX]),
        "message": cleaned(error["message"][:MESSAGE_CHARS_MAX]),
    }


def without_quotes(reason: str, text: str) -> str:
    """A reason as it may be kept: one that quotes the text is left out."""
    step = QUOTED_CHARS // 2
    for start in range(0, max(1, len(reason) - QUOTED_CHARS + 1), step):
        piece = reason[start : start + QUOTED_CHARS]
        if len(piece) == QUOTED_CHARS and piece in text:
            return ""
    return reason
