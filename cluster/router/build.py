"""From a library to a trunk that computes."""

from __future__ import annotations

from cluster.compute.threads import Workers
from cluster.compute.trunk import Trunk
from cluster.library.reader import Library
from cluster.library.weights import trunk_weights


def build_trunk(library: Library, variant: str, workers: Workers) -> Trunk:
    """variant: of the experts it will send rows to, "" for the default. Raises LibraryError, CorruptBlob."""
    return Trunk(library.spec, trunk_weights(library), workers, library.variant(variant).floating)
