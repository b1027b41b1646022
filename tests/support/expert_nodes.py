"""Expert nodes for tests of the dispatch; their compute is a pure function of the payload, no kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.placement import PlacementTable, round_robin
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.handshake import Identity
from cluster.dispatch.transport import ExpertCall, ExpertRows, WireShape
from cluster.expert.node import ExpertNode
from cluster.types import NodeId

Array = npt.NDArray[Any]

LIBRARY = "5eed" * 16
SHAPE = WireShape(layers=3, experts=32, top_k=4, hidden=256)
FLOATS = WireShape(layers=3, experts=32, top_k=4, hidden=256, float_rows=True, float_results=True)


class FakeCompute:
    """Mixes layer, expert, row and scale into every result, so that a row in the wrong place shows.

    calls: (layer, rows) of every call; before: called first, to block or to fail.
    """

    def __init__(self, shape: WireShape = SHAPE, before: Callable[[int, Array], None] | None = None) -> None:
        self.shape = shape
        self.calls: list[tuple[int, int]] = []
        self.before = before

    def run(self, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
        self.calls.append((layer, len(counts)))
        if self.before is not None:
            self.before(layer, experts)
        return mixed(self.shape, layer, counts, experts, rows, scales)


def mixed(shape: WireShape, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
    assert rows.shape == (len(counts), shape.hidden)
    assert experts.dtype == np.int32
    bits = rows.view(np.int32) if shape.float_rows else rows.astype(np.int32)
    if not shape.float_rows:
        bits = bits + scales.view(np.int32)[:, None]
    words = np.repeat(bits, counts, axis=0) * 31 + experts[:, None] * 7919 + layer * 104729
    words += np.arange(shape.hidden, dtype=np.int32)
    low = words & 0xFFFF
    return low.astype(np.float32 if shape.float_results else np.uint16)


def expected(shape: WireShape, call: ExpertCall) -> Array:
    """[T, k, Hp] what the experts of `call` answer."""
    tokens, k = call.ids.shape
    counts = np.full(tokens, k, np.uint8)
    flat = mixed(shape, call.layer, counts, call.ids.reshape(-1), call.rows, call.scales)
    return flat.reshape(tokens, k, shape.hidden)


def check(shape: WireShape, call: ExpertCall, rows: ExpertRows) -> None:
    np.testing.assert_array_equal(rows.rows[rows.index], expected(shape, call))


def make_call(
    tokens: int,
    *,
    step: int = 0,
    layer: int = 0,
    micro_batch: int = 0,
    shape: WireShape = SHAPE,
    seed: int = 0,
) -> ExpertCall:
    rng = np.random.default_rng([seed, step, layer, micro_batch])
    ids = np.argsort(rng.random((tokens, shape.experts)), axis=1)[:, : shape.top_k].astype(np.int32)
    rows = rng.integers(-127, 128, (tokens, shape.hidden)).astype(np.int8)
    scales = rng.random(tokens).astype(np.float32)
    if shape.float_rows:
        rows, scales = rows.astype(np.float32), np.empty(0, np.float32)  # type: ignore[assignment]
    return ExpertCall(step, layer, micro_batch, np.ascontiguousarray(ids), rows, scales)


def router(number: int = 1, **fields: Any) -> Identity:
    return Identity("router", f"r{number}", incarnation=number, library=LIBRARY, **fields)


class Nodes:
    """Expert nodes in threads of this process, with a placement over them."""

    def __init__(self, count: int, shape: WireShape = SHAPE, **options: Any) -> None:
        self.shape = shape
        self.options = options
        self.names = [NodeId(f"n{number}") for number in range(count)]
        self.table: PlacementTable = round_robin(shape.layers, shape.experts, self.names)
        self.computes = {name: FakeCompute(shape) for name in self.names}
        self.nodes: dict[NodeId, ExpertNode] = {}
        self.addresses: dict[NodeId, str] = {}
        for name in self.names:
            self.start(name)

    def start(self, name: NodeId, port: int = 0, hold: bool = True) -> ExpertNode:
        """Start (again): a new process would have a new incarnation, and so has this."""
        node = ExpertNode(
            self.computes[name], self.shape, node_id=name, library=LIBRARY, port=port, **self.options
        )
        if hold:
            node.hold(self.table.version, self.table.experts_of(name))
        self.addresses[name] = node.start()
        self.nodes[name] = node
        return node

    def exchange(self, number: int = 1, **options: Any) -> Exchange:
        return Exchange(router(number), self.shape, self.table, self.addresses, **options)

    def shutdown(self) -> None:
        for node in self.nodes.values():
            node.shutdown()


@contextmanager
def running(count: int = 3, shape: WireShape = SHAPE, **options: Any) -> Iterator[Nodes]:
    nodes = Nodes(count, shape, **options)
    try:
        yield nodes
    finally:
        nodes.shutdown()


@contextmanager
def connected(nodes: Nodes, number: int = 1, **options: Any) -> Iterator[Exchange]:
    exchange = nodes.exchange(number, **options)
    try:
        exchange.connect(10.0)
        yield exchange
    finally:
        exchange.close()


class Gate:
    """A compute that waits at `before` until it is opened; `reached` tells that it waits."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, layer: int, experts: Array) -> None:
        self.reached.set()
        assert self.opened.wait(30.0), "nobody opened the gate"


def round_trip(exchange: Exchange, call: ExpertCall, shape: WireShape = SHAPE) -> None:
    exchange.send(call)
    check(shape, call, exchange.wait(call.step, call.layer, call.micro_batch))
