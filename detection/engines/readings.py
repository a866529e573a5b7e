"""What the embedded detector finds in a text that may be JSON: read as it was sent, which is what
the places of its evidence refer to, and once more by its strings. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from detection import embedded
from detection.content_types import FIELDS_APART, ContentType
from detection.engines.fields import Document

JSON_VIEW = "json"


def analyse(text: str, document: Document | None, content_type: ContentType) -> embedded.Analysis:
    """The worst of all readings; of what any of them did not look at, all."""
    raw = embedded.analyse(text, content_type)
    if document is None:
        return raw
    inside = [document.text]
    if content_type in FIELDS_APART and document.names:
        inside.append(document.names)  # by themselves, since the longer a text, the less counts
    found = [raw, *(embedded.analyse(one, content_type) for one in inside)]
    worst = max(found, key=lambda one: one.score)
    kinds = dict.fromkeys(kind for one in (worst, *found) for kind in one.categories)
    share = min(one.scanned_chars / max(1, one.total_chars) for one in found)
    return replace(
        worst,
        categories={kind: max(one.categories.get(kind, 0.0) for one in found) for kind in kinds},
        evidence=_evidence(found),
        views=(*dict.fromkeys([*raw.views, JSON_VIEW, *(v for one in found for v in one.views)]),),
        language=found[1].language,
        scanned_chars=max(0, round(raw.total_chars * share) - document.unread_chars),
        total_chars=raw.total_chars,
        unseen=(*dict.fromkeys([*document.unseen, *(why for one in found for why in one.unseen)]),),
    )


def _evidence(found: Sequence[embedded.Analysis]) -> tuple[embedded.Evidence, ...]:
    """What shows only inside of the JSON has the whole text for its place: how a letter was escaped
    helps nobody."""
    raw = found[0]
    known = {one.rule_id for one in raw.evidence}
    added = (
        replace(one, start=0, end=raw.total_chars, view=JSON_VIEW)
        for analysis in found[1:]
        for one in analysis.evidence
        if one.rule_id not in known and not one.rule_id.endswith(".word")
    )
    both = sorted([*raw.evidence, *dict.fromkeys(added)], key=lambda one: -one.score)
    return tuple(both[: embedded.EVIDENCE_MAX])
