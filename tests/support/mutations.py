"""Mistakes that a parity test must notice: each turns a right ModelSpec into a wrong one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from cluster.model.spec import ModelSpec


def doubled_rope_theta(spec: ModelSpec) -> ModelSpec:
    """1 / (2 theta)^(2i/D) = inv_freq * 2^(-2i/D)"""
    factors = 2.0 ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
    wrong = tuple(float(np.float32(value)) for value in np.asarray(spec.inv_freq) * factors)
    return dataclasses.replace(spec, inv_freq=wrong)


def wrong_eps(spec: ModelSpec) -> ModelSpec:
    """1e-5 where it is 1e-6, as with another family's default; 1e-6 where it is 1e-5."""
    return dataclasses.replace(spec, rms_eps=1e-5 if spec.rms_eps < 5e-6 else 1e-6)


def flipped_norm_topk(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, norm_topk=not spec.norm_topk)


def missing_qk_norm(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, qk_norm="none")


MUTATIONS: dict[str, Callable[[ModelSpec], ModelSpec]] = {
    "doubled_rope_theta": doubled_rope_theta,
    "wrong_eps": wrong_eps,
    "flipped_norm_topk": flipped_norm_topk,
    "missing_qk_norm": missing_qk_norm,
}


def mutations_of(spec: ModelSpec) -> dict[str, ModelSpec]:
    """Every mutation that changes this model (a model without q/k norm cannot lose it)."""
    mutated = {name: mutate(spec) for name, mutate in MUTATIONS.items()}
    return {name: wrong for name, wrong in mutated.items() if wrong != spec}
