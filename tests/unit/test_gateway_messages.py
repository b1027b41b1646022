"""Messages of moemesh.v1 and the gateway's own words say the same."""

from __future__ import annotations

import pytest

from cluster.errors import InvalidRequest
from cluster.gateway.admission import Wishes
from cluster.gateway.messages import sampling_of, wishes_of
from cluster.types import Grammar
from protos import generation_pb2 as pb

FULL = Wishes(
    max_tokens=3,
    temperature=0.0,
    top_k=4,
    top_p=0.5,
    min_p=0.25,
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=2.0,
    seed=(1 << 64) - 1,
    top_logprobs=5,
    grammar=Grammar("regex", "a+"),
    stop_token_ids=(1, 2),
    stop=("a", "é"),
    n=3,
    priority=0,
    ignore_eos=True,
)


@pytest.mark.parametrize("wishes", [FULL, Wishes(priority=0), Wishes(temperature=0.0, seed=0, priority=0)])
def test_wishes_survive_the_message(wishes: Wishes) -> None:
    assert wishes_of(sampling_of(wishes), 0) == wishes


def test_every_wish_is_in_the_test_above() -> None:
    assert all(value is not None and value != () for value in vars(FULL).values())


def test_absent_wishes_stay_absent_in_the_message() -> None:
    assert sampling_of(Wishes()) == pb.Sampling()


def test_an_empty_grammar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="json_schema"):
        wishes_of(pb.Sampling(grammar=pb.Grammar()), 0)
