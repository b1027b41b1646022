"""What a router and a node must agree on, derived by both from the library they share."""

from __future__ import annotations

from cluster.dispatch.transport import WireShape
from cluster.library.reader import Library


def wire_shape(library: Library, variant: str) -> WireShape:
    """Rows of this variant of the experts on the wire. Raises LibraryError if it was not packed."""
    spec = library.spec
    return WireShape(
        layers=spec.layers,
        experts=spec.experts,
        top_k=spec.top_k,
        hidden=spec.padded_hidden,
        float_rows=library.variant(variant).floating,
        float_results=library.manifest.result_type == "f32",
    )
