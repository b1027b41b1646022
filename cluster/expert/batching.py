"""Messages that wait on a node, and how several become one call of the kernels."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy import ndarray

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.messages import LAYER, Tag
from cluster.dispatch.transport import Array, WireShape
from cluster.errors import ProtocolError
from kernels import wire

BOX_BYTES = 64 << 10
"""Rows that a box has room for, in bytes on the wire; larger messages are decoded the general way."""

_UINT8, _INT8, _INT32, _FLOAT = map(np.dtype, (np.uint8, np.int8, np.int32, np.float32))


class Job:
    """One DISPATCH: counts [R] uint8, experts [P] int32, rows [R, Hp] int8 | float32, scales [R] | [0].

    box: what its arrays are parts of, if that can be used again.
    """

    __slots__ = ("box", "connection", "counts", "experts", "layer", "rows", "scales", "tag")

    def __init__(
        self,
        connection: Connection,
        tag: Tag,
        counts: Array,
        experts: Array,
        rows: Array,
        scales: Array,
        box: Box | None = None,
    ) -> None:
        self.connection = connection
        self.tag = tag
        self.layer = tag[LAYER]
        self.counts = counts
        self.experts = experts
        self.rows = rows
        self.scales = scales
        self.box = box


class Box:
    """Arrays for one small DISPATCH, as kernels/express.py fills them: `arrays` in the order of its call."""

    __slots__ = ("arrays", "counts", "experts", "numbers", "rows", "scales")

    def __init__(self, shape: WireShape) -> None:
        rows = max(1, BOX_BYTES // shape.row_bytes)
        self.numbers = np.zeros(wire.TAG + 3, np.int64)
        self.counts = np.zeros(rows, np.uint8)
        self.experts = np.zeros(rows * shape.top_k, np.int32)
        self.rows = np.zeros((rows, shape.hidden), np.int8)
        self.scales = np.zeros(rows, np.float32)
        self.arrays = self.numbers, self.counts, self.experts, self.rows, self.scales

    def job(self, connection: Connection, rows: int) -> Job:
        numbers = self.numbers.tolist()
        return Job(
            connection,
            numbers[: wire.TAG],
            self.counts[:rows],
            self.experts[: numbers[wire.TAG + 1]],
            self.rows[:rows],
            self.scales[:rows],
            self,
        )


def parse(connection: Connection, frame: Frame, tag: Tag, shape: WireShape) -> Job:
    """Check a DISPATCH against the library's shape. Raises ProtocolError, saying what does not fit."""
    payload = frame.payload
    try:
        rows, counts, experts = frame.header[7:10]
        pairs = len(experts) // shape.expert_bytes
        if not 0 <= tag[LAYER] < shape.layers:
            raise ProtocolError(f"layer {tag[LAYER]} of a model with {shape.layers} layers")
        if rows == 0 or len(counts) != rows or sum(counts) != pairs or 0 in counts:
            raise ProtocolError(f"{rows} rows, {len(counts)} counts and {pairs} experts do not add up")
        if len(payload) != rows * shape.row_bytes:
            raise ProtocolError(
                f"{len(payload)} bytes for {rows} rows of {shape.row_bytes}; is the library the same?"
            )
        chosen = ndarray((pairs,), shape.expert_dtype, experts).astype(_INT32)
        many = ndarray((rows,), _UINT8, counts)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a DISPATCH header that does not say what it carries: {error}") from error
    hidden = shape.hidden
    if shape.float_rows:
        data, scales = ndarray((rows, hidden), _FLOAT, payload), np.empty(0, _FLOAT)
    else:
        data, scales = (
            ndarray((rows, hidden), _INT8, payload),
            ndarray((rows,), _FLOAT, payload, rows * hidden),
        )
    return Job(connection, tag, many, chosen, data, scales)


class Waiting:
    """Jobs in the order of their arrival. rows, pairs: over all of them. Not thread-safe."""

    __slots__ = ("_jobs", "pairs", "rows")

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self.rows = 0
        self.pairs = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        self.rows += len(job.counts)
        self.pairs += len(job.experts)

    def take(self, max_rows: int) -> list[Job]:
        """Remove and return the oldest job and others of its layer, in order, up to `max_rows` together.

        The oldest is taken whatever its size. Jobs whose router has gone are dropped on the way.
        """
        jobs = self._jobs
        if len(jobs) == 1:  # nearly always
            job = jobs.popleft()
            self.rows = self.pairs = 0
            return [] if job.connection.closed else [job]
        batch: list[Job] = []
        rows = 0
        for _ in range(len(jobs)):
            job = jobs.popleft()
            size = len(job.counts)
            if batch and (job.layer != batch[0].layer or rows + size > max_rows):
                jobs.append(job)
                continue
            self.rows -= size
            self.pairs -= len(job.experts)
            if not job.connection.closed:
                batch.append(job)
                rows += size
        return batch


def merge(batch: list[Job]) -> tuple[Array, Array, Array, Array]:
    """(counts, experts, rows, scales) of all jobs, one after the other."""
    if len(batch) == 1:
        job = batch[0]
        return job.counts, job.experts, job.rows, job.scales
    return (
        np.concatenate([job.counts for job in batch]),
        np.concatenate([job.experts for job in batch]),
        np.concatenate([job.rows for job in batch]),
        np.concatenate([job.scales for job in batch]),
    )
