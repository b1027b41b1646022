"""Take every expert off a node, and keep it free of them: which moves that needs. Pure.

A drain is a rebalancing in which the node has no memory (cluster/controller/rebalance.py): its experts go to
the others by the same prepared, published and settled tables. The last table does not name the node any more,
so that nothing waits for it and its process may end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from cluster.balance.heuristic import place
from cluster.balance.load import LoadStats
from cluster.balance.objective import Objective
from cluster.balance.problem import PlacementPolicy
from cluster.config import ControllerConfig
from cluster.controller.members import Role
from cluster.controller.rebalance import Proposal, propose, without_idle
from cluster.controller.state import ControllerState, Shape, load_of
from cluster.errors import OutOfMemoryBudget, UnknownNode
from cluster.types import NodeId

STAYING = Objective(moves=10.0)
"""What moves beside a drained node's own experts has to gain a lot."""

PLACE: PlacementPolicy = partial(place, objective=STAYING)


def drain(
    state: ControllerState, node: NodeId, policy: PlacementPolicy = PLACE, for_upgrade: bool = False
) -> tuple[ControllerState, Proposal]:
    """The state in which `node` is drained, and the moves that empty it; no tables if it holds nothing.
    for_upgrade: as in Orders.

    Without any load yet, all experts count alike. Raises UnknownNode, Unavailable while moves are under way
    or a node is missing, and OutOfMemoryBudget, saying by how many bytes, where the other nodes cannot hold
    all experts.
    """
    check_known(state, node)
    drained = replace(state, orders=state.orders.draining(node, for_upgrade))
    try:
        proposal = propose(drained, policy=policy, load=load_of(state) or even_load(state.shape))
    except OutOfMemoryBudget as error:
        raise OutOfMemoryBudget(f"{node} cannot be drained: {error}") from None
    for refused in proposal.decision.migration.refused:
        raise OutOfMemoryBudget(
            f"{node} cannot be drained: expert {refused.expert.index} of layer {refused.expert.layer} cannot "
            f"move, {refused.reason}; give the other nodes more memory"
        )
    table = state.table
    if not proposal.tables and table is not None and node in table.nodes:
        leaving = without_idle(replace(table, version=table.version + 1))
        proposal = replace(proposal, tables=(leaving,))
    return drained, proposal


def undrain(state: ControllerState, node: NodeId, for_upgrade: bool = False) -> ControllerState:
    """The node may hold experts again, from the next placement on. for_upgrade: if an upgrade has drained it,
    else the state is the same. Raises UnknownNode."""
    check_known(state, node)
    if for_upgrade and node not in state.orders.for_upgrade:
        return state
    return replace(state, orders=state.orders.undraining(node))


def order(state: ControllerState, node: NodeId) -> ControllerState:
    """The node shall be drained as soon as nothing else is being moved: cluster/controller/repair.py sees to
    it, whether or not the others have room. Raises UnknownNode."""
    check_known(state, node)
    return replace(state, orders=state.orders.draining(node))


def fill(state: ControllerState, config: ControllerConfig) -> Proposal:
    """The moves that give nodes which are there and have none their share, as any rebalancing would: with
    STAYING they would get next to nothing, for the others hold every expert already. Raises Unavailable while
    moves are under way or a node is missing, and OutOfMemoryBudget."""
    return propose(state, config, load_of(state) or even_load(state.shape))


def check_known(state: ControllerState, node: NodeId) -> None:
    """Raises UnknownNode, naming those that there are."""
    known = {NodeId(member.id) for member in state.of(Role.NODE)} | state.orders.drained
    if node not in known:
        raise UnknownNode(f"there is no expert node {node!r}; there is {', '.join(sorted(known)) or 'none'}")


def even_load(shape: Shape) -> LoadStats:
    """One row for every expert in one step."""
    rows = np.zeros((shape.layers, shape.experts))
    rows[list(shape.sparse)] = 1.0
    return LoadStats(1.0, 1.0, 1.0, 1.0, rows, rows.sum(axis=1))
