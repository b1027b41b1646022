"""Who is admitted first, and who gives way: higher priority, then the older one, and nobody for ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.errors import InvalidRequest
from cluster.library.reader import Library
from cluster.router import sequence
from cluster.router.engine import Engine
from cluster.types import Emitted, EngineRequest, RequestId
from support.checkpoints import case
from support.engines import engine_over, request, run_all, tiny_library

MODEL = "qwen3-tied-gqa"
ONE_AT_A_TIME = EngineConfig(kv_bytes=4 << 20, max_running=1, max_waiting=16)
PROMPT = case(MODEL).prompt(9)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


def wanted(name: str, priority: int, tokens: int = 2) -> EngineRequest:
    return dataclasses.replace(request(name, PROMPT, tokens), priority=priority)


def order(engine: Engine, requests: Sequence[EngineRequest]) -> list[str]:
    """Names in the order of their first tokens."""
    for one in requests:
        engine.submit(one)
    seen: dict[str, None] = {}
    while not engine.idle:
        seen |= {event.request_id: None for event in engine.step() if isinstance(event, Emitted)}
    return list(seen)


def test_higher_goes_first_and_equals_in_order_of_arrival(library: Library) -> None:
    priorities = {"a": 0, "b": 5, "c": -1, "d": 5, "e": 0, "f": 9}
    with engine_over(library, ONE_AT_A_TIME) as engine:
        assert order(engine, [wanted(name, each) for name, each in priorities.items()]) == list("fbdaec")


def test_one_that_runs_is_not_stopped_by_a_higher_one_that_waits(library: Library) -> None:
    with engine_over(library, ONE_AT_A_TIME) as engine:
        engine.submit(wanted("low", -5, tokens=6))
        first = engine.step()
        assert order(engine, [wanted("high", 50)]) == ["low", "high"]
        assert engine.stats.preemptions == 0
    assert [event.request_id for event in first] == ["low"]


def test_age_outweighs_priority_in_the_end(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "AGEING", 3)
    with engine_over(library, ONE_AT_A_TIME) as engine:
        requests = [wanted("old", 0), *(wanted(f"new{i}", 1) for i in range(5))]
        assert order(engine, requests) == ["new0", "new1", "old", "new2", "new3", "new4"]


def test_without_memory_the_lowest_gives_way_and_loses_nothing(library: Library) -> None:
    tight = EngineConfig(kv_bytes=40_000, page_tokens=16, max_running=4)
    requests = [wanted("low", -1, 60), wanted("high", 1, 60)]
    with engine_over(library, EngineConfig()) as engine:
        alone = {name: answer.tokens for one in requests for name, answer in run_all(engine, [one]).items()}
    with engine_over(library, tight) as engine:
        for one in requests:
            engine.submit(one)
        tokens: dict[RequestId, list[int]] = {one.request_id: [] for one in requests}
        ended = []
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, Emitted):
                    tokens[event.request_id].append(event.token_id)
                else:
                    ended.append(event.request_id)
        assert engine.stats.preemptions > 0
    assert tokens == alone
    assert ended == ["high", "low"]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=40))
def test_no_request_is_overtaken_by_more_than_its_lead(priorities: list[int]) -> None:
    made = [
        sequence.Sequence(dataclasses.replace(EngineRequest(RequestId("r"), (1,)), priority=p), n, [1])
        for n, p in enumerate(priorities)
    ]
    ranked = sorted(made, key=lambda one: one.rank)
    for later, early in ((a, b) for i, a in enumerate(ranked) for b in ranked[i:]):
        if later.number > early.number:
            lead = later.request.priority - early.request.priority
            assert lead > 0
            assert later.number - early.number < sequence.AGEING * lead


@pytest.mark.parametrize("priority", [-101, 101])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(InvalidRequest, match="priority"):
        wanted("a", priority)
