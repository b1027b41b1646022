"""The compiled short way of a dispatch against the general codec, over real socket pairs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import lead_of, pack_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.messages import tag_of
from cluster.dispatch.transport import WireShape
from cluster.errors import ProtocolError
from cluster.expert.batching import Box, parse
from kernels import express, wire

SHAPE = WireShape(layers=3, experts=32, top_k=4, hidden=64)
WIDE = WireShape(layers=3, experts=300, top_k=4, hidden=64)
DISPATCH, RESULT = lead_of(Kind.DISPATCH), lead_of(Kind.RESULT)
NUMBERS = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with closing(ours), closing(theirs):
        yield ours, theirs


def payload_of(rows: int, shape: WireShape) -> bytes:
    return bytes(i * 7 % 256 for i in range(rows * shape.row_bytes))


NOW = np.zeros((0, 2), np.int32)


def dispatch(tag: list[int], counts: list[int], experts: list[int], shape: WireShape = SHAPE) -> bytes:
    packed = np.array(experts, shape.expert_dtype).tobytes()
    body = payload_of(len(counts), shape)
    return pack_header(Kind.DISPATCH, [*tag, len(counts), bytes(counts), packed], len(body)) + body


def take(data: bytes, shape: WireShape = SHAPE, peer: int = 7, held: object = 1) -> tuple[int, Box]:
    """(rows taken, the box) when `data` is what the socket holds."""
    box = Box(shape)
    allowed = np.zeros((shape.layers, shape.experts), np.uint8)
    allowed[:, :] = held
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        theirs.sendall(data)
        staging = np.zeros(1 << 16, np.uint8)
        rows = express.take_request(
            ours.fileno(), NOW, staging, DISPATCH, peer, allowed, shape.expert_bytes, *box.arrays
        )
    assert box.numbers[-1] == len(data)
    assert staging[: len(data)].tobytes() == data
    return rows, box


@pytest.mark.parametrize("shape", [SHAPE, WIDE])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_is_read_as_the_decoder_reads_it(number: int, shape: WireShape) -> None:
    tag, counts, experts = [number, 7, number, 2, number, number, number], [1, 3, 2], [3, 31, 0, 5, 9, 30]
    data = dispatch(tag, counts, experts, shape)
    rows, box = take(data, shape)
    assert rows == 3
    (frame,) = FrameDecoder().feed(data)
    there, here = parse(None, frame, tag_of(frame.header), shape), box.job(None, rows)  # type: ignore[arg-type]
    assert here.tag == there.tag == tag
    assert here.layer == there.layer == 2
    for name in ("counts", "experts", "rows", "scales"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))


TAG = [1, 7, 5, 2, 0, 0, 4]
GOOD = dispatch(TAG, [1, 2], [3, 4, 5])


@pytest.mark.parametrize(
    "data",
    [
        GOOD[:-1],
        GOOD + GOOD[:1],
        GOOD + GOOD,
        GOOD[:10],
        b"xx" + GOOD[2:],
        dispatch([1, 8, 5, 2, 0, 0, 4], [1, 2], [3, 4, 5]),  # another incarnation
        dispatch([1, 7, 5, 3, 0, 0, 4], [1, 2], [3, 4, 5]),  # no such layer
        dispatch(TAG, [1, 2], [3, 4]),
        dispatch(TAG, [1, 1], [3, 4, 5]),
        dispatch(TAG, [3, 0], [3, 4, 5]),
        dispatch(TAG, [1, 2], [3, 4, 32]),  # no such expert
        dispatch(TAG, [], []),
        dispatch(TAG[:6], [1, 2], [3, 4, 5]),
        dispatch([*TAG, 1], [1, 2], [3, 4, 5]),
        pack_header(Kind.PING, [], 0),
        pack_header(Kind.DISPATCH, [*TAG, "three"], 0),
        pack_header(Kind.DISPATCH, [1, 7, 5, 2, 0, 0, -4, 1, b"\1", b"\1"], 68) + bytes(68),
        pack_header(Kind.DISPATCH, [1, 7, 5, 2, 0, 0, 2**63, 1, b"\1", b"\1"], 68) + bytes(68),
        pack_header(Kind.DISPATCH, {"rows": 1}, 0),
    ],
)
def test_what_is_not_one_sound_request_is_left_to_the_decoder(data: bytes) -> None:
    assert take(data)[0] == 0


def test_a_request_for_an_expert_that_is_not_held_is_left_to_the_decoder() -> None:
    assert take(GOOD)[0] == 2
    assert take(GOOD, held=0)[0] == 0


@settings(max_examples=300)
@given(at=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.integers(0, 8))
def test_no_damage_is_taken_that_the_general_way_would_refuse(at: int, value: int, cut: int) -> None:
    data = bytearray(GOOD)
    data[at] = value
    data = data[: len(data) - cut]
    rows, box = take(bytes(data))
    if not rows:
        return
    (frame,) = FrameDecoder().feed(bytes(data))
    try:
        job = parse(None, frame, tag_of(frame.header), SHAPE)  # type: ignore[arg-type]
    except ProtocolError as error:
        pytest.fail(f"taken although {error}")
    assert job.tag == box.job(None, rows).tag  # type: ignore[arg-type]
    assert job.experts.tolist() == box.experts[: len(job.experts)].tolist()


def test_the_end_of_a_stream_is_told_as_no_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    box, staging = Box(SHAPE), np.zeros(1 << 16, np.uint8)
    held = np.ones((3, 32), np.uint8)
    arguments = (ours.fileno(), NOW, staging, DISPATCH, 7, held, 1, *box.arrays)
    assert express.take_request(*arguments) == 0  # nothing there yet
    assert box.numbers[-1] == 0
    theirs.close()
    assert express.take_request(*arguments) == 0
    assert box.numbers[-1] == 0


def test_a_request_is_waited_for_until_something_else_comes(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    wake, waker = socket.socketpair()
    box, staging = Box(SHAPE), np.zeros(1 << 16, np.uint8)
    held = np.ones((3, 32), np.uint8)
    watched = np.array([[ours.fileno(), 0], [wake.fileno(), 0]], np.int32)
    arguments = (ours.fileno(), watched, staging, DISPATCH, 7, held, 1, *box.arrays)
    data = dispatch([1, 7, 1, 2, 0, 0, 0], [1], [3])
    with closing(wake), closing(waker):
        late = threading.Timer(0.05, theirs.sendall, (data,))
        late.start()
        assert express.take_request(*arguments) == 1
        late.join()
        theirs.sendall(data)
        waker.send(b"\0")
        assert express.take_request(*arguments) == 0
        assert box.numbers[-1] == 0
        assert ours.recv(1 << 16) == data
        late = threading.Timer(0.05, waker.send, (b"\0",))
        late.start()
        assert express.take_request(*arguments) == 0
        late.join()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_result_is_written_as_the_general_codec_writes_it(
    number: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    numbers = np.array([number, 7, number, 2, 0, 1, 5, 3, 6, 0], np.int64)
    data = np.arange(200, dtype=np.uint8)
    head = np.zeros(wire.HEAD_BYTES, np.uint8)
    assert express.post_result(ours.fileno(), RESULT, numbers, 9, 4, number, data, head) == 0
    tag = [number, 7, number, 2, 0, 1, 9]
    expected = pack_header(Kind.RESULT, [*tag, 6, 4, number], 200) + data.tobytes()
    assert theirs.recv(4096) == expected


def test_what_a_full_socket_does_not_take_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    numbers, head = np.zeros(10, np.int64), np.zeros(wire.HEAD_BYTES, np.uint8)
    data = np.zeros(1 << 22, np.uint8)
    left = express.post_result(ours.fileno(), RESULT, numbers, 0, 0, 0, data, head)
    assert 0 < left < data.size
    again = express.post_result(ours.fileno(), RESULT, numbers, 0, 0, 0, data, head)
    assert again > data.size  # the header did not fit either


class Plan:
    """Two nodes, of which the first gets rows 0 and 2, the second row 1."""

    def __init__(self, descriptors: list[int]) -> None:
        self.fds = np.array(descriptors, np.int32)
        self.tag = np.array([1, 0, 5, 2, 0, 0, 4], np.int64)
        self.peers = np.array([70, 71], np.int64)
        self.row_start, self.pair_start = np.array([0, 2, 3], np.int64), np.array([0, 3, 7], np.int64)
        self.counts = np.array([1, 2, 4], np.uint8)
        self.experts = np.array([3, 4, 5, 6, 7, 8, 9], np.int32)
        self.payload = np.frombuffer(payload_of(3, SHAPE), np.uint8).copy()
        self.waiting, self.sent = np.zeros(2, np.uint8), np.zeros(2, np.int64)
        self.tally = np.zeros(7, np.int64)
        self.results = np.zeros(7 * 128, np.uint8)
        self.loads = np.zeros((2, 2), np.int64)
        self.staging = np.zeros(1 << 16, np.uint8)

    def post(self) -> int:
        plan = (self.row_start, self.pair_start, self.counts, self.experts)
        head = np.zeros(wire.HEAD_BYTES, np.uint8)
        return express.post_requests(
            self.fds, DISPATCH, self.tag, self.peers, *plan, 1, self.payload, SHAPE.row_bytes,
            head, self.waiting, self.sent, self.tally,
        )  # fmt: skip

    def gather(self, timeout_ms: int = 2000) -> int:
        return express.gather_results(
            self.fds, RESULT, self.tag, self.peers, self.pair_start, 128, self.results, timeout_ms,
            self.waiting, self.staging, np.zeros((2, 2), np.int32), self.loads, self.tally,
        )  # fmt: skip


def reply(plan: Plan, node: int, **changes: int) -> bytes:
    pairs = int(plan.pair_start[node + 1] - plan.pair_start[node])
    tag = {"router": 1, "peer": int(plan.peers[node]), "step": 5, "layer": 2, "mb": 0, "attempt": 0}
    body = bytes([node + 1]) * (pairs * 128)
    return pack_header(Kind.RESULT, [*(tag | changes).values(), 9, pairs, 2, 33], len(body)) + body


@pytest.fixture
def nodes() -> Iterator[tuple[Plan, list[socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, _ in pairs:
        ours.setblocking(False)
    yield Plan([ours.fileno() for ours, _ in pairs]), [theirs for _, theirs in pairs]
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_requests_are_written_as_the_general_codec_writes_them(
    nodes: tuple[Plan, list[socket.socket]],
) -> None:
    plan, ends = nodes
    assert plan.post() == 0
    first = pack_header(Kind.DISPATCH, [1, 70, 5, 2, 0, 0, 4, 2, b"\1\2", b"\3\4\5"], 2 * 68)
    second = pack_header(Kind.DISPATCH, [1, 71, 5, 2, 0, 0, 4, 1, b"\4", b"\6\7\x08\x09"], 68)
    assert ends[0].recv(4096) == first + plan.payload[: 2 * 68].tobytes()
    assert ends[1].recv(4096) == second + plan.payload[2 * 68 :].tobytes()
    assert plan.waiting.tolist() == [1, 1]
    assert plan.tally[:3].tolist() == [len(first) + len(second), 3 * 68, 2]


def test_a_node_without_rows_or_without_a_socket(nodes: tuple[Plan, list[socket.socket]]) -> None:
    plan, _ = nodes
    plan.row_start[1:], plan.pair_start[1:] = 0, 0
    assert plan.post() == 0
    assert plan.waiting.tolist() == [0, 0]
    assert plan.sent.tolist() == [-1, -1]
    plan.row_start[1:], plan.pair_start[1:] = [2, 3], [3, 7]
    plan.fds[1] = -1
    assert plan.post() == 1
    assert plan.sent.tolist() == [-1, 0]


def test_results_are_gathered_in_any_order(nodes: tuple[Plan, list[socket.socket]]) -> None:
    plan, ends = nodes
    plan.post()
    ends[1].sendall(reply(plan, 1))
    ends[0].sendall(reply(plan, 0))
    assert plan.gather() == express.ALL_IN
    assert plan.results.tolist() == [1] * 3 * 128 + [2] * 4 * 128
    assert plan.loads.tolist() == [[2, 33], [2, 33]]
    assert plan.tally[4:6].tolist() == [7 * 128, 2]


def test_a_quiet_node_is_told(nodes: tuple[Plan, list[socket.socket]]) -> None:
    plan, ends = nodes
    plan.post()
    ends[0].sendall(reply(plan, 0))
    assert plan.gather(timeout_ms=20) == express.QUIET
    assert plan.waiting.tolist() == [0, 1]


@pytest.mark.parametrize(
    "change", [{"router": 2}, {"peer": 69}, {"step": 4}, {"layer": 1}, {"mb": 1}, {"attempt": 1}]
)
def test_another_reply_is_handed_over(
    nodes: tuple[Plan, list[socket.socket]], change: dict[str, int]
) -> None:
    plan, ends = nodes
    plan.post()
    other = reply(plan, 1, **change)
    ends[1].sendall(other)
    assert plan.gather() == 1
    assert plan.staging[: plan.tally[6]].tobytes() == other
    assert plan.waiting.tolist() == [1, 1]
    assert not plan.results.any()


@pytest.mark.parametrize("cut", [3, 40, -1])
def test_half_a_reply_is_handed_over(nodes: tuple[Plan, list[socket.socket]], cut: int) -> None:
    plan, ends = nodes
    plan.post()
    ends[0].sendall(reply(plan, 0)[:cut])
    assert plan.gather() == 0
    assert plan.tally[6] == len(reply(plan, 0)[:cut])


def test_a_stream_that_ends_is_told(nodes: tuple[Plan, list[socket.socket]]) -> None:
    plan, ends = nodes
    plan.post()
    ends[0].close()
    assert plan.gather() == 0
    assert plan.tally[6] == 0
