"""prepare_qkv: bias, norm, clip, rotation and the cache writes, against float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numeric import oracle_trunk as oracle

from kernels import maths
from kernels.rope import QK_FULL, QK_HEAD, QK_NONE, prepare_qkv

F = np.float32
EPS = F(1e-6)
NOTHING = np.zeros(0, F)


@dataclass
class Case:
    """Projections of `tokens` tokens at `first` … and everything that prepare_qkv needs beside them."""

    tokens: int = 5
    heads: int = 4
    kv_heads: int = 2
    width: int = 32
    first: int = 0
    page_size: int = 64
    bf16: bool = False
    mode: int = QK_NONE
    clip: float = 0.0
    bias: bool = False
    theta: float = 1e4
    qkv: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(5)
        self.rows = self.heads + 2 * self.kv_heads
        self.last = self.first + self.tokens
        self.positions = np.arange(self.first, self.last, dtype=np.int64)
        self.qkv = rng.normal(size=(self.tokens, self.rows, self.width)).astype(F)
        self.bias_values = rng.normal(size=(self.rows, self.width)).astype(F) if self.bias else NOTHING
        norms = {QK_NONE: (0, 0), QK_HEAD: (1, 1), QK_FULL: (self.heads, self.kv_heads)}[self.mode]
        self.q_norm, self.k_norm = (rng.normal(size=(n, self.width)).astype(F) for n in norms)
        inv_freq = (1.0 / self.theta ** (np.arange(self.width // 2) * 2 / self.width)).astype(F)
        self.cos, self.sin = maths.rotary_tables(inv_freq, self.last)

    def pad(self, x, like=None):
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -self.width % 16)]).astype(F)

    def run(self, ranges=None, order=slice(None)):
        """Returns (q_out, pages, finite); `order` permutes or selects the tokens of the batch."""
        pages = oracle.Pages(self.last, self.kv_heads, self.width, self.page_size, self.bf16)
        qkv = np.ascontiguousarray(self.pad(self.qkv)[order].reshape(-1, self.rows * pages.padded))
        positions = self.positions[order]
        q_out = np.full((len(positions), self.heads, pages.padded), 7, F)
        finite = np.full(len(positions), 9, np.uint8)
        optional = (self.bias_values, self.q_norm, self.k_norm)
        flat = [self.pad(x).ravel() if x.size else NOTHING for x in optional]
        for begin, end in ranges or [(0, len(positions))]:
            prepare_qkv(
                *(qkv, *flat, self.mode, F(self.clip), EPS, self.width, self.cos, self.sin),
                *(positions, pages.slots(positions), pages.k, pages.v, None, None, q_out, finite, begin, end),
            )
        return q_out, pages, finite

    def exact(self):
        x = self.qkv.astype(np.float64) + (self.bias_values if self.bias else 0.0)
        q, k, v = np.split(x, [self.heads, self.heads + self.kv_heads], axis=1)
        q, k = self._norm(q, self.q_norm), self._norm(k, self.k_norm)
        if self.clip:
            q, k, v = (np.clip(part, -self.clip, self.clip) for part in (q, k, v))
        cos, sin = (t[self.positions].astype(np.float64) for t in (self.cos, self.sin))
        return oracle.rotate(q, cos, sin), oracle.rotate(k, cos, sin), v

    def _norm(self, x, weight):
        if self.mode == QK_NONE:
            return x
        if self.mode == QK_HEAD:
            return oracle.rms_norm(x, weight[0], float(EPS), self.width)
        flat = x.reshape(len(x), -1)
        return oracle.rms_norm(flat, weight.ravel(), float(EPS), flat.shape[1]).reshape(x.shape)


CASES = [
    Case(),
    Case(width=24, mode=QK_HEAD, bf16=True),
    Case(width=16, heads=2, kv_heads=1, mode=QK_FULL, clip=0.7, page_size=16),
    Case(width=24, heads=3, kv_heads=3, mode=QK_FULL, clip=1.1, bf16=True, first=61, tokens=70),
    Case(width=64, heads=8, kv_heads=2, bias=True, page_size=128, bf16=True, first=120, tokens=20),
    Case(width=128, heads=2, kv_heads=1, mode=QK_HEAD, bias=True, page_size=48, first=1000),
    Case(width=18, heads=2, kv_heads=1, tokens=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case):
    q_out, pages, finite = case.run()
    q, k, v = case.exact()
    stored_k, stored_v = (x[case.first :] for x in pages.read())
    rounding = 2.0**-8 if case.bf16 else 2e-6
    assert (finite == 1).all()
    assert np.all(np.abs(q_out[..., : case.width] - q) <= 4e-6)
    assert np.all(np.abs(stored_k[..., : case.width] - k) <= rounding * np.abs(k) + 4e-6)
    assert np.all(np.abs(stored_v[..., : case.width] - v) <= rounding * np.abs(v) + 1e-7)
    for padding in (q_out, stored_k, stored_v):
        assert (padding[..., case.width :] == 0).all()


@pytest.mark.parametrize("page_size", [16, 64, 128])
def test_stored_values_are_the_rounding_of_the_float32_ones(same_bits, page_size):
    """The bf16 cache is the f32 cache rounded to nearest even, whatever the page size."""
    k32, v32 = Case(width=24, tokens=40).run()[1].read()
    k16, v16 = Case(width=24, tokens=40, bf16=True, page_size=page_size).run()[1].read()
    same_bits(oracle.to_bf16(k16), oracle.to_bf16(k32))
    same_bits(oracle.to_bf16(v16), oracle.to_bf16(v32))


def test_rounding_of_ties_and_denormals(same_bits):
    case = Case(tokens=1, heads=1, kv_heads=1, width=16, bf16=True)
    values = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1e-40, -1e-45, 0.0, -0.0, 65504.0]
    case.qkv[0, 2] = np.resize(np.array(values, F), 16)
    _, stored = case.run()[1].read()
    same_bits(oracle.to_bf16(stored[0, 0]), oracle.to_bf16(case.qkv[0, 2]))


def test_other_slots_are_not_touched():
    case = Case(tokens=3, first=30, bf16=True)
    _, pages, _ = case.run()
    k, v = pages.read()
    assert np.isnan(k[:30]).all()
    assert np.isnan(v[:30]).all()
    assert not np.isnan(k[30:]).any()
    assert np.isnan(oracle.from_bf16(pages.k)).sum() == pages.k.size - 3 * 2 * 32


@pytest.mark.parametrize("case", [CASES[3], CASES[4]], ids=str)
def test_tokens_do_not_depend_on_the_split_or_their_batch(same_bits, case):
    whole_q, whole, _ = case.run()
    cut = case.tokens // 3
    split_q, split, _ = case.run([(cut, case.tokens), (0, cut)])
    same_bits(split_q, whole_q)
    same_bits(split.k, whole.k)
    order = np.random.default_rng(1).permutation(case.tokens)
    shuffled_q, shuffled, _ = case.run(order=order)
    same_bits(shuffled_q, whole_q[order])
    same_bits(shuffled.v, whole.v)


@pytest.mark.parametrize(("row", "mode"), [(0, QK_NONE), (4, QK_HEAD), (7, QK_FULL)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_token_that_is_not_finite_is_reported_and_stored_as_zero(same_bits, row, mode, bad):
    case = Case(mode=mode, clip=2.0)
    clean_q, clean, _ = case.run()
    case.qkv[2, row, 5] = bad
    q_out, pages, finite = case.run()
    if bad == 3e38 and (mode == QK_NONE or row == 7):  # large, but nothing overflows
        assert (finite == 1).all()
        return
    assert finite.tolist() == [1, 1, 0, 1, 1]
    assert (q_out[2] == 0).all()
    for stored, before in zip(pages.read(), clean.read(), strict=True):
        assert (stored[2] == 0).all()
        same_bits(np.delete(stored, 2, 0), np.delete(before, 2, 0))
    same_bits(np.delete(q_out, 2, 0), np.delete(clean_q, 2, 0))


@pytest.mark.parametrize("mutation", [{"theta": 2e4}, {"mode": QK_NONE}, {"clip": 0.0}, {"bias": False}])
def test_mutations_are_seen(mutation):
    settings = {"mode": QK_HEAD, "clip": 1.5, "bias": True, "first": 3}
    right, wrong = Case(**settings).run()[0], Case(**(settings | mutation)).run()[0]
    assert np.abs(right - wrong).max() > 1e-2


class TestInt8Pages:
    def run(self, case, ranges=None):
        pages = oracle.Int8Pages(case.last, case.kv_heads, case.width, case.page_size)
        qkv = np.ascontiguousarray(case.pad(case.qkv).reshape(-1, case.rows * pages.padded))
        q_out, finite = (
            np.full((case.tokens, case.heads, pages.padded), 7, F),
            np.full(case.tokens, 9, np.uint8),
        )
        flat = [
            case.pad(x).ravel() if x.size else NOTHING for x in (case.bias_values, case.q_norm, case.k_norm)
        ]
        stored = (pages.k, pages.v, pages.k_scales, pages.v_scales)
        for begin, end in ranges or [(0, case.tokens)]:
            prepare_qkv(
                *(qkv, *flat, case.mode, F(case.clip), EPS, case.width, case.cos, case.sin, case.positions),
                *(pages.slots(case.positions), *stored, q_out, finite, begin, end),
            )
        return q_out, pages, finite

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_integers_and_scales_are_those_of_the_float_cache(self, same_bits, case):
        """Quantised head by head from the float32 that other caches store; the queries stay as they are."""
        q_out, pages, finite = self.run(case)
        wanted_q, floats, _ = replace(case, bf16=False).run()
        same_bits(q_out, wanted_q)
        assert (finite == 1).all()
        wanted = oracle.Int8Pages(case.last, case.kv_heads, case.width, case.page_size)
        wanted.write(*(x[case.first :, :, : case.width] for x in floats.read()), case.first)
        slots = wanted.slots(case.positions)
        page, at = slots // case.page_size, slots % case.page_size
        for name in ("v", "k_scales", "v_scales"):
            same_bits(getattr(pages, name)[page, :, at], getattr(wanted, name)[page, :, at])
        same_bits(pages.k[page, :, at // 16, :, at % 16], wanted.k[page, :, at // 16, :, at % 16])

    def test_tokens_do_not_depend_on_the_split(self, same_bits):
        case = CASES[3]
        whole, parts = self.run(case)[1], self.run(case, [(23, case.tokens), (0, 23)])[1]
        for name in ("k", "v", "k_scales", "v_scales"):
            same_bits(getattr(parts, name), getattr(whole, name))

    def test_zero_and_tiny_heads_have_scale_zero(self):
        case = Case(tokens=2)
        case.qkv[0], case.qkv[1] = 0, 1e-36
        _, pages, finite = self.run(case)
        slots = pages.slots(case.positions)
        assert finite.tolist() == [1, 1]
        for scales in (pages.k_scales, pages.v_scales):
            assert (scales[slots // 64, :, slots % 64] == 0).all()
        assert (pages.v[slots // 64, :, slots % 64] == 0).all()

    def test_a_token_that_is_not_finite_is_stored_as_zero(self):
        case = Case()
        case.qkv[2, 0, 5] = np.nan
        _, pages, finite = self.run(case)
        slot = int(pages.slots(case.positions)[2])
        assert finite.tolist() == [1, 1, 0, 1, 1]
        assert (pages.k_scales[slot // 64, :, slot % 64] == 0).all()
        assert (pages.v[slot // 64, :, slot % 64] == 0).all()
