"""The exchange over tables in which experts have several copies, against real nodes on loopback."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cluster.balance.choice import Batch, even_split, fewest_distinct
from cluster.balance.placement import PlacementTable, round_robin
from cluster.dispatch.choice import Choice, Replicas
from cluster.dispatch.exchange import TIMED_EVERY, Exchange
from cluster.dispatch.pace import Pace
from cluster.types import NodeId
from support.expert_nodes import FLOATS, SHAPE, Nodes, check, connected, make_call, router, running


def replicated(nodes: Nodes, version: int = 2, layers: tuple[int, ...] = (0, 2)) -> PlacementTable:
    """In these layers every expert on two nodes, expert 0 on all; elsewhere in turn."""
    plain = round_robin(nodes.shape.layers, nodes.shape.experts, nodes.names)
    count = len(nodes.names)
    replicas = tuple(
        tuple(
            tuple(range(count)) if e == 0 else (holders[0], (holders[0] + 1) % count)
            for e, holders in enumerate(experts)
        )
        if layer in layers
        else experts
        for layer, experts in enumerate(plain.replicas)
    )
    return dataclasses.replace(plain, version=version, replicas=replicas)


def switch(nodes: Nodes, exchange: Exchange, table: PlacementTable) -> None:
    for name in nodes.names:
        nodes.nodes[name].hold(table.version, table.experts_of(name))
    exchange.update(table, nodes.addresses)


@contextmanager
def over_replicas(count: int = 3, shape=SHAPE, **options) -> Iterator[tuple[Nodes, Exchange]]:
    with running(count, shape) as nodes, connected(nodes, **options) as exchange:
        switch(nodes, exchange, replicated(nodes))
        yield nodes, exchange


@pytest.mark.parametrize("shape", [SHAPE, FLOATS, dataclasses.replace(SHAPE, experts=300, top_k=8)])
def test_rows_come_back_to_their_tokens(shape) -> None:
    with over_replicas(3, shape) as (_, exchange):
        for step, tokens in enumerate([1, 2, 33, 700, 1, 0]):
            for layer in range(shape.layers):
                call = make_call(tokens, step=step, layer=layer, shape=shape)
                exchange.send(call)
                check(shape, call, exchange.wait(step, layer, 0))
        assert exchange.counters.resends == exchange.counters.stale == 0
        assert exchange.counters.express > 0


def test_a_hot_expert_is_shared_by_its_copies() -> None:
    with over_replicas() as (nodes, exchange):
        call = make_call(90)
        hot = call._replace(ids=np.ascontiguousarray(np.tile(np.int32([0, 3, 6, 9]), (90, 1))))
        exchange.send(hot)
        check(SHAPE, hot, exchange.wait(0, 0, 0))
        # Expert 0 is on all nodes, the others are on the first two: the third takes all that it can.
        assert [nodes.nodes[name].stats()["pairs"] for name in nodes.names] == [135, 135, 90]


@pytest.mark.parametrize("policy", [even_split, fewest_distinct], ids=lambda policy: policy.__name__)
def test_another_policy(policy) -> None:
    with over_replicas(choice=policy) as (nodes, exchange):
        call = make_call(64)
        exchange.send(call)
        check(SHAPE, call, exchange.wait(0, 0, 0))
        layer = Replicas.of(exchange.table, 0)
        rows = np.bincount(call.ids.ravel(), minlength=SHAPE.experts)
        shares = policy(Batch(rows, layer.hosts, np.ones(3), np.zeros(3)))
        assert [nodes.nodes[name].stats()["pairs"] for name in nodes.names] == shares.sum(axis=0).tolist()


def test_two_tables_in_turn() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step in range(8):
            version = step + 2
            plain = dataclasses.replace(nodes.table, version=version)
            table = replicated(nodes, version) if step % 2 else plain
            switch(nodes, exchange, table)
            calls = [make_call(9, step=step, layer=mb, micro_batch=mb) for mb in range(3)]
            for call in calls:
                exchange.send(call)
            for call in reversed(calls):
                check(SHAPE, call, exchange.wait(step, call.layer, call.micro_batch))
            assert exchange.table is table
        assert exchange.counters.resends == exchange.counters.stale == 0


def test_a_call_of_the_old_table_ends_when_its_node_has_come_back() -> None:
    with running(3) as nodes:
        table = nodes.table = replicated(nodes)
        exchange = Exchange(router(), SHAPE, table, nodes.addresses, deadline_s=30)
        try:
            for name in nodes.names:
                nodes.nodes[name].hold(2, table.experts_of(name))
            exchange.connect(10)
            nodes.nodes[nodes.names[1]].shutdown()
            call = make_call(40)
            exchange.send(call)
            nodes.start(nodes.names[1])
            exchange.update(dataclasses.replace(table, version=3), nodes.addresses)
            check(SHAPE, call, exchange.wait(0, 0, 0))
        finally:
            exchange.close()


def test_layers_without_replicas_have_nothing_to_choose() -> None:
    with running(3) as nodes:
        table = replicated(nodes, layers=(1,))
        assert [Replicas.of(table, layer) is None for layer in range(3)] == [True, False, True]


def test_choices_depend_on_rows_speeds_and_backlogs_alone() -> None:
    table = PlacementTable(1, 1, (NodeId("a"), NodeId("b")), (((0, 1),) * 8,))
    layer, call = Replicas.of(table, 0), make_call(64, shape=dataclasses.replace(SHAPE, experts=8))
    assert layer is not None
    pace = Pace(table.nodes)
    pace.speed[:] = 300.0, 100.0
    for policy in ({}, {"policy": even_split}):
        first, second = (Choice(8, **policy).copies(call.ids, layer, pace) for _ in range(2))
        assert (first == second).all()
    on_b = layer.copies.device[Choice(8).copies(call.ids, layer, pace)].sum()
    assert on_b == call.ids.size / 4
    pace.backlog[0] = 1.0
    assert layer.copies.device[Choice(8).copies(call.ids, layer, pace)].sum() > on_b


def test_a_step_that_has_begun_keeps_its_table() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        plain, table = nodes.table, replicated(nodes)
        for layer in range(3):
            call = make_call(5, layer=layer)
            exchange.send(call)
            if layer == 0:
                switch(nodes, exchange, table)
            check(SHAPE, call, exchange.wait(0, layer, 0))
            assert exchange.table is plain
            assert exchange.acknowledged == (1, 1)
        exchange.send(make_call(5, step=1))
        exchange.wait(1, 0, 0)
        assert exchange.table is table
        assert exchange.acknowledged == (1, 2)


def test_without_steps_a_table_is_switched_to_when_asked() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        switch(nodes, exchange, replicated(nodes))
        exchange.switch()
        assert exchange.acknowledged == (1, 2)


def test_every_row_is_in_the_load_once() -> None:
    with over_replicas() as (nodes, exchange):
        for step in range(4):
            for layer in range(3):
                call = make_call(10 + step, step=step, layer=layer)
                exchange.send(call)
                exchange.wait(step, layer, 0)
        stats = exchange.load.stats()  # of the steps that have ended
        assert stats.load.sum() == pytest.approx(3 * 4 * 11, rel=0.01)
        assert stats.tokens / stats.steps == pytest.approx(11, rel=0.01)
        assert stats.nodes.keys() == set(nodes.names)
        assert sum(node.rows for node in stats.nodes.values()) == pytest.approx(stats.rows.sum())
        assert all(node.service_s > 0 for node in stats.nodes.values())


def test_round_trips_of_large_calls_and_of_some_small_ones_are_timed(monkeypatch) -> None:
    monkeypatch.setattr("cluster.dispatch.exchange.EAGER_EVERY", TIMED_EVERY)
    with running(2) as nodes, connected(nodes) as exchange:
        for step in range(2 * TIMED_EVERY):
            call = make_call(2, step=step)
            exchange.send(call)
            exchange.wait(step, 0, 0)
        exchange.send(make_call(900, step=2 * TIMED_EVERY))
        exchange.wait(2 * TIMED_EVERY, 0, 0)
        exchange.send(make_call(1, step=2 * TIMED_EVERY + 1))  # ends the step before
        exchange.wait(2 * TIMED_EVERY + 1, 0, 0)
        loads = exchange.load.stats().nodes
        assert exchange.counters.express >= 2 * TIMED_EVERY - 2
        for node in loads.values():
            assert 2.5 < node.trips <= 3
            assert node.link_s > 0
            sizes = SHAPE.row_bytes * 900 + SHAPE.result_bytes * 900
            assert node.bytes > sizes
            assert node.square_bytes >= node.bytes**2 / node.trips
            assert node.byte_s <= (node.square_bytes * node.square_s) ** 0.5 * 1.001
