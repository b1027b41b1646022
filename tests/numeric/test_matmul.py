"""Trunk matrices: kernels against their numpy twins, byte for byte, alone and in any company."""

from __future__ import annotations

import numpy as np
import pytest
from numeric import oracle
from numeric.weights import BF16, F32, INT4, INT8, Matrix, random_matrix

from kernels import layout, matmul, quantise

F = np.float32
LEAD = 128
"""Bytes before the matrix: kernels must honour `base`."""


def packed(matrix: Matrix):
    return np.concatenate([np.full(LEAD, 0xA5, np.uint8), matrix.blob])


def run_int(matrix, planes, scale, begin=0, end=None, out=None):
    hi, lo = planes[0], planes[-1]
    if out is None:
        out = np.full((len(hi), matrix.blocks * 16), np.nan, F)
    end = matrix.blocks if end is None else end
    sums = [oracle.sums64(plane) for plane in (hi, lo)]
    matmul.matmul_int(packed(matrix), LEAD, hi, lo, *sums, scale, len(planes), out, begin, end)
    return out


def run_float(matrix, x, begin=0, end=None, out=None):
    if out is None:
        out = np.full((len(x), matrix.blocks * 16), np.nan, F)
    matmul.matmul_float(packed(matrix), LEAD, x, out, begin, matrix.blocks if end is None else end)
    return out


def random_planes(rng, rows, width, planes):
    x = rng.standard_normal((rows, width)).astype(F)
    if planes == 1:
        q, scale, _ = oracle.quantise_rows(x)
        return [q], scale
    hi, lo, scale, _, _ = oracle.quantise_planes(x)
    return [hi, lo], scale


SHAPES = [(64, 16), (64, 5), (100, 33), (256, 48), (320, 130), (2048, 80)]
ROWS = [0, 1, 2, 3, 4, 5, 64, 65]
KINDS = {"int8": [INT8], "int4": [INT4], "mixed": [INT8, INT4, INT4, INT8, INT8]}


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("columns", "outputs"), SHAPES)
def test_integers_are_their_twin(rng, same_bits, planes, kinds, columns, outputs):
    matrix = random_matrix(rng, outputs, columns, kinds)
    for rows in ROWS:
        a, scale = random_planes(rng, rows, matrix.width, planes)
        same_bits(run_int(matrix, a, scale), oracle.matmul_int(matrix, a, scale))


@pytest.mark.parametrize("kinds", [[F32], [BF16], [BF16, F32]], ids=["f32", "bf16", "mixed"])
@pytest.mark.parametrize(("columns", "outputs"), SHAPES[:5])
def test_floats_are_their_twin(rng, same_bits, kinds, columns, outputs):
    matrix = random_matrix(rng, outputs, columns, kinds)
    for rows in ROWS:
        x = rng.standard_normal((rows, matrix.width)).astype(F)
        same_bits(run_float(matrix, x), oracle.matmul_float(matrix, x))


def test_float_chain_on_denormals_and_spikes(rng, same_bits):
    matrix = random_matrix(rng, 16, 64, [F32])
    x = rng.standard_normal((4, 64)).astype(F)
    x[0] *= F(1e-42)
    x[1] = 0
    x[2, 7] = 1e30
    x[3] = -0.0
    same_bits(run_float(matrix, x), oracle.matmul_float(matrix, x))


@pytest.mark.parametrize("fill", ["top", "bottom"])
@pytest.mark.parametrize("kind", [INT8, INT4], ids=["int8", "int4"])
def test_widest_matrix_at_its_largest_magnitudes(rng, same_bits, kind, fill):
    """No int32 overflows at K = 131,072 with every weight and every activation at its limit."""
    matrix = random_matrix(rng, 32, 131_072, [kind], fill)
    signs = [np.full(matrix.width, 1), np.full(matrix.width, -1), rng.choice([-1, 1], matrix.width)]
    a = (127 * np.stack([signs[i % 3] for i in range(6)])).astype(np.int8)
    scale = np.ones(6, F)
    for planes in ([a], [a, np.ascontiguousarray(a[::-1])]):
        same_bits(run_int(matrix, planes, scale), oracle.matmul_int(matrix, planes, scale))
    largest = np.abs(oracle.integers(matrix, a)).max()
    assert largest == 131_072 * 127 * int(np.abs(matrix.levels).max())


def test_zero_rows_and_one_spike(rng, same_bits):
    matrix = random_matrix(rng, 48, 192, [INT8, INT4])
    x = rng.standard_normal((6, 192)).astype(F)
    x[1] = 0
    x[2, 100] *= 1000
    x[3] *= F(1e-20)
    hi, lo, scale, _, _ = oracle.quantise_planes(x)
    out = run_int(matrix, [hi, lo], scale)
    same_bits(out, oracle.matmul_int(matrix, [hi, lo], scale))
    assert not out[1].any()


@pytest.mark.parametrize("planes", [1, 2])
def test_a_row_does_not_depend_on_its_batch(rng, same_bits, planes):
    matrix = random_matrix(rng, 80, 256, KINDS["mixed"])
    a, scale = random_planes(rng, 11, 256, planes)
    whole = run_int(matrix, a, scale)
    for row in range(11):
        alone = run_int(matrix, [plane[row : row + 1] for plane in a], scale[row : row + 1])
        same_bits(alone[0], whole[row])


def test_a_float_row_does_not_depend_on_its_batch(rng, same_bits):
    matrix = random_matrix(rng, 48, 128, [F32, BF16])
    x = rng.standard_normal((7, 128)).astype(F)
    whole = run_float(matrix, x)
    for row in range(7):
        same_bits(run_float(matrix, x[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("planes", [1, 2])
def test_any_split_of_blocks_gives_the_same_outputs(rng, same_bits, planes):
    matrix = random_matrix(rng, 112, 128, KINDS["mixed"])
    a, scale = random_planes(rng, 5, 128, planes)
    whole = run_int(matrix, a, scale)
    for cut in range(matrix.blocks + 1):
        out = run_int(matrix, a, scale, 0, cut)
        assert np.isnan(out[:, cut * 16 :]).all()
        same_bits(run_int(matrix, a, scale, cut, matrix.blocks, out), whole)


def test_output_may_be_wider_than_the_matrix(rng, same_bits):
    matrix = random_matrix(rng, 32, 64, [INT8])
    a, scale = random_planes(rng, 3, 64, 1)
    out = run_int(matrix, a, scale, out=np.full((3, 48), 7, F))
    same_bits(np.ascontiguousarray(out[:, :32]), oracle.matmul_int(matrix, a, scale))
    assert (out[:, 32:] == 7).all()


@pytest.mark.parametrize("kind", [INT8, INT4, BF16, F32], ids=["int8", "int4", "bf16", "f32"])
def test_embedding_rows(rng, same_bits, kind):
    matrix = random_matrix(rng, 37, 320, [kind])
    ids = np.array([0, 36, 15, 16, 16, 31, 1], np.int32)
    out = np.full((len(ids), 320), np.nan, F)
    matmul.embed_rows(packed(matrix), LEAD, 320, ids, out)
    same_bits(out, oracle.embed_rows(matrix, ids))


def test_add_rows_touches_its_range_only(rng, same_bits):
    x, y = rng.standard_normal((5, 64)).astype(F), rng.standard_normal((5, 64)).astype(F)
    expected = x.copy()
    expected[1:4] = x[1:4] + y[1:4]
    matmul.add_rows(x, y, 1, 4)
    same_bits(x, expected)


def test_test_writer_agrees_with_the_layout():
    """The numpy writer of these tests and kernels/layout.py count the same bytes."""
    rng = np.random.default_rng(3)
    for name, kind in layout.KINDS.items():
        for columns in (64, 100, 320, 2048):
            matrix = random_matrix(rng, 50, columns, [kind])
            assert matrix.blob.size == layout.matrix_bytes(kind, 4, matrix.width), name


def test_two_planes_are_far_closer_behind_a_spike(rng):
    """One ×100 spike: one plane loses the rest of the row, two planes do not (NUMERICS section 2)."""
    matrix = random_matrix(rng, 64, 256, [INT8])
    x = rng.standard_normal((8, 256)).astype(F)
    x[:, 0] = 100
    exact = x.astype(np.float64) @ (matrix.scales[:, None] * matrix.levels).T
    exact_rest = exact - 100.0 * (matrix.scales * matrix.levels[:, 0])
    errors = []
    for planes in (1, 2):
        if planes == 1:
            q, scale, _ = oracle.quantise_rows(x)
            out = run_int(matrix, [q], scale)
        else:
            hi, lo, scale, _, _ = oracle.quantise_planes(x)
            out = run_int(matrix, [hi, lo], scale)
        errors.append(np.abs(out - exact).max() / np.abs(exact_rest).max())
    assert errors[1] < errors[0] / 50
    assert errors[1] < 5e-3


def test_kernels_take_read_only_weights(rng):
    """Mapped weights are read-only; the compiled signature accepts them and refuses to be compiled anew."""
    matrix = random_matrix(rng, 16, 64, [INT8])
    assert not matrix.blob.flags.writeable
    a, scale = random_planes(rng, 1, 64, 1)
    sums = oracle.sums64(a[0])
    out = np.zeros((1, 16), F)
    matmul.matmul_int(matrix.blob, 0, a[0], a[0], sums, sums, scale, 1, out, 0, 1)
    assert out.any()
    with pytest.raises(TypeError):
        quantise.group_sums(a[0].astype(np.int16), sums, 0, 1)
