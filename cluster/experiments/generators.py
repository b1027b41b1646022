"""Synthetic routing: Zipf popularity, domains that drift, bursts, experts that fire together. All seeded.

A token draws its top-k experts without replacement (Plackett–Luce) from the popularity of its domain, tilted
by a latent topic that it keeps through all layers. Every domain orders each layer's experts anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Floats
from cluster.errors import ConfigError
from cluster.experiments.routing import Header, Trace

BURST_STEPS = 10.0
"""Mean length of a burst."""


@dataclass(frozen=True)
class Workload:
    """A trace to generate.

    layers, experts, top_k: the model. steps: how many; tokens: of each step, outside bursts.
    gini: of the expected load of a layer's experts; measured 0.1 to 0.38 on real text, see
        docs/experiments.md.
    zipf: exponent instead of `gini`; None takes it from there.
    domains: number of popularities. switches: steps at which the next domain begins (the first again after
        the
        last). blend: steps that a switch takes, tokens of both domains mixed meanwhile.
    burst_rate: bursts begun per step; burst_factor: tokens of a step in one, over those outside.
    groups, correlation: experts of a layer fall into so many groups; correlation is the standard deviation of
        the log-popularity that a token's topic gives a group, the same group in every layer. 0: independent.
    step_s: seconds between steps; request_tokens: tokens of a request.

    Raises ConfigError, naming the key, on nonsense.
    """

    layers: int = 16
    experts: int = 64
    top_k: int = 8
    steps: int = 200
    tokens: int = 64
    gini: float = 0.25
    zipf: float | None = None
    domains: int = 1
    switches: tuple[int, ...] = ()
    blend: int = 0
    burst_rate: float = 0.0
    burst_factor: float = 4.0
    groups: int = 8
    correlation: float = 0.0
    step_s: float = 0.05
    request_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "top_k", "steps", "tokens", "domains", "groups", "request_tokens"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _require("top_k", self.top_k, self.top_k <= self.experts, f"at most experts ({self.experts})")
        most = 1 - 1 / self.experts
        _require("gini", self.gini, 0 <= self.gini < most, f"from 0 to below {most:g}")
        _require(
            "zipf", self.zipf, self.zipf is None or 0 <= self.zipf <= MOST_ZIPF, f"from 0 to {MOST_ZIPF:g}"
        )
        ordered = list(self.switches) == sorted(set(self.switches)) and all(s > 0 for s in self.switches)
        _require("switches", self.switches, ordered, "steps above 0, ascending")
        _require("burst_rate", self.burst_rate, 0 <= self.burst_rate <= 1, "from 0 to 1")
        _require("burst_factor", self.burst_factor, self.burst_factor >= 1, "1 or more")
        for name in ("blend", "correlation", "step_s"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")

    @property
    def header(self) -> Header:
        return Header(self.experts, self.top_k, tuple(range(self.layers)), "generated")


MOST_ZIPF = 8.0
MIXTURE = 64
"""Domains drawn for a step's mixture where only its rows are wanted."""

LEAST_DRAW = np.float32(1e-7)
"""In single precision an exponential can be drawn as 0, which would take all of a token's weight."""


def _require(name: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise ConfigError(f"{name} of the trace is {value}; it must be {allowed}")


def generate(workload: Workload, seed: int) -> Iterator[Trace]:
    """One Trace a step. The same workload and seed give the same tokens."""
    popularity_seed, token_seed, group_seed = np.random.SeedSequence(seed).spawn(3)
    popularity = _popularity(workload, np.random.default_rng(popularity_seed))
    groups = _groups(workload, np.random.default_rng(group_seed))
    rng = np.random.default_rng(token_seed)
    burst_left, made = 0, 0
    for step in range(workload.steps):
        if not burst_left and rng.random() < workload.burst_rate:
            burst_left = int(rng.geometric(1 / BURST_STEPS))
        count = round(workload.tokens * (workload.burst_factor if burst_left else 1))
        burst_left = max(0, burst_left - 1)
        domain = _domains(workload, step, count, rng)
        ids, weights = _choose(workload, popularity, groups, domain, rng)
        numbers = made + np.arange(count)
        made += count
        yield Trace(
            workload.header,
            np.full(count, step),
            np.full(count, step * workload.step_s),
            numbers // workload.request_tokens,
            numbers % workload.request_tokens,
            ids,
            weights,
        )


def step_rows(workload: Workload, seed: int) -> npt.NDArray[np.int64]:
    """[steps, layers, experts] rows of such a trace, without its tokens: hundreds of times faster to draw.

    Rows are multinomial with the inclusion probabilities of the step's domain, so that they vary a little
    more than rows of tokens whose experts differ. Bursts and correlation are left out, a blend is a mean.
    """
    popularity_seed, row_seed = np.random.SeedSequence(seed).spawn(2)
    popularity = _popularity(workload, np.random.default_rng(popularity_seed))
    share = np.apply_along_axis(inclusion, 2, popularity, workload.top_k) / workload.top_k
    rng, rows = np.random.default_rng(row_seed), workload.tokens * workload.top_k
    steps = []
    for step in range(workload.steps):
        domain = _domains(workload, step, MIXTURE, rng)
        mixed = share[domain].mean(axis=0) if workload.blend else share[domain[0]]
        steps.append(rng.multinomial(rows, mixed / mixed.sum(axis=1, keepdims=True)))
    return np.stack(steps)


def whole(workload: Workload, seed: int) -> Trace:
    """All steps in memory."""
    return concatenate(list(generate(workload, seed)))


def concatenate(parts: list[Trace]) -> Trace:
    """Consecutive parts of one trace."""
    columns = ("step", "time", "request", "position", "ids", "weights")
    return Trace(
        parts[0].header, *(np.concatenate([getattr(part, name) for part in parts]) for name in columns)
    )


def zipf_exponent(workload: Workload) -> float:
    """The exponent s whose popularity rank**-s gives the workload's Gini coefficient of load, by
    bisection.
    """
    if workload.zipf is not None:
        return workload.zipf
    low, high = 0.0, MOST_ZIPF
    for _ in range(50):
        middle = (low + high) / 2
        chosen = inclusion(_ranked(workload.experts, middle), workload.top_k)
        low, high = (middle, high) if gini(chosen) < workload.gini else (low, middle)
    return high


def inclusion(popularity: Floats, top_k: int) -> Floats:
    """[experts] probability that an expert is among the top_k drawn one after another without replacement.

    1 − exp(−τ p), τ such that they sum to top_k: asymptotic for successive sampling (Rosén 1972), within a
    few thousandths at 64 experts.
    """
    if top_k == len(popularity):
        return np.ones(len(popularity))
    low, high = 0.0, 1.0
    while (1 - np.exp(-high * popularity)).sum() < top_k and high < 1e300:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-middle * popularity)).sum() < top_k else (low, middle)
    chosen: Floats = 1 - np.exp(-high * popularity)
    return chosen


def gini(load: Floats) -> float:
    """Gini coefficient of loads: 0 for equal ones, 1 − 1/n if one has all. 0 where there is no load."""
    ordered = np.sort(np.asarray(load, np.float64))
    count, total = len(ordered), ordered.sum()
    if not total:
        return 0.0
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * total))


def _ranked(experts: int, exponent: float) -> Floats:
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    ranked: Floats = weights / weights.sum()
    return ranked


def _popularity(workload: Workload, rng: np.random.Generator) -> Floats:
    """[domains, layers, experts], each a shuffle of one Zipf law."""
    ranked = _ranked(workload.experts, zipf_exponent(workload))
    shape = (workload.domains, workload.layers, workload.experts)
    return rng.permuted(np.broadcast_to(ranked, shape), axis=2)


def _groups(workload: Workload, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """[layers, experts] group of each expert, of equal sizes as far as possible."""
    dealt = np.arange(workload.experts) % workload.groups
    return rng.permuted(np.broadcast_to(dealt, (workload.layers, workload.experts)), axis=1)


def _domains(workload: Workload, step: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """[count] domain of each token of a step."""
    begun = int(np.searchsorted(workload.switches, step, side="right"))
    domain = np.full(count, begun % workload.domains)
    since = step - workload.switches[begun - 1] if begun else workload.blend
    if since < workload.blend:
        old = rng.random(count) >= (since + 1) / (workload.blend + 1)
        domain[old] = (begun - 1) % workload.domains
    return domain


def _choose(
    workload: Workload,
    popularity: Floats,
    groups: npt.NDArray[np.int64],
    domain: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """ids [tokens, layers, top_k], weights the same.

    The k least of independent exponentials with rates p are a draw without replacement in order (the
    exponential race, Efraimidis & Spirakis 2006). Gate weights: the softmax of the chosen log-scores.
    """
    scores = popularity.astype(np.float32)[domain]
    if workload.correlation:
        topic = rng.standard_normal((len(domain), workload.groups), dtype=np.float32)
        tilt = np.exp(np.float32(workload.correlation) * topic)
        scores *= tilt[:, groups]
    race = np.maximum(rng.standard_exponential(scores.shape, dtype=np.float32), LEAST_DRAW)
    race /= scores
    top_k = workload.top_k
    first = np.argpartition(race, top_k - 1, axis=2)[:, :, :top_k]
    times = np.take_along_axis(race, first, axis=2)
    order = np.argsort(times, axis=2, kind="stable")
    ids = np.take_along_axis(first, order, axis=2)
    strength = 1 / np.take_along_axis(times, order, axis=2)
    weights = strength / strength.sum(axis=2, keepdims=True)
    return ids.astype(np.uint16), weights.astype(np.float32)
