"""A layer of OLMoE's experts in moemesh, in PyTorch (bfloat16) and in kt-kernel (AMX), side by side.

usage: python benchmarks/expert_engines.py --engines PYTHON [--threads 2] [--runs 15] [--json]

PYTHON has torch, and kt-kernel where the CPU has AMX: pip install torch kt-kernel. 64 experts, 8 for each
token, drawn anew for every call, so that weights come from memory; 1 and 512 tokens. Every run of ours is
followed by the same of theirs, and their ratio is taken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from worker import worker

from cluster.cli.kernelbench.shapes import OLMOE, Blobs, random_blobs
from cluster.cli.report import Report, Result, result
from cluster.compute.experts import ExpertCompute
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from kernels import layout, permute, quantise, warm

EXPERTS = 64
TOKENS = (1, 512)
OPPONENTS = (("torch-bf16", "int8"), ("kt-int8", "int8"), ("kt-int4", "int4"))
"""Engine, and the kind of our weights that it is compared with."""

SCRIPT = str(Path(__file__).with_name("experts_worker.py"))


class Resident:
    """The layer's experts, all in memory: an ExpertSource."""

    def __init__(self, blobs: Blobs) -> None:
        self.base, self.down_offset = blobs.data, blobs.down_offset
        self._offsets = np.arange(blobs.count, dtype=np.int64) * blobs.size

    def offsets(self, layer: int) -> np.ndarray:
        return self._offsets

    def batches(self, layer: int, indices: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        yield 0, len(indices), self._offsets[indices]


class Layer:
    """What a router and a node do for a layer's experts, without the wire between them."""

    def __init__(self, kind: str, workers: Workers) -> None:
        self._rng = np.random.default_rng(0)
        size = len(random_blobs(self._rng, kind, OLMOE, 1).data) // OLMOE.top_k
        source = Resident(random_blobs(self._rng, kind, OLMOE, EXPERTS * size))
        self._compute = ExpertCompute(source, EXPERTS, OLMOE.width, workers, round_results=True)
        self._workers, self._scratch = workers, Scratch()

    def seconds(self, tokens: int) -> float:
        rng, width, top_k = self._rng, OLMOE.hidden, OLMOE.top_k
        ids = np.stack([rng.permutation(EXPERTS)[:top_k] for _ in range(tokens)]).astype(np.int32)
        x, weights = (
            rng.standard_normal((tokens, width)).astype(np.float32),
            np.full((tokens, top_k), 1 / top_k, np.float32),
        )
        start = time.perf_counter()
        self._layer(x, ids, weights)
        return time.perf_counter() - start

    def _layer(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        tokens, top_k = ids.shape
        q = self._scratch.take("q", tokens, OLMOE.hidden, np.int8)
        scale = self._scratch.vector("scale", tokens, np.float32)
        sums = self._scratch.take("sums", tokens, OLMOE.hidden // layout.GROUP, np.int32)
        self._workers.run(quantise.quantise_rows, tokens, x, q, scale, sums)
        rows = self._compute.run(0, np.full(tokens, top_k, np.uint8), ids.ravel(), q, scale)
        index = np.arange(ids.size, dtype=np.int32).reshape(ids.shape)
        self._workers.run(permute.combine, tokens, x, rows, index, weights, x[:0])


def compare(engine: str, kind: str, options: argparse.Namespace) -> list[Result]:
    workers, results = Workers(options.threads), []
    layer = Layer(kind, workers)
    with worker(options.engines, SCRIPT, engine, options.threads) as theirs:
        print(theirs.greeting, file=sys.stderr)
        for tokens in TOKENS:
            layer.seconds(tokens)
            theirs.seconds("layer", tokens)
            pairs = [(layer.seconds(tokens), theirs.seconds("layer", tokens)) for _ in range(options.runs)]
            name = f"expert_engines.{engine}.tokens{tokens}"
            results += [
                result(f"{name}.ratio", [b / a for a, b in pairs], "ratio"),
                result(f"{name}.ours_{kind}", [a * 1e3 for a, _ in pairs], "ms"),
                result(f"{name}.theirs", [b * 1e3 for _, b in pairs], "ms"),
            ]
    workers.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engines", required=True, help="Python that has torch and kt-kernel")
    parser.add_argument("--only", choices=[engine for engine, _ in OPPONENTS], help="one of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warm.compile_all()
    report = Report("full")
    for engine, kind in OPPONENTS:
        if options.only in (None, engine):
            report.results += compare(engine, kind, options)
    report.show(options.json)


if __name__ == "__main__":
    main()
