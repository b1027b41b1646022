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
RequestKind = Literal["generate", "score", "embed"]
GrammarKind = Literal["json_schema", "regex", "lark"]

Alternatives = tuple[tuple[int, float], ...]
"""(token id, natural-log probability) of the most likely tokens at one place, best first, ties to the lower
id; before penalties, temperature and filters."""


@dataclass(frozen=True, order=True, slots=True)
class ExpertId:
    """One routed expert of the model: `index` counts within its layer, `layer` over all layers."""

    layer: int
    index: int


SEEDS = 1 << 64
MOST_TEMPERATURE = 1000.0
PENALTIES = (0.001, 1000.0)
"""Beyond these, logits of real models leave float32 or the differences between them vanish."""

MOST_ADDITIVE_PENALTY = 2.0
MOST_ALTERNATIVES = 20
MOST_STOP_IDS = 1024
"""A request's header travels as one frame of bounded size."""

MOST_GRAMMAR_BYTES = 64 << 10
MOST_PRIORITY = 100
TIER_EXACT = "exact"
TIERS = (TIER_EXACT,)
"""Quality tiers that there are: how far results may depart from the library's bits; `exact` never does."""

GRAMMAR_KINDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "lark")


@dataclass(frozen=True)
class Grammar:
    """What the output has to match as a whole. Making one raises InvalidRequest for an unknown kind and for
    a text that is empty or too long; whether it can be compiled is known where the tokenizer is
    (cluster/model/grammar.py).

    json_schema: text is a JSON Schema; regex: a regular expression without look-around and back-references;
    lark: a context-free grammar in Lark's notation.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        _require("grammar.kind", repr(self.kind), self.kind in GRAMMAR_KINDS, " or ".join(GRAMMAR_KINDS))
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError:
            raise InvalidRequest("grammar.text is not valid Unicode (a lone surrogate?)") from None
        fits = 0 < size <= MOST_GRAMMAR_BYTES
        _require("grammar.text", f"{size} bytes long", fits, f"1 to {MOST_GRAMMAR_BYTES} bytes long")


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
    presence_penalty, frequency_penalty: taken from the logit of every token generated so far (never the
        prompt's), after the repetition penalty: logit − presence − frequency · (times generated), as OpenAI's
        API defines them; 0 is off.
    seed: key of the counter-based generator, 0 ≤ seed < 2**64; the gateway draws a missing one.
    top_logprobs: with every token, the log-probabilities of this many most likely ones; 0 is off.
    grammar: only tokens that it allows are considered, before temperature and filters; a complete output ends
        the sequence. An end-of-sequence id is allowed where the output may end, whatever ignore_eos says.
    stop_token_ids: ids that end the sequence besides the model's own end-of-sequence ids.
    ignore_eos: go on after an end-of-sequence id (benchmarks).
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    grammar: Grammar | None = None
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
        for name in ("presence_penalty", "frequency_penalty"):
            value, most = getattr(self, name), MOST_ADDITIVE_PENALTY
            _require(name, value, -most <= value <= most, f"between {-most:g} and {most:g}")
        _require("seed", self.seed, 0 <= self.seed < SEEDS, "between 0 and 2**64 - 1")
        listed = 0 <= self.top_logprobs <= MOST_ALTERNATIVES
        _require("top_logprobs", self.top_logprobs, listed, f"between 0 and {MOST_ALTERNATIVES}")
        stops = len(self.stop_token_ids)
        _require("stop_token_ids", f"a list of {stops}", stops <= MOST_STOP_IDS, f"at most {MOST_STOP_IDS}")


def _require(name: str, value: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}")


def sample_seed(seed: int, index: int) -> int:
    """Seed of sample `index` of a request: its own for sample 0, so that one sample is what it was alone;
    else SplitMix64's output `index` from it (Steele, Lea and Flood 2014, figure 17)."""
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) % SEEDS
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % SEEDS
    z = (z ^ z >> 27) * 0x94D049BB133111EB % SEEDS
    return z ^ z >> 31


@dataclass(frozen=True)
class EngineRequest:
    """A request as a router's engine sees it: token ids, never text.

    kind "generate" continues the prompt; "score" returns the log-probability of every prompt token
    after the first and generates nothing; "embed" returns the mean of the prompt's last hidden states.
    priority: order of admission, higher first (cluster/router/sequence.py has the rule).
    tier: quality. tenant: whose it is; two tenants share no KV page, unless EngineConfig.share_prefixes says
        so. trace: W3C traceparent of the span that it belongs to, empty where it is not traced.
    emitted: tokens that a router which was lost has given it: the next one follows them, as it would have
        there. They count towards max_tokens, and are not told again.
    Raises InvalidRequest for a priority out of range, and for tokens of a request that generates none, or
    more than it may have.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    kind: RequestKind = "generate"
    priority: int = 0
    tier: str = "exact"
    tenant: str = ""
    trace: str = ""
    emitted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranked = abs(self.priority) <= MOST_PRIORITY
        _require("priority", self.priority, ranked, f"between {-MOST_PRIORITY} and {MOST_PRIORITY}")
        if count := len(self.emitted):
            most = self.sampling.max_tokens if self.kind == "generate" else 0
            _require("emitted", f"a list of {count}", count <= most, f"at most {most} token ids")


@dataclass(frozen=True)
class Emitted:
    """One generated token. `logprob` is its natural-log probability before penalties, temperature and
    filters; alternatives: as many as `top_logprobs` asked for."""

    request_id: RequestId
    token_id: int
    logprob: float
    alternatives: Alternatives = ()


@dataclass(frozen=True)
class Finished:
    request_id: RequestId
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Scored:
    """Answer to a "score" request; `logprobs`: [len(prompt) - 1] float32, natural log; alternatives: one
    tuple a log-probability, none if the request asked for none."""

    request_id: RequestId
    logprobs: np.ndarray
    alternatives: tuple[Alternatives, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """Answer to an "embed" request; `values`: [hidden] float32, the mean of the final norm's rows."""

    request_id: RequestId
    values: np.ndarray
    prompt_tokens: int


@dataclass(frozen=True)
class Failed:
    """The request ended with an error; `emitted` tokens had been produced and stay valid."""

    request_id: RequestId
    error: Exception
    emitted: int


Event = Emitted | Finished | Scored | Embedded | Failed
