"""A part of a request is a request, and everybody gets what he can compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch.deputy import assign, carve
from cluster.dispatch.transport import WireShape

INT8 = WireShape(layers=1, experts=40, top_k=4, hidden=64)
SHAPES = (
    INT8,
    WireShape(layers=1, experts=300, top_k=4, hidden=64),
    WireShape(layers=1, experts=40, top_k=4, hidden=64, float_rows=True),
)


def read(request, shape: WireShape) -> list[tuple[bytes, bytes, int]]:
    """(row, scale, expert) of every pair, as a node would see them."""
    rows, counts, experts, payload = request
    width = shape.hidden * (4 if shape.float_rows else 1)
    many = np.frombuffer(counts, np.uint8)
    assert len(many) == rows
    assert many.all()
    assert len(payload) == rows * shape.row_bytes
    named = np.frombuffer(experts, shape.expert_dtype)
    data = bytes(payload)
    scales = data[rows * width :]
    return [
        (data[row * width : (row + 1) * width], scales[4 * row : 4 * row + 4], int(expert))
        for row, expert in zip(np.repeat(np.arange(rows), many).tolist(), named, strict=True)
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=["int8", "many experts", "float"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_what_is_carved_out_is_the_same_pairs(shape: WireShape, seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, rows).astype(np.uint8)
    pairs = int(counts.sum())
    experts = rng.integers(0, shape.experts, pairs).astype(shape.expert_dtype)
    payload = rng.integers(0, 256, rows * shape.row_bytes).astype(np.uint8)
    request = (rows, memoryview(counts.tobytes()), experts.tobytes(), memoryview(payload.tobytes()))
    chosen = np.flatnonzero(rng.random(pairs) < 0.5)
    if not chosen.size:
        chosen = np.array([0])
    carved = carve(request, chosen, shape)
    whole = read(request, shape)
    assert read(carved.request, shape) == [whole[pair] for pair in chosen]
    assert carved.pairs == chosen.size
    everything = carve(request, np.arange(pairs), shape).request
    assert [bytes(part) if isinstance(part, memoryview) else part for part in everything] == [
        bytes(part) if isinstance(part, memoryview) else part for part in request
    ]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.lists(st.sets(st.integers(0, 3)), min_size=10, max_size=10),
    st.lists(st.floats(1e-6, 1e-2), min_size=4, max_size=4),
)
def test_every_pair_goes_to_one_holder_and_those_without_stay_out(experts, held, seconds) -> None:
    numbers = np.array(experts)
    holders = {expert: sorted(nodes) for expert, nodes in enumerate(held)}
    speeds = dict(enumerate(seconds))
    shares = assign(numbers, holders, speeds)
    given_out = np.concatenate([np.zeros(0, np.int64), *shares.values()])
    assert sorted(given_out.tolist()) == [i for i, e in enumerate(experts) if held[e]]
    for node, pairs in shares.items():
        assert all(node in held[expert] for expert in numbers[pairs])
    for expert in set(experts):  # whole experts: a deputy's kernel reads each once
        owners = [node for node, pairs in shares.items() if expert in numbers[pairs]]
        assert len(owners) <= 1
    again = assign(numbers, holders, speeds)
    assert {n: p.tolist() for n, p in again.items()} == {n: p.tolist() for n, p in shares.items()}


def test_the_faster_holder_gets_more() -> None:
    experts = np.repeat(np.arange(10), 3)
    shares = assign(experts, dict.fromkeys(range(10), (0, 1)), {0: 1.0, 1: 4.0})
    assert len(shares[0]) == 24
    assert len(shares[1]) == 6
