"""What is asked meanwhile: a few questions whose answers are known, in many manners. Pure, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cluster.types import SamplingParams

QUESTIONS = 16
PROMPT_TOKENS, NEW_TOKENS = (3, 48), (8, 96)
TEMPERATURE = 0.8


class Manner(StrEnum):
    """whole: read to its end. leave: the client goes after some tokens, for good. resume: it goes and comes
    back within its window. abort: it asks for the end, and reads on. deadline: the call has little time.
    """

    whole = "whole"
    leave = "leave"
    resume = "resume"
    abort = "abort"
    deadline = "deadline"


SHARES = {
    Manner.whole: 0.6,
    Manner.leave: 0.1,
    Manner.resume: 0.16,
    Manner.abort: 0.07,
    Manner.deadline: 0.07,
}
"""How often a request is of each manner."""

PAUSE_S = (0.0, 1.0)
DEADLINE_S = (0.05, 1.0)


@dataclass(frozen=True)
class Question:
    """All that its answer depends on."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class Turn:
    """question: its number. after: tokens after which the client does what its manner says. pause_s: until it
    comes back. deadline_s: of the call; 0 for none."""

    question: int
    manner: Manner
    after: int
    pause_s: float
    deadline_s: float


def questions(seed: np.random.SeedSequence, vocab: int, count: int = QUESTIONS) -> list[Question]:
    """Every other one is greedy."""
    rng = np.random.default_rng(seed)
    return [_question(rng, vocab, greedy=number % 2 == 0) for number in range(count)]


def _question(rng: np.random.Generator, vocab: int, greedy: bool) -> Question:
    prompt = rng.integers(vocab, size=rng.integers(*PROMPT_TOKENS, endpoint=True))
    sampling = SamplingParams(
        max_tokens=int(rng.integers(*NEW_TOKENS, endpoint=True)),
        temperature=0.0 if greedy else TEMPERATURE,
        seed=int(rng.integers(2**63)),
        ignore_eos=True,
    )
    return Question(tuple(prompt.tolist()), sampling)


def turns(seed: np.random.SeedSequence, asked: list[Question]) -> Iterator[Turn]:
    """Of one client, without end."""
    rng = np.random.default_rng(seed)
    manners, shares = list(SHARES), np.array(list(SHARES.values()))
    while True:
        question = int(rng.integers(len(asked)))
        manner = manners[rng.choice(len(manners), p=shares / shares.sum())]
        after = int(rng.integers(1, asked[question].sampling.max_tokens))
        pause, deadline = rng.uniform(*PAUSE_S), rng.uniform(*DEADLINE_S)
        yield Turn(question, manner, after, pause, deadline if manner is Manner.deadline else 0.0)
