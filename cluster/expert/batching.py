"""Messages that wait on a node, and how several become one call of the kernels."""

from __future__ import annotations

from collections import deque

import numpy as np

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.messages import LAYER, Tag
from cluster.dispatch.transport import Array, WireShape
from cluster.errors import ProtocolError


class Job:
    """One DISPATCH: counts [R] uint8, experts [P] int32, rows [R, Hp] int8 | float32, scales [R] | [0]."""

    __slots__ = ("connection", "counts", "experts", "layer", "rows", "scales", "tag")

    def __init__(
        self, connection: Connection, tag: Tag, counts: Array, experts: Array, rows: Array, scales: Array
    ) -> None:
        self.connection = connection
        self.tag = tag
        self.layer = tag[LAYER]
        self.counts = counts
        self.experts = experts
        self.rows = rows
        self.scales = scales


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
        chosen = np.frombuffer(experts, shape.expert_dtype, pairs).astype(np.int32)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a DISPATCH header that does not say what it carries: {error}") from error
    return Job(connection, tag, np.frombuffer(counts, np.uint8), chosen, *_rows(payload, rows, shape))


def _rows(payload: memoryview, rows: int, shape: WireShape) -> tuple[Array, Array]:
    """Views of the payload: rows and their scales."""
    hidden = shape.hidden
    if shape.float_rows:
        return np.ndarray((rows, hidden), np.float32, payload), np.empty(0, np.float32)
    return (
        np.ndarray((rows, hidden), np.int8, payload),
        np.ndarray((rows,), np.float32, payload, rows * hidden),
    )


def take(waiting: deque[Job], max_rows: int) -> list[Job]:
    """Remove and return the oldest job and others of its layer, in order, up to `max_rows` together.

    The oldest is taken whatever its size. Jobs whose router has gone are dropped on the way.
    """
    batch: list[Job] = []
    rows = 0
    for _ in range(len(waiting)):
        job = waiting.popleft()
        if job.connection.closed:
            continue
        if not batch or (job.layer == batch[0].layer and rows + len(job.counts) <= max_rows):
            batch.append(job)
            rows += len(job.counts)
        else:
            waiting.append(job)
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
