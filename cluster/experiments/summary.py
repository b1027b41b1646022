"""What a trace looks like in a dozen figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.experiments.generators import gini
from cluster.experiments.routing import Trace


def summarise(trace: Trace) -> dict[str, Any]:
    """gini, max_over_mean: of the load of a layer's experts over the whole trace, mean over layers.
    distinct: experts of a layer that a step's tokens choose, mean over layers and steps."""
    total = trace.counts(slice(0, len(trace)))
    distinct = [np.count_nonzero(trace.counts(tokens), axis=1).mean() for tokens in trace.step_slices()]
    return {
        "source": trace.header.source,
        "layers": len(trace.header.layers),
        "experts": trace.header.experts,
        "top_k": trace.header.top_k,
        "tokens": len(trace),
        "steps": len(distinct),
        "requests": len(np.unique(trace.request)),
        "seconds": float(trace.time[-1] - trace.time[0]),
        "gini": float(np.mean([gini(layer.astype(float)) for layer in total])),
        "max_over_mean": float(np.mean(total.max(axis=1) / total.mean(axis=1))),
        "distinct": float(np.mean(distinct)),
    }
