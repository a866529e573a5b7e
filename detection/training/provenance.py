"""What weights were made of: digests that `weights.bin` carries, and tests hold it to."""

from __future__ import annotations

import hashlib

from detection.embedded import concepts, model, views
from detection.training import corpus, disguises

PROBES = 40
"""Texts of our own whose features are digested, each in every disguise."""


def own_texts() -> str:
    """A digest of what is learnt from our own texts: it changes when they do, or how sentences,
    disguises and mixtures are made of them."""
    found = hashlib.sha256()
    for example in corpus.enlarged(corpus.own()):
        found.update(repr(example).encode())
    return found.hexdigest()


def features() -> str:
    """A digest of what the model would weigh in some texts: it changes when views, words, windows,
    buckets or ideas do, and then the weights mean something else."""
    lexicon = concepts.load()
    own = corpus.own()
    found = hashlib.sha256()
    for example in own[:: len(own) // PROBES]:
        copies = [disguise(example.text) for disguise in disguises.DISGUISES.values()]
        for text in (example.text, *copies):
            for view in views.views_of(text):
                tokens = model.tokens_of(view.text)
                ideas = model.ideas_of(lexicon, view.text, tokens)
                words = [model.buckets_of_word(word) for word in tokens.texts]
                seen = (words, model.pairs_of(tokens.texts), model.windows_of(tokens), ideas)
                found.update(repr(seen).encode())
    return found.hexdigest()
