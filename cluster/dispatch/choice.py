"""The copies that compute the rows of a call, where experts of its layer have several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.balance.choice import Batch, ChoicePolicy, Copies, flow
from cluster.balance.placement import PlacementTable
from cluster.dispatch.pace import Pace
from cluster.dispatch.transport import Array
from kernels import replicas

Holders = Sequence[Sequence[int]]


class Replicas(NamedTuple):
    """The copies of a layer's experts. hosts: [experts, nodes] bool; copies: the same as kernels read it;
    expert_of: [copies] int32."""

    hosts: Array
    copies: Copies
    expert_of: Array

    @classmethod
    def of(cls, table: PlacementTable, layer: int) -> Replicas | None:
        """None where no expert has more than one copy: there is nothing to choose."""
        return cls.among(table.replicas[layer], len(table.nodes))

    @classmethod
    def among(cls, holders: Holders, nodes: int) -> Replicas | None:
        """`of`, over these holders of each expert, places of `nodes` nodes."""
        if all(len(places) == 1 for places in holders):
            return None
        hosts = np.zeros((len(holders), nodes), np.bool_)
        for expert, places in enumerate(holders):
            hosts[expert, list(places)] = True
        return cls(hosts, Copies.of(hosts), np.nonzero(hosts)[0].astype(np.int32))


class Choice:
    """Gives every (token, rank) pair of a call a copy of its expert, an expert's rows in the tokens' order.

    policy: how many rows each copy gets; the default, the optimum of kernels/flow.py, is one compiled call.
    Deterministic: the same rows, speeds and backlogs give the same copies.
    """

    def __init__(self, experts: int, policy: ChoicePolicy = flow) -> None:
        self._policy = policy
        self._rows = np.zeros(experts, np.int64)

    def copies(self, ids: Array, layer: Replicas, pace: Pace) -> Array:
        """[T, k] int32, the number of the copy that computes each pair of ids [T, k]."""
        starts, device = layer.copies.starts, layer.copies.device
        chosen = np.empty(ids.shape, np.int32)
        if self._policy is flow:
            share = np.empty(device.size, np.int64)
            replicas.flow_copies(ids, starts, device, pace.speed, pace.backlog, self._rows, share, chosen)
            return chosen
        replicas.count_rows(ids, self._rows)
        shares = self._policy(Batch(self._rows, layer.hosts, pace.speed, pace.backlog))
        replicas.give_rows(ids, starts, shares[layer.expert_of, device].astype(np.int64), chosen)
        return chosen
