"""What a placement policy is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.balance.fleet import Booleans, Devices, Floats, Integers, read_only
from cluster.balance.placement import PlacementTable
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.types import NodeId


@dataclass(frozen=True, eq=False, repr=False)
class Placement:
    """Who holds what. hosts: [layers, experts, devices] bool, kept read-only; an all-False layer is dense.

    Raises ConfigError if an expert of a layer that has experts is held by no device.
    """

    hosts: Booleans

    def __post_init__(self) -> None:
        hosts: Booleans = read_only(self.hosts, np.bool_)
        if hosts.ndim != 3:
            raise ConfigError(f"a placement is [layers, experts, devices], not of shape {hosts.shape}")
        object.__setattr__(self, "hosts", hosts)
        held: Booleans = np.logical_or.reduce(hosts, axis=2)
        sparse = np.logical_or.reduce(held, axis=1, keepdims=True)
        for layer, expert in np.argwhere(sparse & ~held):
            raise ConfigError(f"expert {expert} of layer {layer} has no copy on any device")

    def __repr__(self) -> str:
        layers, experts, devices = self.hosts.shape
        return f"Placement({layers} × {experts} on {devices} devices, {int(self.hosts.sum())} copies)"

    def device_bytes(self, expert_bytes: Integers) -> Integers:
        """[devices] int64 bytes held, for expert_bytes [layers, experts]."""
        held: Integers = np.einsum("led,le->d", self.hosts, expert_bytes, dtype=np.int64)
        return held

    def to_table(self, names: Sequence[NodeId], epoch: int, version: int) -> PlacementTable:
        """The live table. The preferred holder of an expert is the one preferred least often so far in its
        layer (ties to the lower device), so that a router that takes the first replica still spreads rows."""
        return PlacementTable(epoch, version, tuple(names), tuple(map(_layer_replicas, self.hosts)))

    @classmethod
    def from_table(cls, table: PlacementTable, names: Sequence[NodeId], experts: int) -> Placement:
        """The inverse of `to_table`, with devices in the order of `names`.

        Raises ConfigError for a node that is not among them and for a layer with another number of experts.
        """
        unknown = set(table.nodes) - set(names)
        if unknown:
            raise ConfigError(f"the table has nodes that the fleet lacks: {', '.join(sorted(unknown))}")
        device = [list(names).index(node) for node in table.nodes]
        hosts = np.zeros((len(table.replicas), experts, len(names)), np.bool_)
        for layer, replicas in enumerate(table.replicas):
            if len(replicas) not in (0, experts):
                raise ConfigError(f"layer {layer} of the table has {len(replicas)} experts, not {experts}")
            for expert, holders in enumerate(replicas):
                hosts[layer, expert, [device[holder] for holder in holders]] = True
        return cls(hosts)


def _layer_replicas(hosts: Booleans) -> tuple[tuple[int, ...], ...]:
    """Holders of each expert of one layer, preferred first; hosts: [experts, devices]."""
    if not hosts.any():
        return ()
    preferred = np.zeros(hosts.shape[1], np.int64)
    replicas: list[tuple[int, ...]] = [()] * len(hosts)
    # experts with a choice come last: they fill up what the others left
    for expert in np.argsort(hosts.sum(axis=1), kind="stable"):
        holders = np.flatnonzero(hosts[expert])
        first = holders[np.argmin(preferred[holders])]
        preferred[first] += 1
        replicas[expert] = (int(first), *(int(holder) for holder in holders if holder != first))
    return tuple(replicas)


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """What a placement is made from. The arrays are kept read-only.

    load: [layers, experts] float64 ≥ 0, rows per step.
    expert_bytes: [layers, experts] int64, > 0; a dense layer is a row of zeros in both.
    devices: who may hold experts; their memory is a hard limit over all layers.
    current: where experts are now; None counts no byte as moved.
    coactivation: [layers, experts, experts] float64 ≥ 0, tokens per step that choose both experts.
    affinity: [layers - 1, experts, experts] float64 ≥ 0, tokens per step that go from an expert to one of the
        next layer.

    Raises ConfigError on anything else and OutOfMemoryBudget, saying by how many bytes, where one copy of
    every expert does not fit into all memories together.
    """

    load: Floats
    expert_bytes: Integers
    devices: Devices
    current: Placement | None = None
    coactivation: Floats | None = None
    affinity: Floats | None = None

    def __post_init__(self) -> None:
        layers, experts = self._shape()
        shapes = {
            "load": (layers, experts),
            "coactivation": (layers, experts, experts),
            "affinity": (layers - 1, experts, experts),
        }
        for field, shape in shapes.items():
            if getattr(self, field) is not None:
                self._check_rates(field, shape)
        self._check_bytes((layers, experts))
        self._check_current((layers, experts, len(self.devices)))
        self._check_memory()

    def _shape(self) -> tuple[int, int]:
        shape = np.shape(self.load)
        if len(shape) != 2 or 0 in shape:
            raise ConfigError(f"a load is [layers, experts], not of shape {shape}")
        return shape[0], shape[1]

    def _check_rates(self, field: str, shape: tuple[int, ...]) -> None:
        rates = read_only(getattr(self, field), np.float64)
        object.__setattr__(self, field, rates)
        if rates.shape != shape:
            raise ConfigError(f"{field} has shape {rates.shape}; it must be {list(shape)}")
        if not (np.isfinite(rates).all() and (rates >= 0).all()):
            raise ConfigError(f"{field} holds negative numbers, NaN or infinity; rates are 0 or more")

    def _check_bytes(self, shape: tuple[int, int]) -> None:
        sizes = read_only(self.expert_bytes, np.int64)
        object.__setattr__(self, "expert_bytes", sizes)
        if sizes.shape != shape:
            raise ConfigError(f"expert_bytes has shape {sizes.shape}; it must be {list(shape)}")
        sparse = sizes.any(axis=1)
        if (sizes[sparse] <= 0).any():
            raise ConfigError("an expert of 0 or fewer bytes stands beside others in its layer")
        if self.load[~sparse].any():
            raise ConfigError("a layer without experts (0 bytes) has load")

    def _check_current(self, shape: tuple[int, int, int]) -> None:
        if self.current is None:
            return
        if self.current.hosts.shape != shape:
            raise ConfigError(
                f"the current placement is {self.current.hosts.shape}; it must be {list(shape)}"
            )
        if self.current.hosts[~self.sparse].any():
            raise ConfigError("the current placement holds experts of a layer that has none (0 bytes)")

    def _check_memory(self) -> None:
        missing = int(self.expert_bytes.sum()) - int(self.devices.memory.sum())
        if missing > 0:
            raise OutOfMemoryBudget(
                f"one copy of every expert needs {missing} bytes more than all devices have together; "
                "add devices or memory"
            )

    def __repr__(self) -> str:
        layers, experts = self.load.shape
        return f"Problem({layers} × {experts} experts on {self.devices!r})"

    @property
    def sparse(self) -> Booleans:
        """[layers] bool: layers that have experts."""
        sparse: Booleans = self.expert_bytes.sum(axis=1) > 0
        return sparse

    def check(self, placement: Placement) -> None:
        """That `placement` answers this problem.

        Raises ConfigError for another shape and for experts of a dense layer, and OutOfMemoryBudget, saying
        by how many bytes, where a device's memory is exceeded.
        """
        hosts = placement.hosts
        if hosts.shape != (*self.load.shape, len(self.devices)):
            raise ConfigError(
                f"a placement of shape {hosts.shape} answers a problem of "
                f"{[*self.load.shape, len(self.devices)]}"
            )
        wrong = np.flatnonzero(hosts.any(axis=(1, 2)) != self.sparse)
        if wrong.size:
            raise ConfigError(f"layer {wrong[0]} is dense in the placement or the problem, not in both")
        excess = placement.device_bytes(self.expert_bytes) - self.devices.memory
        if excess.max() > 0:
            worst = int(np.argmax(excess))
            raise OutOfMemoryBudget(
                f"device {self.devices.names[worst]} would hold {excess[worst]} bytes more than its memory"
            )

    def moved_bytes(self, placement: Placement) -> int:
        """Bytes that devices must load which they do not hold in `current`; 0 without one."""
        if self.current is None:
            return 0
        new = placement.hosts & ~self.current.hosts
        return int((new.sum(axis=2) * self.expert_bytes).sum())


PlacementPolicy = Callable[[Problem], Placement]
