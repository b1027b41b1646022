"""Sampling: the generator, log-probabilities, filters and draws equal to the twin's, and the distribution."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numeric import oracle_trunk as oracle

from kernels.jit import F32_1, F32_1R, VOID
from kernels.maths import exp_f32x16
from kernels.sampling import philox4x32, sample_rows, score_rows
from kernels.simd import load_f32x16, store_f32x16

F = np.float32


@njit(VOID(F32_1R, F32_1))
def _exp_all(x, out):
    for i in range(0, x.size * 4, 64):
        store_f32x16(out, i, exp_f32x16(load_f32x16(x, i)))


@njit
def _philox(*words):
    """A helper of kernels cannot be called from Python."""
    return philox4x32(*words)


def weights_of(z, temperature):
    """exp((z - max) / temperature) as the kernel computes it."""
    padded = np.full(-(-z.size // 16) * 16, -1e9, F)
    padded[: z.size] = (z - z.max()) / F(temperature)
    out = np.empty_like(padded)
    _exp_all(padded, out)
    return out[: z.size]


def sample(logits, *, history=(), ranges=None, **settings):
    """Tokens and log-probabilities of the rows; a setting is one value or one a row, history a list a row."""
    logits = np.asarray(logits, F)
    rows, vocab = logits.shape
    padded = np.pad(logits, [(0, 0), (0, -vocab % 16)], constant_values=1e9)  # would win if it were looked at
    columns = {
        name: np.broadcast_to(np.asarray(settings.get(name, default), dtype), rows).copy()
        for name, default, dtype in [
            ("temperature", 0, F),
            ("top_k", 0, np.int32),
            ("top_p", 1, F),
            ("min_p", 0, F),
            ("penalty", 1, F),
            ("seed", 0, np.uint64),
            ("position", np.arange(rows), np.int64),
        ]
    }
    lists = list(history) or [[]] * rows
    start = np.cumsum([0] + [len(seen) for seen in lists])
    flat = np.array([i for seen in lists for i in seen], np.int32)
    token, logprob = np.full(rows, -1, np.int32), np.full(rows, np.nan, F)
    scratch, ids = np.full((2, padded.shape[1]), np.nan, F), np.full(vocab, -1, np.int32)
    first = [columns[name] for name in ("temperature", "top_k", "top_p", "min_p", "penalty")]
    for begin, end in ranges or [(0, rows)]:
        sample_rows(
            *(padded, vocab, *first, start, flat, columns["seed"], columns["position"]),
            *(scratch, ids, token, logprob, begin, end),
        )
    return token, logprob


def bits_of(seed, position):
    low, high, *_ = oracle.philox4x32((position & 0xFFFFFFFF, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    return low | high << 32


def expected(logits, seed, position, temperature, top_k=0, top_p=1.0, min_p=0.0):
    p = weights_of(logits, temperature)
    return oracle.draw(p, oracle.kept(logits, p, top_k, top_p, min_p), bits_of(seed, position))


VECTORS = [  # kat_vectors of Random123, philox 4x32 with 10 rounds
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, words):
    assert oracle.philox4x32(counter, key) == words
    assert _philox(*(np.uint64(word) for word in counter + key)) == words


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 31, 32, 33, 1000, 8192])
def test_log_probabilities_agree_with_float64(rng, vocab):
    logits = (rng.normal(size=(5, vocab)) * 4).astype(F)
    logits[0], logits[1, 0] = 3.0, 80.0
    exact = np.log(oracle.softmax(logits.astype(np.float64)))
    token, logprob = sample(logits)
    assert (token == logits.argmax(1)).all()
    np.testing.assert_allclose(logprob, exact[np.arange(5), token], rtol=1e-6, atol=2e-6)
    targets = rng.integers(0, vocab, 5).astype(np.int32)
    scored = np.empty(5, F)
    score_rows(np.pad(logits, [(0, 0), (0, -vocab % 16)]), vocab, targets, scored, 0, 5)
    np.testing.assert_allclose(scored, exact[np.arange(5), targets], rtol=1e-6, atol=2e-6)


def test_scored_and_sampled_log_probabilities_are_the_same_bits(rng, same_bits):
    logits = rng.normal(size=(9, 1000)).astype(F)
    token, logprob = sample(logits, temperature=1.0, penalty=1.7, history=[[1, 2, 3]] * 9)
    padded = np.pad(logits, [(0, 0), (0, 8)])
    scored = np.empty(9, F)
    for begin, end in ((4, 9), (0, 4)):
        score_rows(padded, 1000, token, scored, begin, end)
    same_bits(scored, logprob)


def test_greedy_ties_go_to_the_lower_id():
    logits = np.zeros((4, 40), F)
    logits[1, [7, 39]], logits[2, [20, 33]], logits[3, 0] = 1, 5, -1
    assert sample(logits)[0].tolist() == [0, 7, 20, 1]
    assert sample(np.array([[-0.0, 0.0, -1.0]]))[0].tolist() == [0]


@pytest.mark.parametrize("vocab", [1, 7, 40, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.0},
        {"top_p": 0.4},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"min_p": 5.0},
        {"top_k": 30, "top_p": 0.8},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.2},
        {"top_k": 100_000, "top_p": 0.9999999, "min_p": 1e-9},
    ],
    ids=str,
)
def test_filters_and_draws_equal_the_twin(rng, vocab, filters):
    rows = 24
    logits = (rng.normal(size=(rows, vocab)) * rng.uniform(0.1, 8, (rows, 1))).astype(F)
    logits[::3] = np.round(logits[::3])  # many ties at every cut
    seed = rng.integers(0, 2**64, rows, dtype=np.uint64)
    position = rng.integers(0, 2**31, rows)
    temperature = rng.choice([0.1, 0.7, 1.0, 3.0], rows)
    token, _ = sample(logits, seed=seed, position=position, temperature=temperature, **filters)
    for row in range(rows):
        want = expected(logits[row], int(seed[row]), int(position[row]), temperature[row], **filters)
        assert token[row] == want, (row, temperature[row])


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 1.0])
def test_equal_logits_rank_by_id(top_p):
    """With every logit equal, top-k and top-p keep the lowest ids."""
    logits = np.full((200, 50), 2.5, F)
    token, _ = sample(logits, temperature=1.0, top_k=10, top_p=top_p, seed=4)
    assert set(token.tolist()) == set(range(max(1, round(10 * top_p))))


def test_all_filtered_but_one():
    logits = np.zeros((50, 300), F)
    logits[:, 123] = 9
    for filters in ({"top_k": 1}, {"top_p": 0.5}, {"top_p": 1e-30}, {"min_p": 1.0}, {"min_p": 0.5}):
        assert (sample(logits, temperature=1.0, **filters)[0] == 123).all()
    logits[:, :] = -np.inf
    logits[:, 7] = -3.0
    assert (sample(logits, temperature=5.0)[0] == 7).all()


def test_a_small_temperature_is_greedy(rng):
    logits = rng.normal(size=(20, 500)).astype(F)
    for temperature in (1e-6, 1e-30, 1e-45):
        assert (sample(logits, temperature=temperature)[0] == logits.argmax(1)).all()


def chi_square(token, probability):
    observed = np.bincount(token, minlength=len(probability))
    wanted = probability * len(token)
    return float(((observed - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize("filters", [{}, {"top_k": 12}, {"top_p": 0.9}, {"min_p": 0.05}], ids=str)
@pytest.mark.parametrize("keyed_by", ["position", "seed"])
def test_the_distribution_is_the_softmax_of_what_is_kept(filters, keyed_by):
    """Chi-square with a fixed key: a deterministic test. The bound is the 1 - 1e-6 quantile, roughly."""
    draws, vocab = 20_000, 40
    logits = np.random.default_rng(8).normal(size=vocab).astype(F)
    key = np.arange(draws)
    where = {"seed": 77, "position": key} if keyed_by == "position" else {"seed": key, "position": 77}
    token, _ = sample(np.tile(logits, (draws, 1)), temperature=0.8, **where, **filters)
    ids = oracle.kept(logits, weights_of(logits, 0.8), **({"top_k": 0, "top_p": 1, "min_p": 0} | filters))
    assert set(token.tolist()) <= set(ids)
    probability = oracle.softmax(logits[ids].astype(np.float64) / 0.8)
    freedom = len(ids) - 1
    assert freedom > 3
    assert chi_square(np.searchsorted(ids, token), probability) < freedom + 5 * np.sqrt(2 * freedom) + 12


def test_draws_depend_on_seed_and_position_alone(rng, same_bits):
    logits = rng.normal(size=(1, 2000)).astype(F)
    crowd = np.concatenate([logits, rng.normal(size=(6, 2000)).astype(F), logits, logits])
    settings = {
        "temperature": [1, 0, 2, 1, 1, 0.5, 1, 1, 1],
        "top_p": [0.9, 1, 1, 0.5, 1, 1, 0.2, 0.9, 0.9],
        "seed": [2**63 + 5, 1, 2, 3, 4, 5, 6, 2**63 + 5, 5],
        "position": [40, 1, 2, 3, 4, 5, 6, 40, 40],
        "penalty": [1.3, 1, 1, 1, 1, 2, 1, 1.3, 1.3],
        "history": [[5, 9], [], [1], [], [], [3, 4], [], [9, 5, 9], [5, 9]],
    }
    token, logprob = sample(crowd, **settings)
    first = {name: value[0] for name, value in settings.items() if name != "history"}
    alone = sample(logits, history=[[5, 9]], **first)
    assert token[0] == token[7] == alone[0][0]
    same_bits(logprob[[0]], alone[1])
    split = sample(crowd, ranges=[(5, 9), (0, 5)], **settings)
    same_bits(split[0], token)
    same_bits(split[1], logprob)
    many = sample(np.tile(logits, (64, 1)), temperature=1, seed=[2**63 + 5] * 32 + [5] * 32, position=40)[0]
    assert len(set(many[:32].tolist())) == len(set(many[32:].tolist())) == 1
    assert many[0] != many[32]  # the upper half of the seed counts


def test_the_penalty_counts_each_id_once_and_has_both_signs():
    logits = np.array([[3.0, 2.0, -1.0, -1.5, 0.0]], F)
    assert sample(logits, penalty=2.0, history=[[0]])[0].tolist() == [1]  # 3 / 2 < 2
    assert sample(logits, penalty=1.4, history=[[0, 0, 0]])[0].tolist() == [0]  # 3 / 1.4 > 2, once only
    negative = logits - F(10)
    assert sample(negative, penalty=2.0, history=[[0, 1, 2, 4]])[0].tolist() == [3]
    token, logprob = sample(logits, penalty=2.0, history=[[0]])
    raw = np.log(oracle.softmax(logits[0].astype(np.float64)))
    assert abs(logprob[0] - raw[token[0]]) < 1e-6  # before the penalty
    assert sample(logits, penalty=1.0, history=[[0]])[0].tolist() == [0]


def test_penalty_comes_before_temperature_and_filters(rng):
    logits = (rng.normal(size=(30, 200)) * 3).astype(F)
    history = [rng.integers(0, 200, 20).tolist() for _ in range(30)]
    changed = logits.copy()
    for row, seen in enumerate(history):
        for i in set(seen):
            value = logits[row, i]
            changed[row, i] = value / F(1.5) if value > 0 else value * F(1.5)
    token, _ = sample(logits, penalty=1.5, history=history, temperature=0.7, top_k=10, top_p=0.9, seed=3)
    for row in range(30):
        assert token[row] == expected(changed[row], 3, row, 0.7, 10, 0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tokens_stay_in_range_whatever_the_logits(bad):
    logits = np.zeros((2, 37), F)
    logits[0], logits[1, 5] = bad, bad
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1}):
        token, _ = sample(logits, **settings)
        assert ((token >= 0) & (token < 37)).all()


def test_a_large_vocabulary_with_a_flat_nucleus(rng):
    """More candidates than the first narrowing can drop."""
    logits = (rng.normal(size=(2, 152_000)) * 0.01).astype(F)
    logits[:, -1] = 0.1
    for filters in ({"top_p": 0.999}, {"top_k": 100_000}):
        token, _ = sample(logits, temperature=1.0, seed=9, **filters)
        assert token.tolist() == [expected(logits[row], 9, row, 1.0, **filters) for row in range(2)]


def test_an_empty_range_writes_nothing(rng):
    token, logprob = sample(rng.normal(size=(2, 20)), ranges=[(1, 1)])
    assert (token == -1).all()
    assert np.isnan(logprob).all()
