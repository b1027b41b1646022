"""The grammars of a library's tokenizer; apart from the reader, so that nodes load no grammar engine."""

from __future__ import annotations

from cluster.library.reader import Library
from cluster.model.grammar import Grammars


def grammars_of(library: Library) -> Grammars | None:
    """None for a library without a tokenizer."""
    if library.manifest.tokenizer is None:
        return None
    return Grammars(library.tokenizer(), library.spec.vocab, library.spec.eos_ids)
