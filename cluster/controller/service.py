"""The controller over sockets: folds every SYNC into the state and answers with the view of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig
from cluster.controller import answers, drain, rebalance, repair, syncing
from cluster.controller.members import Member
from cluster.controller.orders import Orders
from cluster.controller.rebalance import DEFAULTS, Proposal
from cluster.controller.repair import Memory, Reason
from cluster.controller.state import ControllerState, Shape, stop
from cluster.controller.watch import Watch, failed, judge, look
from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity, error_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.errors import MoemeshError, ProtocolError
from cluster.types import NodeId

log = logging.getLogger(__name__)

Placing = Callable[[Mapping[str, Any]], dict[str, Any]]

LOOK_PERIOD_S = 1.0
"""Between two looks for drift: members sync about as often."""

URGENT_PERIOD_S, HELPLESS_PERIOD_S = 0.1, 5.0
"""Between two looks for losses: while an expert is nowhere, and after a repair that could not be made."""


class ControllerService:
    """Answers SYNC, STATUS, SHUTDOWN, REBALANCE, DRAIN and TIERS.

    State is changed on the server's one IO thread, and by the thread that places experts anew, since that
    takes longer than members wait for an answer.

    epoch: higher than that of every controller before this one. config: whether it moves experts by itself.
    table: the first one, of this epoch; None deals the experts out when all nodes are there.
    clock: monotonic seconds.
    orders: what operators asked of an earlier controller; keep: is told what they ask of this one.
    """

    def __init__(
        self,
        shape: Shape,
        epoch: int,
        host: str = "127.0.0.1",
        port: int = 0,
        config: ControllerConfig = DEFAULTS,
        table: PlacementTable | None = None,
        clock: Callable[[], float] = time.monotonic,
        orders: Orders | None = None,
        keep: Callable[[Orders], None] = lambda orders: None,
    ) -> None:
        self._state = ControllerState(epoch=epoch, shape=shape, table=table, orders=orders or Orders())
        self._keep = keep
        self._config = config
        self._watch = Watch()
        self._clock = clock
        self._lock = threading.Lock()
        self._placing = threading.Lock()
        self._next_look = self._next_repair = 0.0
        self._memory = Memory()
        self._seen_lost: frozenset[NodeId] = frozenset()
        self._stopped = threading.Event()
        self._server = FrameServer(
            host,
            port,
            on_frame=self._on_frame,
            identity=Identity("controller", "controller", epoch),
            name="controller",
        )

    def start(self) -> str:
        """Listen; returns the address host:port. Raises PortInUse."""
        return self._server.start()

    @property
    def ready(self) -> bool:
        return not self._stopped.is_set()

    def shutdown(self) -> None:
        self._stopped.set()
        self._server.shutdown()

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        place = {Kind.REBALANCE: self._rebalance, Kind.DRAIN: self._drain}.get(frame.kind)
        if place is not None:
            self._aside(self._answer_placing, connection, place, frame.header)
            return
        with self._lock:
            kind, header = self._answer(frame)  # the server answers with the error that this raises
            sync = frame.kind is Kind.SYNC
            reason = self._look_for_losses() if sync else None
            due = self._look() if sync and reason is None else None
        connection.send(kind, header)
        if reason is not None:
            self._aside(self._repair, reason)
        elif due is not None:
            self._aside(self._place_for, due)

    def _aside(self, do: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=do, args=arguments, name="rebalance", daemon=True).start()

    def _look(self) -> LoadStats | None:
        """The load to place experts for, if it is time to and no placement is being made."""
        now = self._clock()
        if now < self._next_look or self._placing.locked():
            return None
        self._next_look = now + LOOK_PERIOD_S
        self._watch, due = look(self._watch, self._state, self._config, now)
        return due

    def _look_for_losses(self) -> Reason | None:
        """What there is to repair, if no placement is being made: at once when a node was lost, else every
        now and then."""
        now = self._clock()
        changed = self._state.lost != self._seen_lost
        if self._placing.locked() or not (changed or now >= self._next_repair):
            return None
        self._seen_lost = self._state.lost
        self._next_repair = now + (URGENT_PERIOD_S if self._state.orphaned else LOOK_PERIOD_S)
        self._memory = repair.remember(self._memory, self._state, now)
        try:
            return repair.due(self._memory, self._state, self._config, now)
        except MoemeshError as error:
            log.debug("nothing can be repaired: %s", error)
            return None

    def _repair(self, reason: Reason) -> None:
        """Have experts loaded where they are missing, and say so in one line."""
        with self._placing:
            try:
                state = self._state
                if reason is Reason.back:
                    proposal = drain.fill(state, self._config)
                else:
                    proposal = repair.propose(state, self._config)
                with self._lock:
                    self._begin_repair(reason, proposal, state)
                self._say_repair(reason, proposal)
            except Exception as error:
                level = logging.WARNING if isinstance(error, MoemeshError) else logging.ERROR
                log.log(level, "repair: %s cannot be helped now", reason.value, exc_info=error)
                with self._lock:
                    self._next_repair = self._clock() + HELPLESS_PERIOD_S

    def _begin_repair(self, reason: Reason, proposal: Proposal, state: ControllerState) -> None:
        """state: the one that the proposal was made for."""
        if proposal.tables:
            self._state = rebalance.begin(self._state, proposal)
        else:
            self._next_repair = self._clock() + HELPLESS_PERIOD_S
            if reason is Reason.copies:
                self._memory = repair.fruitless(self._memory, state)
        if reason is Reason.back:
            self._memory = repair.given_back(self._memory)

    def _say_repair(self, reason: Reason, proposal: Proposal) -> None:
        moved = proposal.decision.migration
        if reason is Reason.copies and not proposal.tables:
            lack = repair.lacking(self._state, self._config)
            log.warning("repair: %s: no node has room, %d copies lack", reason.value, lack)
        else:
            log.warning("repair: %s: %d bytes to load", reason.value, moved.bytes)
        for refused in moved.refused:
            log.error("repair: expert %s stays where it was: %s", refused.expert, refused.reason)

    def _place_for(self, load: LoadStats) -> None:
        """Of its own accord: place the experts for `load`, move them if that pays, and say so in one line."""
        with self._placing:
            try:
                proposal = rebalance.propose(self._state, self._config, load)
                with self._lock:
                    self._watch, begin = judge(self._watch, load, proposal, self._config, self._clock())
                    if begin:
                        self._state = rebalance.begin(self._state, proposal)
            except Exception as error:
                if not isinstance(error, MoemeshError):
                    log.exception("no placement could be made; experts stay where they are")
                with self._lock:
                    self._watch = failed(self._watch, str(error), self._config, self._clock())
            log.info("rebalance: %s", self._watch.said)

    def _answer_placing(self, connection: Connection, place: Placing, header: Mapping[str, Any]) -> None:
        """Answer a question that takes longer than members wait for an answer."""
        try:
            with self._placing:
                kind, answer = Kind.REPLY, place(header)
        except Exception as error:
            if not isinstance(error, MoemeshError):
                log.exception("no placement could be made")
            kind, answer = Kind.ERROR, error_header(error)
        with suppress(MoemeshError):  # whoever asked has gone
            connection.send(kind, answer)

    def _rebalance(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """header: `dry_run`, only say what would be done; `force`, do it even if it does not pay."""
        proposal = rebalance.propose(self._state, self._config, trusting=True)
        worth = bool(header.get("force")) or proposal.decision.worth
        started = bool(proposal.tables) and worth and not header.get("dry_run")
        if started:
            with self._lock:
                self._state = rebalance.begin(self._state, proposal)
        return rebalance.describe(proposal) | {"started": started}

    def _drain(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """header: `node`; `undo`, let it hold experts again, which moves none but with `fill`; `later`, only
        order it; `for_upgrade`: as in Orders, and `undo` changes nothing that no upgrade has drained."""
        node, for_upgrade = NodeId(str(header.get("node", ""))), bool(header.get("for_upgrade"))
        if header.get("undo"):
            return self._undrain(node, for_upgrade, bool(header.get("fill")))
        if header.get("later"):
            with self._lock:
                self._order(drain.order(self._state, node).orders)
            return {"node": node, "drained": True, "started": False}
        _, proposal = drain.drain(self._state, node, for_upgrade=for_upgrade)
        with self._lock:
            self._state = rebalance.begin(self._state, proposal)
            self._order(self._state.orders.draining(node, for_upgrade))
        return rebalance.describe(proposal) | {
            "started": bool(proposal.tables),
            "node": node,
            "drained": True,
        }

    def _undrain(self, node: NodeId, for_upgrade: bool, fill: bool) -> dict[str, Any]:
        """Where nothing can be moved yet, nothing is changed."""
        before = self._state
        after = drain.undrain(before, node, for_upgrade)
        if after is not before:
            proposal = drain.fill(after, self._config) if fill else None
            with self._lock:
                if proposal is not None:
                    self._state = rebalance.begin(self._state, proposal)
                self._order(self._state.orders.undraining(node))
        return {"node": node, "drained": node in self._state.orders.drained}

    def _order(self, orders: Orders) -> None:
        self._keep(orders)
        self._state = replace(self._state, orders=orders)

    def _answer(self, frame: Frame) -> tuple[Kind, dict[str, Any]]:
        now = self._clock()
        if frame.kind is Kind.SYNC:
            member = Member.from_wire(frame.header, now)
            self._state = syncing.sync(self._state, member)
            return Kind.STATE, answers.view(self._state, member.id, now)
        if frame.kind is Kind.STATUS:
            more = answers.detail(self._state) if frame.header.get("detail") else {}
            watch = {"rebalance": self._config.rebalance.value, "decision": self._watch.said}
            return Kind.REPLY, answers.status(self._state, now) | watch | more
        if frame.kind is Kind.TIERS:
            if (tiers := frame.header.get("tiers")) is not None:
                self._order(self._state.orders.offering([str(tier) for tier in tiers]))
            return Kind.REPLY, {"tiers": list(self._state.orders.tiers)}
        if frame.kind is Kind.SHUTDOWN:
            self._state = stop(self._state)
            return Kind.REPLY, answers.status(self._state, now)
        raise ProtocolError(f"the controller does not answer {frame.kind.name}")
