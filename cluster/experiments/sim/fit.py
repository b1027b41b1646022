"""A node model from measurements: what a spec of the simulator needs to predict a real machine.

Fitted on the messages of one live run, the model is then held against others (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.fleet import Floats
from cluster.errors import ConfigError
from cluster.experiments.sim.model import Device, Model

SWEEPS = 60
LEAST_S = 1e-15
"""A cost per byte or operation of nothing would be an infinite rate."""


@dataclass(frozen=True)
class Measurement:
    """One message to a node. rows: of each of its experts. service_s: seconds the node computed. bytes:
    request and reply together; link_s: its round trip less service, seconds."""

    rows: tuple[int, ...]
    service_s: float
    bytes: int
    link_s: float


@dataclass(frozen=True)
class Fitted:
    """device: with the rates found. service_error, link_error: median of |predicted − measured| /
    measured.
    """

    device: Device
    service_error: float
    link_error: float


def fit(measurements: Sequence[Measurement], model: Model, start: Device) -> Fitted:
    """The device that explains the measurements best.

    start: a profile; its memory and storage are kept. Service: message_s + Σ max(a, n b) over experts with n
    rows, a = bytes / read and b = ops per row / ops. For fixed sides of the maximum this is linear: solve it
    by non-negative least squares on relative residuals, choose sides anew, repeat; the best round is kept.
    Link: 2 latency + bytes / bandwidth, likewise. What does not show in the measurements (no expert ever
    bound by operations, say) keeps the profile's rate, as a bound.

    Raises ConfigError for fewer than 3 measurements or times that are not above 0.
    """
    device = fit_service(measurements, model, start)
    service_s = _times([each.service_s for each in measurements])
    link_s = _times([each.link_s for each in measurements])
    device = _fit_link(measurements, link_s, device)
    predicted = np.array([device.service_s(list(each.rows), model) for each in measurements])
    links = np.array([2 * device.latency_s + each.bytes / device.bandwidth for each in measurements])
    return Fitted(device, relative_error(predicted, service_s), relative_error(links, link_s))


def _times(measured: list[float]) -> Floats:
    if not min(measured) > 0:
        raise ConfigError("a measurement of 0 seconds or less; times must be above 0")
    return np.array(measured)


def relative_error(predicted: Floats, measured: Floats) -> float:
    """Median of |predicted − measured| / measured."""
    return float(np.median(np.abs(predicted - measured) / measured))


def fit_service(measurements: Sequence[Measurement], model: Model, start: Device) -> Device:
    """`start` with the rates that explain the services best; its link is kept. Raises as `fit`."""
    if len(measurements) < 3:
        raise ConfigError(f"{len(measurements)} measurements; a node model needs at least 3")
    times = _times([each.service_s for each in measurements])
    best, least = start, np.inf
    for device in (start, *(replace(start, ops=start.ops * scale) for scale in (0.1, 0.3, 3.0, 10.0))):
        for _ in range(SWEEPS):
            found = _solve_service(measurements, times, model, device)
            predicted = np.array([found.service_s(list(each.rows), model) for each in measurements])
            error = float(np.mean(((predicted - times) / times) ** 2))
            if error < least:
                best, least = found, error
            if found == device:
                break
            device = found
    return best


def _solve_service(
    measurements: Sequence[Measurement], times: Floats, model: Model, device: Device
) -> Device:
    """The rates for the sides of the maximum that `device` takes."""
    turn = (model.expert_bytes / device.read) / (model.ops_per_row / device.ops)
    columns = [
        (1.0, sum(0 < n <= turn for n in each.rows), sum(n for n in each.rows if n > turn))
        for each in measurements
    ]
    matrix = np.array(columns, np.float64)
    message_s, per_expert, per_row = nonnegative(matrix / times[:, None], np.ones(len(times)))
    seen = matrix.sum(axis=0) > 0
    return replace(
        device,
        message_s=message_s,
        read=model.expert_bytes / max(per_expert, LEAST_S) if seen[1] else device.read,
        ops=model.ops_per_row / max(per_row, LEAST_S) if seen[2] else device.ops,
    )


def _fit_link(measurements: Sequence[Measurement], times: Floats, device: Device) -> Device:
    matrix = np.array([(2.0, each.bytes) for each in measurements])
    latency_s, per_byte = nonnegative(matrix / times[:, None], np.ones(len(times)))
    return replace(device, latency_s=latency_s, bandwidth=1 / max(per_byte, LEAST_S))


def nonnegative(matrix: Floats, wanted: Floats) -> Floats:
    """x ≥ 0 that minimises |matrix x − wanted|², for a handful of columns: the best of all subsets of
    them.
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), float(wanted @ wanted)
    for chosen in range(1, 1 << columns):
        keep = [column for column in range(columns) if chosen >> column & 1]
        part, *_ = np.linalg.lstsq(matrix[:, keep], wanted, rcond=None)
        residual = matrix[:, keep] @ part - wanted
        if (part >= 0).all() and residual @ residual < least:
            best, least = np.zeros(columns), float(residual @ residual)
            best[keep] = part
    return best
