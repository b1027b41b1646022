"""Many rows take another way through the kernels: the same bits as few rows, whatever the shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numeric import oracle
from numeric.test_experts import Pairs, activations, in_parts, run
from numeric.test_matmul import random_planes, run_int
from numeric.weights import INT4, INT8, pad, random_experts, random_matrix

from kernels import experts, jit, panels, prefill, quantise

F = np.float32
KINDS = {"int8": [INT8], "int4": [INT4], "mixed": [INT8, INT4, INT4], "pairs": [INT8, INT8, INT4, INT4, INT4]}
EDGES = [prefill.MANY - 1, prefill.MANY, prefill.MANY + 1, 31, 32, 33, 47, 48, 49, 64, 65, 100, 257]
FEW = prefill.MANY - 1
NOT_ROUNDED = np.zeros((0, 0), np.uint16)


def few_at_a_time(matrix, planes, scale):
    parts = [slice(i, i + FEW) for i in range(0, len(scale), FEW)]
    return np.concatenate([run_int(matrix, [p[s].copy() for p in planes], scale[s].copy()) for s in parts])


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("columns", "outputs"), [(64, 16), (100, 33), (2048, 48), (2112, 80), (4160, 96)])
def test_a_matrix_gives_the_same_bits_to_many_rows(rng, same_bits, planes, kinds, columns, outputs):
    """Odd numbers of blocks, a second strip of one group, a third of one: each against few rows at a time."""
    matrix = random_matrix(rng, outputs, columns, kinds)
    for rows in EDGES:
        a, scale = random_planes(rng, rows, matrix.width, planes)
        same_bits(run_int(matrix, a, scale), few_at_a_time(matrix, a, scale))


def test_rows_that_need_several_passes_over_the_weights(rng, same_bits):
    matrix = random_matrix(rng, 64, 8192, [INT4, INT8])
    for planes in (1, 2):
        a, scale = random_planes(rng, 300, matrix.width, planes)
        same_bits(run_int(matrix, a, scale), oracle.matmul_int(matrix, a, scale))


def test_4096_rows(rng, same_bits):
    matrix = random_matrix(rng, 32, 192, [INT4, INT8])
    a, scale = random_planes(rng, 4096, matrix.width, 2)
    same_bits(run_int(matrix, a, scale), oracle.matmul_int(matrix, a, scale))


@pytest.mark.parametrize("fill", ["top", "bottom"])
@pytest.mark.parametrize("kind", [INT8, INT4], ids=["int8", "int4"])
def test_many_rows_at_the_largest_magnitudes(rng, same_bits, kind, fill):
    """No int32 overflows at K = 131,072, whichever way its sum is cut."""
    matrix = random_matrix(rng, 32, 131_072, [kind], fill)
    signs = [np.full(matrix.width, 1), np.full(matrix.width, -1), rng.choice([-1, 1], matrix.width)]
    a = (127 * np.stack([signs[i % 3] for i in range(prefill.MANY + 2)])).astype(np.int8)
    scale = np.ones(len(a), F)
    for planes in ([a], [a, np.ascontiguousarray(a[::-1])]):
        same_bits(run_int(matrix, planes, scale), oracle.matmul_int(matrix, planes, scale))


@pytest.mark.parametrize("planes", [1, 2])
def test_any_split_of_blocks_gives_many_rows_the_same_outputs(rng, same_bits, planes):
    matrix = random_matrix(rng, 176, 128, KINDS["mixed"])
    a, scale = random_planes(rng, 40, 128, planes)
    whole = run_int(matrix, a, scale)
    for _ in range(10):
        out = np.full(whole.shape, np.nan, F)
        for begin, end in in_parts(matrix.blocks, rng.integers(0, matrix.blocks + 1, 3)):
            run_int(matrix, a, scale, begin, end, out)
        same_bits(out, whole)


def test_a_poisoned_row_stays_alone(rng, same_bits):
    matrix = random_matrix(rng, 48, 128, [INT8])
    a, scale = random_planes(rng, 40, 128, 2)
    whole = run_int(matrix, a, scale)
    scale[7] = np.nan
    out = run_int(matrix, a, scale)
    assert np.isnan(out[7]).all()
    same_bits(np.delete(out, 7, axis=0), np.delete(whole, 7, axis=0))


def groups_of(rng, sizes, rows):
    """Pairs whose expert i gets sizes[i] different rows, in random order of request."""
    expert = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([rng.permutation(rows)[:size] for size in sizes])
    shuffled = rng.permutation(len(expert))
    return Pairs(row[shuffled], expert[shuffled])


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("hidden", "width"), [(64, 64), (320, 192), (2112, 128)])
def test_groups_of_few_and_many_rows(rng, same_bits, kinds, hidden, width):
    """Each pair alone, a group of one, against groups on both sides of the threshold and of every tile."""
    weights = random_experts(rng, 7, hidden, width, kinds)
    for sizes in ([0, 1, 16, 15, 33, 0, 70], [90, 0, 0, 0, 0, 0, 1], [FEW, 17, 32, 48, 0, 31, 64]):
        pairs, x = groups_of(rng, sizes, 100), activations(rng, 100, hidden)
        whole = run(weights, x, pairs, hidden, width)
        for start in range(0, len(pairs), FEW):
            some = slice(start, start + FEW)
            part = Pairs(pairs.row_of_request[some], pairs.expert_of_request[some])
            same_bits(run(weights, x, part, hidden, width), whole[some])


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_any_split_gives_many_rows_the_same_outputs(rng, same_bits, kinds):
    weights, x = random_experts(rng, 3, 128, 128, kinds), activations(rng, 60, 128)
    pairs = groups_of(rng, [20, 5, 50], 60)
    whole = run(weights, x, pairs, 128, 128)
    for _ in range(10):
        split = run(weights, x, pairs, 128, 128, lambda items: in_parts(items, rng.integers(0, items + 1, 4)))
        same_bits(split, whole)


def in_one_call(weights, x, pairs, hidden, width, rounded):
    """What ffn_int makes of `run`'s arguments, in parts of two groups; `rounded` as it takes it."""
    count, fp = len(pairs), pad(width, 64)
    q, scale, sums = oracle.quantise_rows(x)
    planes = (np.zeros((count, fp), np.int8) for _ in range(2))
    sums_of = (np.zeros((count, fp // 64), np.int32) for _ in range(2))
    scratch = (np.full((count, fp), np.nan, F), *planes, *sums_of, np.zeros(count, F))
    out = np.full((count, pad(hidden, 64)), np.nan, F)
    blobs = (weights.blob, weights.base[pairs.experts], weights.down_offset)
    where = (pairs.group_start, pairs.row_of, q, sums, scale)
    for begin in range(0, len(pairs.experts), 2):
        end = min(begin + 2, len(pairs.experts))
        experts.ffn_int(*blobs, *where, *scratch, out, pairs.order, rounded, begin, end)
    return out


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("hidden", "width"), [(64, 64), (320, 192), (2112, 128), (128, 4160)])
def test_whole_groups_of_many_rows_give_the_same_bits(rng, same_bits, kinds, hidden, width):
    """Against the phases: every edge of a tile, odd numbers of steps, a zero row, and rows whose inner values
    are beyond float32."""
    weights = random_experts(rng, 7, hidden, width, kinds)
    for sizes in ([0, 1, 16, 15, 33, 0, 70], [90, 0, 0, 0, 0, 0, 1], [FEW, 17, 32, 48, 0, 31, 64]):
        pairs, x = groups_of(rng, sizes, 100), activations(rng, 100, hidden)
        x[3], x[5::9] = 0, F(3e38)
        phases = run(weights, x, pairs, hidden, width)
        assert not np.isfinite(phases).all()
        same_bits(in_one_call(weights, x, pairs, hidden, width, NOT_ROUNDED), phases)
        rounded, expected = (np.zeros(phases.shape, np.uint16) for _ in range(2))
        in_one_call(weights, x, pairs, hidden, width, rounded)
        quantise.round_bf16(phases, expected, np.arange(len(phases)), 0, len(phases))
        same_bits(rounded, expected)


def test_a_group_of_several_slabs(rng, same_bits):
    """Wider inside than a slab's planes may be, and more rows than a slab."""
    weights = random_experts(rng, 1, 4096, 8192, [INT4, INT8])
    pairs, x = groups_of(rng, [300], 300), activations(rng, 300, 4096)
    phases = run(weights, x, pairs, 4096, 8192)
    same_bits(in_one_call(weights, x, pairs, 4096, 8192, NOT_ROUNDED), phases)


@njit
def packed_rows(most, planes, width):
    """(most rows that a group of up to `most` packs at once, rows that scratch is made for)."""
    packed = 0
    for rows in range(1, most + 1):
        packed = max(packed, min(rows, panels.rows_at_once(rows, planes, width)))
    return packed, panels.most_at_once(most, planes, width)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("width", [64, 1024, 2048, 4096, 8192, 14336])
def test_scratch_holds_what_smaller_groups_pack(planes, width):
    """Of 300 and 520 rows the smaller goes in one pass, the larger in two of 260."""
    for most in (16, 47, 129, 241, 256, 497, 520, 1000):
        packed, held = packed_rows(most, planes, width)
        assert packed <= held <= most


def test_a_smaller_group_in_longer_passes(rng, same_bits):
    weights = random_experts(rng, 2, 4096, 64, [INT8])
    pairs, x = groups_of(rng, [256, 240], 256), activations(rng, 256, 4096)
    whole = run(weights, x, pairs, 4096, 64)
    same_bits(in_one_call(weights, x, pairs, 4096, 64, NOT_ROUNDED), whole)
    some = slice(300, 300 + FEW)
    part = Pairs(pairs.row_of_request[some], pairs.expert_of_request[some])
    same_bits(run(weights, x, part, 4096, 64), whole[some])


REFUSED = """
from kernels import amx_permission
amx_permission.request = lambda: False
from kernels import jit
assert jit.ISA == "avx512vnni", jit.ISA
from kernels.simd import multiply
print(multiply.multiply_2.__name__)
"""


@pytest.mark.skipif("amx" not in jit.supported_isas(), reason="this machine has no AMX to be refused")
def test_a_refused_permission_is_the_next_best_set():
    root = Path(__file__).parents[2]
    for wanted in ("", "amx"):
        environment = {**os.environ, "PYTHONPATH": str(root), jit.ISA_VARIABLE: wanted}
        run = subprocess.run(
            [sys.executable, "-c", REFUSED], env=environment, capture_output=True, text=True, cwd=root
        )
        assert run.returncode == 0, run.stderr
        assert "vector_multiply_2" in run.stdout
