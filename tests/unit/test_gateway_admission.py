"""Every bad value is refused by name; good ones are filled in."""

from __future__ import annotations

import math

import pytest

from cluster.errors import InvalidRequest, UnknownModel
from cluster.gateway import admission
from cluster.gateway.admission import Limits, Wishes

LIMITS = Limits(context=100, vocab=1000)


def never() -> int:
    raise AssertionError("a seed was drawn although one was given")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e300),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", 1e-300),
        ("seed", -1),
        ("seed", 1 << 64),
        ("stop_token_ids", (1000,)),
        ("stop_token_ids", (-1,)),
        ("stop_token_ids", (7,) * 1025),
    ],
)
def test_a_bad_sampling_value_is_named(field: str, value: object) -> None:
    wishes = Wishes(**{field: value})
    with pytest.raises(InvalidRequest, match=field):
        admission.check_sampling(wishes, 10, LIMITS, lambda: 7)


def test_defaults_are_greedy_and_a_missing_seed_is_drawn() -> None:
    sampling = admission.check_sampling(Wishes(), 10, LIMITS, lambda: 7)
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (64, 0.0, 7)


def test_a_given_seed_is_kept_even_if_it_is_zero() -> None:
    assert admission.check_sampling(Wishes(seed=0), 10, LIMITS, never).seed == 0


def test_max_tokens_is_shortened_to_the_room_in_the_context() -> None:
    assert admission.check_sampling(Wishes(max_tokens=500), 70, LIMITS, lambda: 0).max_tokens == 30


@pytest.mark.parametrize("ids", [[], [1000], [-1], [1] * 100])
def test_a_bad_prompt_is_refused(ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        admission.check_prompt(ids, LIMITS)


def test_a_prompt_may_leave_room_for_one_token_or_none() -> None:
    assert len(admission.check_prompt([1] * 99, LIMITS)) == 99
    assert len(admission.check_prompt([1] * 100, LIMITS, room=0)) == 100


def test_an_unknown_model_or_version_is_not_found() -> None:
    admission.check_model("", "tiny")
    admission.check_model("tiny", "tiny", "1")
    with pytest.raises(UnknownModel, match="gpt"):
        admission.check_model("gpt", "tiny")
    with pytest.raises(UnknownModel, match="version '2'"):
        admission.check_model("tiny", "tiny", "2")


def test_only_the_exact_tier_is_offered() -> None:
    assert admission.check_tier("") == admission.check_tier("exact") == "exact"
    with pytest.raises(InvalidRequest, match="lowbit"):
        admission.check_tier("lowbit")


def test_a_sampled_request_is_resumed_only_with_its_seed() -> None:
    assert admission.check_resume(3, Wishes()) == 3
    assert admission.check_resume(3, Wishes(temperature=1.0, seed=5)) == 3
    with pytest.raises(InvalidRequest, match="seed"):
        admission.check_resume(3, Wishes(temperature=1.0))


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "日本", "é", " a", "a ", " "])
def test_a_request_id_is_short_and_printable_ascii(name: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        admission.check_request_id(name, lambda: "drawn")


def test_a_request_id_may_have_any_other_character() -> None:
    for name in ("x" * 128, "a b", "!~{}"):
        assert admission.check_request_id(name, lambda: "drawn") == name


def test_a_missing_request_id_is_drawn() -> None:
    assert admission.check_request_id("", lambda: "drawn") == "drawn"
