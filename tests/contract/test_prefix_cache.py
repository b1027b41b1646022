"""Contract 2 with shared pages: what a prompt began with, and who computed it, changes no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.router.kv import page_bytes
from cluster.types import EngineRequest, RequestId
from support.checkpoints import case
from support.engines import engine_over, request, run_all, tiny_library

MODEL = "qwen2-layer-windows"
PAGE = 16
CONFIG = EngineConfig(page_tokens=PAGE, kv_bytes=8 << 20)
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder: Path = tmp_path_factory.mktemp("models")
    return tiny_library(folder, MODEL)


def prompt(*parts: tuple[int, int]) -> list[int]:
    """The first `count` tokens of text `which`, one after the other."""
    words = case(MODEL).prompt(400)
    return [token for which, count in parts for token in words[40 * which : 40 * which + count]]


def outputs(engine: Engine, wanted: list[EngineRequest]) -> dict[str, tuple[list[int], list[float]]]:
    done = run_all(engine, wanted)
    return {name: (run.tokens, run.logprobs) for name, run in done.items()}


def alone(library: Library, wanted: list[EngineRequest]) -> dict[str, tuple[list[int], list[float]]]:
    with engine_over(library, replace(CONFIG, prefix_cache=False)) as engine:
        return outputs(engine, wanted)


def test_a_prompt_that_was_there_before_is_not_computed_again(library: Library) -> None:
    first, second = prompt((0, 70)), prompt((0, 50), (3, 20))
    wanted = [request("a", first, 4), request("b", second, 4, **SAMPLED), request("c", first, 9)]
    with engine_over(library, CONFIG) as engine:
        found, rows, hits = {}, [], []
        for each in wanted:
            before = engine.stats
            found |= outputs(engine, [each])
            rows.append(engine.stats.rows - before.rows)
            hits.append(engine.stats.prefix_hits - before.prefix_hits)
        assert hits == [0, 48, 64], "whole pages of what both begin with"
        assert rows == [70 + 3, 70 - 48 + 3, 70 - 64 + 8]
        assert engine.stats.prefix_tokens == 210
        assert engine.stats.kv_pages_used == 0
    assert found == alone(library, wanted)


def test_the_last_token_is_always_computed(library: Library) -> None:
    whole = prompt((0, 3 * PAGE))
    with engine_over(library, CONFIG) as engine:
        both = [outputs(engine, [request(name, whole, 3)])[name] for name in ("a", "b")]
        assert engine.stats.prefix_hits == 2 * PAGE
    assert both[0] == both[1]


def test_tenants_and_tiers_share_nothing(library: Library) -> None:
    mine = request("a", prompt((0, 60)), 2)
    with engine_over(library, CONFIG) as engine:
        outputs(engine, [mine])
        outputs(engine, [replace(mine, tenant="another")])
        outputs(engine, [replace(mine, tier="another")])
        assert engine.stats.prefix_hits == 0
        outputs(engine, [replace(mine, tenant="another")])
        assert engine.stats.prefix_hits == 48


def test_tenants_share_where_they_are_allowed_to(library: Library) -> None:
    mine = request("a", prompt((0, 60)), 4)
    wanted = [mine, replace(mine, request_id=RequestId("b"), tenant="another")]
    with engine_over(library, replace(CONFIG, share_prefixes=True)) as engine:
        found = {}
        for each in wanted:
            found |= outputs(engine, [each])
        assert engine.stats.prefix_hits == 48
        outputs(engine, [replace(mine, tier="another")])
        assert engine.stats.prefix_hits == 48, "tiers share nothing even so"
    assert found == alone(library, wanted)


def test_scoring_shares_nothing_but_leaves_its_pages(library: Library) -> None:
    text = prompt((0, 60))
    with engine_over(library, CONFIG) as engine:
        scores = [run_all(engine, [request(n, text, kind="score")])[n].scores for n in ("s", "t")]
        assert scores[0].tobytes() == scores[1].tobytes()
        assert engine.stats.prefix_hits == 0
        assert engine.stats.rows == 120
        outputs(engine, [request("g", text, 1)])
        assert engine.stats.prefix_hits == 48


def test_a_preempted_request_finds_what_it_had_computed(library: Library) -> None:
    config = replace(CONFIG, kv_bytes=5 * page_bytes(library.spec, PAGE, np.uint16))
    wanted = [request("old", prompt((0, 30)), 30), request("young", prompt((2, 30)), 30)]
    with engine_over(library, config) as engine:
        found = outputs(engine, wanted)
        assert engine.stats.preemptions > 0
        assert engine.stats.kv_pages_used == 0
    assert found == alone(library, wanted)


PARTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([8, 16, 17, 32])), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(PARTS, min_size=2, max_size=8),
    pages=st.integers(8, 14),
    chunk=st.sampled_from([9, 64]),
    together=st.integers(1, 4),
)
def test_any_mix_of_prompts_with_few_pages(
    library: Library, prompts: list[list[tuple[int, int]]], pages: int, chunk: int, together: int
) -> None:
    """Pages are shared, forgotten and taken away again; nothing else changes."""
    wanted = [
        request(str(number), prompt(*parts), 6, **(SAMPLED if number % 2 else {}))
        for number, parts in enumerate(prompts)
    ]
    few = pages * page_bytes(library.spec, PAGE, np.uint16)
    config = replace(CONFIG, kv_bytes=few, chunk_tokens=chunk, max_running=4)
    with engine_over(library, config) as engine:
        found = {}
        for begin in range(0, len(wanted), together):
            found |= outputs(engine, wanted[begin : begin + together])
        assert engine.stats.kv_pages_used == 0
    assert found == alone(library, wanted)
