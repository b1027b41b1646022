"""Questions to a running controller, for `up`, `status` and `down`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import Unavailable
from cluster.fleet.folder import Folder

TIMEOUT_S = 2.0
PATIENT_S, POLL_S = 15.0, 0.2
PLACING_S = 120.0
"""Placing the experts of a large model takes seconds."""


def moved(status: dict[str, Any]) -> bool:
    """Whether the last table is in use and no router uses an older one."""
    return bool(not status["pending"] and status["settled"] and status["active"] == status["version"])


def patient_status(controller: Controller, within_s: float = PATIENT_S) -> dict[str, Any]:
    """As `Controller.status`, of one that may be busy or about to start again. Raises Unavailable when it has
    not answered `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return controller.status()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


class Controller:
    """The controller at `address`. Every method raises Unavailable if it does not answer."""

    def __init__(self, address: str, folder: Folder | None = None) -> None:
        """folder: of the cluster, which has the key that its controller asks for; None for one without."""
        identity = Identity("tool", "moemesh", key=b"" if folder is None else folder.cluster_key())
        self._client = ControlClient(address, identity=identity)

    def status(self, detail: bool = False) -> dict[str, Any]:
        """As `cluster.controller.state.status`, and with `detail` as its `detail` says besides."""
        return dict(self._client.call(Kind.STATUS, {"detail": detail}, timeout_s=TIMEOUT_S).header)

    def rebalance(self, *, dry_run: bool, force: bool = False) -> dict[str, Any]:
        """As `cluster.controller.rebalance.describe`, with `started`."""
        header = {"dry_run": dry_run, "force": force}
        return dict(self._client.call(Kind.REBALANCE, header, timeout_s=PLACING_S).header)

    def drain(self, node: str, for_upgrade: bool = False, later: bool = False) -> dict[str, Any]:
        """Move all experts off a node: as `rebalance`, with `node` and `drained`. for_upgrade: of a node that
        an operator has drained nothing changes, and the upgrade must let others hold experts again. later: it
        is only ordered, whether or not that is possible now."""
        header = {"node": node, "for_upgrade": for_upgrade, "later": later}
        return dict(self._client.call(Kind.DRAIN, header, timeout_s=PLACING_S).header)

    def undrain(self, node: str, fill: bool = False, for_upgrade: bool = False) -> dict[str, Any]:
        """Let it hold experts again: {"node", "drained"}. fill: and give it some now; where that raises
        Unavailable, since others are being moved, nothing is changed. for_upgrade: if an upgrade has drained
        it."""
        header = {"node": node, "undo": True, "fill": fill, "for_upgrade": for_upgrade}
        return dict(self._client.call(Kind.DRAIN, header, timeout_s=PLACING_S).header)

    def offer(self, tiers: Sequence[str]) -> None:
        """Have gateways offer these quality tiers alone. Raises ConfigError."""
        self._client.call(Kind.TIERS, {"tiers": list(tiers)}, timeout_s=TIMEOUT_S)

    def shutdown(self) -> None:
        """Have it tell every role to stop."""
        self._client.call(Kind.SHUTDOWN, {}, timeout_s=TIMEOUT_S)

    def __enter__(self) -> Controller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
