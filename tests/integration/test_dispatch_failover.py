"""The exchange over two copies of every expert while nodes die, freeze, lag and come back."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from cluster.balance.placement import PlacementTable, round_robin
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.health import Standing
from cluster.dispatch.link import Link
from cluster.errors import CorruptBlob, MoemeshError, Overloaded
from cluster.experiments.live.relay import Relay
from cluster.types import ExpertId, NodeId
from support.expert_nodes import (
    FLOATS,
    SHAPE,
    Array,
    Gate,
    Nodes,
    check,
    make_call,
    router,
    running,
)

LARGE = 200
"""Tokens of a call that goes the general way, where every answer is timed."""


def in_pairs(nodes: Nodes, version: int = 1) -> PlacementTable:
    """Every expert on two neighbours of three nodes."""
    plain = round_robin(nodes.shape.layers, nodes.shape.experts, nodes.names, version=version)
    count = len(nodes.names)
    replicas = tuple(
        tuple((holders[0], (holders[0] + 1) % count) for holders in experts) for experts in plain.replicas
    )
    return dataclasses.replace(plain, replicas=replicas)


@contextmanager
def over_pairs(relays: bool = False, shape=SHAPE, **options) -> Iterator[tuple[Nodes, Exchange, list[Relay]]]:
    with ExitStack() as stack:
        nodes = stack.enter_context(running(3, shape, **options))
        nodes.table = in_pairs(nodes)
        for name in nodes.names:
            nodes.nodes[name].hold(1, nodes.table.experts_of(name))
        links = [stack.enter_context(Relay(nodes.addresses[name])) for name in nodes.names] if relays else []
        addresses = nodes.addresses
        if relays:
            addresses = {name: link.address for name, link in zip(nodes.names, links, strict=True)}
        exchange = Exchange(router(), shape, nodes.table, addresses, deadline_s=30)
        stack.callback(exchange.close)
        exchange.connect(10)
        yield nodes, exchange, links


def ask(exchange: Exchange, step: int, tokens: int = 16, shape=SHAPE) -> None:
    """A step of three layers, its bits checked."""
    for layer in range(shape.layers):
        call = make_call(tokens, step=step, layer=layer, shape=shape)
        exchange.send(call)
        check(shape, call, exchange.wait(step, layer, 0))


def link_of(exchange: Exchange, node: NodeId) -> Link:
    link = exchange._roster.link(node)
    assert link is not None
    return link


def until_served(exchange: Exchange, node: NodeId, first_step: int) -> int:
    """Go on with steps until the node is given rows again; the next step's number."""
    for step in range(first_step, first_step + 4000):
        ask(exchange, step)
        if link_of(exchange, node).health.standing is Standing.ALIVE and not exchange._upkeep.unwell:
            return step + 1
        time.sleep(0.005)
    raise AssertionError(f"{node} was never taken back")


@pytest.mark.parametrize("shape", [SHAPE, FLOATS], ids=["int8", "float"])
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_a_dead_nodes_rows_are_computed_by_the_others(tokens: int, shape) -> None:
    with over_pairs(shape=shape) as (nodes, exchange, _):
        ask(exchange, 0, tokens, shape)
        nodes.nodes[nodes.names[1]].shutdown()
        for step in range(1, 6):
            ask(exchange, step, tokens, shape)
        assert exchange.counters.strikes == 1 or tokens == 1  # nobody may have asked it for a single row
        assert exchange.counters.resends == 0


def test_a_node_that_dies_while_it_computes() -> None:
    gate = Gate()
    with over_pairs(inline_us=0) as (nodes, exchange, _):
        victim = nodes.names[1]
        nodes.computes[victim].before = gate
        calls = [make_call(64, layer=mb, micro_batch=mb) for mb in range(2)]
        for call in calls:
            exchange.send(call)
        assert gate.reached.wait(10)
        closing = threading.Thread(target=nodes.nodes[victim].shutdown)
        closing.start()  # its connections close; its compute waits at the gate
        for call in calls:
            check(SHAPE, call, exchange.wait(0, call.layer, call.micro_batch))
        gate.opened.set()
        closing.join()
        assert exchange.counters.deputies >= 2
        exchange.send(make_call(1, step=1))  # ends the step
        exchange.wait(1, 0, 0)
        assert_counted_once(exchange, 2 * 64, besides=victim)


def assert_counted_once(exchange: Exchange, tokens: int, besides: NodeId | None = None) -> None:
    """Every row of the first step is in the load once, at a node that has computed it."""
    stats = exchange.load.stats()
    assert stats.rows.sum() == tokens * SHAPE.top_k
    assert sum(node.rows for node in stats.nodes.values()) == tokens * SHAPE.top_k
    if besides is not None:
        assert stats.nodes[besides].rows == 0


def test_a_cut_link_is_noticed_and_its_rows_go_elsewhere() -> None:
    with over_pairs(relays=True) as (nodes, exchange, relays):
        for step in range(20):
            ask(exchange, step)
        relays[2].cut()
        for step in range(20, 40):
            ask(exchange, step)
        assert exchange.counters.strikes == 1
        assert exchange.counters.deputies >= 1
        assert not link_of(exchange, nodes.names[2]).health.serves
        assert exchange.counters.express > 40  # the others are asked the short way


def test_a_link_that_works_again_is_taken_back_after_a_probe() -> None:
    with over_pairs(relays=True) as (nodes, exchange, relays):
        ask(exchange, 0)
        relays[0].cut()
        ask(exchange, 1)
        relays[0].mend()
        asked = len(nodes.computes[nodes.names[0]].calls)
        step = until_served(exchange, nodes.names[0], 2)
        assert exchange.counters.canaries >= 1
        assert len(nodes.computes[nodes.names[0]].calls) > asked
        for more in range(step, step + 10):
            ask(exchange, more)


def test_both_links_of_an_expert_are_cut_and_one_comes_back() -> None:
    with over_pairs(relays=True) as (_, exchange, relays):
        ask(exchange, 0)
        for relay in relays[:2]:
            relay.cut()
        timer = threading.Timer(1.0, relays[0].mend)
        timer.start()
        for step in range(1, 6):
            ask(exchange, step)
        timer.join()


def trained(exchange: Exchange) -> int:
    """Steps after which the exchange knows how long answers take; the next step's number."""
    for step in range(24):
        ask(exchange, step, LARGE)
    return 24


def test_a_straggler_is_hedged_and_its_late_answer_is_thrown_away() -> None:
    gate = Gate()
    with over_pairs(inline_us=0) as (nodes, exchange, _):
        step = trained(exchange)
        slow = nodes.names[1]
        nodes.computes[slow].before = gate
        before = exchange.counters.hedges
        call = make_call(LARGE, step=step)
        exchange.send(call)
        check(SHAPE, call, exchange.wait(step, 0, 0))
        assert exchange.counters.hedges > before
        assert link_of(exchange, slow).overdue
        given = len(nodes.computes[slow].calls)
        for more in range(step + 1, step + 4):  # while it owes an answer it gets nothing new
            ask(exchange, more, LARGE)
        assert len(nodes.computes[slow].calls) == given
        gate.opened.set()
        for more in range(step + 4, step + 400):
            ask(exchange, more, LARGE)
            if exchange.counters.overdue and not exchange._upkeep.unwell:
                break
        assert exchange.counters.overdue >= 1
        assert exchange.counters.hedged_pairs <= 1024 + 0.05 * exchange.counters.pairs


def test_a_node_whose_compute_hangs_is_late_though_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.dispatch.budget.HedgeBudget.spend", lambda self, pairs, sent: False)
    gate = Gate()
    with over_pairs(inline_us=0) as (nodes, exchange, _):
        step = trained(exchange)
        nodes.computes[nodes.names[1]].before = gate
        call = make_call(LARGE, step=step)
        exchange.send(call)
        check(SHAPE, call, exchange.wait(step, 0, 0))
        gate.opened.set()
        assert exchange.counters.hedges == 0
        assert exchange.counters.strikes >= 1


def test_a_node_that_does_not_hold_them_yet_is_stood_in_for() -> None:
    with over_pairs() as (nodes, exchange, _):
        ask(exchange, 0)
        nodes.nodes[nodes.names[0]].hold(0, ())
        for step in range(1, 5):
            ask(exchange, step)
        assert exchange.counters.deputies >= 1
        nodes.nodes[nodes.names[0]].hold(2, [ExpertId(2, 0)])  # nor any more
        ask(exchange, 5)


def test_an_error_of_one_copy_is_no_error_of_the_other() -> None:
    def fail(layer: int, experts: Array) -> None:
        raise CorruptBlob("the disk is upset")

    with over_pairs() as (nodes, exchange, _):
        nodes.computes[nodes.names[2]].before = fail
        for step in range(3):
            ask(exchange, step)
        assert exchange.counters.deputies >= 1
        nodes.computes[nodes.names[0]].before = fail
        nodes.computes[nodes.names[1]].before = fail
        exchange.send(make_call(8, step=3))
        with pytest.raises(MoemeshError, match="the disk is upset"):
            exchange.wait(3, 0, 0)


def test_a_copy_that_is_busy_for_a_moment_is_asked_again() -> None:
    """A node dies; the others, which get its rows on top of theirs, have no room for them at first."""
    busy = 6

    def refuse_some(layer: int, experts: Array) -> None:
        nonlocal busy
        if busy:
            busy -= 1
            raise Overloaded("rows wait already")

    with over_pairs() as (nodes, exchange, _):
        ask(exchange, 0)
        nodes.nodes[nodes.names[1]].shutdown()
        for name in (nodes.names[0], nodes.names[2]):
            nodes.computes[name].before = refuse_some
        for step in range(1, 4):
            ask(exchange, step)
        assert busy == 0


def test_a_lost_node_is_reported_with_its_incarnation() -> None:
    with over_pairs() as (nodes, exchange, _):
        told: list[dict[NodeId, int]] = []
        exchange.when_lost(lambda: told.append(dict(exchange.lost)))
        ask(exchange, 0)
        lost = nodes.names[1]
        incarnation = link_of(exchange, lost).incarnation
        nodes.nodes[lost].shutdown()
        wait_for(exchange, lambda: bool(told))
        assert told == [{lost: incarnation}]
        nodes.start(lost)
        exchange.update(nodes.table, nodes.addresses)
        wait_for(exchange, lambda: not exchange.lost)
        assert told[-1] == {}


def wait_for(exchange: Exchange, what: Callable[[], bool]) -> None:
    for step in range(1000, 5000):
        ask(exchange, step, 2)
        if what():
            return
        time.sleep(0.005)
    raise AssertionError("what was waited for did not happen")


def test_a_flapping_node_is_asked_ever_less() -> None:
    with over_pairs() as (nodes, exchange, _):
        flapping, port = nodes.names[1], int(nodes.addresses[nodes.names[1]].split(":")[1])
        ask(exchange, 0)
        step, holds = 1, []
        for _ in range(2):
            nodes.nodes[flapping].shutdown()
            strikes = exchange.counters.strikes
            while exchange.counters.strikes == strikes:
                ask(exchange, step)
                step += 1
            health = link_of(exchange, flapping).health
            holds.append(health.until - health.since)
            nodes.start(flapping, port)
            step = until_served(exchange, flapping, step)
        assert holds == pytest.approx([0.5, 1.0])
        assert exchange.counters.strikes == 2


@contextmanager
def one_lost() -> Iterator[tuple[Exchange, Callable[..., None]]]:
    """Three nodes, one copy of each expert: one node is dead and its experts are being loaded. Yields the
    exchange, and what ends the loading and may tell other addresses."""
    with running(3) as nodes:
        exchange = Exchange(router(), SHAPE, nodes.table, nodes.addresses, deadline_s=1.0)
        lost, rest = nodes.names[2], nodes.names[:2]

        def load(**addresses: str) -> None:
            for name in rest:
                nodes.nodes[name].hold(2, [ExpertId(a, b) for a in range(3) for b in range(32)])
            table = round_robin(SHAPE.layers, SHAPE.experts, rest, version=2)
            exchange.update(table, {**nodes.addresses, **addresses})

        try:
            exchange.connect(10)
            ask(exchange, 0)
            nodes.nodes[lost].shutdown()
            exchange.update(nodes.table, nodes.addresses, mending=True)
            yield exchange, load
        finally:
            exchange.close()


def test_rows_that_nobody_else_holds_wait_for_the_newer_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes later than a call would wait for a node that is merely silent, and while the exchange's thread
    is looking whether to wait on."""
    with one_lost() as (exchange, load):
        post = exchange._roster.post

        def slowly(*update) -> None:
            time.sleep(0.3)
            post(*update)

        monkeypatch.setattr(exchange._roster, "post", slowly)
        timer = threading.Timer(1.2, load)
        timer.start()
        ask(exchange, 1)
        timer.join()
        assert exchange.counters.deputies >= 1
        ask(exchange, 2)
        assert exchange.acknowledged[1] == 2


def test_the_newer_tables_nodes_have_as_long_as_any_from_when_it_comes() -> None:
    with one_lost() as (exchange, load), socket.create_server(("127.0.0.1", 0)) as mute:
        host, port = mute.getsockname()

        def load_while_one_moves() -> None:
            load(n0=f"{host}:{port}")
            time.sleep(0.3)
            load()

        timer = threading.Timer(1.2, load_while_one_moves)
        timer.start()
        ask(exchange, 1)
        timer.join()
        ask(exchange, 2)
        assert exchange.acknowledged[1] == 2


def test_a_router_starts_beside_a_dead_node_whose_experts_others_hold() -> None:
    with over_pairs() as (nodes, _, _):
        nodes.nodes[nodes.names[1]].shutdown()
        second = Exchange(router(2), SHAPE, nodes.table, nodes.addresses)
        try:
            second.connect(10)
            ask(second, 0)
            assert not second.ready()
        finally:
            second.close()


@pytest.mark.parametrize("seed", range(2))
def test_faults_at_random_change_no_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    with over_pairs(relays=True) as (nodes, exchange, relays):
        broken: Relay | None = None
        for step in range(120):
            if rng.random() < 0.05:
                if broken is not None:
                    broken.mend()
                    broken = None
                else:
                    broken = relays[rng.integers(3)]
                    broken.cut()
            ask(exchange, step, int(rng.integers(1, 40)))
        if broken is not None:
            broken.mend()
        assert exchange.counters.resends == 0
        assert len(nodes.names) == 3
