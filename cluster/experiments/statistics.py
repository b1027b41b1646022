"""Figures of a sweep: means over seeds with bootstrap confidence intervals, and Pareto fronts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from cluster.balance.fleet import Booleans, Floats

RESAMPLES = 2000
LEVEL = 0.95
FIGURES = (
    "balancedness",
    "tokens_per_s",
    "p50_ms",
    "p99_ms",
    "moved_bytes",
    "hit_rate",
    "overflow",
    "changed",
)


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval, which is the mean itself where there is one sample only."""

    mean: float
    low: float
    high: float
    samples: int


def bootstrap(samples: Floats, seed: int = 0, level: float = LEVEL) -> Estimate:
    """Percentile bootstrap of the mean (Efron & Tibshirani 1993, chapter 13), NaN left out.

    samples: [n] float64. The same samples and seed give the same interval.
    """
    values = np.sort(samples[np.isfinite(samples)])  # so that the order of runs does not matter
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def summarise(results: pl.DataFrame) -> dict[tuple[str, str, str], dict[str, Estimate]]:
    """(trace, fleet, policy) in order of appearance: figure to its estimate over seeds."""
    groups = results.group_by("trace", "fleet", "policy", maintain_order=True)
    return {
        (str(key[0]), str(key[1]), str(key[2])): {
            name: bootstrap(rows[name].cast(pl.Float64).to_numpy()) for name in FIGURES
        }
        for key, rows in groups
    }


def pareto(cost: Floats, value: Floats) -> Booleans:
    """[n] bool: points than which no other costs at most as much and is worth at least as much, one of them
    strictly."""
    better = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])
    strictly = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    front: Booleans = np.logical_not(np.any(better & strictly, axis=1))
    return front
