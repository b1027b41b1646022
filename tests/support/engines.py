"""Engines over tiny libraries, here or over real sockets, and a probe that remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from cluster.balance.placement import PlacementTable
from cluster.compute.threads import Workers
from cluster.compute.trunk import Trunk
from cluster.config import EngineConfig
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.handshake import Identity
from cluster.dispatch.transport import ExpertTransport
from cluster.expert.build import all_experts, build_compute
from cluster.expert.local import LocalExperts
from cluster.expert.node import ExpertNode
from cluster.expert.store import ExpertStore
from cluster.fleet.roles.wire import wire_shape
from cluster.library.grammars import grammars_of
from cluster.library.pack import pack
from cluster.library.reader import Library
from cluster.library.weights import trunk_weights
from cluster.model.spec import ModelSpec
from cluster.router.engine import Engine
from cluster.router.sequence import Batch
from cluster.types import (
    Alternatives,
    Embedded,
    Emitted,
    EngineRequest,
    Failed,
    Finished,
    NodeId,
    RequestId,
    SamplingParams,
    Scored,
)
from support.checkpoints import case


def tiny_library(
    folder: Path, name: str, experts: Sequence[str] = ("int8",), trunk: str | None = None
) -> Library:
    """The named tiny checkpoint, packed."""
    checkpoint = case(name).write(folder)
    out = folder / f"{name}-{'-'.join(experts)}"
    pack(checkpoint, out, experts=experts, trunk=trunk)
    return Library.open(out)


class Trace:
    """What an engine computed, by request: logits by position, gate choices by (layer, position)."""

    def __init__(self) -> None:
        self.seen: dict[RequestId, dict[int, np.ndarray]] = {}
        self.choices: dict[RequestId, dict[tuple[int, int], tuple[int, ...]]] = {}

    def gate(self, layer: int, batch: Batch, ids: np.ndarray, weights: np.ndarray) -> None:
        row = 0
        for piece in batch.pieces:
            found = self.choices.setdefault(piece.sequence.id, {})
            for position in range(piece.begin, piece.begin + piece.count):
                found[layer, position] = tuple(ids[row].tolist())
                row += 1

    def logits(self, request_id: RequestId, position: int, logits: np.ndarray) -> None:
        self.seen.setdefault(request_id, {})[position] = logits.copy()

    def matrix(self, request_id: str) -> np.ndarray:
        """[tokens, vocab], by position."""
        rows = self.seen[RequestId(request_id)]
        return np.stack([rows[position] for position in sorted(rows)])


@dataclasses.dataclass
class Answer:
    """What became of a request."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[Alternatives] = dataclasses.field(default_factory=list)
    reason: str = ""
    scores: np.ndarray | None = None
    embedding: np.ndarray | None = None
    error: Exception | None = None


def run_all(engine: Engine, requests: Iterable[EngineRequest]) -> dict[str, Answer]:
    """Submit all, step until idle."""
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.submit(request)
        answers[request.request_id] = Answer()
    while not engine.idle:
        for event in engine.step():
            answer = answers[event.request_id]
            match event:
                case Emitted():
                    answer.tokens.append(event.token_id)
                    answer.logprobs.append(event.logprob)
                    answer.alternatives.append(event.alternatives)
                case Finished():
                    answer.reason = event.reason
                case Scored():
                    answer.scores = event.logprobs
                    answer.alternatives = list(event.alternatives)
                case Embedded():
                    answer.embedding = event.values
                case Failed():
                    answer.error = event.error
    return answers


def request(
    name: str, prompt: Sequence[int], tokens: int = 8, kind: str = "generate", **sampling: object
) -> EngineRequest:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return EngineRequest(RequestId(name), tuple(prompt), params, kind)  # type: ignore[arg-type]


@contextmanager
def engine_over(
    library: Library,
    config: EngineConfig,
    *,
    variant: str = "",
    nodes: int = 0,
    table: PlacementTable | None = None,
    spec: ModelSpec | None = None,
    probe: Trace | None = None,
    memory_bytes: int = 0,
    transport: ExpertTransport | None = None,
) -> Iterator[Engine]:
    """transport: None for experts in this process, or on `nodes` nodes with real sockets, placed by `table`
    or in turn. spec: in place of the library's, for mutations."""
    with ExitStack() as stack:
        workers = Workers(config.threads)
        stack.callback(workers.close)
        if transport is None:
            transport = stack.enter_context(
                remote_experts(library, variant, nodes, table, memory_bytes, config.threads)
                if nodes
                else local_experts(library, variant, workers, memory_bytes)
            )
        floating = library.variant(variant).floating
        trunk = Trunk(spec or library.spec, trunk_weights(library), workers, floating)
        yield Engine(trunk, transport, config, probe, grammars_of(library), library.digest)


@contextmanager
def local_experts(
    library: Library, variant: str, workers: Workers, memory_bytes: int
) -> Iterator[ExpertTransport]:
    store = ExpertStore(library, variant, all_experts(library), memory_bytes)
    try:
        yield LocalExperts(build_compute(library, store, workers))
    finally:
        store.close()


def placement(library: Library, nodes: int) -> PlacementTable:
    spec = library.spec
    names = tuple(NodeId(f"node-{i}") for i in range(nodes))
    replicas = tuple(
        () if spec.dense_widths[layer] else tuple(((layer + e) % nodes,) for e in range(spec.experts))
        for layer in range(spec.layers)
    )
    return PlacementTable(1, 1, names, replicas)


@contextmanager
def remote_experts(
    library: Library, variant: str, nodes: int, table: PlacementTable | None, memory_bytes: int, threads: int
) -> Iterator[ExpertTransport]:
    table = table or placement(library, nodes)
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_node(library, variant, table, name, memory_bytes, threads))
            for name in table.nodes
        }
        exchange = connect(library, variant, table, addresses)
        stack.callback(exchange.close)
        yield exchange


def connect(
    library: Library,
    variant: str,
    table: PlacementTable,
    addresses: dict[NodeId, str],
    name: str = "router-0",
) -> Exchange:
    identity = Identity("router", name, 1, library.digest)
    exchange = Exchange(identity, wire_shape(library, variant), table, addresses)
    exchange.connect(10.0)
    return exchange


@contextmanager
def running_node(
    library: Library, variant: str, table: PlacementTable, name: NodeId, memory_bytes: int, threads: int
) -> Iterator[str]:
    """A real expert node of this process on a real port, holding its part of the table."""
    experts = table.experts_of(name)
    store = ExpertStore(library, variant, experts, memory_bytes)
    workers = Workers(threads)
    compute = build_compute(library, store, workers)
    node = ExpertNode(compute, wire_shape(library, variant), node_id=name, library=library.digest)
    address = node.start()
    node.hold(table.version, experts)
    try:
        yield address
    finally:
        node.shutdown()
        workers.close()
        store.close()
