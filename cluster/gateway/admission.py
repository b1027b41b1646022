"""What a request must satisfy before a router hears of it. Pure: values in, values or an error out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import InvalidRequest, UnknownModel
from cluster.types import RequestId, SamplingParams

DEFAULTS = SamplingParams()
TIER_EXACT = "exact"
TIERS = (TIER_EXACT,)
MAX_REQUEST_ID = 128
SEEDS = 1 << 64
T = TypeVar("T")


@dataclass(frozen=True)
class Wishes:
    """Sampling as a client asked for it; None stands for the default. Fields as in SamplingParams."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class Limits:
    """Of the model served. context: longest sequence in tokens; vocab: token ids are below it."""

    context: int
    vocab: int


@dataclass(frozen=True)
class Admitted:
    """A request that may be submitted. Tokens below `resume_from` are generated but not sent."""

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    tier: str = TIER_EXACT
    resume_from: int = 0


def check_model(asked: str, served: str, version: str = "") -> None:
    """Raises UnknownModel. An empty name or version stands for the one served."""
    if asked not in ("", served):
        raise UnknownModel(f"unknown model {asked!r}; this gateway serves {served!r}")
    if version not in ("", "1"):
        raise UnknownModel(f"unknown version {version!r} of model {served!r}; the one served is '1'")


def check_tier(asked: str) -> str:
    if asked and asked not in TIERS:
        raise InvalidRequest(f"unknown tier {asked!r}; offered: {', '.join(TIERS)}")
    return asked or TIER_EXACT


def check_text(text: str) -> None:
    if not text:
        raise InvalidRequest("the prompt is empty; send at least one character")


def check_prompt(ids: Sequence[int], limits: Limits, room: int = 1) -> tuple[int, ...]:
    """`room`: tokens that must fit behind the prompt. Raises InvalidRequest."""
    if not ids:
        raise InvalidRequest("the prompt is empty; send at least one token")
    if max(ids) >= limits.vocab or min(ids) < 0:
        raise InvalidRequest(f"a token id of the prompt is not in 0..{limits.vocab - 1}")
    longest = limits.context - room
    if len(ids) > longest:
        raise InvalidRequest(
            f"the prompt has {len(ids)} tokens; at most {longest} fit the context; shorten it"
        )
    return tuple(ids)


def check_request_id(asked: str, draw: Callable[[], str]) -> RequestId:
    if len(asked) > MAX_REQUEST_ID or not asked.isprintable():
        raise InvalidRequest(f"request_id must be at most {MAX_REQUEST_ID} printable characters")
    return RequestId(asked or draw())


def check_resume(resume_from: int, wishes: Wishes) -> int:
    """Raises InvalidRequest where the tokens sent before could not be generated again."""
    if resume_from > 0 and wishes.seed is None and (wishes.temperature or 0.0) > 0:
        raise InvalidRequest("resume_from of a sampled request needs the seed that its first stream returned")
    return resume_from


def check_sampling(
    wishes: Wishes, prompt_tokens: int, limits: Limits, draw_seed: Callable[[], int]
) -> SamplingParams:
    """Fill in defaults, draw a missing seed, shorten max_tokens to the room in the context.

    Raises InvalidRequest naming the field, what it was and what it may be.
    """
    max_tokens = _or(wishes.max_tokens, DEFAULTS.max_tokens)
    _check("max_tokens", max_tokens, max_tokens >= 0, "0 or more")
    temperature = _or(wishes.temperature, DEFAULTS.temperature)
    _check("temperature", temperature, 0 <= temperature < math.inf, "a finite number, 0 (greedy) or more")
    top_k = _or(wishes.top_k, DEFAULTS.top_k)
    _check("top_k", top_k, top_k >= 0, "0 (all) or more")
    top_p = _or(wishes.top_p, DEFAULTS.top_p)
    _check("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
    min_p = _or(wishes.min_p, DEFAULTS.min_p)
    _check("min_p", min_p, 0 <= min_p <= 1, "between 0 and 1")
    penalty = _or(wishes.repetition_penalty, DEFAULTS.repetition_penalty)
    _check("repetition_penalty", penalty, 0 < penalty < math.inf, "a finite number above 0")
    seed = draw_seed() if wishes.seed is None else wishes.seed
    _check("seed", seed, 0 <= seed < SEEDS, "between 0 and 2**64 - 1")
    for token in wishes.stop_token_ids:
        _check("stop_token_ids", token, 0 <= token < limits.vocab, f"between 0 and {limits.vocab - 1}")
    return SamplingParams(
        max_tokens=min(max_tokens, limits.context - prompt_tokens),
        temperature=temperature,
        top_k=min(top_k, limits.vocab),
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=seed,
        stop_token_ids=wishes.stop_token_ids,
        ignore_eos=wishes.ignore_eos,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _check(name: str, value: float, fine: bool, allowed: str) -> None:
    # NaN fails every comparison, so it is never fine.
    if not fine:
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}")
