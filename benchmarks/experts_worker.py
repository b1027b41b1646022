"""The other side of benchmarks/expert_engines.py: a layer of experts in PyTorch or in kt-kernel.

Runs in an environment of its own with torch (and kt-kernel); imports nothing of moemesh.
usage: python -P experts_worker.py ENGINE THREADS     ENGINE: torch-bf16, kt-int8 or kt-int4

It answers each line of stdin, `layer N`, with the seconds that N tokens through OLMoE's layer of 64 experts
took, each token through 8 of them, drawn anew.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch

EXPERTS, TOP_K, HIDDEN, WIDTH = 64, 8, 2048, 1024
MOST_TOKENS = 512


def random_weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate and up [experts, width, hidden], down [experts, hidden, width], bfloat16."""
    torch.manual_seed(0)
    sizes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    gate, up, down = ((torch.randn(EXPERTS, *size) * 0.02).bfloat16() for size in sizes)
    return gate, up, down


class Torch:
    """bfloat16 linear layers, one expert after the other, as transformers runs them."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.gate, self.up, self.down = random_weights()

    def layer(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out, linear = torch.zeros_like(x), torch.nn.functional.linear
        for expert in ids.unique().tolist():
            rows, ranks = torch.where(ids == expert)
            h = x[rows]
            inner = torch.nn.functional.silu(linear(h, self.gate[expert])) * linear(h, self.up[expert])
            y = linear(inner, self.down[expert]) * weights[rows, ranks, None]
            out.index_add_(0, rows, y.to(out.dtype))
        return out


class KtKernel:
    """kt-kernel's own objects, below the wrapper that wants a checkpoint and a GPU."""

    def __init__(self, kernel: str, threads: int) -> None:
        from kt_kernel import kt_kernel_ext as kt

        pool = kt.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
        self._cpu = kt.CPUInfer(pool)
        gate, up, down = random_weights()
        on_gpu, places = torch.zeros(EXPERTS, dtype=torch.bool), torch.arange(EXPERTS)
        config = kt.moe.MOEConfig(EXPERTS, TOP_K, HIDDEN, WIDTH, on_gpu.data_ptr())
        config.pool, config.max_len = self._cpu.backend_, MOST_TOKENS
        config.gate_proj, config.up_proj = gate.data_ptr(), up.data_ptr()
        config.down_proj = down.data_ptr()
        self._kept = (on_gpu, places)  # it has their addresses
        self._moe: Any = getattr(kt.moe, kernel)(config)
        self._wait(self._moe.load_weights_task(places.data_ptr()))
        self._wait(self._moe.warm_up_task())

    def layer(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out, count = torch.empty_like(x), torch.tensor([len(x)], dtype=torch.int32)
        arrays = [t.data_ptr() for t in (ids, weights, x, out)]
        self._wait(self._moe.forward_task(count.data_ptr(), TOP_K, *arrays, False))
        return out

    def _wait(self, task: Any) -> None:
        self._cpu.submit(task)
        self._cpu.sync()


ENGINES = {
    "torch-bf16": Torch,
    "kt-int8": lambda threads: KtKernel("AMXInt8_MOE", threads),
    "kt-int4": lambda threads: KtKernel("AMXInt4_MOE", threads),
}


def seconds(engine: Torch | KtKernel, tokens: int) -> float:
    ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)])
    x, weights = torch.randn(tokens, HIDDEN).bfloat16(), torch.full((tokens, TOP_K), 1 / TOP_K)
    start = time.perf_counter()
    engine.layer(x, ids, weights)
    return time.perf_counter() - start


def main() -> None:
    # kt-kernel writes to stdout from C++: what is ours goes to the pipe, all else to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = ENGINES[sys.argv[1]](int(sys.argv[2]))
    print(f"{sys.argv[1]}, torch {torch.__version__}", file=answers)
    with torch.inference_mode():
        for line in sys.stdin:
            print(seconds(engine, int(line.split()[1])), file=answers)
    answers.close()
    os._exit(0)  # kt-kernel's threads never end


if __name__ == "__main__":
    main()
