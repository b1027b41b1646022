"""The exchange while nodes die, come back, refuse or stay away."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from cluster.balance.placement import round_robin
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.handshake import Identity
from cluster.errors import MoemeshError, NodeLost, ProtocolError, Unavailable
from cluster.types import ExpertId, NodeId
from support.expert_nodes import (
    SHAPE,
    FakeCompute,
    Gate,
    check,
    connected,
    make_call,
    round_trip,
    router,
    running,
)


def test_a_node_killed_while_it_computes_and_started_again_loses_nothing() -> None:
    gate = Gate()
    with running(3, inline_us=0) as nodes, connected(nodes, deadline_s=30) as exchange:
        victim = nodes.names[1]
        nodes.computes[victim].before = gate
        call = make_call(64)
        exchange.send(call)
        assert gate.reached.wait(10)

        def restart() -> None:
            old = nodes.nodes[victim]
            closing = threading.Thread(target=old.shutdown)
            closing.start()  # it waits for the compute, which waits at the gate
            port = int(nodes.addresses[victim].split(":")[1])
            wait_for_port(port)
            nodes.computes[victim] = FakeCompute()
            nodes.start(victim, port)
            gate.opened.set()
            closing.join()

        restarting = threading.Thread(target=restart)
        restarting.start()
        check(SHAPE, call, exchange.wait(0, 0, 0))
        restarting.join()
        assert exchange.counters.resends == 1
        round_trip(exchange, make_call(64, step=1))


def wait_for_port(port: int) -> None:
    for _ in range(1000):
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return
        except OSError:
            threading.Event().wait(0.01)
    raise AssertionError(f"port {port} is still in use")


def test_a_node_that_comes_back_elsewhere_is_followed() -> None:
    with running(3) as nodes, connected(nodes, deadline_s=30) as exchange:
        round_trip(exchange, make_call(8))
        moved = nodes.names[0]
        nodes.nodes[moved].shutdown()

        def come_back() -> None:
            nodes.start(moved)
            exchange.update(nodes.table, nodes.addresses)

        timer = threading.Timer(0.1, come_back)
        timer.start()
        call = make_call(8, step=1)
        round_trip(exchange, call)
        timer.join()
        assert exchange.counters.resends <= 1  # 0 if the loss was noticed before sending


def test_a_restarted_node_is_asked_again_until_it_has_loaded_its_experts() -> None:
    with running(3) as nodes, connected(nodes, deadline_s=30) as exchange:
        victim = nodes.names[2]
        nodes.nodes[victim].shutdown()
        node = nodes.start(victim, hold=False)
        exchange.update(nodes.table, nodes.addresses)
        timer = threading.Timer(0.2, lambda: node.hold(1, nodes.table.experts_of(victim)))
        timer.start()
        round_trip(exchange, make_call(16))
        timer.join()
        assert exchange.counters.resends >= 1
        assert node.stats()["not_here"] >= 1


def test_a_node_that_stays_away_is_named() -> None:
    with running(3) as nodes, connected(nodes, deadline_s=0.3) as exchange:
        lost = nodes.names[1]
        nodes.nodes[lost].shutdown()
        exchange.send(make_call(8))
        with pytest.raises(
            NodeLost, match=f"node {lost} at 127.0.0.1:.* did not answer layer 0 within 0.3 s"
        ):
            exchange.wait(0, 0, 0)
        nodes.start(lost, int(nodes.addresses[lost].split(":")[1]))
        exchange.connect(10)
        round_trip(exchange, make_call(8, step=1))


def test_a_silent_node_is_named() -> None:
    gate = Gate()
    with running(2, inline_us=0) as nodes, connected(nodes, deadline_s=0.3) as exchange:
        nodes.computes[nodes.names[1]].before = gate
        exchange.send(make_call(8))
        with pytest.raises(NodeLost, match=r"node n1 .* it is silent"):
            exchange.wait(0, 0, 0)
        gate.opened.set()  # its reply comes late now, and belongs to nothing
        round_trip(exchange, make_call(8, step=1))
        assert exchange.counters.stale == 1


def test_a_call_made_again_with_other_rows_is_not_answered_by_late_replies() -> None:
    gate = Gate()
    with running(2, inline_us=0) as nodes, connected(nodes, deadline_s=0.3) as exchange:
        nodes.computes[nodes.names[1]].before = gate
        exchange.send(make_call(8, seed=1))
        with pytest.raises(NodeLost):
            exchange.wait(0, 0, 0)
        again = make_call(8, seed=2)
        exchange.send(again)
        gate.opened.set()
        check(SHAPE, again, exchange.wait(0, 0, 0))
        assert exchange.counters.stale == 1
        assert exchange.counters.resends == 0


def test_nobody_there_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    table = round_robin(3, 32, [NodeId("a")])
    exchange = Exchange(router(), SHAPE, table, {NodeId("a"): address})
    with pytest.raises(NodeLost, match=f"node a at {address} cannot be reached: .*REFUSED"):
        exchange.connect(0.2)
    exchange.close()


def test_a_node_of_another_library_is_refused_by_name() -> None:
    with running(1) as nodes:
        identity = Identity("router", "r", 1, library="0dd" * 21 + "0")
        exchange = Exchange(identity, SHAPE, nodes.table, nodes.addresses)
        try:
            with pytest.raises(ProtocolError, match=r"node n0 .*0dd0dd0dd0dd.*5eed5eed5eed"):
                exchange.connect(10)
            exchange.send(make_call(2))
            with pytest.raises(ProtocolError, match="node n0"):
                exchange.wait(0, 0, 0)
        finally:
            exchange.close()


def test_an_expert_that_is_nowhere_any_more_is_a_typed_error() -> None:
    with running(2) as nodes, connected(nodes) as exchange:
        nodes.nodes[nodes.names[0]].hold(2, [ExpertId(0, 0)])
        exchange.send(make_call(8))
        with pytest.raises(
            Unavailable, match=r"node n0 does not hold .* layer 0 .* table 1 .* loaded table 2"
        ):
            exchange.wait(0, 0, 0)


def test_an_error_of_the_compute_fails_only_its_call() -> None:
    with running(2) as nodes, connected(nodes) as exchange:

        def fail(layer: int, experts: np.ndarray) -> None:
            if layer == 1:
                raise MoemeshError("the experts are upset")

        nodes.computes[nodes.names[1]].before = fail
        good, bad = make_call(8, layer=0, micro_batch=0), make_call(8, layer=1, micro_batch=1)
        exchange.send(bad)
        exchange.send(good)
        check(SHAPE, good, exchange.wait(0, 0, 0))
        with pytest.raises(MoemeshError, match="node n1: the experts are upset"):
            exchange.wait(0, 1, 1)
        round_trip(exchange, make_call(8, step=1))
