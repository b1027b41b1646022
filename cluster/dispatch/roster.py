"""The nodes of the current placement table, and a link to each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cluster.balance.placement import PlacementTable, newer
from cluster.dispatch.choice import Holders, Replicas
from cluster.dispatch.link import Link
from cluster.dispatch.pace import Pace
from cluster.dispatch.poller import Poller
from cluster.dispatch.transport import Array
from cluster.types import NodeId

Addresses = Mapping[NodeId, str]

MOST_ROUTES = 32
"""Kept for the ranks that nodes had of late: they come and go between a few."""

Ranks = tuple[int, ...]
"""Of each node of a table, 0 the best; () where all are alike."""


class Routes:
    """Who may compute which experts of a table, while its nodes have these ranks."""

    def __init__(self, table: PlacementTable, ranks: Ranks) -> None:
        self._table, self._ranks = table, ranks
        self._owners: dict[int, Array] = {}
        self._replicas: dict[int, Replicas | None] = {}

    def owners(self, layer: int) -> Array:
        owner = self._owners.get(layer)
        if owner is None:
            first = [holders[0] for holders in self._holders(layer)]
            owner = self._owners[layer] = np.array(first, np.int32)
        return owner

    def replicas(self, layer: int) -> Replicas | None:
        if layer not in self._replicas:
            self._replicas[layer] = Replicas.among(self._holders(layer), len(self._table.nodes))
        return self._replicas[layer]

    def _holders(self, layer: int) -> Holders:
        every = self._table.replicas[layer]
        return [best(holders, self._ranks) for holders in every] if any(self._ranks) else every


def best(holders: Sequence[int], ranks: Ranks) -> Sequence[int]:
    """Those of the lowest rank."""
    least = min(ranks[holder] for holder in holders)
    return [holder for holder in holders if ranks[holder] == least]


class Roster:
    """table: in use. next: the newest known, to which `switch` switches.
    mending: experts that no node holds are being loaded somewhere; as told with the newest addresses.
    links, pace: in the order of the table's nodes; ranks: how good each is (`rank`), () if all are.
    `post` may be called from any thread, all else from one.
    """

    def __init__(
        self,
        table: PlacementTable,
        addresses: Addresses,
        new_link: Callable[[NodeId, str | None, Poller], Link],
    ) -> None:
        self.table = self.next = table
        self.poller = Poller()
        self.links: list[Link] = []
        self.pace = Pace(())
        self._new_link = new_link
        self._by_node: dict[NodeId, Link] = {}
        self.ranks: Ranks = ()
        self._routes: dict[Ranks, Routes] = {}
        self.mending = False
        self._box: deque[tuple[PlacementTable, Addresses, bool]] = deque(maxlen=1)
        self.post(table, addresses)
        self.apply_posted()
        self.switch()

    @property
    def posted(self) -> bool:
        """Whether an update waits, or a table to switch to."""
        return bool(self._box) or self.next is not self.table

    @property
    def all(self) -> list[Link]:
        """Links of the table, and of nodes that have left it but still owe rows."""
        return list(self._by_node.values())

    def post(self, table: PlacementTable, addresses: Addresses, mending: bool = False) -> None:
        """Leave an update in a box of one, a newer one replaces it; `apply_posted` takes it out."""
        self._box.append((table, dict(addresses), mending))

    def apply_posted(self) -> None:
        """Follow the nodes to their addresses, and connect to those of the next table, not used yet."""
        if not self._box:
            return
        table, addresses, self.mending = self._box.popleft()
        if not newer(self.next, table):
            self.next = table
        for node in {**dict.fromkeys(self.table.nodes), **dict.fromkeys(self.next.nodes)}:
            if node not in self._by_node:
                self._by_node[node] = self._new_link(node, addresses.get(node), self.poller)
            elif node in addresses:
                self._by_node[node].move(addresses[node])

    def switch(self) -> None:
        """Use the next table from now on. Nodes that have left it are let go once they owe nothing."""
        if self.next is not self.table:
            self.table = self.next
            self._routes.clear()
            self.ranks = ()
        self.links = [self._by_node[node] for node in self.table.nodes]
        if self.pace.nodes != self.table.nodes:
            self.pace = self.pace.over(self.table.nodes)
            for link, load in zip(self.links, self.pace.loads, strict=True):
                link.load = load
        for node in set(self._by_node) - set(self.table.nodes):
            if not self._by_node[node].parts:
                self._by_node.pop(node).lose("it left the table")

    def rank(self, ranks: Ranks) -> bool:
        """How good each node of the table is, 0 the best; of an expert's holders only the best are asked.
        Returns whether that is something new."""
        if ranks == self.ranks:
            return False
        self.ranks = ranks
        return True

    def owners(self, layer: int) -> Array:
        """[experts] int32: the place in `links` of each expert's owner."""
        return self._route.owners(layer)

    def replicas(self, layer: int) -> Replicas | None:
        """The copies to choose from in `layer`; None where every expert has only one."""
        return self._route.replicas(layer)

    @property
    def _route(self) -> Routes:
        route = self._routes.get(self.ranks)
        if route is None:
            if len(self._routes) > MOST_ROUTES:
                self._routes.clear()
            route = self._routes[self.ranks] = Routes(self.table, self.ranks)
        return route

    def link(self, node: NodeId) -> Link | None:
        return self._by_node.get(node)

    def missing(self) -> Link | None:
        """The first node of the table that is not connected."""
        return next((link for link in self.links if not link.ready), None)

    def complete(self) -> bool:
        """Whether every expert of the table has a holder that is connected."""
        there = {place for place, link in enumerate(self.links) if link.ready}
        return all(not there.isdisjoint(holders) for layer in self.table.replicas for holders in layer)

    def close(self) -> None:
        for link in self._by_node.values():
            link.lose("the exchange is closed")
        self.links = []
        self._by_node.clear()
        self.poller.close()
