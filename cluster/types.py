"""The vocabulary that every role shares: ids, sampling parameters, requests and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

import numpy as np

from cluster.errors import InvalidRequest

NUMERICS_VERSION = 1
"""Version of the rules of arithmetic that this code computes by: the same library gives other bits under
others. Written in every manifest and compared at every connection."""

NodeId = NewType("NodeId", str)
"""Stable name of an expert node; survives a restart of its process (its *incarnation* does not)."""

RouterId = NewType("RouterId", str)
RequestId = NewType("RequestId", str)

FinishReason = Literal["stop", "length", "aborted"]
RequestKind = Literal["generate", "score"]


@dataclass(frozen=True, order=True, slots=True)
class ExpertId:
    """One routed expert of the model: `index` counts within its layer, `layer` over all layers."""

    layer: int
    index: int


SEEDS = 1 << 64
MOST_TEMPERATURE = 1000.0
PENALTIES = (0.001, 1000.0)
"""Beyond these, logits of real models leave float32 or the differences between them vanish."""

MOST_STOP_IDS = 1024
"""A request's header travels as one frame of bounded size."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Defaults are greedy. Making one raises InvalidRequest, naming the field
    that is out of range, what it was and what it may be.

    temperature: 0 is greedy (arg max, ties to the lower id); otherwise logits are divided by it.
    top_k: keep the k largest logits; 0 keeps all.
    top_p: keep the smallest set whose probability reaches top_p; 1 keeps all.
    min_p: drop tokens below min_p times the largest probability; 0 drops none.
    repetition_penalty: divides positive and multiplies negative logits of tokens already seen
        (prompt and output), Keskar et al. 2019 (CTRL), section 4.1; 1 is off.
    seed: key of the counter-based generator, 0 ≤ seed < 2**64; the gateway draws a missing one.
    stop_token_ids: ids that end the sequence besides the model's own end-of-sequence ids.
    ignore_eos: go on after an end-of-sequence id (benchmarks).
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        # NaN fails every comparison, so it is never in range.
        _require("max_tokens", self.max_tokens, self.max_tokens >= 0, "0 or more")
        warm = 0 <= self.temperature <= MOST_TEMPERATURE
        _require("temperature", self.temperature, warm, f"between 0 (greedy) and {MOST_TEMPERATURE:g}")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        low, high = PENALTIES
        mild = low <= self.repetition_penalty <= high
        _require("repetition_penalty", self.repetition_penalty, mild, f"between {low:g} and {high:g}")
        _require("seed", self.seed, 0 <= self.seed < SEEDS, "between 0 and 2**64 - 1")
        stops = len(self.stop_token_ids)
        _require("stop_token_ids", f"a list of {stops}", stops <= MOST_STOP_IDS, f"at most {MOST_STOP_IDS}")


def _require(name: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}")


@dataclass(frozen=True)
class EngineRequest:
    """A request as a router's engine sees it: token ids, never text.

    kind "generate" continues the prompt; "score" returns the log-probability of every prompt token
    after the first and generates nothing. tier: quality. tenant: whose it is; two tenants share no KV page.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    kind: RequestKind = "generate"
    tier: str = "exact"
    tenant: str = ""


@dataclass(frozen=True)
class Emitted:
    """One generated token. `logprob` is its natural-log probability before temperature and filters."""

    request_id: RequestId
    token_id: int
    logprob: float


@dataclass(frozen=True)
class Finished:
    request_id: RequestId
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Scored:
    """Answer to a "score" request; `logprobs`: [len(prompt) - 1] float32, natural log."""

    request_id: RequestId
    logprobs: np.ndarray


@dataclass(frozen=True)
class Failed:
    """The request ended with an error; `emitted` tokens had been produced and stay valid."""

    request_id: RequestId
    error: Exception
    emitted: int


Event = Emitted | Finished | Scored | Failed
