"""A whole model in this process: the engine without sockets and without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import numpy as np

from cluster.compute.experts import ExpertCompute
from cluster.compute.threads import Workers
from cluster.compute.trunk import Trunk
from cluster.config import EngineConfig
from cluster.errors import MoemeshError
from cluster.expert.local import LocalExperts
from cluster.expert.store import ExpertStore
from cluster.library.format import FLOAT_KINDS
from cluster.library.reader import Library
from cluster.library.weights import trunk_weights
from cluster.router.engine import Engine, Probe
from cluster.types import EngineRequest, Event, ExpertId, Failed, RequestId, Scored

BUNDLED = "reference-int8"


def open_model(model: str = "") -> Library:
    """A library by its folder; "" is the one that comes with the package. Raises LibraryError."""
    if model:
        return Library.open(model)
    return Library.open(str(resources.files("cluster.library") / "data" / BUNDLED))


def build_trunk(library: Library, variant: str, workers: Workers) -> Trunk:
    float_rows = library.variant(variant).kind in FLOAT_KINDS
    return Trunk(library.spec, trunk_weights(library), workers, float_rows)


def all_experts(library: Library) -> list[ExpertId]:
    spec = library.spec
    return [ExpertId(layer, index) for layer in spec.sparse_layers for index in range(spec.experts)]


@contextmanager
def local_engine(
    model: str | Library = "",
    variant: str = "",
    config: EngineConfig | None = None,
    memory_bytes: int = 0,
    probe: Probe | None = None,
) -> Iterator[Engine]:
    """An engine whose experts live in this process, at most `memory_bytes` of them at a time (0: all).

    Raises LibraryError, CorruptBlob, OutOfMemoryBudget.
    """
    config = config or EngineConfig()
    library = model if isinstance(model, Library) else open_model(model)
    workers = Workers(config.threads)
    store = ExpertStore(library, variant, all_experts(library), memory_bytes)
    try:
        rounds = library.manifest.result_type == "bf16"
        compute = ExpertCompute(store, library.spec.experts, workers, rounds)
        yield Engine(build_trunk(library, variant, workers), LocalExperts(compute), config, probe)
    finally:
        workers.close()
        store.close()


def run(engine: Engine, *requests: EngineRequest) -> Iterator[Event]:
    """Submit and step until all is done."""
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        yield from engine.step()


def score(engine: Engine, ids: tuple[int, ...]) -> np.ndarray:
    """[len(ids) - 1] float32 natural-log probabilities. Raises the error that ended the request."""
    for event in run(engine, EngineRequest(RequestId("score"), ids, kind="score")):
        match event:
            case Scored():
                return event.logprobs
            case Failed():
                raise event.error
    raise MoemeshError("the engine ended without an answer")
