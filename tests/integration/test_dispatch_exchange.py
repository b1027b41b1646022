"""The exchange against real nodes on loopback, and against a scripted one that misbehaves."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.balance.placement import PlacementTable, round_robin
from cluster.dispatch.connection import Connection
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.frames import Frame, pack_header
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.dispatch.transport import ExpertCall, WireShape
from cluster.errors import MoemeshError, NodeLost, ProtocolError, Unavailable
from cluster.types import ExpertId, NodeId
from kernels import express, permute
from support import permute_reference
from support.expert_nodes import (
    FLOATS,
    LIBRARY,
    SHAPE,
    FakeCompute,
    Gate,
    check,
    connected,
    expected,
    make_call,
    router,
    running,
)


def round_trip(exchange: Exchange, call: ExpertCall, shape: WireShape = SHAPE) -> None:
    exchange.send(call)
    check(shape, call, exchange.wait(call.step, call.layer, call.micro_batch))


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


def test_a_call_alone_in_flight_goes_the_short_way() -> None:
    with running(3) as nodes, connected(nodes) as exchange:
        for step in range(10):
            round_trip(exchange, make_call(2, step=step))
        assert exchange.counters.express == 10
        large = make_call(512, step=10)
        round_trip(exchange, large)
        assert exchange.counters.express == 10
        assert all(service_us > 0 for _, service_us in exchange.loads().values())


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

Answer = Callable[[Connection, list[object], bytes], None]


@contextmanager
def scripted(answer: Answer) -> Iterator[tuple[PlacementTable, dict[NodeId, str]]]:
    """A node that answers DISPATCH by `answer(connection, header, right payload)`."""

    def on_frame(connection: Connection, frame: Frame) -> None:
        header = frame.header
        rows, counts, experts = (
            header[7],
            np.frombuffer(header[8], np.uint8),
            np.frombuffer(header[9], np.uint8),
        )
        data = np.frombuffer(frame.payload, np.int8, rows * SHAPE.hidden).reshape(rows, SHAPE.hidden)
        scales = np.frombuffer(frame.payload, np.float32, rows, data.size)
        result = FakeCompute().run(header[3], counts, experts.astype(np.int32), data, scales)
        answer(connection, header, result.tobytes())

    name = NodeId("scripted")
    server = FrameServer(on_frame=on_frame, identity=Identity("node", name, 7, LIBRARY))
    address = server.start()
    try:
        yield round_robin(3, 32, [name]), {name: address}
    finally:
        server.shutdown()


@contextmanager
def asking(answer: Answer, **options: float) -> Iterator[Exchange]:
    with scripted(answer) as (table, addresses):
        exchange = Exchange(router(), SHAPE, table, addresses, **options)
        try:
            exchange.connect(10)
            yield exchange
        finally:
            exchange.close()


def tail(data: bytes) -> list[int]:
    return [len(data) // (SHAPE.hidden * 2), 0, 0]


@pytest.mark.parametrize("tokens", [2, 600])
def test_stale_duplicate_and_foreign_replies_touch_nothing(tokens: int) -> None:
    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        poison = b"\xff" * len(data)
        router_inc, node_inc, step, layer, mb, attempt, table = header[:7]
        for wrong in (
            [router_inc, node_inc, step - 1, layer, mb, attempt, table],  # type: ignore[operator]
            [router_inc, node_inc, step, layer, mb, attempt + 1, table],  # type: ignore[operator]
            [router_inc, 8, step, layer, mb, attempt, table],
            [99, node_inc, step, layer, mb, attempt, table],
        ):
            connection.send(Kind.RESULT, [*wrong, *tail(data)], poison)
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], data)
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], poison)

    with asking(answer) as exchange:
        for step in range(1, 6):
            round_trip(exchange, make_call(tokens, step=step))
        assert 20 <= exchange.counters.stale <= 25


def test_replies_of_two_calls_in_reverse_order() -> None:
    kept: list[tuple[list[object], bytes]] = []

    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        kept.append((header, data))
        if len(kept) == 2:
            for old, rows in reversed(kept):
                connection.send(Kind.RESULT, [*old[:7], *tail(rows)], rows)

    with asking(answer) as exchange:
        calls = [make_call(300, micro_batch=mb) for mb in range(2)]
        for call in calls:
            exchange.send(call)
        for call in calls:
            check(SHAPE, call, exchange.wait(0, 0, call.micro_batch))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda c, h, d: c.send(Kind.RESULT, [*h[:7], *tail(d)], d[:-2]), "bytes of results where"),
        (lambda c, h, d: c.send(Kind.RESULT, [*h[:7], *tail(d)]), "without rows"),
        (lambda c, h, d: c.send(Kind.RESULT, [1], d), "without its numbers"),
        (lambda c, h, d: c.send(Kind.EVENTS, h[:7]), "EVENTS frame where a reply"),
    ],
)
def test_a_node_that_answers_nonsense_is_named(reply: Answer, words: str) -> None:
    with asking(reply) as exchange:
        exchange.send(make_call(2))
        with pytest.raises(ProtocolError, match=f"node scripted .*{words}"):
            exchange.wait(0, 0, 0)


def test_a_connection_that_breaks_in_the_middle_of_a_reply() -> None:
    broken: list[int] = []

    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        if not broken:
            broken.append(1)
            head = pack_header(Kind.RESULT, [*header[:7], *tail(data)], len(data))
            connection.sock.setblocking(True)
            connection.sock.sendall(head + b"\xff" * (len(data) // 2))
            connection.sock.shutdown(socket.SHUT_RDWR)
            return
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], data)

    with asking(answer) as exchange:
        round_trip(exchange, make_call(40))
        assert exchange.counters.resends == 1


def test_a_node_that_is_always_full_is_overloaded_not_lost() -> None:
    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        connection.send(Kind.FAULT, [*header[:7], "Overloaded", "9 rows wait already"])

    with asking(answer, deadline_s=0.3) as exchange:
        exchange.send(make_call(2))
        with pytest.raises(MoemeshError, match="node scripted: 9 rows wait already") as caught:
            exchange.wait(0, 0, 0)
        assert type(caught.value).__name__ == "Overloaded"
        assert exchange.counters.resends >= 2


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
