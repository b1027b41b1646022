"""Contracts 1 and 2: a request's bits depend on library, prompt and sampling, on nothing else.

Not on how many nodes compute its experts or how they are placed, not on routers, batch mates, chunks,
pages, micro-batches, threads, or on the weights' being mapped or squeezed through a small arena.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.balance.placement import PlacementTable
from cluster.config import EngineConfig
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.types import EngineRequest, Event, NodeId
from support.checkpoints import case
from support.engines import (
    Trace,
    connect,
    engine_over,
    placement,
    request,
    run_all,
    running_node,
    tiny_library,
)

MODEL = "qwen2-layer-windows"
"""Shared expert, dense layer, sliding windows, biases, one KV head for four: the most ways to go wrong."""

PLAIN = EngineConfig(kv_bytes=8 << 20)
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 190)
"""Prompts that end on, one before and one after every edge of a 16-token column, a page and a 64-block."""

SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1}
TOKENS = 6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL, ("int8", "int4"))


def requests(lengths: tuple[int, ...] = LENGTHS) -> list[EngineRequest]:
    """A greedy and a sampled request for every length."""
    made = []
    for length in lengths:
        prompt = case(MODEL).prompt(length)
        made.append(request(f"greedy-{length}", prompt, TOKENS))
        made.append(request(f"sampled-{length}", prompt[::-1], TOKENS, seed=length, **SAMPLED))
    return made


def fingerprint(trace: Trace, tokens: list[int], name: str) -> str:
    """Digest of a request's sampled logits and tokens; chunking changes which rows of the prompt have any."""
    digest = hashlib.sha256(repr(tokens).encode())
    rows = trace.seen[name]  # type: ignore[index]
    for position in sorted(rows):
        digest.update(rows[position].tobytes())
    return digest.hexdigest()


def outcome(engine: Engine, trace: Trace, wanted: list[EngineRequest]) -> dict[str, str]:
    answers = run_all(engine, wanted)
    for name, answer in answers.items():
        assert answer.error is None, f"{name}: {answer.error}"
    return {name: fingerprint(trace, answer.tokens, name) for name, answer in answers.items()}


def together(
    library: Library, config: EngineConfig, wanted: list[EngineRequest] | None = None, **options: object
) -> dict[str, str]:
    trace = Trace()
    with engine_over(library, config, probe=trace, **options) as engine:  # type: ignore[arg-type]
        return outcome(engine, trace, wanted or requests())


@pytest.fixture(scope="module", params=["int8", "int4"])
def variant(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def alone(library: Library, variant: str) -> dict[str, str]:
    """Every request on its own, one process, one thread, no shared pages: what all the rest must equal."""
    found: dict[str, str] = {}
    trace = Trace()
    apart = dataclasses.replace(PLAIN, prefix_cache=False)
    with engine_over(library, apart, variant=variant, probe=trace) as engine:
        for one in requests():
            found |= outcome(engine, trace, [one])
    assert len(set(found.values())) == len(found), "different requests have different bits"
    return found


def test_in_a_batch_of_all(library: Library, variant: str, alone: dict[str, str]) -> None:
    assert together(library, PLAIN, variant=variant) == alone


@pytest.mark.parametrize("chunk", [1, 7, 63, 64, 65, 512])
def test_prefill_chunks(library: Library, variant: str, alone: dict[str, str], chunk: int) -> None:
    assert together(library, dataclasses.replace(PLAIN, chunk_tokens=chunk), variant=variant) == alone


@pytest.mark.parametrize(
    "changes",
    [
        {"page_tokens": 16},
        {"page_tokens": 128},
        {"threads": 2},
        {"micro_batches": 2},
        {"max_running": 3},
        {"micro_batches": 2, "threads": 2, "page_tokens": 16, "chunk_tokens": 65},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_pages_threads_and_micro_batches(
    library: Library, variant: str, alone: dict[str, str], changes: dict[str, int]
) -> None:
    assert together(library, dataclasses.replace(PLAIN, **changes), variant=variant) == alone


def test_with_sixteen_other_requests(library: Library, variant: str, alone: dict[str, str]) -> None:
    mates = [request(f"mate-{i}", case(MODEL).prompt(5 + 11 * i)[2:], 9, seed=i) for i in range(16)]
    wanted = requests((64, 129))
    found = together(library, PLAIN, [*mates, *wanted], variant=variant)
    assert {one.request_id: found[one.request_id] for one in wanted}.items() <= alone.items()


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_nodes_on_real_sockets(library: Library, variant: str, alone: dict[str, str], nodes: int) -> None:
    assert together(library, PLAIN, variant=variant, nodes=nodes) == alone


def test_nodes_with_two_micro_batches_in_flight(
    library: Library, variant: str, alone: dict[str, str]
) -> None:
    config = dataclasses.replace(PLAIN, micro_batches=2)
    assert together(library, config, variant=variant, nodes=3) == alone


def test_two_routers_on_the_same_nodes(library: Library, variant: str, alone: dict[str, str]) -> None:
    with two_routers(library, variant) as (first, second):
        wanted = requests()
        found: dict[str, str] = {}
        for (engine, trace), part in zip((first, second), (wanted[::2], wanted[1::2]), strict=True):
            found |= outcome(engine, trace, part)
    assert found == alone


def test_a_small_arena(library: Library, variant: str, alone: dict[str, str]) -> None:
    """Room for two experts of a layer at a time."""
    one = max(ref.bytes for layer in library.variant(variant).blobs for ref in layer)
    assert together(library, PLAIN, variant=variant, memory_bytes=2 * one + 100) == alone


def test_preemption(library: Library, variant: str, alone: dict[str, str]) -> None:
    """Pages for one and a half of the long requests: somebody is thrown out and comes back."""
    trace = Trace()
    config = dataclasses.replace(PLAIN, page_tokens=16, kv_bytes=page_budget(library, 26))
    wanted = [request(f"greedy-{n}", case(MODEL).prompt(n), TOKENS) for n in (190, 127, 65)]
    with engine_over(library, config, variant=variant, probe=trace) as engine:
        found = outcome(engine, trace, wanted)
        assert engine.stats.preemptions > 0
        assert engine.stats.kv_pages_used == 0
    assert found.items() <= alone.items()


def page_budget(library: Library, pages: int) -> int:
    spec = library.spec
    return pages * 2 * spec.layers * spec.kv_heads * 16 * spec.padded_head * 2


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_placement_chunking_and_company(
    library: Library, variant: str, alone: dict[str, str], data: st.DataObject
) -> None:
    spec = library.spec
    nodes = data.draw(st.integers(1, 4), label="nodes")
    owner = st.lists(st.integers(0, nodes - 1), min_size=1, max_size=nodes, unique=True).map(tuple)
    replicas = tuple(
        () if width else tuple(data.draw(st.tuples(*[owner] * spec.experts), label="experts"))
        for width in spec.dense_widths
    )
    table = PlacementTable(1, 1, tuple(NodeId(f"node-{i}") for i in range(nodes)), replicas)
    config = EngineConfig(
        page_tokens=data.draw(st.sampled_from([16, 32, 64]), label="page"),
        kv_bytes=8 << 20,
        chunk_tokens=data.draw(st.integers(1, 200), label="chunk"),
        micro_batches=data.draw(st.integers(1, 2), label="micro-batches"),
    )
    chosen = data.draw(
        st.lists(st.sampled_from(requests()), min_size=1, max_size=6, unique=True), label="mates"
    )
    found = together(library, config, chosen, variant=variant, nodes=nodes, table=table)
    assert found.items() <= alone.items()


def test_experts_with_several_copies(library: Library, variant: str, alone: dict[str, str]) -> None:
    table = with_copies(placement(library, 3), version=1)
    for config in (PLAIN, dataclasses.replace(PLAIN, micro_batches=2)):
        assert together(library, config, variant=variant, nodes=3, table=table) == alone


def test_two_tables_in_turn(library: Library, variant: str, alone: dict[str, str]) -> None:
    """Before every step the experts are placed in another way: with copies, and without."""
    plain = placement(library, 3)
    with ExitStack() as stack:
        every = dataclasses.replace(plain, replicas=everywhere(plain))
        addresses = {
            name: stack.enter_context(running_node(library, variant, every, name, 0, 1))
            for name in plain.nodes
        }
        exchange = connect(library, variant, plain, addresses)
        stack.callback(exchange.close)
        trace = Trace()
        engine = stack.enter_context(
            engine_over(library, PLAIN, variant=variant, transport=exchange, probe=trace)
        )
        step, tables = engine.step, iter(range(1, 10_000))

        def step_with_the_next_table() -> list[Event]:
            version = next(tables)
            table = with_copies(plain, version) if version % 2 else plain
            exchange.update(dataclasses.replace(table, version=version), addresses)
            return step()

        engine.step = step_with_the_next_table  # type: ignore[method-assign]
        assert outcome(engine, trace, requests()) == alone


def everywhere(table: PlacementTable) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(tuple((first + i) % len(table.nodes) for i in range(len(table.nodes))) for (first,) in experts)
        for experts in table.replicas
    )


def with_copies(table: PlacementTable, version: int) -> PlacementTable:
    """Every third expert on all nodes, every third on two."""
    replicas = tuple(
        tuple(places[: 3 - e % 3] for e, places in enumerate(experts)) for experts in everywhere(table)
    )
    return dataclasses.replace(table, version=version, replicas=replicas)


@contextmanager
def two_routers(
    library: Library, variant: str
) -> Iterator[tuple[tuple[Engine, Trace], tuple[Engine, Trace]]]:
    table = placement(library, 3)
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_node(library, variant, table, name, 0, 1))
            for name in table.nodes
        }
        pair = []
        for number in range(2):
            trace = Trace()
            exchange = connect(library, variant, table, addresses, f"router-{number}")
            stack.callback(exchange.close)
            pair.append(
                (
                    stack.enter_context(
                        engine_over(library, PLAIN, variant=variant, transport=exchange, probe=trace)
                    ),
                    trace,
                )
            )
        yield pair[0], pair[1]
