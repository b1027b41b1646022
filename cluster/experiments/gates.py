"""Gates that trade exactness for balance, as baselines of experiments: ideas of training, never in the exact
path.

A gate takes a trace and returns which choices it leaves out and which it changes. Named in a spec by import
path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from cluster.experiments.routing import Trace


@dataclass(frozen=True, eq=False)
class Gated:
    """ids: [tokens, layers, top_k] as the gate would have it; kept: the same shape, False for left out."""

    ids: npt.NDArray[np.uint16]
    kept: npt.NDArray[np.bool_]


Gate = Callable[..., Gated]
"""(trace, numpy Generator, options of the spec as keywords)."""


def exact(trace: Trace, rng: np.random.Generator) -> Gated:
    """What the model chose."""
    return Gated(trace.ids, np.ones(trace.ids.shape, np.bool_))


def capacity(trace: Trace, rng: np.random.Generator, factor: float = 1.25) -> Gated:
    """An expert takes at most ⌈factor · tokens · top_k / experts⌉ rows of a step; later tokens overflow and
    do without it (Lepikhin et al. 2020, GShard, section 2.2). Raises ConfigError for a factor of 0 or
    less."""
    if not factor > 0:
        raise ConfigError(f"a capacity factor of {factor}; it must be above 0")
    header = trace.header
    kept = np.ones(trace.ids.shape, np.bool_)
    for tokens in trace.step_slices():
        count = tokens.stop - tokens.start
        most = int(np.ceil(factor * count * header.top_k / header.experts))
        for layer in range(len(header.layers)):
            kept[tokens, layer] = (_place(trace.ids[tokens, layer].ravel()) < most).reshape(count, -1)
    return Gated(trace.ids, kept)


def _place(ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """How many equal ids stand before each."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    begins = np.searchsorted(ordered, ordered, side="left")
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids)) - begins
    return place


def noisy_top_k(trace: Trace, rng: np.random.Generator, sigma: float = 1.0, margin: float = 1.0) -> Gated:
    """Top-k of the log gate weights with Gaussian noise of deviation sigma (Shazeer et al. 2017, section
    2.1).

    A trace has the weights of chosen experts only: the others are taken to lie `margin` below the least of
    them.
    """
    if sigma < 0 or margin < 0:
        raise ConfigError("sigma and margin of a noisy gate must be 0 or more")
    top_k = trace.header.top_k
    ids = np.empty_like(trace.ids)
    for tokens in trace.step_slices():
        chosen = trace.ids[tokens].astype(np.int64)
        known = np.log(np.maximum(trace.weights[tokens], np.finfo(np.float32).tiny))
        floor = known.min(axis=2, keepdims=True) - margin
        scores = np.repeat(floor, trace.header.experts, axis=2)
        np.put_along_axis(scores, chosen, known, axis=2)
        scores += sigma * rng.standard_normal(scores.shape, dtype=np.float32)
        ids[tokens] = np.argsort(-scores, axis=2, kind="stable")[:, :, :top_k].astype(np.uint16)
    return Gated(ids, np.ones(ids.shape, np.bool_))
