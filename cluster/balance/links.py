"""What timed round trips tell of a link: latency and bandwidth, from sums that decay and add up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_TRIPS = 32
CERTAIN = 3.0
"""Standard errors that a slope must be away from 0 to be one."""


@dataclass(frozen=True)
class Link:
    """latency_s: both ways, whatever a message weighs. bandwidth: bytes per second; NaN where the times do
    not tell it: too few, all of one size, or lost in what else a round trip waits for."""

    latency_s: float
    bandwidth: float


def fit_link(
    trips: float, seconds: float, bytes: float, square_s: float, square_bytes: float, byte_s: float
) -> Link:
    """The line seconds = latency + bytes / bandwidth by least squares, from sums over round trips.

    seconds, bytes: Σ; square_s, square_bytes: Σ of squares; byte_s: Σ bytes · seconds.
    """
    if trips <= 0:
        return Link(np.nan, np.nan)
    mean_s, mean_bytes = seconds / trips, bytes / trips
    spread = square_bytes / trips - mean_bytes**2
    if trips < LEAST_TRIPS or spread <= (mean_bytes * 1e-3) ** 2:
        return Link(mean_s, np.nan)
    slope = (byte_s / trips - mean_bytes * mean_s) / spread
    scatter = max(square_s / trips - mean_s**2 - slope**2 * spread, 0.0)
    error = np.sqrt(scatter / spread / trips)
    if slope <= CERTAIN * error:
        return Link(mean_s, np.nan)
    return Link(max(mean_s - slope * mean_bytes, 0.0), 1 / slope)
