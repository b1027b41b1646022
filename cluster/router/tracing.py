"""Recording what the gates choose while a router serves, for one client at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from cluster.dispatch.connection import Connection
from cluster.errors import InvalidRequest, ProtocolError, Unavailable
from cluster.router.engine import Engine
from cluster.router.recorder import GateRecord, GateRecorder

ACTIONS = ("start", "take", "stop")


class Tracing:
    """Answers TRACE frames; its methods are called by the engine's thread, between two steps.

    What is recorded waits in memory, at most as much as a recorder keeps, until the client takes it, stops,
    or is gone. Without a client the engine has no probe.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._recorder: GateRecorder | None = None
        self._client: Connection | None = None

    def answer(self, client: Connection, header: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Header and payload of the REPLY. header: `do`, one of ACTIONS.

        start: the shape of the trace that begins now. take, stop: the records since the last answer, as
        `records_of` reads them, and how many tokens were left out for want of room. Raises InvalidRequest,
        and Unavailable while somebody else records.
        """
        action = header.get("do")
        if action not in ACTIONS:
            raise InvalidRequest(f"a trace does not {action!r}; it can {', '.join(ACTIONS)}")
        if action == "start":
            self._start(client)
            return self._shape(), b""
        recorder = self._recorder
        if recorder is None or self._client is not client:
            raise InvalidRequest("no trace was started on this connection")
        if action == "stop":
            self.forget(client)
        records = [record.to_wire() for record in recorder.drain()]
        packed: bytes = msgpack.packb(records)
        return {"records": len(records), "dropped": recorder.dropped}, packed

    def forget(self, client: Connection) -> None:
        """Stop recording if it was for this client."""
        if self._client is client:
            self._client = self._recorder = self._engine.probe = None

    def _start(self, client: Connection) -> None:
        if self._engine.probe is not None:
            raise Unavailable("the router records a trace already; try again when that one has ended")
        layers = len(self._engine.trunk.spec.sparse_layers)
        self._client, self._recorder = client, GateRecorder(layers, self._clock)
        self._engine.probe = self._recorder

    def _shape(self) -> dict[str, Any]:
        spec = self._engine.trunk.spec
        return {"experts": spec.experts, "top_k": spec.top_k, "layers": list(spec.sparse_layers)}


def records_of(payload: memoryview) -> list[GateRecord]:
    """What a router answered to `take` or `stop`. Raises ProtocolError on anything else."""
    try:
        return [GateRecord.from_wire(values) for values in msgpack.unpackb(payload)]
    except (msgpack.UnpackException, TypeError, ValueError) as error:
        raise ProtocolError(
            f"a router sent no records of a trace ({error!r}); are all versions the same?"
        ) from error
