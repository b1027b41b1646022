"""Matrices in blocks: the layout of kernels/layout.py spelled out byte by byte, padding, fallback, tables."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import LibraryError
from cluster.library.matrix import (
    assemble,
    assemble_expert,
    check_table,
    decode,
    decode_gate_up,
    down_offset,
    encode,
)
from cluster.library.quantise import quantise_int4, quantise_int8
from kernels import layout

RNG = np.random.default_rng(11)
SHAPES = [(1, 1), (16, 64), (17, 65), (40, 130), (1040, 64)]
TOLERANCE = {layout.INT8: 2e-4, layout.INT4: 2e-2, layout.BF16: 1e-5, layout.F32: 0.0}


def normal(rows: int, width: int) -> np.ndarray:
    return RNG.normal(size=(rows, width)).astype(np.float32)


def with_outlier(rows: int, width: int) -> np.ndarray:
    weights = normal(rows, width)
    weights[:, :64] *= 32
    return weights


@pytest.mark.parametrize("kind", layout.KINDS.values(), ids=layout.KINDS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(kind: int, shape: tuple[int, int]) -> None:
    weights = normal(*shape)
    encoded = encode(weights, kind)
    assert (encoded.rows, encoded.width) == (layout.pad(shape[0], 16), layout.pad(shape[1], 64))
    data = assemble(encoded.blocks)
    assert data.size % layout.ALIGN == 0
    found = decode(data, 0, encoded.rows, encoded.width)
    assert not found[shape[0] :].any()
    assert not found[:, shape[1] :].any()
    kept = found[: shape[0], : shape[1]].astype(np.float64)
    error = ((kept - weights) ** 2).sum() / (weights.astype(np.float64) ** 2).sum()
    assert error <= TOLERANCE[kind]
    assert encoded.tally.weights == weights.size
    assert encoded.tally.relative_error == pytest.approx(error, rel=2e-2, abs=1e-12)


def test_int8_bytes() -> None:
    weights = normal(16, 128)
    q = quantise_int8(weights)
    data = assemble(encode(weights, layout.INT8).blocks)
    assert data.size == layout.matrix_bytes(layout.INT8, 1, 128)
    assert data[:8].view(np.int64)[0] == layout.table_bytes(1) | layout.INT8
    block = data[layout.table_bytes(1) :]
    for row, k in ((0, 0), (3, 5), (15, 127)):
        assert block[(k // 4) * 64 + row * 4 + k % 4] == q.u[row, k]
    np.testing.assert_array_equal(block[128 * 16 :].view(np.float32), q.scale)


def test_int4_bytes() -> None:
    weights = normal(16, 192)
    q = quantise_int4(weights)
    block = assemble(encode(weights, layout.INT4).blocks)[layout.table_bytes(1) :]
    assert block.size == layout.block_bytes(layout.INT4, 192)
    for row, k in ((0, 0), (2, 5), (7, 66), (15, 191)):
        byte = block[(k // 8) * 64 + row * 4 + k % 4]
        assert (byte >> 4 if k // 4 % 2 else byte & 15) == q.u[row, k]
    multipliers = block[192 * 8 : 192 * 8 + 48].reshape(3, 16)
    np.testing.assert_array_equal(multipliers.T, q.multiplier)
    np.testing.assert_array_equal(block[-64:].view(np.float32), q.scale)


def test_float_bytes() -> None:
    weights = normal(16, 64)
    block = assemble(encode(weights, layout.F32).blocks)[layout.table_bytes(1) :]
    np.testing.assert_array_equal(block.view(np.float32).reshape(64, 16), weights.T)


def test_padding_has_the_value_zero_in_its_own_kind() -> None:
    block = assemble(encode(normal(3, 65), layout.INT8).blocks)[layout.table_bytes(1) :]
    u = block[: 128 * 16].reshape(32, 16, 4)
    assert (u[:, 3:] == 128).all()
    assert (u[17:] == 128).all()
    assert not block[-64:].view(np.float32)[3:].any()
    nibbles = assemble(encode(normal(3, 65), layout.INT4).blocks)[layout.table_bytes(1) :][: 128 * 8]
    assert (nibbles.reshape(16, 16, 4)[:, 3:] == 0x88).all()


def test_an_outlier_block_falls_back_to_int8_alone() -> None:
    weights = normal(48, 1024)
    weights[20, 64:128] *= 32  # one row of the middle block
    encoded = encode(weights, layout.INT4)
    assert [kind for kind, _ in encoded.blocks] == [layout.INT4, layout.INT8, layout.INT4]
    assert encoded.tally.int8_fallback_blocks == 1
    found = decode(assemble(encoded.blocks), 0, 48, 1024)
    assert ((found - weights) ** 2).sum() / (weights**2).sum() < 0.006


def expert(hidden: int, width: int, kind: int, make=normal):
    gate, up = make(width, hidden), make(width, hidden)
    down = normal(hidden, width)
    parts = [encode(w, kind, pad_rows=layout.GROUP) for w in (gate, up, down)]
    return (gate, up, down), assemble_expert(*parts, kind)


@pytest.mark.parametrize("kind", layout.KINDS.values(), ids=layout.KINDS.keys())
def test_expert_blob(kind: int) -> None:
    (gate, up, down), blob = expert(100, 70, kind)
    middle = down_offset(kind, 128, 128)
    found_gate, found_up = decode_gate_up(blob, 0, 128, 128)
    for found, wanted in ((found_gate, gate), (found_up, up), (decode(blob, middle, 128, 128), down)):
        rows, width = wanted.shape
        assert ((found[:rows, :width] - wanted) ** 2).sum() / (wanted**2).sum() <= TOLERANCE[kind]
        assert not found[rows:].any()


def test_down_stays_in_place_when_gate_up_blocks_grow() -> None:
    (gate, up, down), blob = expert(1024, 64, layout.INT4, with_outlier)
    middle = down_offset(layout.INT4, 1024, 64)
    kinds = blob[: 8 * 8].view(np.int64) & layout.KIND_MASK
    assert (kinds == layout.INT8).all()
    found_gate, found_up = decode_gate_up(blob, 0, 64, 1024)
    for found, wanted in ((found_gate, gate), (found_up, up)):
        assert ((found - wanted) ** 2).sum() / (wanted**2).sum() < 2e-3
    found_down = decode(blob, middle, 1024, 64)
    assert ((found_down - down) ** 2).sum() / (down**2).sum() < 2e-2
    no_overlap = layout.table_bytes(8) + 8 * layout.block_bytes(layout.INT8, 1024)
    assert blob.size >= no_overlap + layout.matrix_bytes(layout.INT4, 64, 64)


def test_encoding_is_deterministic() -> None:
    weights = with_outlier(64, 512)
    for kind in layout.KINDS.values():
        first, second = assemble(encode(weights, kind).blocks), assemble(encode(weights.copy(), kind).blocks)
        assert first.tobytes() == second.tobytes()


LAST = layout.matrix_bytes(layout.INT8, 1, 64)


@pytest.mark.parametrize("entry", [-64, 0, 1 << 40, layout.table_bytes(2) | 5, LAST + 64, LAST | layout.F32])
def test_a_table_that_points_outside_is_refused(entry: int) -> None:
    data = assemble(encode(normal(32, 64), layout.INT8).blocks)
    check_table(data, 0, 32, 64)
    data[8:16].view(np.int64)[0] = entry
    with pytest.raises(LibraryError, match="outside its blob"):
        check_table(data, 0, 32, 64)


def test_a_matrix_that_does_not_fit_is_refused() -> None:
    data = assemble(encode(normal(32, 64), layout.INT8).blocks)
    with pytest.raises(LibraryError, match="does not fit"):
        check_table(data[:10], 0, 32, 64)
    with pytest.raises(LibraryError):
        check_table(data[:-64], 0, 32, 64)
