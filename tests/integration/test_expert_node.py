"""The expert node, spoken to in plain frames."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.dispatch.client import ControlClient
from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity, split_address
from cluster.dispatch.kinds import Kind
from cluster.errors import InvalidRequest, MoemeshError, ProtocolError
from cluster.expert.batching import Job, Waiting, merge
from cluster.expert.node import ExpertNode
from cluster.types import ExpertId
from support.expert_nodes import FLOATS, LIBRARY, SHAPE, FakeCompute, Gate, mixed, router

HELD = [ExpertId(layer, index) for layer in range(3) for index in range(16)]


@contextmanager
def serving(compute: FakeCompute | None = None, **options: Any) -> Iterator[ExpertNode]:
    compute = compute or FakeCompute()
    node = ExpertNode(compute, compute.shape, node_id="n", library=LIBRARY, incarnation=7, **options)
    node.hold(3, HELD)
    node.start()
    try:
        yield node
    finally:
        node.shutdown()


class Router:
    """Sends DISPATCH frames of its own making and keeps what comes back."""

    def __init__(self, node: ExpertNode, number: int = 1) -> None:
        self.connection = Connection(socket.create_connection(split_address(node.address)))
        self.connection.send(Kind.HELLO, router(number).to_header())
        assert self.recv().kind is Kind.WELCOME
        self.number = number
        self.sent: dict[tuple[int, int, int], tuple[Any, ...]] = {}

    def ask(
        self, step: int, layer: int = 0, rows: int = 2, experts: list[int] | None = None, mb: int = 0
    ) -> None:
        rng = np.random.default_rng([self.number, step, layer])
        counts = np.full(rows, 2, np.uint8)
        chosen = np.array(experts or rng.integers(0, 16, 2 * rows), np.int32)
        data = rng.integers(-127, 128, (rows, SHAPE.hidden)).astype(np.int8)
        scales = rng.random(rows).astype(np.float32)
        self.sent[step, layer, mb] = (layer, counts, chosen, data, scales)
        header = [
            self.number,
            7,
            step,
            layer,
            mb,
            0,
            3,
            rows,
            counts.tobytes(),
            chosen.astype(np.uint8).tobytes(),
        ]
        self.connection.send(Kind.DISPATCH, header, data.tobytes() + scales.tobytes())

    def recv(self, timeout_s: float = 20.0) -> Frame:
        deadline = time.monotonic() + timeout_s
        self.connection.sock.settimeout(0.0)
        while time.monotonic() < deadline:
            frames = self.connection.read()
            if frames:
                assert len(frames) == 1, "more than was asked for"
                return frames[0]
            time.sleep(0.001)
        raise AssertionError("no answer")

    def recv_many(self, count: int) -> list[Frame]:
        frames: list[Frame] = []
        deadline = time.monotonic() + 20
        while len(frames) < count and time.monotonic() < deadline:
            frames += self.connection.read()
        assert len(frames) == count
        return frames

    def check(self, frame: Frame) -> None:
        assert frame.kind is Kind.RESULT, frame
        assert frame.header[:2] == [self.number, 7]
        wanted = mixed(SHAPE, *self.sent[tuple(frame.header[2:5])])
        got = np.frombuffer(frame.payload, np.uint16).reshape(wanted.shape)
        np.testing.assert_array_equal(got, wanted)
        assert frame.header[7] == len(wanted)

    def close(self) -> None:
        self.connection.close()


@contextmanager
def asking(node: ExpertNode, count: int = 1) -> Iterator[list[Router]]:
    routers = [Router(node, n + 1) for n in range(count)]
    try:
        yield routers
    finally:
        for r in routers:
            r.close()


def test_results_come_in_request_order_with_the_load() -> None:
    with serving() as node, asking(node) as (r,):
        for step in range(10):
            r.ask(step, layer=step % 3, rows=1 + 13 * step)
            frame = r.recv()
            r.check(frame)
            assert frame.header[5:7] == [0, 3]
            assert frame.header[8] == 0
        stats = node.stats()
        assert stats["messages"] == stats["batches"] == 10
        assert stats["rows"] == sum(1 + 13 * step for step in range(10))
        assert stats["pairs"] == 2 * stats["rows"]
        assert stats["table"] == 3
        assert node.ready


def test_messages_of_several_routers_wait_and_become_one_call() -> None:
    gate = Gate()
    compute = FakeCompute(before=gate)
    with serving(compute, inline_us=0) as node, asking(node, 3) as routers:
        routers[0].ask(0, layer=2)
        assert gate.reached.wait(10)
        for r in routers:
            r.ask(1, layer=0, rows=3)
            r.ask(2, layer=1, rows=4)
        wait_until(lambda: node.stats()["waiting"] == 6)
        assert node.stats()["waiting_rows"] == 21
        gate.opened.set()
        for r in routers:
            for frame in r.recv_many(3 if r is routers[0] else 2):
                r.check(frame)
        assert compute.calls == [(2, 2), (0, 9), (1, 12)]
        assert node.stats()["batches"] == 3
        assert node.stats()["messages"] == 7


def test_small_work_is_done_by_the_reading_thread_once_its_cost_is_known() -> None:
    threads: list[str] = []
    compute = FakeCompute(before=lambda layer, experts: threads.append(threading.current_thread().name))
    with serving(compute, inline_us=1e6) as node, asking(node) as (r,):
        for step in range(3):
            r.ask(step)
            r.check(r.recv())
    assert threads == ["node-n-compute", "node-n-io", "node-n-io"]


def test_the_reader_drains_while_the_compute_is_busy() -> None:
    gate = Gate()
    with serving(FakeCompute(before=gate), inline_us=0) as node, asking(node) as (r,):
        r.ask(0)
        assert gate.reached.wait(10)
        for step in range(1, 9):
            r.ask(step, rows=500)  # a megabyte: more than the socket holds
        r.connection.send(Kind.PING, [42])
        while r.connection.blocked:
            r.connection.flush()
        frame = r.recv()
        assert frame.kind is Kind.PONG
        assert frame.header == [42]
        gate.opened.set()
        for frame in r.recv_many(9):
            r.check(frame)


def test_a_full_queue_is_a_fault_and_the_rest_is_served() -> None:
    gate = Gate()
    with serving(FakeCompute(before=gate), inline_us=0, max_waiting_rows=10) as node, asking(node) as (r,):
        r.ask(0)
        assert gate.reached.wait(10)
        r.ask(1, rows=8)
        r.ask(2, rows=3)
        frame = r.recv()
        assert frame.kind is Kind.FAULT
        assert frame.header[2] == 2
        assert frame.header[7:] == ["Overloaded", "8 rows wait already"]
        gate.opened.set()
        for frame in r.recv_many(2):
            r.check(frame)
        assert node.stats()["overloaded"] == 1


def test_experts_that_it_does_not_hold() -> None:
    with serving() as node, asking(node) as (r,):
        r.ask(0, experts=[1, 2, 3, 16])
        frame = r.recv()
        assert frame.kind is Kind.NOT_HERE
        assert frame.header == [1, 7, 0, 0, 0, 0, 3]
        node.hold(4, [*HELD, ExpertId(0, 16)])
        r.ask(1, experts=[1, 2, 3, 16])
        frame = r.recv()
        r.check(frame)
        assert frame.header[6] == 4
        assert node.stats()["not_here"] == 1


def test_only_the_message_that_is_to_blame_fails() -> None:
    gate = Gate()

    def before(layer: int, experts: np.ndarray) -> None:
        gate(layer, experts)
        if 13 in experts:
            raise InvalidRequest("thirteen is unlucky")
        if 14 in experts:
            raise ZeroDivisionError("fourteen")

    with serving(FakeCompute(before=before), inline_us=0) as node, asking(node, 2) as (a, b):
        a.ask(0, layer=2, experts=[1, 2, 3, 4])
        assert gate.reached.wait(10)
        a.ask(1, experts=[1, 2, 3, 4])
        b.ask(1, experts=[1, 2, 3, 13])
        b.ask(2, experts=[1, 2, 3, 14])
        wait_until(lambda: node.stats()["waiting"] == 3)
        gate.opened.set()
        for frame in a.recv_many(2):
            a.check(frame)
        faults = {frame.header[2]: frame for frame in b.recv_many(2)}
        assert {frame.kind for frame in faults.values()} == {Kind.FAULT}
        assert faults[1].header[7:] == ["InvalidRequest", "thirteen is unlucky"]
        assert faults[2].header[7] == "MoemeshError"
        assert "ZeroDivisionError" in faults[2].header[8]
        a.ask(3, experts=[1, 2, 3, 4])
        a.check(a.recv())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({3: 3}, "layer 3 of a model with 3 layers"),
        ({1: 8}, "meant for incarnation 8"),
        ({7: 3}, "3 rows, 2 counts"),
        ({8: b"\x02\x03"}, "do not add up"),
        ({8: b"\x04\x00"}, "do not add up"),
        ({9: b"\x01"}, "1 experts do not add up"),
        ({8: 5}, "does not say what it carries"),
        ({7: 1, 8: b"\x04"}, "is the library the same"),
    ],
)
def test_a_dispatch_that_does_not_fit_is_a_fault(change: dict[int, Any], words: str) -> None:
    with serving() as node, asking(node) as (r,):
        header: list[Any] = [1, 7, 0, 0, 0, 0, 3, 2, b"\x02\x02", b"\x00\x01\x02\x03"]
        for place, value in change.items():
            header[place] = value
        r.connection.send(Kind.DISPATCH, header, bytes(2 * SHAPE.row_bytes))
        frame = r.recv()
        assert frame.kind is Kind.FAULT
        assert frame.header[7] == "ProtocolError"
        assert words in frame.header[8]
        r.ask(1)
        r.check(r.recv())


def test_a_header_without_numbers_and_a_frame_of_another_role() -> None:
    with serving() as node, asking(node) as (r,):
        r.connection.send(Kind.DISPATCH, [1, 7, 0, "x", 0, 0, 3])
        assert r.recv().header["error"] == "ProtocolError"
        r.connection.send(Kind.SUBMIT, [])
        assert "no answer to SUBMIT" in r.recv().header["message"]


def test_float_rows() -> None:
    with serving(FakeCompute(FLOATS)) as node, asking(node) as (r,):
        rows = np.random.default_rng(1).normal(size=(2, 256)).astype(np.float32)
        header = [1, 7, 0, 0, 0, 0, 3, 2, b"\x01\x02", b"\x05\x06\x07"]
        r.connection.send(Kind.DISPATCH, header, rows.tobytes())
        frame = r.recv()
        got = np.frombuffer(frame.payload, np.float32).reshape(3, 256)
        counts, experts = np.array([1, 2], np.uint8), np.array([5, 6, 7], np.int32)
        np.testing.assert_array_equal(got, mixed(FLOATS, 0, counts, experts, rows, np.empty(0)))


def test_another_library_is_refused_and_status_and_shutdown_are_answered() -> None:
    with serving() as node:
        other = ControlClient(node.address, identity=Identity("router", "r", 1, library="b" * 64))
        with pytest.raises(ProtocolError, match="node n serves 5eed5eed5eed"):
            other.call(Kind.STATUS, [])
        other.close()
        with ControlClient(node.address, identity=router()) as client:
            assert client.call(Kind.STATUS, []).header["table"] == 3
            assert not node.stopping.is_set()
            assert client.call(Kind.SHUTDOWN, []).kind is Kind.REPLY
            assert node.stopping.wait(5)


def test_work_of_a_router_that_has_gone_is_not_done() -> None:
    gate = Gate()
    compute = FakeCompute(before=gate)
    with serving(compute, inline_us=0) as node, asking(node, 2) as (gone, stays):
        gone.ask(0, layer=2)
        assert gate.reached.wait(10)
        gone.ask(1, rows=5)
        stays.ask(1, rows=6)
        wait_until(lambda: node.stats()["waiting"] == 2)
        gone.close()
        wait_until(lambda: node.stats()["connections"] == 1)
        gate.opened.set()
        stays.check(stays.recv())
        assert compute.calls == [(2, 2), (0, 6)]
        assert node.stats()["undelivered"] == 1


def test_shutdown_leaves_nothing_and_frees_the_port() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with serving() as node, asking(node) as (r,):
        r.ask(0)
        r.check(r.recv())
        port = split_address(node.address)[1]
    assert not node.ready
    with serving(port=port):
        pass
    node.shutdown()
    never_started = ExpertNode(FakeCompute(), SHAPE, node_id="x")
    never_started.shutdown()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failed_start_names_the_port() -> None:
    with serving() as node:
        second = ExpertNode(FakeCompute(), SHAPE, node_id="m", port=split_address(node.address)[1])
        with pytest.raises(MoemeshError, match="in use"):
            second.start()
        second.shutdown()


def test_batches_are_bounded_and_keep_the_order() -> None:
    def job(layer: int, rows: int, number: int, closed: bool = False) -> Job:
        connection = type("C", (), {"closed": closed})()
        return Job(
            connection,  # type: ignore[arg-type]
            [1, 7, number, layer, 0, 0, 3],
            np.full(rows, 1, np.uint8),
            np.full(rows, number, np.int32),
            np.full((rows, 4), number, np.int8),
            np.full(rows, number, np.float32),
        )

    waiting = Waiting()
    for each in (job(0, 9, 0, True), job(1, 5, 1), job(0, 2, 2), job(1, 6, 3), job(1, 2, 4), job(0, 1, 5)):
        waiting.add(each)
    assert (len(waiting), waiting.rows, waiting.pairs) == (6, 25, 25)
    batch = waiting.take(8)
    assert [j.tag[2] for j in batch] == [1, 4]
    assert (len(waiting), waiting.rows) == (3, 9)
    counts, experts, rows, scales = merge(batch)
    assert experts.tolist() == [1] * 5 + [4] * 2
    assert counts.shape == (7,)
    assert rows[:, 0].tolist() == experts.tolist() == scales.tolist()
    assert [[j.tag[2] for j in waiting.take(0)] for _ in range(3)] == [[2], [3], [5]]
    assert waiting.rows == waiting.pairs == 0


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
