"""From a library to something that computes its experts."""

from __future__ import annotations

from cluster.compute.experts import ExpertCompute
from cluster.compute.threads import Workers
from cluster.expert.store import ExpertStore
from cluster.library.reader import Library
from cluster.types import ExpertId
from kernels import layout


def build_compute(library: Library, store: ExpertStore, workers: Workers) -> ExpertCompute:
    spec, rounds = library.spec, library.manifest.result_type == "bf16"
    return ExpertCompute(store, spec.experts, layout.pad(spec.expert_width, layout.GROUP), workers, rounds)


def all_experts(library: Library) -> list[ExpertId]:
    spec = library.spec
    return [ExpertId(layer, index) for layer in spec.sparse_layers for index in range(spec.experts)]
