"""Penalties and masks on rows of logits, against the definition written token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.edits import edit, edits
from cluster.router.sequence import Sequence
from cluster.types import EngineRequest, Grammar, RequestId, SamplingParams

F = np.float32
VOCAB = 40

logits = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB)
ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)
penalty = st.floats(-2, 2, width=32)


class Fixed:
    """A grammar that allows the same tokens for ever."""

    def __init__(self, allowed: set[int]) -> None:
        self._bits = sum(1 << token for token in allowed)

    def allowed(self, masks: np.ndarray, row: int) -> None:
        words = [self._bits >> 32 * i & 0xFFFFFFFF for i in range(masks.shape[1])]
        masks[row] = np.array(words, np.uint32).view(np.int32)


def edited(values: list[float], prompt: list[int], generated: list[int], allowed=None, **params) -> list[F]:
    request = EngineRequest(RequestId("r"), tuple(prompt), SamplingParams(**params))
    sequence = Sequence(request, 0, [*prompt, *generated], grammar=allowed and Fixed(allowed))
    row = np.array(values, F)
    edit(row, sequence, (np.zeros((1, 2), np.int32), np.zeros((8, 8), F)))
    return list(row)


def naive(
    values: list[float],
    prompt: list[int],
    generated: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    allowed: set[int],
) -> list[F]:
    counts, seen = Counter(generated), {*prompt, *generated}
    out = []
    for token, value in enumerate(map(F, values)):
        if token in seen:
            value = value / F(repetition) if value > 0 else value * F(repetition)
        if counts[token]:
            value = F(value - F(F(frequency) * F(counts[token]))) - F(presence)
        out.append(value if token in allowed else F(-np.inf))
    return out


@given(
    logits,
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10),
    ids,
    st.floats(0.5, 2, width=32),
    penalty,
    penalty,
    st.sets(st.integers(0, VOCAB - 1), min_size=1),
)
def test_rows_are_edited_as_the_definition_says(
    values, prompt, generated, repetition, presence, frequency, allowed
) -> None:
    found = edited(
        values,
        prompt,
        generated,
        allowed,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    assert np.array_equal(found, naive(values, prompt, generated, repetition, presence, frequency, allowed))


def test_the_prompt_is_not_penalised_by_presence_and_frequency() -> None:
    values = [1.0] * VOCAB
    assert edited(values, [3, 3], [5], presence_penalty=0.5, frequency_penalty=0.25)[3:6] == [1.0, 1.0, 0.25]


def test_only_rows_that_ask_for_it_are_edited() -> None:
    assert not edits(SamplingParams(temperature=1.0, repetition_penalty=1.5, top_logprobs=5, top_k=3))
    for wish in ({"presence_penalty": 0.1}, {"frequency_penalty": -0.1}, {"grammar": Grammar("regex", "a")}):
        assert edits(SamplingParams(**wish))
