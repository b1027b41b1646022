"""A role and its controller: one thread syncs, another does what the answers ask for.

Two threads, because loading experts may take longer than the controller's patience with a silent member.
"""

from __future__ import annotations

import abc
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster import __version__
from cluster.balance.placement import PlacementTable, newer
from cluster.controller.members import NO_TABLE, Role
from cluster.dispatch.client import ControlClient
from cluster.dispatch.frames import PROTOCOL
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import MoemeshError
from cluster.types import NodeId

log = logging.getLogger(__name__)

T = TypeVar("T")

SYNC_STARTING_S = 0.1
SYNC_PERIOD_S = 0.5
"""An expert that nobody holds any more is loaded after a node's next sync: half of what a stream may wait."""

SYNC_TIMEOUT_S = 2.0
JOIN_S = 10.0
INCARNATION_EPOCH = 1_767_225_600.0
"""2026-01-01 UTC: tenths of a second since then fit 32 bits until 2039."""


def new_incarnation(now: float) -> int:
    """Higher with every restart: a process takes longer than a tenth of a second to come back."""
    return int((now - INCARNATION_EPOCH) * 10)


@dataclass(frozen=True)
class View:
    """What the controller last said. nodes and routers: as in `cluster.controller.answers.view`.

    active: version of the table that all nodes have loaded, 0 while one is missing. settled: no router uses
    an older one. next: a table to load beside this one, for nodes. mending: experts that no node holds any
    more are being loaded. hurry: something waits for its members' reports. epoch: of the controller.
    """

    table: PlacementTable | None = None
    active: int = 0
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    routers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settled: bool = False
    next: PlacementTable | None = None
    mending: bool = False
    hurry: bool = False
    epoch: int = 0

    def merged(self, answer: Mapping[str, Any]) -> View:
        """With a STATE header folded in; a table that is left out or not newer changes nothing."""
        sent = answer["table"]
        table = None if sent is None else PlacementTable.from_wire(sent)
        if table is None or not newer(table, self.table):
            table = self.table
        following = answer["next"]
        return View(
            table,
            int(answer["active"]),
            dict(answer["nodes"]),
            dict(answer["routers"]),
            bool(answer["settled"]),
            None if following is None else PlacementTable.from_wire(following),
            bool(answer.get("mending", False)),
            bool(answer.get("hurry", False)),
            int(answer["epoch"]),
        )


class ControlledRole(abc.ABC):
    """A role that follows a controller. Construction starts it; `shutdown` ends it for good.

    A subclass implements build, apply, ready, stats and close. build and apply run on the worker thread,
    one at a time; an error that they raise is reported to the controller and ends the work, not the syncs.
    ready, stats, load and observe are called on the sync thread; what they raise is logged, no more.

    address: host:port where the service listens, set by build or apply, "" before.
    prepared: (epoch, version) of the table that it has loaded in advance, set by apply.
    closing_s: how long `close` may take.
    again_s: apply the view again after so long, even if it has not changed, set by apply.
    """

    role: Role
    address: str = ""
    prepared: tuple[int, int] = NO_TABLE
    closing_s: float = JOIN_S
    again_s: float | None = None

    def __init__(self, name: str, controller: str) -> None:
        self.name = name
        self.incarnation = new_incarnation(time.time())
        self._client = ControlClient(controller, identity=Identity(self.role.value, name, self.incarnation))
        self._loaded = NO_TABLE
        self._error: tuple[str, str] | None = None
        self._failing: dict[str, Exception] = {}
        self._epoch = 0
        self._view = View()
        self._changed = threading.Condition()
        self._fresh = False
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._threads = (
            threading.Thread(target=self._work, name=f"{name} work", daemon=True),
            threading.Thread(target=self._follow, name=f"{name} sync", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @abc.abstractmethod
    def build(self) -> None:
        """What can be done before the first table: open, load, listen."""

    @abc.abstractmethod
    def apply(self, view: View) -> tuple[int, int]:
        """Bring the service in line with `view`; returns (epoch, version) of the table it has loaded."""

    @property
    @abc.abstractmethod
    def ready(self) -> bool: ...

    @abc.abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counts for status displays, msgpack-able; called every sync, also before `build` has returned."""

    @property
    def table_in_use(self) -> tuple[int, int]:
        """(epoch, version) of the table that the controller may count on."""
        return self._loaded

    def load(self) -> dict[str, Any] | None:
        """What it has seen of the experts' load, as LoadStats.to_wire; None for a role that sees none."""
        return None

    def lost(self) -> Mapping[NodeId, int]:
        """Nodes that it cannot reach, with their incarnations; none for a role that reaches none."""
        return {}

    def trouble(self) -> MoemeshError | None:
        """What keeps it from doing all that the controller asks, while it goes on with what it has."""
        return None

    def hurry(self) -> None:
        """Sync now: there is something to tell. Callable from any thread."""
        self._news.set()

    def observe(self, cluster: Mapping[str, Any]) -> None:  # noqa: B027 - most roles look away
        """What the controller knows of everybody's counts; with every sync, to gateways only."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop the service, if there is one; called once."""

    def pid(self) -> int:
        return os.getpid()

    def shutdown(self) -> None:
        """Stop the service and tell the controller; idempotent."""
        if not self._stopping.is_set():
            self._stop()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(self.closing_s)

    def _stop(self) -> None:
        with self._changed:
            self._stopping.set()
            self._news.set()
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            self.build()
            while self._wait_for_news():
                self._loaded = self.apply(self._view)
                self.hurry()
                settle()
        except Exception as error:
            # Reported with the next syncs; whoever waits for this role reads it there.
            log.exception("%s stops working", self.name)
            self._error = _named(error)
        finally:
            self._stopping.wait()
            self.close()

    def _wait_for_news(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._fresh or self._stopping.is_set(), self.again_s)
            self._fresh = False
        return not self._stopping.is_set()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            self._asked("sync", self._sync_once, None)
            calm = self._is_ready() and not self._view.hurry
            self._news.wait(SYNC_PERIOD_S if calm else SYNC_STARTING_S)
            self._news.clear()
        self._threads[0].join(self.closing_s)
        self._say_goodbye()

    def _sync_once(self) -> None:
        try:
            answer = self._client.call(Kind.SYNC, self._report(), timeout_s=SYNC_TIMEOUT_S).header
        except MoemeshError as error:
            log.debug("no sync: %s", error)  # the controller restarts, or has not started yet
            return
        if answer["stop"]:
            self._stop()
            return
        self._epoch = int(answer["epoch"])
        if (cluster := answer.get("cluster")) is not None:
            self._asked("observe", lambda: self.observe(cluster), None)
        view = self._view.merged(answer)
        if view != self._view:
            with self._changed:
                self._view = view
                self._fresh = True
                self._changed.notify_all()

    def _say_goodbye(self) -> None:
        try:
            self._client.call(Kind.SYNC, self._report() | {"leaving": True}, timeout_s=SYNC_TIMEOUT_S)
        except MoemeshError as error:
            log.debug("left without a word: %s", error)
        self._client.close()

    def _report(self) -> dict[str, Any]:
        epoch, version = self.table_in_use
        table = self._view.table
        unknown = table is not None and table.epoch != self._epoch  # the controller has restarted
        trouble = self._asked("trouble", self.trouble, None)
        error = self._error if trouble is None else self._error or _named(trouble)
        ready = self._is_ready()
        if (bug := self._failing.get("ready")) is not None:  # it will never be: whoever waits must know why
            error = error or _named(bug)
        return {
            "role": self.role.value,
            "id": self.name,
            "software": __version__,
            "protocol": PROTOCOL,
            "incarnation": self.incarnation,
            "address": self.address,
            "epoch": epoch,
            "table": version,
            "prepared": list(self.prepared),
            "known": table.to_wire() if table is not None and unknown else None,
            "ready": ready and self._error is None,
            "error": None if error is None else list(error),
            "stats": self._asked("stats", self.stats, dict[str, Any]()),
            "load": self._asked("load", self.load, None),
            "lost": self._asked("lost", lambda: dict(self.lost()), dict[NodeId, int]()),
        }

    def _is_ready(self) -> bool:
        return self._asked("ready", lambda: self.ready, False)

    def _asked(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """`otherwise` where `ask` has a bug, which is logged once until it works again: the cluster can do
        without figures, but a member that stops syncing is declared dead."""
        try:
            answer = ask()
        except Exception as error:
            if what not in self._failing:
                log.exception("%s: %s failed; it goes on without and tries again", self.name, what)
            self._failing[what] = error
            return otherwise
        self._failing.pop(what, None)
        return answer


def _named(error: Exception) -> tuple[str, str]:
    """(class, message), as the controller is told."""
    known = isinstance(error, MoemeshError)
    return type(error).__name__ if known else "MoemeshError", str(error) if known else repr(error)


def settle() -> None:
    """What a role has built lives as long as it does. Frozen, it is left out of every later garbage
    collection, which otherwise walks over all of Ray's and gRPC's objects in the middle of a decode step."""
    gc.collect()
    gc.freeze()
