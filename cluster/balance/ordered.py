"""A problem in the order of its values, as the placement kernels read it, and the state that they change.

Layer by layer experts come by falling load, then size, then where they are now; devices come by speed,
memory, link, site, then by what they hold now. Nothing depends on the order in which a problem names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Booleans, Floats, Integers
from cluster.balance.objective import Objective, blended_load, linked_pairs
from cluster.balance.problem import Placement, Problem
from cluster.errors import OutOfMemoryBudget
from kernels.placement import spread_hosts

_NO_FLOATS: Floats = np.zeros((0, 0))
_NO_HOSTS: Booleans = np.zeros((0, 0), np.bool_)


@dataclass(frozen=True, eq=False, repr=False)
class Ordered:
    """load, size, expert: [layers, experts]; expert: the problem's index of the expert at each place.

    device: [devices] the problem's index of the device at each place; speed, memory, site in that order,
    sites counted from 0. keep: [layers, experts, devices] the current hosts in these orders, None for none.
    part: [layers] the share of all bytes that layers up to each have. layers: those that have experts.
    move_cost, link_cost: of a byte moved and of a linked pair apart, as shares of a layer's ideal time.
    """

    problem: Problem
    layers: tuple[int, ...]
    load: Floats
    size: Integers
    part: Floats
    expert: Integers
    device: Integers
    speed: Floats
    memory: Integers
    site: Integers
    keep: Booleans | None
    move_cost: float
    link_cost: float

    @classmethod
    def of(cls, problem: Problem, objective: Objective) -> Ordered:
        layer_bytes = problem.expert_bytes.sum(axis=1)
        load = blended_load(problem, objective)
        device, devices = _device_order(problem, load), problem.devices
        expert = _expert_order(problem, load, device)
        layers = tuple(int(layer) for layer in np.flatnonzero(problem.sparse))
        pairs, weight = linked_pairs(problem), len(layers) / objective.balance
        return cls(
            problem=problem,
            layers=layers,
            load=np.take_along_axis(load, expert, axis=1),
            size=np.take_along_axis(problem.expert_bytes, expert, axis=1),
            part=np.cumsum(layer_bytes) / layer_bytes.sum(),
            expert=expert,
            device=device,
            speed=devices.speed[device],
            memory=devices.memory[device],
            site=np.unique(devices.site, return_inverse=True)[1][device],
            keep=_ordered_hosts(problem.current, expert, device),
            move_cost=objective.moves * weight / int(problem.expert_bytes.sum()),
            link_cost=objective.links * weight / pairs if pairs else 0.0,
        )

    def rule(self, layer: int) -> tuple[npt.NDArray[Any], ...]:
        return self.load[layer], self.size[layer], self.speed, self.site

    def staying(self, layer: int) -> tuple[Booleans, Floats]:
        """(keep, move_cost) of a layer as the kernels take them."""
        if self.keep is None:
            return _NO_HOSTS, _NO_FLOATS[0:0].ravel()
        return self.keep[layer], self.move_cost * self.size[layer]

    def nearness(self, layer: int, state: State, later: bool) -> tuple[Floats, Floats]:
        """(fixed, pairs) of a layer as the kernels take them; later: the next layer has its places too."""
        if self.link_cost == 0:
            return _NO_FLOATS, _NO_FLOATS
        problem, expert = self.problem, self.expert[layer]
        pairs, fixed = _NO_FLOATS, np.zeros((expert.size, int(self.site.max()) + 1))
        if problem.coactivation is not None:
            pairs = self.link_cost * problem.coactivation[layer][np.ix_(expert, expert)]
            np.fill_diagonal(pairs, 0)
        if problem.affinity is not None:
            if layer > 0:
                fixed += (problem.affinity[layer - 1].T @ state.site_shares(self, layer - 1))[expert]
            if later and layer < len(problem.affinity):
                fixed += (problem.affinity[layer] @ state.site_shares(self, layer + 1))[expert]
        return self.link_cost * fixed, pairs

    def quota(self, layer: int, free: Integers) -> Integers:
        """[devices] bytes still free of what layers up to this one may fill, in proportion to their bytes."""
        quota: Integers = np.rint(self.memory * self.part[layer]).astype(np.int64) - (self.memory - free)
        return quota


def _device_order(problem: Problem, load: Floats) -> Integers:
    devices = problem.devices
    keys = [devices.site, -devices.bandwidth, -devices.memory, -devices.speed]
    if problem.current is not None:
        keys = [*np.einsum("led,le->ld", problem.current.hosts, load), *keys]
    return np.lexsort(keys)


def _expert_order(problem: Problem, load: Floats, device: Integers) -> Integers:
    sizes = problem.expert_bytes
    keys = [-load] if (sizes == sizes[:, :1]).all() else [-sizes, -load]
    if problem.coactivation is not None:
        keys = [problem.coactivation.sum(axis=2), *keys]
    if problem.affinity is not None:
        nothing = np.zeros((1, load.shape[1]))
        keys = [np.vstack([problem.affinity.sum(axis=2), nothing]), *keys]
    if problem.current is not None:
        place = np.empty(device.size)
        place[device] = np.arange(1, device.size + 1)
        keys = [problem.current.hosts @ place, *keys]
    return np.lexsort(keys, axis=-1) if len(keys) > 1 else np.argsort(keys[0], axis=-1, kind="stable")


def _ordered_hosts(current: Placement | None, expert: Integers, device: Integers) -> Booleans | None:
    if current is None:
        return None
    return np.take_along_axis(current.hosts[:, :, device], expert[:, :, None], axis=1)


LayerState = tuple[npt.NDArray[np.int32], Integers, Integers]


@dataclass(eq=False, repr=False)
class State:
    """Copies in the order of `Ordered`; the kernels change it.

    where: [layers, experts, devices] int32, of which the first count[layer, expert] are devices; count:
    [layers, experts] int64; free: [devices] int64 bytes.
    """

    where: npt.NDArray[np.int32]
    count: Integers
    free: Integers

    @classmethod
    def empty(cls, ordered: Ordered) -> State:
        where = np.empty((*ordered.load.shape, ordered.speed.size), np.int32)  # read up to count only
        return cls(where, np.zeros(ordered.load.shape, np.int64), ordered.memory.copy())

    @classmethod
    def holding(cls, ordered: Ordered, hosts: Booleans) -> State:
        """hosts: [layers, experts, devices] in the order of `ordered`; must fit."""
        where = np.argsort(~hosts, axis=2, kind="stable").astype(np.int32)
        held = np.einsum("led,le->d", hosts, ordered.size, dtype=np.int64)
        return cls(where, hosts.sum(axis=2), ordered.memory - held)

    def layer(self, layer: int) -> LayerState:
        """(where, count, free) of a layer, for kernels to change."""
        return self.where[layer], self.count[layer], self.free

    def copy_of(self, layer: int) -> LayerState:
        return self.where[layer].copy(), self.count[layer].copy(), self.free.copy()

    def restore(self, layer: int, copied: LayerState) -> None:
        self.where[layer], self.count[layer], self.free[:] = copied

    def hosts(self, layer: int) -> Booleans:
        """[experts, devices] in the order of `Ordered`."""
        count = self.count[layer]
        hosts = np.zeros(self.where[layer].shape, np.bool_)
        held = np.arange(hosts.shape[1]) < count[:, None]
        hosts[np.repeat(np.arange(count.size), count), self.where[layer][held]] = True
        return hosts

    def site_shares(self, ordered: Ordered, layer: int) -> Floats:
        """[experts, sites] by the problem's index of the expert, 0 throughout a dense layer."""
        hosts = self.hosts(layer)
        shares = np.zeros((len(hosts), int(ordered.site.max()) + 1))
        onto = np.eye(shares.shape[1])[ordered.site]
        shares[ordered.expert[layer]] = hosts @ onto / np.maximum(self.count[layer], 1)[:, None]
        return shares

    def placement(self, ordered: Ordered) -> Placement:
        """In the problem's own order."""
        hosts = np.zeros(self.where.shape, np.bool_)
        spread_hosts(self.where, self.count, ordered.expert, ordered.device, hosts)
        return Placement(hosts)


def trimmed(ordered: Ordered) -> State:
    """The current copies, less those that memories no longer hold or that take the room of a last copy.

    Where something must go, replicas with the smallest share of rows go first.
    """
    assert ordered.keep is not None
    hosts = ordered.keep.copy()
    held = np.einsum("led,le->d", hosts, ordered.size, dtype=np.int64)
    for device in np.flatnonzero(held > ordered.memory):
        while held[device] > ordered.memory[device]:
            layer, expert = _least_missed(ordered, hosts, hosts[:, :, device])
            hosts[layer, expert, device] = False
            held[device] -= ordered.size[layer, expert]
    free = int((ordered.memory - held).sum())
    sparse = list(ordered.layers)
    wanting = int(ordered.size[sparse][~hosts[sparse].any(axis=2)].sum())
    while free < wanting and (hosts.sum(axis=2) > 1).any():
        layer, expert = _least_missed(ordered, hosts, hosts.sum(axis=2) > 1)
        device = np.flatnonzero(hosts[layer, expert])[-1]
        hosts[layer, expert, device] = False
        free += int(ordered.size[layer, expert])
    return State.holding(ordered, hosts)


def _least_missed(ordered: Ordered, hosts: Booleans, among: Booleans) -> tuple[int, int]:
    """(layer, expert) of those `among` ([layers, experts]) to give up: replicas first, then small shares."""
    copies = hosts.sum(axis=2)
    share = ordered.load / np.maximum(copies, 1)
    missed = np.where(copies > 1, share, share + ordered.load.sum())
    layer, expert = np.unravel_index(np.argmin(np.where(among, missed, np.inf)), missed.shape)
    return int(layer), int(expert)


def packed(ordered: Ordered) -> State:
    """One copy of every expert wherever there is room, the largest first: for memories so tight that load
    cannot choose. Raises OutOfMemoryBudget, saying by how many bytes, if even that fails."""
    state = State.empty(ordered)
    layer, expert = np.unravel_index(np.argsort(-ordered.size, axis=None, kind="stable"), ordered.size.shape)
    for at in zip(layer, expert, strict=True):
        size, device = ordered.size[at], int(np.argmax(state.free))
        if size == 0:
            break
        if state.free[device] < size:
            index = ordered.expert[at]
            raise OutOfMemoryBudget(
                f"expert {index} of layer {at[0]} needs {size} bytes and no device has more than "
                f"{state.free[device]} left: {size - state.free[device]} bytes are missing on one device"
            )
        state.where[at][0], state.count[at] = device, 1
        state.free[device] -= size
    return state
