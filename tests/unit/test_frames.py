"""The frame decoder: any split of the bytes, every length refused before it is allocated."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch import frames
from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import (
    FRAGMENT,
    FRAGMENT_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_STREAMS,
    OPEN,
    PREFIX,
    PROTOCOL,
    Limits,
    fragment_prefix,
    pack_header,
)
from cluster.dispatch.kinds import FIRST_SPOKEN, Kind
from cluster.errors import ProtocolError


def whole(kind: Kind, header: object, payload: bytes = b"") -> bytes:
    return pack_header(kind, header, len(payload)) + payload  # type: ignore[arg-type]


def fragmented(kind: Kind, header: object, payload: bytes, stream: int) -> list[bytes]:
    parts = [pack_header(kind, header, len(payload), stream)]  # type: ignore[arg-type]
    for at in range(0, len(payload), FRAGMENT_BYTES):
        piece = payload[at : at + FRAGMENT_BYTES]
        parts.append(fragment_prefix(kind, stream, len(piece)) + piece)
    return parts


def prefix(
    *, magic: bytes = MAGIC, protocol: int = PROTOCOL, kind: int = Kind.DISPATCH, flags: int = 0,
    stream: int = 0, header: int = 0, payload: int = 0,
) -> bytes:  # fmt: skip
    return PREFIX.pack(magic, protocol, kind, flags, 0, stream, header, payload)


def received(decoder: FrameDecoder, data: bytes) -> list[tuple[Kind, object, bytes]]:
    return [(f.kind, f.header, bytes(f.payload)) for f in decoder.feed(data)]


MESSAGES = [
    (Kind.PING, [], b""),
    (Kind.DISPATCH, [1, 2, 3, b"\x01\x02"], bytes(range(40))),
    (Kind.SYNC, {"role": "node", "stats": {"rows": 3}}, b""),
    (Kind.RESULT, [9], b"x"),
]


def test_every_split_gives_the_same_frames() -> None:
    data = b"".join(whole(*message) for message in MESSAGES)
    for cut in range(len(data) + 1):
        decoder = FrameDecoder()
        assert received(decoder, data[:cut]) + received(decoder, data[cut:]) == MESSAGES


def test_one_byte_at_a_time() -> None:
    decoder = FrameDecoder()
    data = b"".join(whole(*message) for message in MESSAGES)
    assert [f for byte in data for f in received(decoder, bytes([byte]))] == MESSAGES


@given(
    messages=st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=200_000)), max_size=4),
    cuts=st.lists(st.integers(0, 800_000), max_size=12),
)
def test_payloads_larger_than_the_staging_buffer(messages: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    data = b"".join(whole(kind, [7], payload) for kind, payload in messages)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = FrameDecoder()
    got = [f for a, b in pairwise(edges) for f in received(decoder, data[a:b])]
    assert got == [(kind, [7], payload) for kind, payload in messages]


def test_a_header_larger_than_the_staging_buffer() -> None:
    header = {"text": "x" * (MAX_HEADER_BYTES - 100)}
    data = whole(Kind.SYNC, header) + whole(Kind.PING, []) + whole(Kind.RESULT, [1], b"abc")
    decoder = FrameDecoder()
    got = [f for at in range(0, len(data), 50_001) for f in received(decoder, data[at : at + 50_001])]
    assert got == [(Kind.SYNC, header, b""), (Kind.PING, [], b""), (Kind.RESULT, [1], b"abc")]


def test_fragments_of_two_messages_and_small_frames_interleave() -> None:
    first, second = bytes([1]) * (2 * FRAGMENT_BYTES + 5), bytes([2]) * (FRAGMENT_BYTES + 1)
    a, b = fragmented(Kind.RESULT, ["a"], first, 7), fragmented(Kind.RESULT, ["b"], second, 8)
    ping = whole(Kind.PING, [])
    data = b"".join([a[0], ping, b[0], a[1], b[1], ping, a[2], b[2], a[3], ping])
    decoder = FrameDecoder()
    got = [f for at in range(0, len(data), 60_000) for f in received(decoder, data[at : at + 60_000])]
    assert [(kind, header, len(payload)) for kind, header, payload in got] == [
        (Kind.PING, [], 0),
        (Kind.PING, [], 0),
        (Kind.RESULT, ["b"], len(second)),
        (Kind.RESULT, ["a"], len(first)),
        (Kind.PING, [], 0),
    ]
    assert got[2][2] == second
    assert got[3][2] == first


def test_the_sink_sees_the_header_first_and_may_throw_the_payload_away() -> None:
    target = bytearray(3 * FRAGMENT_BYTES)
    asked = []

    def sink(kind: Kind, header: list[int], count: int) -> tuple[memoryview, str] | None:
        asked.append((kind, header, count))
        return (memoryview(target)[:count], "mine") if header == [1] else None

    wanted, stale = bytes([5]) * (FRAGMENT_BYTES + 9), bytes([6]) * (FRAGMENT_BYTES + 7)
    data = b"".join(
        [
            *fragmented(Kind.RESULT, [0], stale, 1),
            whole(Kind.RESULT, [0], b"old"),
            whole(Kind.FAULT, [2]),
            *fragmented(Kind.RESULT, [1], wanted, 1),
        ]
    )
    fault, result = FrameDecoder(sink=sink).feed(data)
    assert (fault.kind, fault.header, fault.context) == (Kind.FAULT, [2], None)
    assert (result.kind, result.header, result.context) == (Kind.RESULT, [1], "mine")
    assert bytes(result.payload) == wanted
    assert bytes(target[: len(wanted)]) == wanted
    assert not any(target[len(wanted) :])
    assert asked == [(Kind.RESULT, [0], len(stale)), (Kind.RESULT, [0], 3), (Kind.RESULT, [1], len(wanted))]


def test_lengths_are_refused_before_anything_is_allocated() -> None:
    giants = [
        (prefix(header=MAX_HEADER_BYTES + 1), "header of 1048577 bytes"),
        (prefix(payload=FRAGMENT_BYTES + 1), "payload of 262145 bytes"),
        (prefix(flags=OPEN, payload=(1 << 32) - 1), "payload of 4294967295 bytes"),
        (prefix(header=(1 << 32) - 1, payload=(1 << 32) - 1), "header of 4294967295 bytes"),
    ]
    for data, words in giants:
        decoder = FrameDecoder()
        tracemalloc.start()
        with pytest.raises(ProtocolError, match=words):
            decoder.feed(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


def test_the_payload_bound_is_configurable_and_binds_small_frames_too() -> None:
    decoder = FrameDecoder(Limits(payload=100))
    with pytest.raises(ProtocolError, match="101 bytes; at most 100"):
        decoder.feed(whole(Kind.DISPATCH, [], bytes(101)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak moemesh frames"),
        (bytes(64), "does not speak moemesh frames"),
        (prefix(protocol=PROTOCOL + 1), f"protocol {PROTOCOL + 1}, this process speaks {PROTOCOL}"),
        (prefix(protocol=0), "protocol 0"),
        (prefix(kind=99), "unknown frame kind 99"),
        (prefix(flags=3), "unknown flags 3"),
        (prefix(header=1) + b"\xc1", "not msgpack"),
        (prefix(header=5) + b"\xdd\xff\xff\xff\xff", "not msgpack"),  # an array of 2**32 - 1 elements
        (prefix(header=3) + msgpack.packb(msgpack.ExtType(5, b"")), "extension type 5"),
        (prefix(header=2) + b"\x90\x90", "not msgpack"),
        (prefix(header=1) + b"\x07", "is a int"),
        (prefix(flags=FRAGMENT, stream=3, payload=10), "does not fit stream 3"),
        (prefix(flags=OPEN, header=1, payload=10) + b"\x90", "opens stream 0"),
    ],
)
def test_garbage_is_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        FrameDecoder().feed(data)


def test_nested_headers_do_not_exhaust_the_stack() -> None:
    deep = b"\x91" * 100_000 + b"\x90"
    with pytest.raises(ProtocolError, match="not msgpack"):
        FrameDecoder().feed(prefix(header=len(deep)) + deep)


def test_fragments_may_not_exceed_what_was_announced() -> None:
    size = FRAGMENT_BYTES + 10
    opening, first, _ = fragmented(Kind.RESULT, [], bytes(size), 4)
    decoder = FrameDecoder()
    decoder.feed(opening + first)
    with pytest.raises(ProtocolError, match="fragment of 11 bytes"):
        decoder.feed(prefix(kind=Kind.RESULT, flags=FRAGMENT, stream=4, payload=11))


def test_open_streams_are_bounded() -> None:
    def opening(stream: int) -> bytes:
        return pack_header(Kind.RESULT, [], FRAGMENT_BYTES + 1, stream)

    decoder = FrameDecoder(sink=lambda kind, header, count: None)
    for stream in range(MAX_STREAMS):
        decoder.feed(opening(stream))
    with pytest.raises(ProtocolError, match="may not"):
        decoder.feed(opening(MAX_STREAMS))


def test_protocol_n_accepts_n_and_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [v for v in range(5) if frames.accepted(v, Kind.DISPATCH)] == [1]
    monkeypatch.setattr(frames, "PROTOCOL", 4)
    assert [v for v in range(7) if frames.accepted(v, Kind.DISPATCH)] == [3, 4]
    assert [v for v in range(7) if frames.accepted(v, Kind.HELLO)] == [1, 3, 4]


def test_frames_of_the_link_itself_say_the_same_in_every_protocol() -> None:
    for kind in Kind:
        protocol = pack_header(kind, {}, 0, protocol=7)[2]
        assert protocol == (frames.GREETING_PROTOCOL if kind < FIRST_SPOKEN else 7)
    assert fragment_prefix(Kind.BLOB, 1, 1, 7)[2] == 7


@pytest.mark.parametrize(
    ("mine", "theirs", "between"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 3, 2), (1, 3, None), (3, 1, None)]
)
def test_two_processes_speak_the_lower_of_neighbouring_protocols(
    mine: int, theirs: int, between: int | None
) -> None:
    assert frames.spoken(mine, theirs) == between


def test_a_header_too_large_to_send_is_refused_at_the_sender() -> None:
    with pytest.raises(ProtocolError, match="exceeds"):
        pack_header(Kind.SYNC, {"x": b"0" * MAX_HEADER_BYTES}, 0)
