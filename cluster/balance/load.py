"""Load statistics: where the rows went, how long nodes and links took. Pure values with exponential windows.

A router folds every step into its `LoadStats` (`fold`) and sends them with its sync; the controller adds
those of all routers up (`merge`). All fields are sums in which a step counts half after `half_life` further
steps, so that any mean is a quotient of two of them and merging is addition: associative and commutative up
to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.links import Link, fit_link
from cluster.errors import ProtocolError
from cluster.types import NodeId

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NodeLoad:
    """What went to one node and came back, as decayed sums.

    messages, rows, experts: dispatches answered, their rows, and their distinct experts.
    service_s: seconds the node said it computed.
    trips: those of the messages whose round trip was timed; of them, link_s: round trips less service,
    seconds; bytes: both ways; square_bytes, square_s, byte_s: Σ bytes², Σ seconds², Σ bytes · seconds.
    """

    messages: float = 0.0
    rows: float = 0.0
    experts: float = 0.0
    service_s: float = 0.0
    trips: float = 0.0
    link_s: float = 0.0
    bytes: float = 0.0
    square_bytes: float = 0.0
    square_s: float = 0.0
    byte_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in zip(_NODE_FIELDS, astuple(self), strict=True):
            if not 0 <= value < np.inf:
                raise ValueError(f"a node's {name} is {value}; it must be finite and not negative")

    @property
    def speed(self) -> float:
        """Rows per second of computing; NaN before the first reply."""
        return self.rows / self.service_s if self.service_s > 0 else np.nan

    @property
    def rate(self) -> float:
        """Rows per second, computed and carried: the speed to balance by. NaN before the first reply.

        Carried by the bytes alone: a message's latency is the same however many rows it has. A link whose
        bandwidth cannot be told yet costs nothing.
        """
        bandwidth = self.link.bandwidth
        carried = self.bytes / self.trips * self.messages / bandwidth if bandwidth > 0 else 0.0
        seconds = self.service_s + carried
        return self.rows / seconds if self.service_s > 0 else np.nan

    @property
    def link(self) -> Link:
        """What the timed round trips tell of the way there and back."""
        return fit_link(self.trips, self.link_s, self.bytes, self.square_s, self.square_bytes, self.byte_s)

    def scaled(self, factor: float) -> NodeLoad:
        return NodeLoad(*(factor * value for value in astuple(self)))

    def less(self, other: NodeLoad, factor: float) -> NodeLoad:
        """Without `factor` times `other`; rounding does not make anything negative."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return NodeLoad(*(max(a - factor * b, 0.0) for a, b in pairs))

    def __add__(self, other: NodeLoad) -> NodeLoad:
        return NodeLoad(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


_NODE_FIELDS = tuple(each.name for each in fields(NodeLoad))


@dataclass(frozen=True)
class StepLoad:
    """One step of one router. rows: [layers, experts] counts, zero in dense layers; tokens: rows of the
    batch.
    """

    rows: npt.NDArray[np.integer[Any]]
    tokens: int
    nodes: Mapping[NodeId, NodeLoad] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LoadStats:
    """Decayed sums over steps; see the module.

    half_life: steps after which a step counts half.
    steps: the steps themselves; count: the same undecayed, so that windows can be cut.
    tokens: of their batches; token_squares: Σ weight² · tokens, for Kish's effective sample size.
    rows: [layers, experts]. distinct: [layers], experts with at least one row.

    Raises ValueError where shapes disagree or a figure is negative or not finite.
    """

    half_life: float
    steps: float
    tokens: float
    token_squares: float
    rows: Floats
    distinct: Floats
    nodes: Mapping[NodeId, NodeLoad] = field(default_factory=dict)
    count: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.half_life < np.inf:
            raise ValueError(f"a half-life of {self.half_life} steps; it must be finite and above 0")
        if self.rows.ndim != 2 or self.distinct.shape != self.rows.shape[:1]:
            raise ValueError(f"rows of shape {self.rows.shape} beside distinct of {self.distinct.shape}")
        for name, value in self._sums():
            if not (np.all(np.isfinite(value)) and np.all(np.asarray(value) >= 0)):
                raise ValueError(f"{name} must be finite and not negative")

    def _sums(self) -> list[tuple[str, float | Floats]]:
        names = ("steps", "tokens", "token_squares", "rows", "distinct", "count")
        return [(name, getattr(self, name)) for name in names]

    @staticmethod
    def empty(layers: int, experts: int, half_life: float) -> LoadStats:
        return LoadStats(half_life, 0.0, 0.0, 0.0, np.zeros((layers, experts)), np.zeros(layers))

    @property
    def load(self) -> Floats:
        """[layers, experts] mean rows per step; zeros before the first step."""
        return self.rows / self.steps if self.steps else self.rows

    @property
    def distinct_per_step(self) -> Floats:
        """[layers] mean number of distinct experts that a step's batch chooses."""
        return self.distinct / self.steps if self.steps else self.distinct

    @property
    def imbalance(self) -> Floats:
        """[layers] rows of the hottest expert over the mean; 0 in a layer without any, as a dense one."""
        mean = self.rows.mean(axis=1)
        ratio: Floats = np.divide(self.rows.max(axis=1), mean, out=np.zeros_like(mean), where=mean > 0)
        return ratio

    @property
    def sample(self) -> float:
        """Tokens that an unweighted sample of the same variance would have: (Σw)² / Σw² (Kish 1965)."""
        return self.tokens**2 / self.token_squares if self.token_squares else 0.0

    def since(self, earlier: LoadStats) -> LoadStats:
        """The steps after `earlier`, a former state of these very statistics.

        Everything of before has decayed by the steps since. Raises ValueError if that cannot be.
        """
        gone = self.count - earlier.count
        if gone < 0 or self.rows.shape != earlier.rows.shape:
            raise ValueError(f"{self.count:g} steps do not follow on {earlier.count:g}")
        decay = 0.5 ** (gone / self.half_life)
        rest: dict[str, Any] = {
            name: np.maximum(value - (decay**2 if name == "token_squares" else decay) * before, 0.0)
            for (name, value), (_, before) in zip(self._sums(), earlier._sums(), strict=True)
            if name != "count"
        }
        nodes = {
            name: node.less(earlier.nodes.get(name, NodeLoad()), decay) for name, node in self.nodes.items()
        }
        return replace(self, **rest, nodes=nodes, count=gone)

    def to_wire(self) -> dict[str, Any]:
        """As msgpack-able values; arrays as little-endian float32 bytes, which statistics can spare."""
        return {
            "half_life": self.half_life,
            "sums": [self.steps, self.tokens, self.token_squares, self.count],
            "shape": list(self.rows.shape),
            "rows": self.rows.astype("<f4").tobytes(),
            "distinct": self.distinct.astype("<f4").tobytes(),
            "nodes": {str(name): list(astuple(node)) for name, node in self.nodes.items()},
        }

    @staticmethod
    def from_wire(values: Mapping[str, Any]) -> LoadStats:
        """Inverse of `to_wire`. Raises ProtocolError on anything that is not valid statistics."""
        try:
            layers, experts = (int(count) for count in values["shape"])
            steps, tokens, squares, count = (float(value) for value in values["sums"])
            return LoadStats(
                float(values["half_life"]),
                steps,
                tokens,
                squares,
                _floats(values["rows"]).reshape(layers, experts),
                _floats(values["distinct"]),
                {NodeId(str(name)): _node(sums) for name, sums in values["nodes"].items()},
                count,
            )
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"a peer sent broken load statistics ({error}); are all versions the same?"
            ) from error


def _node(sums: Sequence[float]) -> NodeLoad:
    return NodeLoad(**dict(zip(_NODE_FIELDS, map(float, sums), strict=True)))


def _floats(raw: bytes) -> Floats:
    return np.frombuffer(raw, "<f4").astype(np.float64)


def fold(stats: LoadStats, step: StepLoad) -> LoadStats:
    """`stats` after one more step. Raises ValueError for a step of another shape."""
    if step.rows.shape != stats.rows.shape:
        raise ValueError(f"a step of shape {step.rows.shape} for statistics of {stats.rows.shape}")
    decay = 0.5 ** (1 / stats.half_life)
    return LoadStats(
        stats.half_life,
        decay * stats.steps + 1,
        decay * stats.tokens + step.tokens,
        decay**2 * stats.token_squares + step.tokens,
        decay * stats.rows + step.rows,
        decay * stats.distinct + np.count_nonzero(step.rows, axis=1),
        _added({name: node.scaled(decay) for name, node in stats.nodes.items()}, step.nodes),
        stats.count + 1,
    )


def merge(parts: Iterable[LoadStats]) -> LoadStats:
    """The sum of what several routers saw: rows per step are then rows per step of a router.

    Raises ValueError for no parts, or parts of different shape or half-life.
    """
    first, *others = parts
    total = first
    for part in others:
        if (part.rows.shape, part.half_life) != (total.rows.shape, total.half_life):
            raise ValueError(
                f"statistics of {part.rows.shape} with half-life {part.half_life} cannot be added to "
                f"{total.rows.shape} with {total.half_life}"
            )
        total = replace(
            total,
            **{name: value + getattr(part, name) for name, value in total._sums()},
            nodes=_added(total.nodes, part.nodes),
        )
    return total


def _added(a: Mapping[NodeId, NodeLoad], b: Mapping[NodeId, NodeLoad]) -> dict[NodeId, NodeLoad]:
    nothing = NodeLoad()
    return {name: a.get(name, nothing) + b.get(name, nothing) for name in sorted({*a, *b})}


@dataclass(frozen=True, eq=False)
class Drift:
    """Per layer, [layers] float64: how far recent load is from the reference.

    distance: total variation distance of the two shares of rows, 0 to 1. noise: the distance that sampling
    alone is expected to make. threshold: a distance that it exceeds in one of `1/error` comparisons at most.
    """

    distance: Floats
    noise: Floats
    threshold: Floats

    @property
    def layers(self) -> npt.NDArray[np.intp]:
        """Layers whose load has changed."""
        return np.flatnonzero(self.distance > self.threshold)

    @property
    def found(self) -> bool:
        return bool(len(self.layers))


def drift(recent: LoadStats, reference: LoadStats, tolerance: float = 0.05, error: float = 1e-4) -> Drift:
    """Compare two windows of the same layers and experts.

    tolerance: distance beyond noise that a layer's load may move without anybody caring, since with many
    samples
        the smallest change is certain. error: chance of a false alarm, over all layers together.

    Two samples of n and m tokens of one distribution p differ, by the normal approximation of a binomial's
    mean deviation, by ½ Σ_i √(2 p_i (1 − p_i) (1/r + 1/s) / π), r and s being their rows; choosing top-k
    without replacement only lowers that. A token changes the distance by at most 1/n (1/m), so it exceeds
    its mean by t with probability at most exp(−2 t² / (1/n + 1/m)) (McDiarmid 1989, bounded differences); n
    and m are effective sizes of the weighted samples (Kish 1965). Tokens of one sequence are alike, which
    neither term knows: the tolerance pays for that.
    """
    shape = reference.rows.shape
    if recent.rows.shape != shape:
        raise ValueError(f"statistics of {recent.rows.shape} cannot be compared with {shape}")
    nothing = np.zeros(shape[0])
    if not recent.sample or not reference.sample:
        return Drift(nothing, nothing, np.full(shape[0], np.inf))
    spread = 1 / recent.sample + 1 / reference.sample
    pooled = _shares(recent.rows + reference.rows)
    distance = 0.5 * np.abs(_shares(recent.rows) - _shares(reference.rows)).sum(axis=1)
    top_k = _per_token(recent)
    variance = pooled * (1 - pooled) * (spread / np.maximum(top_k, 1))[:, None]
    noise = 0.5 * np.sqrt(2 / np.pi * variance).sum(axis=1)
    certain = np.sqrt(spread * np.log(max(1, shape[0]) / error) / 2)
    return Drift(distance, noise, noise + np.maximum(certain, tolerance))


def _shares(rows: Floats) -> Floats:
    """[layers, experts] summing to 1 in every layer that has rows."""
    totals = rows.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(rows, totals, out=np.zeros_like(rows), where=totals > 0)
    return shares


def _per_token(stats: LoadStats) -> Floats:
    """[layers] experts a token chooses."""
    per_token: Floats = stats.rows.sum(axis=1) / stats.tokens
    return per_token
