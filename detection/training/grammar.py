"""Sentences from templates: `(a|b)` is a choice, `$name` an entry of a list, `%kind` a template of
another kind. The same seed gives the same sentences."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

TEXTS = Path(__file__).with_name("texts")
CHOICE = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*)(?<!\\)\)")
NAME = re.compile(r"\$([a-z_]+)")
KIND = re.compile(r"%([a-z_]+)")


class Grammar:
    """One file of templates with its lists of names."""

    def __init__(self, file: str) -> None:
        self.tables = tomllib.loads((TEXTS / file).read_text())
        self.names: Mapping[str, Sequence[str]] = self.tables.pop("names", {})

    def sentence(
        self, template: str, rng: random.Random, kinds: Mapping[str, Sequence[str]] | None = None
    ) -> str:
        """One sentence of a template."""
        text = template
        while match := KIND.search(text):
            inner = rng.choice((kinds or {})[match[1]])
            text = text[: match.start()] + inner + text[match.end() :]
        # Innermost choices first, so that choices may hold choices.
        while match := CHOICE.search(text):
            chosen = rng.choice(match[1].split("|"))
            text = text[: match.start()] + chosen + text[match.end() :]
        while match := NAME.search(text):
            text = text[: match.start()] + rng.choice(self.names[match[1]]) + text[match.end() :]
        text = re.sub(r"\\([()])", r"\1", text)
        return text[:1].upper() + text[1:] if rng.random() < 0.7 else text
