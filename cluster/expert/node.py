"""The expert node as a plain class: it holds experts, answers DISPATCH and tells how it is doing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from cluster.dispatch.connection import EMPTY, Connection, Packed
from cluster.dispatch.frames import FRAGMENT_BYTES, Frame, Limits, lead_of
from cluster.dispatch.handshake import Identity, error_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.messages import NODE, TABLE, Tag, fault_header, tag_of
from cluster.dispatch.server import USED, FrameServer
from cluster.dispatch.transport import Array, WireShape
from cluster.errors import MoemeshError, Overloaded, ProtocolError
from cluster.expert.batching import Box, Job, Waiting, merge, parse
from cluster.types import ExpertId
from kernels import express, wire

log = logging.getLogger(__name__)

MAX_WAITING_ROWS = 8192
MAX_BATCH_ROWS = 2048
INLINE_US = 500.0
"""Work expected to take less is done by the thread that reads: handing it over would cost two context
switches a message, and sockets can wait that long."""

RISE = 1.2
"""By how much one slow batch may raise the expected µs per pair."""

JOIN_S = 10.0


_NOTHING = np.zeros((0, 2), np.int32)
_DISPATCH, _RESULT = Kind.DISPATCH, Kind.RESULT
_DISPATCH_LEAD, _RESULT_LEAD = lead_of(_DISPATCH), lead_of(_RESULT)


class ExpertCompute(Protocol):
    """Runs experts. Called from the node's two threads, never from both at once."""

    def run(self, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
        """[P, Hp] uint16 or float32, one row for every pair in the order of `experts`; valid until the next
        call. A pure function of each row and expert: with whom they are computed changes no bit."""
        ...


@dataclass(slots=True)
class Counters:
    rows: int = 0
    pairs: int = 0
    messages: int = 0
    batches: int = 0
    inline: int = 0
    service_us: int = 0
    not_here: int = 0
    faults: int = 0
    overloaded: int = 0
    undelivered: int = 0


class ExpertNode:
    """start() → address; hold(...) makes it ready; shutdown().

    One thread reads all connections; a second computes whatever would keep the first from reading. Rows of
    all waiting messages of a layer, from whichever routers, are one call of `compute`.
    """

    def __init__(
        self,
        compute: ExpertCompute,
        shape: WireShape,
        *,
        node_id: str,
        library: str = "",
        incarnation: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        max_batch_rows: int = MAX_BATCH_ROWS,
        inline_us: float = INLINE_US,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """shape, library: the rows and the digest of the library it serves. incarnation: random if None.

        max_waiting_rows: beyond it a DISPATCH is answered FAULT Overloaded. inline_us: 0 sends all work to
        the compute thread.
        """
        self.counters = Counters()
        self.stopping = threading.Event()
        """Set when a SHUTDOWN frame has come; the process around the node then calls shutdown()."""
        if incarnation is None:
            incarnation = int.from_bytes(os.urandom(4))
        self.identity = Identity("node", node_id, incarnation, library)
        self._incarnation = incarnation
        self._compute = compute
        self._shape = shape
        self._clock = clock
        self._max_waiting_rows = max_waiting_rows
        self._max_batch_rows = max_batch_rows
        self._inline_us = inline_us
        self._held = (0, np.zeros((shape.layers, shape.experts), np.uint8))
        self._boxes: deque[Box] = deque()
        self._head = np.zeros(wire.HEAD_BYTES, np.uint8)
        self._us_per_pair = float("inf")
        self._waiting = Waiting()
        self._handed = False
        self._closing = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._server = FrameServer(
            host,
            port,
            on_frame=self._on_frame,
            on_round=self._on_round,
            on_bytes=None if shape.float_rows else self._on_bytes,
            identity=self.identity,
            limits=Limits(payload=max_waiting_rows * shape.row_bytes),
            name=f"node-{node_id}-io",
        )
        self._thread = threading.Thread(target=self._work, name=f"node-{node_id}-compute", daemon=True)

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def table_version(self) -> int:
        """Version of the placement table it has loaded, 0 for none."""
        return self._held[0]

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and self.table_version > 0

    def start(self) -> str:
        """Listen and serve; returns the address. Raises PortInUse."""
        address = self._server.start()
        self._thread.start()
        return address

    def hold(self, version: int, experts: Iterable[ExpertId]) -> None:
        """Serve exactly these experts from now on: the compute must be able to run them. Thread-safe."""
        held = np.zeros((self._shape.layers, self._shape.experts), np.uint8)
        for expert in experts:
            held[expert.layer, expert.index] = 1
        self._held = (version, held)
        self._server.wake()  # it may wait with what was held before in its hands

    def shutdown(self) -> None:
        """Close the port and all connections and end both threads; idempotent. What waits is not computed:
        its routers see the connection close and ask elsewhere."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and the load now (waiting messages and rows, µs per pair of late)."""
        us_per_pair = 0.0 if self._us_per_pair == float("inf") else self._us_per_pair
        return asdict(self.counters) | {
            "waiting": len(self._waiting),
            "waiting_rows": self._waiting.rows,
            "us_per_pair": round(us_per_pair, 3),
            "connections": self._server.connections,
            **self._server.turned.counts(),
            "table": self.table_version,
        }

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        if frame.kind is not _DISPATCH:
            self._on_control(connection, frame)
            return
        tag = tag_of(frame.header)
        try:
            job = parse(connection, frame, tag, self._shape)
            if tag[NODE] != self.identity.incarnation:
                raise ProtocolError(f"meant for incarnation {tag[NODE]}, this is {self.identity.incarnation}")
            waiting = self._waiting.rows
            if waiting and waiting + len(job.counts) > self._max_waiting_rows:
                self.counters.overloaded += 1
                raise Overloaded(f"{waiting} rows wait already")
        except (ProtocolError, Overloaded) as error:
            self._fault(connection, tag, error)
            return
        version, held = self._held
        if not self._holds(held[job.layer], job.experts):
            self.counters.not_here += 1
            tag[TABLE] = version
            self._reply(connection, Kind.NOT_HERE, tag)
            return
        self._enqueue(job)

    def _on_bytes(self, connection: Connection, staging: Array) -> int:
        """The short way of a DISPATCH that is small and in order; whatever is not comes back as a frame.

        After an answer it waits for the next one here, until anything else wants the thread.
        """
        watched, left = _NOTHING, 0
        while True:
            box = self._boxes.pop() if self._boxes else Box(self._shape)
            rows = express.take_request(
                connection.fd,
                watched,
                staging,
                _DISPATCH_LEAD,
                self._incarnation,
                self._held[1],
                self._shape.expert_bytes,
                *box.arrays,
            )
            waiting = self._waiting.rows
            if not rows or (waiting and waiting + rows > self._max_waiting_rows):
                self._boxes.append(box)
                return int(box.numbers[-1]) or left
            job, left = box.job(connection, rows), USED
            if waiting or self._handed or not self._server.alone or not self._quick(len(job.experts)):
                self._enqueue(job)
                return USED
            self.counters.inline += 1
            self._run_one(job)
            if connection.blocked or connection.closed:
                return USED
            watched = self._server.watched(connection)

    def _quick(self, pairs: int) -> bool:
        return pairs * self._us_per_pair <= self._inline_us

    def _enqueue(self, job: Job) -> None:
        if self._handed:
            with self._lock:
                self._waiting.add(job)
        else:
            self._waiting.add(job)

    @staticmethod
    def _holds(held: Array, experts: Array) -> bool:
        return bool(experts.max() < len(held) and held[experts].all())

    def _on_control(self, connection: Connection, frame: Frame) -> None:
        if frame.kind is Kind.STATUS:
            connection.send(Kind.REPLY, self.stats())
        elif frame.kind is Kind.SHUTDOWN:
            connection.send(Kind.REPLY, {})
            self.stopping.set()
        else:
            raise ProtocolError(f"an expert node has no answer to {frame.kind.name}")

    def _on_round(self) -> None:
        """All messages that had arrived together are in the queue: compute them here or hand them over.

        The queue belongs to this thread, and no lock is needed, unless it is `_handed` to the compute thread.
        Only this thread sets that; the compute thread clears it, under the lock, when the queue is empty.
        """
        waiting = self._waiting
        if self._handed or not waiting:
            return
        if not self._quick(waiting.pairs):
            with self._lock:
                self._handed = True
                self._changed.notify()
            return
        self.counters.inline += 1
        while waiting and not self._closing:
            batch = waiting.take(self._max_batch_rows)
            if batch:
                self._run(batch)

    def _work(self) -> None:
        """The compute thread."""
        while True:
            with self._lock:
                batch = self._waiting.take(self._max_batch_rows) if self._handed else []
                if not batch:
                    self._handed = False
                    self._changed.wait_for(lambda: self._handed or self._closing)
                if self._closing:
                    return
            if batch:
                self._run(batch)

    def _run_one(self, job: Job) -> None:
        begin = self._clock()
        try:
            results = self._compute.run(job.layer, job.counts, job.experts, job.rows, job.scales)
        except Exception as error:
            self._failed(job, error)
            return
        took_us = self._served(1, len(results), begin)
        self._result(job, results, (len(self._waiting), took_us))

    def _run(self, batch: list[Job]) -> None:
        if len(batch) == 1:
            self._run_one(batch[0])
            return
        begin = self._clock()
        try:
            results = self._compute.run(batch[0].layer, *merge(batch))
        except Exception:  # each again by itself: only the message that is to blame fails, and says why
            for job in batch:
                self._run_one(job)
            return
        took_us = self._served(len(batch), len(results), begin)
        load = len(self._waiting), took_us
        first = 0
        for job in batch:
            last = first + len(job.experts)
            self._result(job, results[first:last], load)
            first = last

    def _served(self, messages: int, pairs: int, begin: float) -> int:
        """Count a batch that was computed since `begin`; returns its µs."""
        took_us = (self._clock() - begin) * 1e6
        # Down at once, up slowly: one batch that waited for a core says nothing about the next.
        self._us_per_pair = min(max(took_us, 1.0) / pairs, RISE * self._us_per_pair)
        counters = self.counters
        counters.batches += 1
        counters.messages += messages
        counters.pairs += pairs
        counters.service_us += int(took_us)
        return int(took_us)

    def _failed(self, job: Job, error: Exception) -> None:
        if not isinstance(error, MoemeshError):
            log.error("layer %d failed; the router gets a FAULT", job.layer, exc_info=error)
        self._fault(job.connection, job.tag, error)

    def _result(self, job: Job, rows: Array, load: tuple[int, int]) -> None:
        self.counters.rows += len(job.counts)
        table, box = self._held[0], job.box

        def message() -> Packed:
            return _RESULT, [*job.tag[:TABLE], table, len(rows), *load], rows.data.cast("B")

        try:
            if box is None or rows.nbytes > FRAGMENT_BYTES:
                job.connection.send_body(*message())
            else:
                args = (_RESULT_LEAD, box.numbers, table, *load, rows.view(np.uint8).reshape(-1), self._head)
                job.connection.send_through(express.post_result, args, message)
        except MoemeshError:
            # The router has gone or does not read; it asks again when it is back.
            self.counters.undelivered += 1
        if box is not None:
            self._boxes.append(box)

    def _fault(self, connection: Connection, tag: Tag, error: Exception) -> None:
        self.counters.faults += 1
        wire = error_header(error)
        self._reply(connection, Kind.FAULT, fault_header(tag, wire["error"], wire["message"]))

    def _reply(
        self, connection: Connection, kind: Kind, header: list[Any], payload: memoryview = EMPTY
    ) -> None:
        try:
            connection.send_body(kind, header, payload)
        except MoemeshError:
            # The router has gone or does not read; it asks again when it is back.
            self.counters.undelivered += 1
