"""What a good placement is: four goals and their weights, and the cost of a placement under them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.balance.bounds import dispatch_bound, fluid_bound
from cluster.balance.fleet import Booleans, Floats, Integers
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError


@dataclass(frozen=True)
class Objective:
    """Weights of the goals, each a share of its own worst or ideal value, so that weights compare.

    makespan: time of the last device, as a multiple of the ideal (Σ load / Σ speed).
    distinct: the same for the chance that an expert is active in a step: in memory-bound decode an expert
        costs the reading of its weights. Blended with the rows into one load, whose last device is no later
        than the two apart allow.
    links: share of the pairs of experts that fire together, or one layer after the other, at different sites.
    moves: bytes that devices must load which they do not hold now, as a share of all experts' bytes.

    Raises ConfigError for a negative weight and where neither makespan nor distinct counts.
    """

    makespan: float = 1.0
    distinct: float = 0.0
    links: float = 0.1
    moves: float = 0.1

    def __post_init__(self) -> None:
        weights = (self.makespan, self.distinct, self.links, self.moves)
        if not np.isfinite(weights).all() or min(weights) < 0 or self.makespan + self.distinct == 0:
            raise ConfigError(f"weights must be 0 or more, makespan or distinct above 0: {self}")

    @property
    def balance(self) -> float:
        """Weight of the blended load's makespan."""
        return self.makespan + self.distinct


def blended_load(problem: Problem, objective: Objective) -> Floats:
    """[layers, experts] ≥ 0, rows and activity in the objective's proportion; each layer sums to its rows."""
    if objective.distinct == 0:
        return problem.load
    rows, active = problem.load, -np.expm1(-problem.load)
    total = np.maximum(rows.sum(axis=1, keepdims=True), _LEAST)
    share = active / np.maximum(active.sum(axis=1, keepdims=True), _LEAST)
    blend: Floats = (objective.makespan * rows + objective.distinct * share * total) / objective.balance
    return blend


_LEAST = 1e-300
"""Keeps the share of a layer without load a number."""


def site_shares(hosts: Booleans, site: Integers) -> Floats:
    """[layers, experts, sites] the part of an expert's rows that each site does if copies share them evenly.

    hosts: [layers, experts, devices]; site: [devices] 0 … sites - 1.
    """
    onto = np.eye(int(site.max()) + 1)[site]
    shares: Floats = hosts @ onto / np.maximum(hosts.sum(axis=2, keepdims=True), 1)
    return shares


def linked_pairs(problem: Problem) -> float:
    """Pairs of experts per step that fire together or one layer after the other: the most that links cost."""
    total = 0.0
    if problem.coactivation is not None:
        total += (problem.coactivation.sum() - np.einsum("lee->", problem.coactivation)) / 2
    if problem.affinity is not None:
        total += problem.affinity.sum()
    return float(total)


def apart(problem: Problem, placement: Placement) -> float:
    """Share of linked pairs whose experts are at different sites, rows split evenly over copies; 0 … 1."""
    total = linked_pairs(problem)
    if total == 0:
        return 0.0
    shares = site_shares(placement.hosts, np.unique(problem.devices.site, return_inverse=True)[1])
    together = 0.0
    if problem.coactivation is not None:
        both = np.einsum("lef,les,lfs->le", problem.coactivation, shares, shares, optimize=True)
        alone = np.einsum("lee,les,les->", problem.coactivation, shares, shares)
        together += (both.sum() - alone) / 2
    if problem.affinity is not None:
        together += np.einsum("lef,les,lfs->", problem.affinity, shares[:-1], shares[1:], optimize=True)
    return float(1 - together / total)


def cost(problem: Problem, placement: Placement, objective: Objective) -> float:
    """Weighted sum of the goals, mean over the layers that have experts; smaller is better."""
    load, speed = blended_load(problem, objective), problem.devices.speed
    times = [
        dispatch_bound(load[layer], placement.hosts[layer], speed) / fluid_bound(load[layer], speed)
        for layer in np.flatnonzero(problem.sparse & (load.sum(axis=1) > 0))
    ]
    balance = float(np.mean(times)) if times else 1.0
    moved = problem.moved_bytes(placement) / int(problem.expert_bytes.sum())
    links = apart(problem, placement)
    return objective.balance * balance + objective.links * links + objective.moves * moved
