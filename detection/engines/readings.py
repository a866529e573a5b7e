"""What the embedded detector finds in a text that may be JSON: read as it was sent, which is what
the places of its evidence refer to, and once more by its strings. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from detection import embedded
from detection.content_types import ContentType, for_embedded
from detection.engines.fields import Document

JSON_VIEW = "json"


def analyse(text: str, document: Document | None, content_type: ContentType) -> embedded.Analysis:
    """The worse of both readings; of what either did not look at, all."""
    kind = for_embedded(content_type)
    raw = embedded.analyse(text, kind)
    if document is None:
        return raw
    strings = embedded.analyse(document.text, kind)
    worse = strings if strings.score > raw.score else raw
    share = strings.scanned_chars / max(1, strings.total_chars)
    scanned = min(raw.scanned_chars, round(raw.total_chars * share))
    return replace(
        worse,
        categories={
            name: max(raw.categories.get(name, 0.0), strings.categories.get(name, 0.0))
            for name in dict.fromkeys([*worse.categories, *raw.categories, *strings.categories])
        },
        evidence=_evidence(raw, strings),
        views=(*dict.fromkeys([*raw.views, JSON_VIEW, *strings.views]),),
        language=strings.language,
        scanned_chars=max(0, scanned - document.unread_chars),
        total_chars=raw.total_chars,
        unseen=(*dict.fromkeys([*document.unseen, *raw.unseen, *strings.unseen]),),
    )


def _evidence(raw: embedded.Analysis, strings: embedded.Analysis) -> tuple[embedded.Evidence, ...]:
    """What shows only in the strings has the whole text for its place: how a letter was escaped
    helps nobody."""
    known = {one.rule_id for one in raw.evidence}
    added = (
        replace(one, start=0, end=raw.total_chars, view=JSON_VIEW)
        for one in strings.evidence
        if one.rule_id not in known and not one.rule_id.endswith(".word")
    )
    both = sorted([*raw.evidence, *dict.fromkeys(added)], key=lambda one: -one.score)
    return tuple(both[: embedded.EVIDENCE_MAX])
