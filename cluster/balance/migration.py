"""From the placement that is to the one that is wanted: moves in stages, each of them safe to stop after.

A stage loads copies in the background; when they are there the table changes once; then copies that no table
names any more are dropped. Between any two of these steps, whatever the order in which the loads of a stage
end:

- every expert has a complete copy that the table names,
- no device holds more than its memory, loads under way included.

    loads of stage 1 ──► table v+1 ──► drops of stage 1 ──► loads of stage 2 ──► table v+2 ──► …
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from cluster.balance.fleet import Booleans, Devices, Floats, Integers
from cluster.balance.problem import Placement
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.types import ExpertId, NodeId

Slot = tuple[int, int, int]
"""(layer, expert, device)."""


@dataclass(frozen=True)
class Load:
    """Copy `expert` to `to`, from a device that holds it or, where `source` is None, from `to`'s library."""

    expert: ExpertId
    bytes: int
    source: NodeId | None
    to: NodeId


@dataclass(frozen=True)
class Drop:
    expert: ExpertId
    device: NodeId


@dataclass(frozen=True)
class Stage:
    """Loads, then one change of the table, then drops. seconds: of its loads, devices working side by
    side.
    """

    loads: tuple[Load, ...]
    drops: tuple[Drop, ...]
    seconds: float


@dataclass(frozen=True)
class Refused:
    """An expert that stays as it is (or half way), and why."""

    expert: ExpertId
    reason: str


@dataclass(frozen=True, eq=False)
class Migration:
    """reached: the placement after the last stage; the target unless something was refused."""

    stages: tuple[Stage, ...]
    refused: tuple[Refused, ...]
    reached: Placement

    @property
    def bytes(self) -> int:
        return sum(load.bytes for stage in self.stages for load in stage.loads)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class Budget:
    """What moves may cost.

    share: part of every device's bandwidth that they may use, above 0 and at most 1.
    bytes: most bytes of one migration; what is beyond it is refused, least important first. None: no limit.
    library: bytes per second at which a device reads its own library; 0 where it has none, so that a copy
        must come from a device.

    Raises ConfigError on nonsense.
    """

    share: float = 0.25
    bytes: int | None = None
    library: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"moves may use a share of {self.share} of a link; it is above 0 and at most 1")
        if self.bytes is not None and self.bytes < 0:
            raise ConfigError(f"a migration of at most {self.bytes} bytes; it must be 0 or more")
        if not 0 <= self.library < np.inf:
            raise ConfigError(f"a library is read at {self.library} bytes per second; it must be 0 or more")


def plan(
    current: Placement,
    target: Placement,
    expert_bytes: Integers,
    devices: Devices,
    load: Floats | None = None,
    budget: Budget | None = None,
    gone: Collection[NodeId] = (),
) -> Migration:
    """Moves that turn `current` into `target`.

    expert_bytes: [layers, experts] int64. load: [layers, experts] rows per step: heavy experts move first;
    without it large ones do. Greedy: as many loads at once as fit; then copies are dropped that the target
    does not want; where every device is full of last copies, one of them is parked on a device with room,
    else a spare replica is dropped to be loaded again at the end, else the least important expert is refused.
    gone: devices that have vanished: what they held is loaded first, from other devices or the library; an
    expert that cannot be had anywhere is refused and stays in the table where it was.

    Raises ConfigError for placements of different shapes or a target that uses a device which is gone, and
    OutOfMemoryBudget, saying by how many bytes, where either placement exceeds a device.
    """
    if current.hosts.shape != target.hosts.shape:
        raise ConfigError(
            f"a placement of {current.hosts.shape} cannot turn into one of {target.hosts.shape}"
        )
    for name, placement in (("current", current), ("target", target)):
        _check_memory(name, placement, expert_bytes, devices)
    lost = np.array([name in gone for name in devices.names])
    if target.hosts[:, :, lost].any():
        raise ConfigError(f"the target placement uses a device that is gone: {', '.join(sorted(gone))}")
    weight = np.asarray(expert_bytes if load is None else load, np.float64)
    return _Planner(current, target, expert_bytes, devices, weight, budget or Budget(), lost).run()


def payback(gain: float, horizon: float, cost: float) -> bool:
    """Whether a migration is worth it: gain, seconds saved per step, over a horizon of so many steps, exceeds
    its cost in seconds of lost work."""
    return bool(gain * horizon > cost)


def _check_memory(name: str, placement: Placement, expert_bytes: Integers, devices: Devices) -> None:
    excess = placement.device_bytes(expert_bytes) - devices.memory
    worst = int(np.argmax(excess))
    if excess[worst] > 0:
        raise OutOfMemoryBudget(
            f"the {name} placement exceeds the memory of device {devices.names[worst]} "
            f"by {excess[worst]} bytes; give it more or place fewer experts there"
        )


class _Planner:
    """Mutable state of one plan.

    hosts: copies that the table names now. wanted: copies still to load, heaviest first. spare: copies that
    may go as soon as another one is there. free: [devices] bytes. Each copy is parked or sacrificed at most
    once, and every round loads, drops, parks, sacrifices or refuses something, so that it ends.
    """

    def __init__(
        self,
        current: Placement,
        target: Placement,
        expert_bytes: Integers,
        devices: Devices,
        weight: Floats,
        budget: Budget,
        lost: Booleans,
    ) -> None:
        self.devices, self.budget, self.bytes = devices, budget, expert_bytes
        self.before, self.target = current.hosts, target.hosts
        self.hosts: Booleans = current.hosts & ~lost
        self.copies = self.hosts.sum(axis=2)
        self.weight = np.where(self.copies == 0, np.inf, weight)  # what no device holds comes first
        self.free = devices.memory - np.einsum("led,le->d", self.hosts, expert_bytes)
        self.free[lost] = 0
        self.left = np.inf if budget.bytes is None else budget.bytes
        self.wanted = self._ordered(self.target & ~self.hosts)
        self.spare: list[Slot] = self._ordered(self.hosts & ~self.target)[::-1]
        self.broken: set[Slot] = set()  # copies that were parked or sacrificed once
        self.refused: dict[ExpertId, str] = {}
        self.stages: list[Stage] = []

    def _ordered(self, chosen: Booleans) -> list[Slot]:
        """Slots, heaviest expert first; ties by layer, expert and device."""
        slots = np.argwhere(chosen)
        order = np.argsort(-self.weight[slots[:, 0], slots[:, 1]], kind="stable")
        return [(int(a), int(b), int(c)) for a, b, c in slots[order]]

    def run(self) -> Migration:
        while self.wanted or self.spare:
            loads = self._take_loads()
            self._settle(loads)
            drops = self._take_drops()
            if loads or drops:
                self.stages.append(self._stage(loads, drops))
            elif not self.wanted:
                break  # what is left to drop are last copies of refused experts
            elif not (self._park() or self._sacrifice()):
                self._refuse(self.wanted[-1], "no device has room to break the cycle of moves that it is in")
        refused = tuple(Refused(expert, reason) for expert, reason in sorted(self.refused.items()))
        nowhere = (self.copies == 0)[:, :, None]
        return Migration(tuple(self.stages), refused, Placement(self.hosts | (self.before & nowhere)))

    def _take_loads(self) -> list[tuple[Slot, int | None]]:
        """Loads that fit beside all that is there, each with its source; they reserve their memory."""
        taken, later = [], []
        for slot in self.wanted:
            layer, expert, device = slot
            size = int(self.bytes[layer, expert])
            if not self.copies[layer, expert] and not self.budget.library:
                self._note(slot, "its only copy is gone and there is no library to load it from")
            elif size > self.left:
                self._note(
                    slot, f"it is {size} bytes and {int(self.left)} are left of the migration's budget"
                )
            elif size <= self.free[device]:
                self.free[device] -= size
                self.left -= size
                taken.append((slot, self._source(slot)))
            else:
                later.append(slot)
        self.wanted = later
        return taken

    def _source(self, slot: Slot) -> int | None:
        """The fastest way in; among equals a device of the same site, then the least index."""
        layer, expert, device = slot
        holders = np.flatnonzero(self.hosts[layer, expert])
        if not len(holders):
            return None
        bandwidth, site = self.devices.bandwidth, self.devices.site
        rates = self.budget.share * np.minimum(bandwidth[holders], bandwidth[device])
        best = int(np.lexsort((site[holders] != site[device], -rates))[0])
        return None if self.budget.library > rates[best] else int(holders[best])

    def _settle(self, loads: list[tuple[Slot, int | None]]) -> None:
        for (layer, expert, device), _ in loads:
            self.hosts[layer, expert, device] = True
            self.copies[layer, expert] += 1

    def _take_drops(self) -> list[Slot]:
        """Copies that can go: all of an expert that is where it should be; else only where room is needed."""
        coming = {(layer, expert) for layer, expert, _ in self.wanted}
        needed = np.zeros(len(self.devices), np.int64)
        for layer, expert, device in self.wanted:
            needed[device] += self.bytes[layer, expert]
        dropped, kept = [], []
        for slot in self.spare:
            layer, expert, device = slot
            settled = (layer, expert) not in coming and ExpertId(layer, expert) not in self.refused
            if self.copies[layer, expert] > 1 and (settled or needed[device] > self.free[device]):
                self._drop(slot)
                dropped.append(slot)
            else:
                kept.append(slot)
        self.spare = kept
        return dropped

    def _drop(self, slot: Slot) -> None:
        layer, expert, device = slot
        self.hosts[slot] = False
        self.copies[layer, expert] -= 1
        self.free[device] += self.bytes[layer, expert]

    def _park(self) -> bool:
        """Copy the last copy of an expert that is in the way to a device with room, from where it leaves
        again once it has arrived."""
        blocked = {device for _, _, device in self.wanted}
        for slot in self.spare:
            layer, expert, device = slot
            size = self.bytes[layer, expert]
            if device not in blocked or slot in self.broken or size > self.left:
                continue
            room = np.flatnonzero((self.free >= size) & ~self.hosts[layer, expert])
            if len(room):
                place = int(room[np.argmax(self.free[room])])
                self.broken.add(slot)
                self.wanted.insert(0, (layer, expert, place))
                self.spare.append((layer, expert, place))
                return True
        return False

    def _sacrifice(self) -> bool:
        """Drop a replica that the target wants, of an expert with another copy, and load it again last."""
        for layer, expert, device in self.wanted:
            missing = self.bytes[layer, expert] - self.free[device]
            fine = self.hosts[:, :, device] & (self.copies > 1) & (self.bytes >= missing)
            for other in self._lightest(fine, device):
                self.broken.add(other)
                self._drop(other)
                self.wanted.append(other)
                self.stages.append(self._stage([], [other]))
                return True
        return False

    def _lightest(self, fine: Booleans, device: int) -> Iterator[Slot]:
        slots = np.argwhere(fine)
        order = np.argsort(self.weight[slots[:, 0], slots[:, 1]], kind="stable")
        for layer, expert in slots[order]:
            slot = (int(layer), int(expert), device)
            if slot not in self.broken:
                yield slot

    def _refuse(self, slot: Slot, reason: str) -> None:
        self._note(slot, reason)
        self.wanted = [other for other in self.wanted if other[:2] != slot[:2]]

    def _note(self, slot: Slot, reason: str) -> None:
        layer, expert, _ = slot
        self.refused[ExpertId(layer, expert)] = reason

    def _stage(self, loads: list[tuple[Slot, int | None]], drops: list[Slot]) -> Stage:
        names = self.devices.names
        return Stage(
            tuple(
                Load(
                    ExpertId(layer, expert),
                    int(self.bytes[layer, expert]),
                    None if source is None else names[source],
                    names[device],
                )
                for (layer, expert, device), source in loads
            ),
            tuple(Drop(ExpertId(layer, expert), names[device]) for layer, expert, device in drops),
            self._seconds(loads),
        )

    def _seconds(self, loads: list[tuple[Slot, int | None]]) -> float:
        """Every device reads, sends and receives its loads one after another, all devices at once; a lower
        bound of the time that waiting for each other adds to."""
        into, out = np.zeros(len(self.devices)), np.zeros(len(self.devices))
        for (layer, expert, device), source in loads:
            size = float(self.bytes[layer, expert])
            if source is None:
                into[device] += size / self.budget.library
                continue
            rate = self.budget.share * min(self.devices.bandwidth[source], self.devices.bandwidth[device])
            into[device] += size / rate
            out[source] += size / rate
        return float(max(into.max(), out.max()))
