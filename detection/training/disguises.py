"""Ways to write a text so that a model understands it and a filter does not."""

from __future__ import annotations

import base64
import codecs
import random
from collections.abc import Callable

LOOK_ALIKES = str.maketrans("aeopcxyi", "аеорсхуі")  # noqa: RUF001 - that is what they are
LEET = str.maketrans("aeiost", "431057")


def spaced(text: str) -> str:
    return "   ".join(" ".join(word) for word in text.split())


def with_typos(text: str, rng: random.Random) -> str:
    """Two neighbouring letters change places, or one is lost, in every sixth word."""
    words = text.split(" ")
    for at, word in enumerate(words):
        if len(word) > 4 and rng.random() < 0.17:
            cut = rng.randrange(1, len(word) - 2)
            middle = word[cut + 1] + word[cut] if rng.random() < 0.5 else word[cut]
            words[at] = word[:cut] + middle + word[cut + 2 :]
    return " ".join(words)


DISGUISES: dict[str, Callable[[str], str]] = {
    "base64": lambda t: base64.b64encode(t.encode()).decode(),
    "base32": lambda t: base64.b32encode(t.encode()).decode(),
    "hex": lambda t: t.encode().hex(),
    "url": lambda t: "".join(f"%{byte:02X}" for byte in t.encode()),
    "codes": lambda t: " ".join(str(byte) for byte in t.encode()),
    "binary": lambda t: " ".join(f"{byte:08b}" for byte in t.encode()),
    "rot13": lambda t: codecs.encode(t, "rot13"),
    "reversed": lambda t: t[::-1],
    "leet": lambda t: t.translate(LEET),
    "look-alikes": lambda t: t.translate(LOOK_ALIKES),
    "letters apart": spaced,
    "zero width": lambda t: "\u200b".join(t),
    "full width": lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
    "bold": lambda t: "".join(
        chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in t.lower()
    ),
    "tags": lambda t: "".join(chr(0xE0000 + ord(c)) if " " <= c <= "~" else c for c in t),
    "accents": lambda t: "".join(c + "\u0301" if c.isalpha() else c for c in t),
}
