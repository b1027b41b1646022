"""Paged attention: float64 within a bound; bits free of page size, batch, chunk, split and stale pages."""

from __future__ import annotations

import numpy as np
import pytest
from numeric import oracle_trunk as oracle

from kernels.attention import BLOCK, attend

F = np.float32


class Sequence:
    """Keys, values and queries of one sequence; the queries are those of every position."""

    def __init__(self, tokens, heads=4, kv_heads=2, width=32, seed=0, spread=1.0):
        rng = np.random.default_rng(seed)
        self.tokens, self.heads, self.kv_heads, self.width = tokens, heads, kv_heads, width
        self.k, self.v = (rng.normal(size=(tokens, kv_heads, width)).astype(F) for _ in range(2))
        self.q = (rng.normal(size=(tokens, heads, width)) * spread).astype(F)
        self.scale = F(width**-0.5)

    def pages(self, page_size=64, bf16=False, seed=0):
        pages = oracle.Pages(self.tokens, self.kv_heads, self.width, page_size, bf16, seed=seed)
        pages.write(self.k, self.v)
        return pages

    def padded_q(self):
        return np.pad(self.q, [(0, 0), (0, 0), (0, -self.width % 16)])


def run(sequence, pages, positions, window=0, ranges=None, ldo=None):
    """Outputs [tokens, heads, padded width] of the tokens at `positions`."""
    positions = np.asarray(positions, np.int64)
    q = np.ascontiguousarray(sequence.padded_q()[positions])
    columns = sequence.heads * pages.padded
    out = np.full((len(positions), ldo or -(-columns // 64) * 64), np.nan, F)
    scores = np.full((sequence.heads // sequence.kv_heads, -(-sequence.tokens // BLOCK) * BLOCK), np.nan, F)
    table, rows = pages.table[None], np.zeros(len(positions), np.int64)
    for begin, end in ranges or [(0, len(positions) * sequence.kv_heads)]:
        attend(
            *(q, pages.k, pages.v, None, None, table, rows, positions, window, sequence.scale),
            *(out, scores, begin, end),
        )
    return out[:, :columns].reshape(len(positions), sequence.heads, pages.padded), out[:, columns:]


def exact(sequence, pages, position, window=0):
    k, v = (x[..., : sequence.width].astype(np.float64) for x in pages.read())
    q = sequence.q[position].astype(np.float64)
    return oracle.attend(q, k, v, position, window, float(sequence.scale))


def check(sequence, pages, positions, window=0, bound=4e-6):
    out, tail = run(sequence, pages, positions, window)
    assert (tail == 0).all()
    for at, position in enumerate(positions):
        difference = out[at, :, : sequence.width] - exact(sequence, pages, position, window)
        assert np.abs(difference).max() <= bound, (position, window)


EDGES = [0, 1, 14, 15, 16, 17, 47, 48, 49, 62, 63, 64, 65, 126, 127, 128, 129, 191, 192, 193, 255, 256]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("page_size", [16, 48, 64, 128])
def test_agrees_with_float64_at_every_edge(page_size, bf16):
    sequence = Sequence(257)
    check(sequence, sequence.pages(page_size, bf16), EDGES)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 63, 64, 65, 100, 1000])
@pytest.mark.parametrize("page_size", [16, 64])
def test_sliding_windows(window, page_size):
    sequence = Sequence(200)
    check(sequence, sequence.pages(page_size, bf16=True), [0, 15, 16, 63, 64, 65, 127, 128, 199], window)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1)])
def test_widths_and_group_ratios(width, heads, kv_heads):
    sequence = Sequence(70, heads, kv_heads, width)
    check(sequence, sequence.pages(bf16=True), [0, 63, 64, 69])


@pytest.mark.parametrize("bf16", [False, True])
def test_page_size_does_not_change_a_bit(same_bits, bf16):
    sequence = Sequence(257)
    whole = run(sequence, sequence.pages(64, bf16), EDGES)[0]
    for page_size in (16, 32, 48, 128, 256):
        same_bits(run(sequence, sequence.pages(page_size, bf16, seed=page_size), EDGES)[0], whole)


def test_splits_order_and_batch_mates_do_not_change_a_bit(same_bits):
    sequence = Sequence(130)
    pages = sequence.pages(16, bf16=True)
    whole = run(sequence, pages, range(130))[0]
    same_bits(run(sequence, pages, range(130), ranges=[(77, 260), (0, 3), (3, 77)])[0], whole)
    for position in (0, 63, 64, 129):  # decode one by one gives what the prefill gave
        same_bits(run(sequence, pages, [position])[0], whole[[position]])
    order = np.random.default_rng(2).permutation(130)
    same_bits(run(sequence, pages, order)[0], whole[order])


def test_two_sequences_in_one_batch_do_not_meet(same_bits):
    """Pages of both in one pool, rows of different length in one table."""
    long, short = Sequence(100), Sequence(20, seed=9)
    alone = [run(s, s.pages(16), [s.tokens - 1])[0] for s in (long, short)]
    a, b = long.pages(16), short.pages(16)
    table = np.full((2, 7), -1, np.int32)
    table[0, :7], table[1, :2] = a.table, b.table + len(a.k)
    q = np.stack([short.padded_q()[19], long.padded_q()[99]])
    out, scores = np.empty((2, 128), F), np.empty((2, 128), F)
    attend(
        *(q, np.concatenate([a.k, b.k]), np.concatenate([a.v, b.v]), None, None, table, np.array([1, 0])),
        *(np.array([19, 99]), 0, long.scale, out, scores, 0, 4),
    )
    same_bits(out.reshape(2, 4, 32), np.concatenate(alone[::-1]))


@pytest.mark.parametrize("window", [0, 40])
def test_what_is_not_visible_is_never_read_into_a_result(same_bits, window):
    """Later tokens, tokens before the window and unused slots hold NaN or another sequence's numbers."""
    sequence = Sequence(150)
    pages = sequence.pages(64)
    position = 100
    clean = run(sequence, pages, [position], window)[0]
    hidden = list(range(position + 1, 150)) + (list(range(position - window + 1)) if window else [])
    for filler in (np.nan, np.inf, 1e30):
        for token in hidden:
            page, at = divmod(int(pages.slots(np.array([token]))[0]), 64)
            pages.k[page, :, at // 16, :, at % 16] = filler
            pages.v[page, :, at] = filler
        same_bits(run(sequence, pages, [position], window)[0], clean)


def test_pages_before_a_window_may_be_gone(same_bits):
    sequence = Sequence(200)
    pages = sequence.pages(16)
    clean = run(sequence, pages, [199], 20)[0]
    pages.table[: (199 - 19) // 16] = -(2**30)  # reading through it would fault
    same_bits(run(sequence, pages, [199], 20)[0], clean)


def test_scores_far_apart_and_equal_scores():
    spiked = Sequence(130, spread=200.0)
    check(spiked, spiked.pages(), [129], bound=2e-4)  # scores of ±1000: float32 holds them to 6e-5
    flat = Sequence(130)
    flat.q[:] = 0
    check(flat, flat.pages(), [0, 63, 64, 129], bound=1e-6)


def test_zero_and_denormal_values():
    sequence = Sequence(70)
    sequence.v[:] = 1e-41
    sequence.v[::2] = 0
    check(sequence, sequence.pages(), [69], bound=1e-44)


def test_an_empty_range_writes_nothing():
    sequence = Sequence(3)
    out, _ = run(sequence, sequence.pages(), [2], ranges=[(1, 1)])
    assert np.isnan(out).all()


@pytest.mark.parametrize("mutation", ["position", "window", "scale"])
def test_mutations_are_seen(mutation):
    sequence = Sequence(100)
    pages = sequence.pages()
    right = run(sequence, pages, [99], 50)[0]
    if mutation == "scale":
        sequence.scale *= F(1.05)
    wrong = run(sequence, pages, [99], 49 if mutation == "window" else 50)[0]
    if mutation == "position":
        k = sequence.k.copy()
        sequence.k[60:62] = k[61:59:-1]
        wrong = run(sequence, sequence.pages(), [99], 50)[0]
    assert np.abs(right - wrong).max() > 1e-4


def together(sequence, pages, positions, window, rows):
    """As `run`, with scratch for `rows` rows at a time."""
    positions = np.asarray(positions, np.int64)
    q = np.ascontiguousarray(sequence.padded_q()[positions])
    out = np.full((len(positions), sequence.heads * pages.padded), np.nan, F)
    scores = np.full((rows, -(-sequence.tokens // BLOCK) * BLOCK + 16), np.nan, F)
    places = (pages.table[None], np.zeros(len(positions), np.int64), positions, window, sequence.scale)
    attend(q, pages.k, pages.v, None, None, *places, out, scores, 0, len(positions) * sequence.kv_heads)
    return out.reshape(len(positions), sequence.heads, pages.padded)


@pytest.mark.parametrize("window", [0, 1, 5, 40, 64, 100])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(2, 2, 32), (4, 2, 48), (8, 1, 16), (3, 1, 80), (9, 1, 24)]
)
def test_rows_that_share_loads_do_not_change_a_bit(same_bits, heads, kv_heads, width, window):
    """Whatever the number of tokens and heads computed together, in runs that start and end anywhere."""
    sequence = Sequence(150, heads, kv_heads, width)
    pages = sequence.pages(16, bf16=True)
    alone = np.concatenate([run(sequence, pages, [at], window)[0] for at in range(150)])
    for rows in (heads // kv_heads, 9, 13, 32):
        same_bits(together(sequence, pages, range(150), window, rows), alone)
        same_bits(together(sequence, pages, [*range(60, 71), 3, *range(120, 123)], window, rows),
                  alone[[*range(60, 71), 3, *range(120, 123)]])  # fmt: skip


def test_a_later_token_of_the_run_that_holds_nan_stays_alone(same_bits):
    """Its own key and value are NaN and infinite; the tokens before it are computed with it, not from it."""
    sequence = Sequence(100)
    pages = sequence.pages(64)
    clean = together(sequence, pages, range(80, 100), 0, 32)
    slot = int(pages.slots(np.array([90]))[0])
    pages.k[slot // 64, :, slot % 64 // 16, :, slot % 16] = np.nan
    pages.v[slot // 64, :, slot % 64] = np.inf
    poisoned = together(sequence, pages, range(80, 100), 0, 32)
    same_bits(poisoned[:10], clean[:10])
    assert not np.isfinite(poisoned[10:]).all(axis=(1, 2)).any()


class TestInt8Pages:
    """The same promises over int8 pages, whose scales belong to a token and a head, never to a page."""

    def pages(self, sequence, page_size=64, seed=0):
        made = oracle.Int8Pages(sequence.tokens, sequence.kv_heads, sequence.width, page_size, seed)
        made.write(sequence.k, sequence.v)
        return made

    def run(self, sequence, pages, positions, window=0, rows=8, ranges=None):
        positions = np.asarray(positions, np.int64)
        q = np.ascontiguousarray(sequence.padded_q()[positions])
        out = np.full((len(positions), sequence.heads * pages.padded), np.nan, F)
        scores = np.full((rows, -(-sequence.tokens // BLOCK) * BLOCK), np.nan, F)
        stored = (pages.k, pages.v, pages.k_scales, pages.v_scales)
        places = (pages.table[None], np.zeros(len(positions), np.int64), positions, window, sequence.scale)
        for begin, end in ranges or [(0, len(positions) * sequence.kv_heads)]:
            attend(q, *stored, *places, out, scores, begin, end)
        return out.reshape(len(positions), sequence.heads, pages.padded)

    @pytest.mark.parametrize("window", [0, 17, 64])
    @pytest.mark.parametrize("page_size", [16, 48, 64])
    def test_agrees_with_float64_at_every_edge(self, page_size, window):
        sequence = Sequence(257)
        pages = self.pages(sequence, page_size)
        out = self.run(sequence, pages, EDGES, window)
        for at, position in enumerate(EDGES):
            difference = out[at, :, : sequence.width] - exact(sequence, pages, position, window)
            assert np.abs(difference).max() <= 4e-6, (position, window)

    @pytest.mark.parametrize("width", [8, 16, 40, 64, 128])
    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (8, 1)])
    def test_pages_company_and_splits_do_not_change_a_bit(self, same_bits, width, heads, kv_heads):
        sequence = Sequence(140, heads, kv_heads, width)
        pages = self.pages(sequence, 64)
        alone = np.concatenate([self.run(sequence, pages, [at]) for at in range(140)])
        for page_size, rows in ((16, 8), (48, 13), (128, 32)):
            same_bits(
                self.run(sequence, self.pages(sequence, page_size, page_size), range(140), 0, rows), alone
            )
        split = [(77, 140 * kv_heads), (0, 3), (3, 77)]
        same_bits(self.run(sequence, pages, range(140), 0, 16, split), alone)

    def test_the_numbers_are_near_those_of_float_pages(self):
        """And not equal to them: a kernel that reads the wrong pages or scales would be far away."""
        sequence = Sequence(200, width=64)
        floats = run(sequence, sequence.pages(), [199])[0]
        found = self.run(sequence, self.pages(sequence), [199])
        assert 1e-5 < np.abs(found - floats).max() < 2e-2

    def test_a_zero_head_has_scale_zero_and_stays_out(self, same_bits):
        sequence = Sequence(70)
        sequence.k[5], sequence.v[5] = 0, 0
        pages = self.pages(sequence)
        out = self.run(sequence, pages, [69])
        assert np.abs(out[0, :, :32] - exact(sequence, pages, 69)).max() <= 4e-6

    @pytest.mark.parametrize("window", [0, 40])
    def test_scales_that_are_not_visible_are_never_read_into_a_result(self, same_bits, window):
        sequence = Sequence(150)
        pages = self.pages(sequence)
        clean = self.run(sequence, pages, [100], window)
        hidden = list(range(101, 150)) + (list(range(101 - window)) if window else [])
        for filler in (np.nan, np.inf, 1e30):
            for token in hidden:
                page, at = divmod(int(pages.slots(np.array([token]))[0]), 64)
                pages.k_scales[page, :, at] = pages.v_scales[page, :, at] = filler
            same_bits(self.run(sequence, pages, [100], window), clean)
