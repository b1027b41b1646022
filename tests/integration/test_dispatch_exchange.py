"""The exchange against real nodes on loopback."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
import threading
from typing import Any

import numpy as np
import pytest

from cluster.balance.placement import round_robin
from cluster.dispatch.exchange import TIMED_EVERY, Exchange
from cluster.dispatch.handshake import Identity
from cluster.dispatch.transport import WireShape
from cluster.types import NodeId
from kernels import express, permute
from support import permute_reference
from support.expert_nodes import (
    FLOATS,
    LIBRARY,
    SHAPE,
    Gate,
    check,
    connected,
    expected,
    make_call,
    round_trip,
    running,
)


@pytest.mark.parametrize("shape", [SHAPE, FLOATS, dataclasses.replace(SHAPE, experts=300, top_k=8)])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_rows_come_back_to_their_tokens(count: int, shape: WireShape) -> None:
    with running(count, shape) as nodes, connected(nodes) as exchange:
        for step, tokens in enumerate([1, 2, 33, 700, 1, 0]):
            for layer in range(shape.layers):
                round_trip(exchange, make_call(tokens, step=step, layer=layer, shape=shape), shape)
        assert exchange.counters.resends == exchange.counters.stale == 0


def test_bytes_are_within_the_bounds() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step, tokens in enumerate([1, 3, 32, 512]):
            before = copy.deepcopy(exchange.counters)
            call = make_call(tokens, step=step)
            round_trip(exchange, call)
            now = exchange.counters
            messages = now.messages_out - before.messages_out
            owner = nodes.table.owners(0)[call.ids]
            rows = sum(int((owner == n).any(axis=1).sum()) for n in range(3))
            assert messages == sum(bool((owner == n).any()) for n in range(3))
            assert now.header_bytes_out - before.header_bytes_out <= 64 * messages + 12 * rows
            assert now.payload_bytes_out - before.payload_bytes_out == rows * (SHAPE.hidden + 4)
            assert now.payload_bytes_in - before.payload_bytes_in == call.ids.size * SHAPE.hidden * 2
            assert now.header_bytes_in - before.header_bytes_in <= 64 * messages + 16 * 3


def test_headers_stay_small_with_large_numbers() -> None:
    with running(3) as nodes:
        identity = Identity("router", "r", incarnation=2**32 - 1, library=LIBRARY)
        table = round_robin(3, 32, nodes.names, epoch=9, version=2**31)
        exchange = Exchange(identity, SHAPE, table, nodes.addresses)
        try:
            exchange.connect(10)
            round_trip(exchange, make_call(1, step=2**31, micro_batch=1))
            assert exchange.counters.header_bytes_out <= exchange.counters.messages_out * (64 + 12)
        finally:
            exchange.close()


@pytest.fixture
def seldom_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.dispatch.exchange.EAGER_EVERY", TIMED_EVERY)


@pytest.mark.usefixtures("seldom_timed")
def test_a_call_alone_in_flight_goes_the_short_way() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step in range(10):
            round_trip(exchange, make_call(2, step=step))
        assert exchange.counters.express == 10
        large = make_call(512, step=10)
        round_trip(exchange, large)
        assert exchange.counters.express == 10
        assert all(service_us > 0 for _, service_us in exchange.loads().values())


@pytest.mark.usefixtures("seldom_timed")
def test_a_second_call_takes_both_off_the_short_way_and_the_next_is_on_it_again() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step in range(10):
            calls = [make_call(2, step=step, layer=mb, micro_batch=mb) for mb in range(2)]
            for call in calls:
                exchange.send(call)
            for call in reversed(calls):
                check(SHAPE, call, exchange.wait(call.step, call.layer, call.micro_batch))
            round_trip(exchange, make_call(3, step=step, layer=2))
        assert exchange.counters.express == 20  # the first and the third of each step
        assert exchange.counters.stale == exchange.counters.resends == 0


@pytest.mark.usefixtures("seldom_timed")
@pytest.mark.parametrize("took", [0, 1, 16, 40, 100, 500])
def test_a_message_that_its_socket_takes_in_part_arrives_whole(took: int, monkeypatch: Any) -> None:
    post = express.post_requests

    def partial(fds: Any, *arguments: Any) -> int:
        *_, sent, tally = arguments
        before = tally.copy()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert post(np.array([ours.fileno()], np.int32), *arguments) == 0
            message = theirs.recv(1 << 16)
        tally[:] = before
        sent[0] = os.write(fds[0], message[:took])
        return 1

    monkeypatch.setattr(express, "post_requests", partial)
    with running(1) as nodes, connected(nodes) as exchange:
        for step in range(3):
            round_trip(exchange, make_call(3, step=step))
        assert exchange.counters.messages_out == exchange.counters.express == 3
        assert exchange.counters.resends == exchange.counters.stale == 0


def test_two_micro_batches_in_flight_answered_in_any_order() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step in range(20):
            calls = [make_call(5 + step, step=step, layer=mb, micro_batch=mb) for mb in range(3)]
            for call in calls:
                exchange.send(call)
            for call in [calls[2], calls[0], calls[1]] if step % 2 else calls:
                check(SHAPE, call, exchange.wait(call.step, call.layer, call.micro_batch))


def test_a_slow_node_holds_up_only_its_own_micro_batch() -> None:
    gate = Gate()
    with running(2, inline_us=0) as nodes, connected(nodes) as exchange:
        nodes.computes[nodes.names[0]].before = lambda layer, experts: (
            gate(layer, experts) if layer == 0 else None
        )
        slow = make_call(4, layer=0, micro_batch=0)
        quick = make_call(4, layer=1, micro_batch=1)
        only_second = nodes.table.owners(1)
        quick = quick._replace(ids=np.tile(np.flatnonzero(only_second == 1)[:4], (4, 1)).astype(np.int32))
        exchange.send(slow)
        exchange.send(quick)
        check(SHAPE, quick, exchange.wait(0, 1, 1))
        gate.opened.set()
        check(SHAPE, slow, exchange.wait(0, 0, 0))


def test_results_stay_valid_until_the_second_next_send() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        calls = [make_call(9, step=step) for step in range(3)]
        exchange.send(calls[0])
        first = exchange.wait(0, 0, 0)
        round_trip(exchange, calls[1])
        check(SHAPE, calls[0], first)
        round_trip(exchange, calls[2])
        assert not np.array_equal(first.rows[first.index], expected(SHAPE, calls[0]))


def test_buffers_are_reused() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        seen = set()
        for step in range(8):
            exchange.send(make_call(16, step=step))
            seen.add(exchange.wait(step, 0, 0).rows.__array_interface__["data"][0])
        assert len(seen) == 2


def test_misuse_is_named() -> None:
    with running(1) as nodes, connected(nodes) as exchange:
        exchange.send(make_call(1))
        with pytest.raises(ValueError, match="in flight"):
            exchange.send(make_call(1))
        exchange.wait(0, 0, 0)
        with pytest.raises(KeyError):
            exchange.wait(0, 0, 0)


def test_two_routers_on_the_same_nodes() -> None:
    with running(3) as nodes:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                with connected(nodes, number) as exchange:
                    for step in range(40):
                        call = make_call(1 + step % 7, step=step, layer=step % 3, seed=number)
                        round_trip(exchange, call)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for node in nodes.nodes.values():
            assert node.stats()["connections"] in (0, 1, 2)


def test_a_new_table_moves_rows_to_other_nodes() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        round_trip(exchange, make_call(32))
        fewer = round_robin(3, 32, nodes.names[:2], epoch=1, version=2)
        for name in nodes.names[:2]:
            nodes.nodes[name].hold(2, fewer.experts_of(name))
        exchange.update(fewer, nodes.addresses)
        before = len(nodes.computes[nodes.names[2]].calls)
        round_trip(exchange, make_call(32, step=1))
        assert len(nodes.computes[nodes.names[2]].calls) == before
        assert exchange.table is fewer
        exchange.update(nodes.table, nodes.addresses)  # older: ignored
        round_trip(exchange, make_call(32, step=2))
        assert exchange.table is fewer


def test_updates_from_another_thread_do_not_disturb() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        stop = threading.Event()

        def spam() -> None:
            while not stop.wait(0.0005):
                exchange.update(nodes.table, nodes.addresses)

        thread = threading.Thread(target=spam)
        thread.start()
        for step in range(100):
            round_trip(exchange, make_call(3, step=step))
        stop.set()
        thread.join()
        assert exchange.counters.resends == 0


def test_loads_tell_what_the_last_replies_said() -> None:
    with running(2) as nodes, connected(nodes) as exchange:
        round_trip(exchange, make_call(64))
        loads = exchange.loads()
        assert set(loads) == set(nodes.names)
        assert all(queue == 0 and service_us > 0 for queue, service_us in loads.values())


def test_nothing_is_left_after_close() -> None:
    with running(3) as nodes:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(3):
            with connected(nodes, number + 1) as exchange:
                round_trip(exchange, make_call(700))
        for _ in range(500):
            if all(node.stats()["connections"] == 0 for node in nodes.nodes.values()):
                break
            threading.Event().wait(0.01)
        assert len(os.listdir("/proc/self/fd")) == before


# A node of our own making: what it answers is the test's.


def test_the_twin_of_the_plan_agrees() -> None:
    """The placement of every pair, checked against the plain description of the plan."""
    call = make_call(50, shape=SHAPE)
    owner = round_robin(3, 32, [NodeId("a"), NodeId("b"), NodeId("c")]).owners(0)
    outs = []
    for module in (permute, permute_reference):
        starts = np.zeros(4, np.int64), np.zeros(4, np.int64)
        rows, counts = np.zeros(150, np.int32), np.zeros(150, np.uint8)
        experts, index = np.zeros(200, np.int32), np.zeros((50, 4), np.int32)
        payload = np.zeros(150 * 260, np.uint8)
        module.plan_dispatch(call.ids, owner, *starts, rows, counts, experts, index)
        module.gather_int8(call.rows, call.scales, rows, starts[0], payload)
        used = int(starts[0][-1])
        outs.append([*starts, rows[:used], counts[:used], experts, index, payload[: used * 260]])
    for left, right in zip(*outs, strict=True):
        np.testing.assert_array_equal(left, right)
