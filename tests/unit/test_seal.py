"""Records of sealed links: what was sent comes out, in any split, and nothing else ever does."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import FRAGMENT_BYTES, Frame, fragment_prefix, pack_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.seal import OVERHEAD, RECORD_BYTES, SealedDecoder, Session, Share
from cluster.errors import ProtocolError, Tampered, Unavailable

KEY, GREETING = b"k" * 32, b"what both have said"


def sessions(key: bytes = KEY, greeting: bytes = GREETING) -> tuple[Session, Session]:
    client, server = Share(), Share()
    return (
        client.session(server.public, key, greeting, server=False),
        server.session(client.public, key, greeting, server=True),
    )


CLIENT, SERVER = sessions()


def opener(session: Session = SERVER) -> SealedDecoder:
    return session.decoder(FrameDecoder())


def message(number: int, payload: bytes) -> list[bytes]:
    """Its buffers, as a connection gives them to a sealer: a large one goes in fragments."""
    head = pack_header(Kind.RESULT, [number], len(payload), stream=number + 1)
    if len(payload) <= FRAGMENT_BYTES:
        return [head, payload]
    pieces = [payload[at : at + FRAGMENT_BYTES] for at in range(0, len(payload), FRAGMENT_BYTES)]
    prefixes = [fragment_prefix(Kind.RESULT, number + 1, len(piece)) for piece in pieces]
    return [head, *(part for pair in zip(prefixes, pieces, strict=True) for part in pair)]


def records(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        end = at + 4 + struct.unpack_from("<I", data, at)[0]
        found.append(data[at:end])
        at = end
    return found


def sealed(count: int, size: int = 100) -> list[bytes]:
    """As many records of one direction, each with a frame that tells its number."""
    sealer = CLIENT.sealer()
    return [bytes(sealer.seal(message(number, bytes(size)))) for number in range(count)]


def feed(decoder: SealedDecoder, data: bytes, step: int, frames: list[Frame]) -> None:
    for place in range(0, len(data), step):
        frames += decoder.feed(data[place : place + step])


def seen(frames: list[Frame]) -> list[tuple[Any, bytes]]:
    return [(frame.header, bytes(frame.payload)) for frame in frames]


def test_both_sides_have_the_same_keys_and_each_direction_its_own() -> None:
    assert (CLIENT.send, CLIENT.receive) == (SERVER.receive, SERVER.send)
    assert CLIENT.send != CLIENT.receive
    assert sessions()[0] != CLIENT, "of every connection"


@pytest.mark.parametrize(("key", "greeting"), [(b"o" * 32, GREETING), (KEY, b"other words")])
def test_keys_depend_on_the_cluster_s_key_and_on_the_greeting(key: bytes, greeting: bytes) -> None:
    client, server = Share(), Share()
    mine = client.session(server.public, KEY, GREETING, server=False)
    theirs = server.session(client.public, key, greeting, server=True)
    with pytest.raises(Tampered):
        opener(theirs).feed(mine.sealer().seal(message(0, b"x")))


def test_keys_are_not_shown() -> None:
    assert CLIENT.send.hex() not in repr(CLIENT)
    assert str(CLIENT.send) not in repr(CLIENT)


def test_a_share_that_gives_everybody_the_same_secret_is_refused() -> None:
    with pytest.raises(ProtocolError, match="share"):
        Share().session(bytes(32), KEY, GREETING, server=True)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2000, RECORD_BYTES, FRAGMENT_BYTES + 1]), min_size=1, max_size=5),
    together=st.booleans(),
    steps=st.lists(st.integers(1, 90_000), min_size=1, max_size=8),
)
def test_frames_come_out_as_they_went_in(sizes: list[int], together: bool, steps: list[int]) -> None:
    sent = [message(number, bytes([number + 1]) * size) for number, size in enumerate(sizes)]
    sealer, data = CLIENT.sealer(), b""
    for group in [[part for each in sent for part in each]] if together else sent:
        data += sealer.seal(group)
    plain = b"".join(part for each in sent for part in each)
    assert len(data) == len(plain) + OVERHEAD * len(records(data))
    assert all(len(record) <= RECORD_BYTES + OVERHEAD for record in records(data))
    decoder, frames, at = opener(), [], 0
    while at < len(data):
        step = steps[at % len(steps)]
        frames += decoder.feed(data[at : at + step])
        at += step
    assert seen(frames) == seen(FrameDecoder().feed(plain))
    assert not decoder.at_rest, "the short way, which reads the socket itself, must stay away"


@given(at=st.integers(0, 2 * (100 + OVERHEAD)), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(at: int, bit: int) -> None:
    """Wherever it is: at worst when the record that it makes longer is there."""
    data = bytearray(b"".join(sealed(40)))
    data[at] ^= 1 << bit
    frames: list[Frame] = []
    with pytest.raises(Tampered):
        feed(opener(), bytes(data) + bytes(RECORD_BYTES), 50, frames)
    assert [frame.header for frame in frames] == [[number] for number in range(len(frames))]
    assert len(frames) <= 1


@pytest.mark.parametrize(
    "order",
    [[0, 0], [0, 1, 0], [1], [0, 2], [1, 0]],
    ids=["repeated", "repeated later", "first dropped", "one dropped", "swapped"],
)
def test_records_have_their_place(order: list[int]) -> None:
    """All before the first one out of place come out, none behind."""
    made = sealed(3)
    good = next(place for place, number in enumerate([*order, -1]) if place != number)
    decoder = opener()
    for number in order[:good]:
        assert seen(decoder.feed(made[number])) == [([number], bytes(100))]
    with pytest.raises(Tampered, match=f"record {good} of"):
        decoder.feed(made[order[good]])


def test_a_record_sent_back_to_its_sender_does_not_open() -> None:
    with pytest.raises(Tampered):
        opener(CLIENT).feed(sealed(1)[0])


@pytest.mark.parametrize("length", [0, 16, RECORD_BYTES + 17, 0xFFFFFFFF])
def test_no_length_is_believed_that_no_record_has(length: int) -> None:
    with pytest.raises(Tampered):
        opener().feed(struct.pack("<I", length))


def test_plain_frames_are_not_taken_for_records() -> None:
    with pytest.raises(Tampered):
        opener().feed(pack_header(Kind.WELCOME, {}, 0))


def test_the_error_says_what_to_do_and_is_met_as_a_lost_connection() -> None:
    assert issubclass(Tampered, Unavailable)
    with pytest.raises(Tampered, match="look at what lies between"):
        opener().feed(bytes(4))
