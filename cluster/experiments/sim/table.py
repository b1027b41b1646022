"""Who holds what while the simulation runs: complete copies on live devices, listed as kernels read them."""

from __future__ import annotations

import numpy as np

from cluster.balance.choice import Copies
from cluster.balance.fleet import Booleans
from cluster.balance.problem import Placement


class Table:
    """hosts: [layers, experts, devices] complete copies; alive: [devices]. A copy on a dead device is kept
    until `forget`, since the device may only be unreachable."""

    def __init__(self, placement: Placement) -> None:
        self.hosts: Booleans = placement.hosts.copy()
        self.alive = np.ones(self.hosts.shape[2], np.bool_)
        self._copies: list[Copies | None] = [None] * len(self.hosts)
        self._bare: list[Booleans | None] = [None] * len(self.hosts)

    @property
    def placement(self) -> Placement:
        return Placement(self.hosts)

    def copies(self, layer: int) -> Copies:
        """Copies that can be used."""
        found = self._copies[layer]
        if found is None:
            found = self._copies[layer] = Copies.of(self.hosts[layer] & self.alive)
            bare = np.diff(found.starts) == 0
            self._bare[layer] = bare if bare.any() else None
        return found

    def missing(self, layer: int, rows: np.ndarray) -> bool:
        """Whether an expert with rows has no copy that can be used."""
        self.copies(layer)
        bare = self._bare[layer]
        return bare is not None and bool(rows[bare].any())

    def put(self, layer: int, expert: int, device: int, there: bool) -> None:
        self.hosts[layer, expert, device] = there
        self._copies[layer] = None

    def set_alive(self, device: int, alive: bool) -> None:
        self.alive[device] = alive
        self._copies = [None] * len(self.hosts)

    def forget(self, device: int) -> None:
        """The device has lost what it held; last copies stay in the table, as the controller's does."""
        others = np.delete(self.hosts, device, axis=2).any(axis=2)
        self.hosts[:, :, device] &= ~others
        self._copies = [None] * len(self.hosts)
