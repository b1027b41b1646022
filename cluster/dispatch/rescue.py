"""Who else can compute what a node owes, and asking them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.dispatch.budget import HedgeBudget
from cluster.dispatch.deputy import Deputy, assign, carve
from cluster.dispatch.flight import Counters, Flight, Part
from cluster.dispatch.health import Standing
from cluster.dispatch.link import Link
from cluster.dispatch.roster import Roster, best
from cluster.dispatch.transport import Array, WireShape

CANARY_PAIRS = 8
"""At most so many pairs show whether a node is well again."""

FINE, DOUBTFUL, AWAY, REFUSED = range(4)
"""How good a node is for rows: as it should be; suspended or behind, but it speaks; not to be reached or
silent; it has said that it cannot serve them."""


def rank_of(link: Link) -> int:
    if not link.ready:
        return AWAY
    if link.health.serves:
        return DOUBTFUL if link.overdue else FINE
    return DOUBTFUL if link.last_byte > link.health.since else AWAY


class Rescue:
    """Used by the exchange's thread. post: sends a part's request."""

    def __init__(
        self,
        shape: WireShape,
        counters: Counters,
        budget: HedgeBudget,
        post: Callable[[Part], None],
        clock: Callable[[], float],
    ) -> None:
        self._shape = shape
        self._counters = counters
        self._budget = budget
        self._post = post
        self._clock = clock

    def cover(self, roster: Roster, part: Part) -> bool:
        """Ask others for what `part` owes and no deputy has, as far as a better node than its own holds the
        experts; whether deputies have all of it now."""
        rank = REFUSED if part.link.node in part.refused else rank_of(part.link)
        wanted = self._open(part)
        if wanted.size:
            self._ask(roster, part, wanted, self._shares(roster, part, wanted, rank))
        return part.covered

    def hedge(self, roster: Roster, part: Part) -> bool:
        """The same on suspicion: only all of it, of nodes that are fine, and while the budget lasts."""
        wanted = self._open(part)
        shares = self._shares(roster, part, wanted, DOUBTFUL)
        found = sum(places.size for _, places in shares)
        if not found or found < wanted.size or not self._budget.spend(found, self._counters.pairs):
            return False
        self._counters.hedges += 1
        self._counters.hedged_pairs += found
        self._ask(roster, part, wanted, shares)
        return True

    def try_out(self, roster: Roster, flight: Flight, link: Link) -> None:
        """Send a node on probation a copy of some rows of a call, if the call has any that it can compute."""
        if link.node not in roster.table.nodes:
            return
        place = roster.table.nodes.index(link.node)
        holders = roster.table.replicas[flight.call[1]]
        for node in flight.slot.nodes():
            first, last = flight.slot.pairs(node)
            experts = flight.slot.experts[first:last].tolist()
            held = [pair for pair, expert in enumerate(experts) if place in holders[expert]]
            if held:
                chosen = np.array(held[:CANARY_PAIRS], np.int64)
                carved = carve(flight.slot.request(node), chosen, self._shape)
                self._counters.canaries += 1
                self._post(Deputy(flight, None, chosen, carved, link, self._shape, self._clock()))
                return

    @staticmethod
    def may_be_tried(link: Link) -> bool:
        """Whether it is on probation, has answered since, and is not being tried yet."""
        probing = link.health.standing is Standing.PROBING and rank_of(link) == DOUBTFUL
        return probing and not link.parts

    @staticmethod
    def _open(part: Part) -> Array:
        return np.arange(part.pairs) if part.open is None else part.open

    def _shares(self, roster: Roster, part: Part, wanted: Array, rank: int) -> list[tuple[Link, Array]]:
        """(who, which of `wanted`), over nodes of the newest table that are better than `rank`."""
        table, layer = roster.next, part.call[1]
        found = (roster.link(node) for node in table.nodes)
        links = [
            None if link is None or link is part.link or link.node in part.refused else link for link in found
        ]
        ranks = tuple(REFUSED if link is None else rank_of(link) for link in links)
        experts = part.flight.slot.experts[part.places[wanted]]
        holders = {
            expert: self._better(table.replicas[layer][expert], ranks, rank)
            for expert in np.unique(experts).tolist()
        }
        pace = dict(zip(roster.pace.nodes, (1.0 / roster.pace.speed).tolist(), strict=True))
        slowest = max(pace.values(), default=1.0)
        seconds = {place: pace.get(node, slowest) for place, node in enumerate(table.nodes)}
        shares = assign(experts, holders, seconds)
        return [(link, wanted[mine]) for place, mine in shares.items() if (link := links[place]) is not None]

    @staticmethod
    def _better(holders: Sequence[int], ranks: tuple[int, ...], rank: int) -> Sequence[int]:
        chosen = best(holders, ranks)
        return chosen if ranks[chosen[0]] < min(rank, AWAY) else ()

    def _ask(self, roster: Roster, part: Part, wanted: Array, shares: list[tuple[Link, Array]]) -> None:
        request, now = part.request(), self._clock()
        asked = []
        for link, chosen in shares:
            carved = carve(request, chosen, self._shape)
            asked.append(Deputy(part.flight, part, chosen, carved, link, self._shape, now))
            wanted = np.setdiff1d(wanted, chosen)
        part.deputies += asked
        part.open = wanted
        for deputy in asked:  # a connection that breaks here finds the part in order
            self._counters.deputies += 1
            self._post(deputy)
