"""Sentences that are written before it is known who reads them, or in which language.

A refusal is answered to a program in English and shown on a page in the reader's language; what a
signature's check found is kept for whoever opens the inbox. So both keep the sentence with what it
names, and it is said where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext

from gateway_project.core.language import number


class Sentence:
    """`Sentence("At most %(most)s keys.", most=5)`; the text is marked by `gettext_noop`.

    Facts are words, whole numbers (written with separators) or sentences of their own.
    """

    __slots__ = ("facts", "text")

    def __init__(self, text: str, /, **facts: Any) -> None:
        self.text, self.facts = text, facts

    def __str__(self) -> str:
        """In English, as programs have it."""
        return self._filled(self.text, {name: _english(one) for name, one in self.facts.items()})

    def translated(self) -> str:
        """In the language of the page."""
        text = gettext(self.text) if self.text else ""
        return self._filled(text, {name: _translated(one) for name, one in self.facts.items()})

    def _filled(self, text: str, facts: Mapping[str, str]) -> str:
        return text % facts if facts else text

    def packed(self) -> dict[str, Any]:
        """As JSON holds it: `{text, facts?}`."""
        facts = {
            name: one.packed() if isinstance(one, Sentence) else one
            for name, one in self.facts.items()
        }
        return {"text": self.text, **({"facts": facts} if facts else {})}

    @classmethod
    def unpacked(cls, kept: Mapping[str, Any]) -> Sentence:
        facts = {
            name: cls.unpacked(one) if isinstance(one, Mapping) else one
            for name, one in kept.get("facts", {}).items()
        }
        return cls(kept["text"], **facts)


def _english(fact: Any) -> str:
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


def _translated(fact: Any) -> str:
    if isinstance(fact, Sentence):
        return fact.translated()
    return number(fact) if isinstance(fact, int) else str(fact)
