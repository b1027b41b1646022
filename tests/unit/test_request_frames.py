"""Requests and events survive the way between gateway and router, and ordinary tokens stay small."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch.requests import Payload, pack_event, pack_request, parse_request, unpack_alternatives
from cluster.errors import InvalidRequest
from cluster.types import (
    Embedded,
    Emitted,
    EngineRequest,
    Failed,
    Finished,
    Grammar,
    RequestId,
    SamplingParams,
    Scored,
)

ID = RequestId("r")

samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 1 << 20),
    temperature=st.floats(0, 1000),
    top_k=st.integers(0, 1 << 20),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.integers(0, (1 << 64) - 1),
    top_logprobs=st.integers(0, 20),
    grammar=st.none()
    | st.builds(Grammar, st.sampled_from(["regex", "lark", "json_schema"]), st.text("aé😀", min_size=1)),
    stop_token_ids=st.lists(st.integers(0, 1 << 20)).map(tuple),
    ignore_eos=st.booleans(),
)


@given(
    st.lists(st.integers(0, (1 << 31) - 1), max_size=20),
    samplings,
    st.sampled_from(["generate", "score", "embed"]),
    st.integers(-100, 100),
    st.lists(st.integers(0, (1 << 31) - 1), max_size=20),
)
def test_a_request_arrives_as_it_was_sent(
    prompt: list[int], sampling: SamplingParams, kind: str, priority: int, emitted: list[int]
) -> None:
    most = sampling.max_tokens if kind == "generate" else 0
    sent = EngineRequest(ID, tuple(prompt), sampling, kind, priority, emitted=tuple(emitted[:most]))  # type: ignore[arg-type]
    header, payload = pack_request(7, sent)
    assert parse_request(ID, msgpack.unpackb(msgpack.packb(header)), payload) == sent


def test_an_ordinary_request_sends_no_defaults() -> None:
    header, payload = pack_request(7, EngineRequest(ID, (1, 2, 3), SamplingParams(max_tokens=5)))
    assert header["sampling"] == {"max_tokens": 5}
    assert len(msgpack.packb(header)) <= 64
    assert len(payload) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dream"},
        {"prompt": 9},
        {"prompt": "x"},
        {"prompt": -1},
        {"prompt": 1, "emitted": 3},
        {"prompt": 1, "emitted": -1},
        {"prompt": 1, "emitted": 2, "sampling": {"max_tokens": 1}},
        {"prompt": 1, "emitted": 2, "kind": "score"},
        {"emitted": "x"},
        {"sampling": {"top_p": 2}},
        {"sampling": {"unknown": 1}},
        {"sampling": 5},
        {"grammar": "poem"},
        {"grammar": "regex"},  # without a text
        {"priority": 1000},
    ],
)
def test_a_malformed_request_is_refused(change: dict[str, object]) -> None:
    header, payload = pack_request(7, EngineRequest(ID, (1, 2, 3)))
    with pytest.raises(InvalidRequest):
        parse_request(ID, {**header, **change}, payload)


def test_an_ordinary_token_is_four_values() -> None:
    assert pack_event(7, Emitted(ID, 5, -0.5)) == ([7, "t", 5, -0.5], ())
    assert len(msgpack.packb(pack_event(7, Emitted(ID, 5000, -0.5))[0])) <= 16


def test_alternatives_follow_their_token() -> None:
    pairs = ((5, -0.5), (9, -1.5))
    entry, parts = pack_event(7, Emitted(ID, 5, -0.5, pairs))
    assert entry[:4] == [7, "t", 5, -0.5]
    assert not parts
    assert unpack_alternatives(entry[4]) == pairs


def test_values_of_several_events_follow_one_another() -> None:
    scores = np.array([-0.5, -1.0], np.float32)
    listed = (((1, -0.5), (2, -0.75)), ((3, -1.0), (4, -2.0)))
    events = [
        Scored(ID, scores, listed),
        Embedded(ID, np.array([1.5, 2.5, 3.5], np.float32), 9),
        Scored(ID, scores[:1]),
    ]
    packed = [pack_event(number, event) for number, event in enumerate(events)]
    payload = Payload(memoryview(b"".join(part for _, parts in packed for part in parts)))
    first, second, third = (entry for entry, _ in packed)
    assert payload.floats(first[2]).tolist() == scores.tolist()
    assert payload.alternatives(first[2], first[3]) == listed
    assert second[3] == 9
    assert payload.floats(second[2]).tolist() == [1.5, 2.5, 3.5]
    assert payload.floats(third[2]).tolist() == [-0.5]
    assert payload.alternatives(third[2], third[3]) == ()
    with pytest.raises(ValueError, match="buffer"):
        payload.floats(1)


def test_ends_and_errors_say_what_they_said() -> None:
    assert pack_event(7, Finished(ID, "stop", 3, 4)) == ([7, "f", "stop", 3, 4], ())
    failed = pack_event(7, Failed(ID, InvalidRequest("no"), 2))
    assert failed == ([7, "x", "InvalidRequest", "no", 2], ())
