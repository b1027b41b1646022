"""Contracts 1 and 2 for the other types of trunk and KV cache: the same bits, whatever the company."""

from __future__ import annotations

import dataclasses

import pytest
from contract.test_invariance import LENGTHS, MODEL, outcome, requests, together

from cluster.config import EngineConfig, KvType
from cluster.library.reader import Library
from support.engines import Trace, engine_over, tiny_library

KINDS = (("int4", KvType.bf16), ("int8", KvType.int8), ("int4", KvType.int8))
"""Of the trunk and of the KV cache."""


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kinds(request: pytest.FixtureRequest) -> tuple[str, KvType]:
    chosen: tuple[str, KvType] = request.param
    return chosen


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, kinds: tuple[str, KvType]) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL, ("int4",), trunk=kinds[0])


@pytest.fixture(scope="module")
def plain(kinds: tuple[str, KvType]) -> EngineConfig:
    return EngineConfig(kv=kinds[1], kv_bytes=8 << 20)


@pytest.fixture(scope="module")
def alone(library: Library, plain: EngineConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    trace = Trace()
    with engine_over(library, plain, probe=trace) as engine:
        for one in requests():
            found |= outcome(engine, trace, [one])
    assert len(set(found.values())) == 2 * len(LENGTHS)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_tokens": 1},
        {"chunk_tokens": 65, "page_tokens": 16},
        {"page_tokens": 128, "threads": 2},
        {"micro_batches": 2, "threads": 2, "chunk_tokens": 7},
        {"max_running": 3},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "together",
)
def test_chunks_pages_threads_and_company(
    library: Library, plain: EngineConfig, alone: dict[str, str], changes: dict[str, int]
) -> None:
    assert together(library, dataclasses.replace(plain, **changes)) == alone


def test_nodes_on_real_sockets(library: Library, plain: EngineConfig, alone: dict[str, str]) -> None:
    assert together(library, plain, nodes=3) == alone


def test_preemption(library: Library, plain: EngineConfig, alone: dict[str, str]) -> None:
    pages = dataclasses.replace(plain, page_tokens=16, kv_bytes=page_bytes(library, plain) * 26)
    trace = Trace()
    wanted = [one for one in requests((190, 127, 65)) if one.request_id.startswith("greedy")]
    with engine_over(library, pages, probe=trace) as engine:
        found = outcome(engine, trace, wanted)
        assert engine.stats.preemptions > 0
    assert found.items() <= alone.items()


def page_bytes(library: Library, config: EngineConfig) -> int:
    """Written out: bf16 is two bytes an element, int8 one and a float32 for every token and head."""
    spec = library.spec
    head = 2 * spec.padded_head if config.kv is KvType.bf16 else spec.padded_head + 4
    return 2 * spec.layers * spec.kv_heads * 16 * head


def test_the_kv_type_changes_bits_and_a_float_trunk_has_none(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wanted = requests((65,))
    found = {}
    for kind in ("int8", "f32"):
        packed = tiny_library(tmp_path_factory.mktemp("models"), MODEL, (kind,))
        for kv in KvType:
            config = EngineConfig(kv=kv, kv_bytes=8 << 20)
            found[kind, kv] = together(packed, config, wanted)
    assert found["int8", KvType.int8] != found["int8", KvType.bf16]
    assert found["f32", KvType.int8] == found["f32", KvType.bf16]
