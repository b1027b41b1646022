"""A whole model in this process: the engine without sockets and without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cluster.compute.threads import Workers
from cluster.config import EngineConfig
from cluster.errors import MoemeshError
from cluster.expert.build import all_experts, build_compute
from cluster.expert.local import LocalExperts
from cluster.expert.store import ExpertStore
from cluster.library.bundled import open_model
from cluster.library.grammars import grammars_of
from cluster.library.reader import Library
from cluster.router.build import build_trunk
from cluster.router.engine import Engine
from cluster.router.readout import Probe
from cluster.types import Embedded, EngineRequest, Event, Failed, RequestId, Scored
from kernels import warm


@contextmanager
def local_engine(
    model: str | Library = "",
    variant: str = "",
    config: EngineConfig | None = None,
    memory_bytes: int = 0,
    probe: Probe | None = None,
) -> Iterator[Engine]:
    """An engine whose experts live in this process, at most `memory_bytes` of them at a time (0: all).

    Every kernel is compiled, or loaded from the cache, before it returns: the first time that takes minutes.
    Raises LibraryError, CorruptBlob, OutOfMemoryBudget.
    """
    config = config or EngineConfig()
    library = model if isinstance(model, Library) else open_model(model)
    warm.compile_all()
    workers = Workers(config.threads)
    store = ExpertStore(library, variant, all_experts(library), memory_bytes)
    try:
        compute = build_compute(library, store, workers)
        trunk = build_trunk(library, variant, workers)
        yield Engine(trunk, LocalExperts(compute), config, probe, grammars_of(library), library.digest)
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
    return _values(engine, EngineRequest(RequestId("score"), ids, kind="score"))


def embed(engine: Engine, ids: tuple[int, ...]) -> np.ndarray:
    """[hidden] float32, the mean of the final norm's rows. Raises the error that ended the request."""
    return _values(engine, EngineRequest(RequestId("embed"), ids, kind="embed"))


def _values(engine: Engine, request: EngineRequest) -> np.ndarray:
    for event in run(engine, request):
        match event:
            case Scored():
                return event.logprobs
            case Embedded():
                return event.values
            case Failed():
                raise event.error
    raise MoemeshError("the engine ended without an answer")
